"""--mode=pack: makes of a trained run one small folder that samples by itself.

  config.json          of the run, without what it started from
  model.safetensors    all its networks, the EMA of what trained; kernels in half precision
  weights.json         digests of the weights

`fbjax.load(folder)` and --mode=sample --model=<folder> animate images with it, and `config.weights`
of another run starts from it.
"""

import logging
from typing import Any

import numpy as np

from fbjax import errors, loading, places, trees
from fbjax import weights as weights_lib
from fbjax import workdir as workdir_lib
from fbjax.modes import sample

logger = logging.getLogger(__name__)

HALVED = ("kernel", "embedding")


def pack(
  config: dict[str, Any] | None,
  workdir: str | None,
  out: str | None,
  *,
  step: int | None = None,
  ema: bool = True,
) -> None:
  """Writes a trained run as a folder that needs nothing else.

  Args:
    config: of the run; None takes the workdir's own.
    workdir: of the run.
    out: the folder.
    step: of the run's checkpoint; None takes the newest.
    ema: takes the moving average of the run's weights; otherwise as the last step left them.

  Raises:
    UserError: when nothing was trained there, or the folder cannot be written or is in use.
  """
  if not workdir or not out:
    raise errors.UserError("--mode=pack needs --workdir=<trained run> and --out=<folder>")
  config = sample.resolve(config, workdir)
  if places.exists(f"{out}/{workdir_lib.CONFIG_FILE}"):
    raise errors.UserError(f"{out} already holds a model or a run; remove it or give another --out")
  places.check_writable(out)
  trained, frozen = loading.merged_weights(config, workdir, step, ema)
  leaves = {
    weights_lib.network_path(*path.split("/", 1)): halved(path, np.asarray(x))
    for path, x in trees.flatten(frozen | trained).items()
  }
  there = places.absolute(out)
  kept = set(there.iterdir()) if there.exists() else set()
  try:
    with errors.of_the_disk(f"cannot write {out}", lambda: "make room, or give another --out"):
      weights_lib.write_file(out, leaves, {"parts": {}})
      places.write_json(f"{out}/{workdir_lib.CONFIG_FILE}", by_itself(config))
  except BaseException:
    for file in set(there.iterdir()) - kept:
      file.unlink()
    raise
  size = sum(x.nbytes for x in leaves.values()) / 1e6
  logger.info("Packed %s into %s: %.1f MB.", workdir, out, size)


def by_itself(config: dict[str, Any]) -> dict[str, Any]:
  """The config of a packed model: without what the run started from, and what of it trained."""
  return config | {
    "weights": "",
    "start": {},
    "prior_run": "",
    "trainable": {"whole": [".*"], "lora": []},
  }


def halved(path: str, x: np.ndarray) -> np.ndarray:
  """Kernels and embeddings in float16, unless they overflow; other leaves as they are."""
  if path.split("/")[-1] not in HALVED or np.abs(x).max(initial=0) > np.finfo(np.float16).max:
    return x
  return x.astype(np.float16)
