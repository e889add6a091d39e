"""The README's first command with several seeds: how long, how much memory, how good.

  python -m benchmarks.quickstart --seeds=0,1,2,3,4
  python -m benchmarks.quickstart --seeds=0,1 -- --config.optim.name=adamw --config.optim.lr=1e-3

Each seed is trained in a process and a workdir of its own, without a compilation cache, and scored on
held-out clips by `benchmarks.held_out`. The last line has the worst of all seeds. What stands behind --
goes to the training, to see what a choice of the config brings.
"""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of the runs")
CONFIG = flags.DEFINE_string("config", "configs/quickstart.py", "What to train")
OUT = flags.DEFINE_string("out", "", "A folder to keep the workdirs in; default: none")
# Of the figures, whether the largest is the worst.
WORST = {
  "seconds": max,
  "first_step_seconds": max,
  "peak_mb": max,
  "agree": min,
  "ratio": max,
  "left_behind": max,
}


def main(argv: list[str]) -> None:
  changes = argv[1:]
  with tempfile.TemporaryDirectory() as scratch:
    rows = []
    for seed in SEEDS.value:
      home = pathlib.Path(OUT.value or scratch)
      rows.append(
        {"seed": int(seed)} | run(seed, changes, home / f"seed{seed}", pathlib.Path(scratch))
      )
      print(line(rows[-1]), flush=True)
  worst = {name: of([row[name] for row in rows]) for name, of in WORST.items()}
  print(line({"seed": "worst"} | worst))
  print(json.dumps({"rows": rows, "worst": worst}))


def run(
  seed: str, changes: Sequence[str], workdir: pathlib.Path, scratch: pathlib.Path
) -> dict[str, float]:
  """Figures of one training; the peak is that of the largest process so far."""
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(scratch / f"cache{seed}")}
  began = time.monotonic()
  command = ["-m", "fbjax.main", f"--config={CONFIG.value}", f"--workdir={workdir}"]
  done = subprocess.run(
    [sys.executable, *command, f"--config.seed={seed}", *changes],
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
    check=False,
  )
  seconds = time.monotonic() - began
  if done.returncode:
    sys.exit(done.stderr)
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
  compiled = re.search(r"First batch and compilation took (\d+) s", done.stderr)
  subprocess.run([sys.executable, "-m", "benchmarks.held_out", f"--workdir={workdir}"], check=True)
  (score,) = [
    x for x in json.loads((workdir / "held_out.json").read_text()) if x["what"] == "sample"
  ]
  figures = {"seconds": seconds, "first_step_seconds": float(compiled[1]), "peak_mb": peak}
  return figures | {name: score[name] for name in ("agree", "ratio", "left_behind")}


def line(row: dict[str, float]) -> str:
  return (
    f"seed {row['seed']}: {row['seconds']:.0f} s, {row['first_step_seconds']:.0f} s of them to the first "
    f"step, {row['peak_mb']:.0f} MB; direction agrees in {row['agree']:.1%}, error {row['ratio']:.3f} "
    f"of still, left behind {row['left_behind']:.3f} of still"
  )


if __name__ == "__main__":
  app.run(main)
