"""Flags of the studies' programs, apart from those of fbjax, some of which have the same names."""

import sys
from collections.abc import Callable, Iterable, Sequence

from absl import flags

from studies import arms as arms_lib


def common(arms: Iterable[str], rates: Sequence[str], clips: int, told: str) -> flags.FlagValues:
  """The flags of every study.

  Args:
    arms: all that there are.
    rates: learning rates that all arms try.
    clips: held-out ones.
    told: what is to be said of them.
  """
  own = flags.FlagValues()
  given = {"flag_values": own}
  flags.DEFINE_string("home", "runs/study", "Folder of the workdirs", **given)
  flags.DEFINE_list("arms", list(arms), "Which", **given)
  flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the best learning rate", **given)
  flags.DEFINE_list("rates", list(rates), "Learning rates that all arms try", **given)
  flags.DEFINE_integer("clips", clips, told, **given)
  flags.DEFINE_integer("at_once", 2, "Trainings at a time", **given)
  flags.DEFINE_bool("train", True, "With --notrain, reports what has ended so far", **given)
  flags.DEFINE_bool("large", False, "Sizes for a GPU", **given)
  flags.DEFINE_bool("smoke", False, "Two steps of each; writes nothing but workdirs", **given)
  return own


def study(own: flags.FlagValues, name: str, sizes: Sequence[str] = ()) -> arms_lib.Study:
  """The study that the common flags ask for."""
  at_once = own.at_once if own.train else 0
  return arms_lib.Study(name, [*sizes, *["large"] * own.large], own.home, at_once, own.smoke)


def clips(own: flags.FlagValues) -> int:
  return 8 if own.smoke else own.clips


def start(main: Callable[[Sequence[str]], None], own: flags.FlagValues, told: str | None) -> None:
  """Runs a program on the command line's flags, or tells of them."""
  if "--help" in sys.argv:
    sys.exit(f"{told}\n{own.get_help()}")
  main(sys.argv)
