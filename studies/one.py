"""One arm of a study: trains it, from where it stopped, and scores it; see `studies.scoring` for plans.

  python -m studies.one --config=configs/study_bridge.py:bridge --workdir=runs/study/bridge --config.seed=1 \\
    --plans='[{"step": 500, "steps": 8, "clips": 1024}]'
"""

import json
import os

from absl import app, flags, logging
from ml_collections import config_flags

from studies import scoring

CONFIG = config_flags.DEFINE_config_file("config", None, "An arm")
WORKDIR = flags.DEFINE_string("workdir", None, "Where it is trained")
CORES = flags.DEFINE_list("cores", [], "Numbers of the CPU cores to run on; default: all")
PLANS = flags.DEFINE_string("plans", "[]", "What to score, as JSON")


def main(argv: list[str]) -> None:
  del argv
  if CORES.value:  # before JAX counts them
    os.sched_setaffinity(0, map(int, CORES.value))
  logging.set_verbosity(logging.INFO)
  scoring.run(CONFIG.value.to_dict(), WORKDIR.value, json.loads(PLANS.value))


if __name__ == "__main__":
  app.run(main)
