"""Metrics, pictures and clips as a run of Weights & Biases, online or with WANDB_MODE=offline.

  wandb.json   in the workdir: the id of its run, which a resumed training continues

wandb's environment variables apply, such as WANDB_PROJECT and WANDB_NAME.
"""

import json
import os
import pathlib
import uuid
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from fbjax import places

ID_FILE = "wandb.json"
PROJECT = "fbjax"


class Wandb:
  """A run of Weights & Biases.

  Its steps are the training's. A resumed training repeats some, from the same clips and noise;
  wandb has them already and ignores the repetition.
  """

  def __init__(self, workdir: str, start: int):
    import wandb  # which few installations have

    self._wandb = wandb
    folder = places.local(workdir)
    places.pull(workdir, ID_FILE)
    config = json.loads((places.absolute(workdir) / "config.json").read_text())
    own = folder / ID_FILE
    named = json.loads(own.read_text())["id"] if start and own.exists() else None
    name = pathlib.PurePosixPath(str(workdir).rstrip("/")).name
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      name=os.environ.get("WANDB_NAME", name),
      id=named or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8],
      resume="allow",
      config=config,
      # Beside a bucket, which would get all of it anew at every line of progress.
      dir=None if places.is_remote(workdir) else str(folder),
    )
    own.write_text(json.dumps({"id": self._run.id}) + "\n")

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    self._run.log(dict(row), step=step)

  def picture(self, name: str, step: int, image: UInt8[np.ndarray, "_ _ 3"]) -> None:
    self._run.log({name: self._wandb.Image(image)}, step=step)

  def clip(self, name: str, step: int, file: pathlib.Path) -> None:
    self._run.log(
      {f"{name}_moving": self._wandb.Video(str(file), format=file.suffix[1:])}, step=step
    )

  def close(self) -> None:
    self._run.finish()
