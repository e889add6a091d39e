"""Checkpoints of torch: a zip of raw storages, and a pickle that says which tensors lie in them."""

from typing import Any, NamedTuple

from fbjax.port import homes, keys, limits, pickles, torch_tensors, zips

TOLD = 100  # classes that are told of, at most


class Found(NamedTuple):
  """The state dict of a torch checkpoint.

  kind: what the file is. inert: classes and functions that its pickle refers to, other than those
  of every checkpoint, `TOLD` at most; none is imported.
  """

  tensors: dict[str, torch_tensors.Tensor]
  kind: str
  inert: tuple[str, ...]


def read(archive: zips.Archive, file: Any) -> Found:
  """The weights in a torch checkpoint or TorchScript archive. `file` is its name in messages.

  Raises:
    Refused: for a zip file that is neither, or holds no weights that have names.
  """
  roots = [name.removesuffix("data.pkl") for name in archive.infos if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise limits.Refused(
      "is a zip file, but no torch checkpoint: name a file that torch.save wrote"
    )
  root = roots[0]
  if f"{root}byteorder" in archive and archive.read(f"{root}byteorder", 16) != b"little":
    raise limits.Refused(
      "was written on a big-endian machine: save it again with torch on a little-endian one"
    )
  tree, names = pickles.load(archive.read(f"{root}data.pkl", limits.PICKLE))
  tensors, kind = homes.find(tree, torch_tensors.Builder(archive, f"{root}data/", file))
  return Found(
    tensors,
    kind,
    tuple(keys.printable(name) for name in sorted(names - torch_tensors.KNOWN)[:TOLD]),
  )
