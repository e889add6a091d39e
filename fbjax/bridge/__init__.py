"""Linear diffusion bridges in JAX, after FrameBridge (arXiv:2410.15371). Read in this order:

  process     the bridge: marginal, posterior, drifts, in closed form
  diffusion   the processes that pretrained networks know
  prediction  what a network predicts, and z0 from it
  alignment   a bridge state said in the words of a pretrained diffusion
  initialise  the first step of fine-tuning
  grids       times
  samplers    from the prior to a clip
  guidance, denoiser   what stands between a network and a sampler
  check       the self-check of an alignment

It imports jax, numpy and nothing else of this package. Sections (§) are those of docs/bridge.md.
"""
