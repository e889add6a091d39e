"""Port and export of a full-size VideoCrafter checkpoint: time, and peak memory beyond the file.

  python -m benchmarks.port_memory --folder=/tmp/port_memory

Released weights cannot be shipped, so it first writes files with their structure, every key, every
shape and half precision, but random values: 5 GB, and as much again for the port and the export.
"""

import json
import pathlib
import threading
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from benchmarks import fake_checkpoint
from configs import webvid_saf
from fbjax import build
from fbjax import weights as weights_lib
from fbjax.modes import export, port
from fbjax.port import files

FOLDER = flags.DEFINE_string("folder", "/tmp/port_memory", "Where the files go")


def main(argv: list[str]) -> None:
  del argv
  folder = pathlib.Path(FOLDER.value)
  folder.mkdir(parents=True, exist_ok=True)
  config = webvid_saf.get_config().to_dict()
  system = build.make_networks(config, None)
  contents = {
    "t2v.ckpt": fake_checkpoint.text_to_video(system),
    "clip.safetensors": fake_checkpoint.open_clip(system),
  }
  paths = [str(folder / name) for name in contents]
  if not all((folder / name).exists() for name in contents):
    fake_checkpoint.write(folder, contents)
  size = sum(pathlib.Path(path).stat().st_size for path in paths)
  largest = max(
    np.prod(x.shape) * x.dtype.itemsize for held in contents.values() for x in held.values()
  )
  print(f"{len(paths)} files of {size / 1e9:.2f} GB, the largest tensor {largest / 1e6:.0f} MB")

  weights, back = folder / "weights", folder / "back.ckpt"
  rows = [
    measure("port", lambda: port.port_files(config, paths, str(weights))),
    measure("export", lambda: export.export(config | {"weights": str(weights)}, None, str(back))),
  ]
  there, again = files.read(paths[0]).tensors, files.read(back).tensors
  same = sum(np.array_equal(there[key], again[key]) for key in there)
  print(f"{same} of {len(there)} tensors of {paths[0]} came back bit for bit")
  stored = [x.dtype.itemsize * np.prod(x.shape) for x in weights_lib.stored(str(weights)).values()]
  print(
    f"the folder of weights holds {sum(stored) / 1e9:.2f} GB, "
    f"the largest leaf {max(stored) / 1e6:.0f} MB"
  )
  (folder / "port_memory.json").write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str, work: Callable[[], None]) -> dict[str, float]:
  """Runs it and prints its time and the most memory of its own (not mapped files) meanwhile."""
  before, peak, done = anonymous(), [0.0], threading.Event()

  def watch() -> None:
    while not done.wait(0.02):
      peak[0] = max(peak[0], anonymous())

  thread = threading.Thread(target=watch)
  thread.start()
  start = time.perf_counter()
  work()
  seconds = time.perf_counter() - start
  done.set()
  thread.join()
  row = {"seconds": round(seconds, 1), "peak_mb": round(peak[0] - before, 1)}
  print(
    f"{name}: {seconds:.0f} s, {row['peak_mb']:.0f} MB beyond the {before:.0f} MB at its start",
    flush=True,
  )
  return {"name": name} | row


def anonymous() -> float:
  """Memory of this process that no file backs, in MB."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith("RssAnon"):
      return int(line.split()[1]) / 1e3
  raise OSError("/proc/self/status tells nothing of memory: this needs Linux")


if __name__ == "__main__":
  app.run(main)
