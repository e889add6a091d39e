"""What the names in a config stand for."""

import typing

import jax.numpy as jnp
import numpy as np

from fbjax import sharding
from fbjax.bridge import alignment, diffusion, grids, prediction, samplers
from fbjax.bridge import process as process_lib
from fbjax.build.sources import SOURCES
from fbjax.data import pipeline, tokenizers
from fbjax.systems import codecs, cogvideox, latte, videocrafter
from fbjax.train import loop, objectives, optim

# Besides these, "diffusion" is the baseline: the process is config.diffusion itself.
PROCESSES = {"gmax": process_lib.Gmax, "constant": process_lib.constant, "vp": process_lib.VP}
DIFFUSIONS = {
  "none": lambda: None,
  "videocrafter": diffusion.videocrafter,
  "cogvideox": diffusion.cogvideox,
  "linear": diffusion.linear,
  "cosine": diffusion.cosine,
}
CODECS = {
  "pixels": codecs.Pixels,
  "autoencoder": codecs.Autoencoder,
  "video_autoencoder": codecs.VideoAutoencoder,
}
SYSTEMS = {
  "videocrafter": videocrafter.VideoCrafter,
  "cogvideox": cogvideox.CogVideoX,
  "latte": latte.Latte,
  "videocrafter_prior": videocrafter.VideoCrafterPrior,
  "cogvideox_prior": cogvideox.CogVideoXPrior,
  "latte_prior": latte.LattePrior,
}
OBJECTIVES = {"bridge": objectives.bridge_loss}
TOKENIZERS = {"bytes": tokenizers.Bytes, "clip": tokenizers.CLIP, "t5": tokenizers.T5}
SAMPLERS = {
  "sde": samplers.sde,
  "ode": samplers.ode,
  "first_order": samplers.first_order,
  "heun": samplers.heun,
  "dbim": samplers.dbim,
  "ddbm": samplers.ddbm,
  "euler_maruyama": samplers.euler_maruyama,
  "ddim": samplers.ddim,
  "ddpm": samplers.ddpm,
}
GRIDS = {
  "trailing": grids.trailing,
  "uniform": grids.uniform,
  "karras": grids.karras,
  "shifted": grids.shifted,
  # A diffusion's times are its indices.
  "trailing_indices": lambda n, steps: grids.trailing_indices(n, steps).astype(np.float64),
  "uniform_indices": lambda n, steps: grids.uniform_indices(n, steps).astype(np.float64),
  "latte_indices": lambda n, steps: grids.latte_indices(n, steps).astype(np.float64),
}
KINDS = typing.get_args(prediction.Kind)
RULES = typing.get_args(alignment.Rule)
PRECISIONS = ("default", "high", "highest")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# TABLES: groups with a name, whose other keys are arguments of what it stands for, except those in
# EXTRA. GROUPS: groups without a name.
TABLES = {
  "system": SYSTEMS,
  "data": SOURCES,
  "tokenizer": TOKENIZERS,
  "bridge": PROCESSES,
  "diffusion": DIFFUSIONS,
  "objective": OBJECTIVES,
}
EXTRA = {
  "objective": ("predict",),
  "diffusion": ("rule", "pretrained"),
  "bridge": ("steps",),
  "data": ("buckets",),
}
# Keys that the program itself reads, and cannot go without.
NEEDED = {"objective": ("predict",), "system": ("dtype",)}
# Arguments that are no keys: the program gives them.
GIVEN = {
  "system": ("coarse", "null_tokens", "frames"),
  "data": ("split",),
  "train": ("workdir", "seed"),
  "optim": ("steps",),
  "loader": ("batch_size", "seed", "process_index", "process_count"),
  "objective": ("system", "form"),
}
GROUPS = {
  "loader": pipeline.Batches,
  "optim": optim.make_optimizer,
  "train": loop.train,
  "mesh": sharding.make_mesh,
}
PLAIN = (int, float, bool, str)  # types of their arguments that are keys of a config
