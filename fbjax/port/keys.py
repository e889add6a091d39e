"""Names of tensors as they come from a file: printed safely, and without what wrappers add."""

import re
from collections.abc import Mapping
from typing import TypeVar

from fbjax.port import limits

T = TypeVar("T")

# What torch.compile, DataParallel, DeepSpeed, FSDP and activation checkpoints put before a name, at
# whichever module was wrapped.
WRAPPERS = re.compile(
  r"(?<![^.])"
  r"(?:_orig_mod|module|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
PRINTED = 160


def printable(name: str) -> str:
  """The name with escapes, line ends and other control characters spelt out, cut if it is long."""
  cut = f"{name[:PRINTED]}... ({len(name)} characters)" if len(name) > PRINTED else name
  if cut.isprintable():
    return cut
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def checked(name: str) -> str:
  """The name, if a tensor can have it.

  Raises:
    Refused: for a name that is empty, longer than `limits.NAME` bytes, or has a slash, NUL or lone
      surrogate: ported tensors are stored in folders of their names.
  """
  fits = 0 < len(name.encode("utf-8", "replace")) <= limits.NAME
  if not fits or re.search(r"[/\0\ud800-\udfff]", name):
    raise limits.Refused(
      f"calls a tensor {printable(name)!r}: a name has 1 to {limits.NAME} bytes and no slash. "
      "Rename or remove it"
    )
  return name


def unwrap(tensors: Mapping[str, T]) -> dict[str, T]:
  """Without wrappers in the names, except where the plain name is taken."""
  plain = {}
  for name, x in tensors.items():
    bare = WRAPPERS.sub("", checked(name))
    plain[name if bare in plain or (bare != name and bare in tensors) else bare] = x
  return plain
