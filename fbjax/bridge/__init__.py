"""Linear diffusion bridges in JAX, after FrameBridge (arXiv:2410.15371). Read in this order:

  process     the bridge: marginal, posterior, drifts, in closed form
  diffusion   noise schedules of pretrained diffusion networks
  prediction  prediction types (z0, noise, v, ...) and z0 from each of them
  alignment   a bridge state as input and time of a pretrained diffusion (SNR alignment)
  initialise  input kernels and outputs of a pretrained network at the start of fine-tuning
  grids       times of training, and time grids of samplers
  samplers    from the prior to a clip: first order, Heun, DBIM, DDBM, DDIM, DDPM
  guidance    classifier-free guidance
  denoiser    a network as the function z0_hat(zt, time) that samplers call
  check       the self-check of an alignment

It imports nothing of fbjax but itself. Sections (§) are those of docs/bridge.md.
"""
