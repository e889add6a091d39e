"""Folders of weights: every network of some checkpoint files, or of a trained run, leaf by leaf.

  networks/<network>/<path of the leaf>   as the file has it, in the layout of the networks here
  left/<key of the file>                  what no network needs, kept for the way back

--mode=port writes them in chunks, whatever their size, --mode=pack in one safetensors file. A digest
of every leaf is kept beside them and checked on reading: damage never becomes weights.

The folder does not depend on which leaves a config draws anew or widens: one folder serves every
config of these networks.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from orbax.checkpoint import v1 as ocp

from fbjax import digest, errors, places, trees
from fbjax.port import files

WEIGHTS = "weights"
FILE = "model.safetensors"  # in place of the former
ABOUT = "weights.json"  # beside the weights: where they came from, and the digests of the values
CHUNK = 2**24  # bytes of a leaf that are encoded together


def network_path(name: str, leaf: str) -> str:
  """Where a network's leaf is in a folder."""
  return f"networks/{name}/{leaf}"


def write(
  folder: str,
  leaves: Mapping[str, Any],
  check: Callable[[str, np.ndarray], None],
  about: Mapping[str, Any],
) -> None:
  """Writes leaves of which only a chunk is in memory at a time.

  Args:
    folder: where `read` will find them; must hold none yet.
    leaves: by their paths, with shape and dtype; indexing with slices reads them.
    check: is given every chunk and its path, and may raise: then nothing is left behind.
    about: plain values to keep beside the weights, for `read_about`.

  Raises:
    UserError: when there are weights already, or they cannot be written, such as to a full disk.
  """
  path = places.absolute(folder) / WEIGHTS
  if path.exists():
    raise errors.UserError(f"{folder} already holds weights; remove it or choose another folder")
  aside = path.with_name(f"{WEIGHTS}.partial")
  _remove(aside)
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = False
  context.array.saving.use_ocdbt = False  # so that every leaf has a folder of its own
  context.array.saving.storage_options.chunk_byte_size = CHUNK
  digests = {}
  try:
    with errors.of_the_disk(f"cannot write weights to {folder}", lambda: "make room there"):
      # Orbax holds a leaf and all its chunks, encoded. So it is given zeros, which take no memory,
      # and the values take their places chunk by chunk.
      with context:
        ocp.save(aside, _nest({path: _zeros(x) for path, x in leaves.items()}))
      for name, leaf in leaves.items():
        there = _open(aside, name)
        total = np.zeros(2, np.uint64)
        for place in _chunks(there):
          chunk = np.asarray(leaf[place])
          check(name, chunk)
          total += digest.of_piece(chunk, tuple(x.start for x in place), there.shape)
          there[place].write(chunk).result()
        digests[name] = digest.as_text(total)
      (path.parent / ABOUT).write_text(json.dumps(_sealed(about, digests), indent=2) + "\n")
      aside.rename(path)
  except BaseException:
    _remove(aside)
    raise


def write_file(folder: str, leaves: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
  """As `write`, leaves that are in memory, into one safetensors file.

  Raises:
    UserError: when they cannot be written, such as to a full disk.
  """
  digests = {name: _digest(x) for name, x in leaves.items()}
  files.write(places.local(folder) / FILE, {_in_file(name): x for name, x in leaves.items()})
  places.push(folder)
  places.write_json(f"{folder}/{ABOUT}", _sealed(about, digests))


def is_packed(folder: str) -> bool:
  """Whether the weights of a folder are in one file."""
  return places.exists(f"{folder}/{FILE}")


def _digest(array: np.ndarray) -> str:
  return digest.as_text(digest.of_piece(array, (0,) * array.ndim, array.shape))


def _sealed(about: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
  """What is kept beside the weights; `digest` stands for all their values."""
  whole = hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16)
  return dict(about) | {"digest": whole.hexdigest(), "digests": dict(digests)}


def read_about(folder: str) -> dict[str, Any]:
  """The `about` that `write` was given, `digests` of all leaves by path, and one `digest` of all.

  Raises:
    UserError: when the folder holds no weights, or was damaged.
  """
  file = places.absolute(folder) / ABOUT
  if not file.exists() or not any((file.parent / name).exists() for name in (WEIGHTS, FILE)):
    raise errors.UserError(
      f"{folder} holds no weights: port a checkpoint into it with --mode=port --out={folder}, or pack a "
      "run with --mode=pack"
    )
  try:
    about = json.loads(file.read_bytes())
    if _sealed(about, about["digests"])["digest"] == about["digest"] and "parts" in about:
      return about
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise errors.UserError(
    f"{file} is damaged or of an older version: make or fetch the folder again"
  )


def stored(folder: str) -> dict[str, Any]:
  """Shape and dtype of every leaf of a folder, by its path.

  Raises:
    UserError: when there is none, or the list is damaged.
  """
  digests = read_about(folder)["digests"]
  if is_packed(folder):
    tensors = _packed(folder)
    found = {path: tensors.pop(_in_file(path), None) for path in digests}
    found = {path: x for path, x in found.items() if x is not None} | tensors
  else:
    with _damage(folder):
      found = trees.paths(ocp.metadata(places.absolute(folder) / WEIGHTS).metadata)
  if found.keys() != digests.keys():
    raise errors.UserError(_damaged(folder, "leaves are missing"))
  return found


def read(folder: str, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Leaves of a folder by path: ShapeDtypeStructs with shardings in, arrays like them out.

  Raises:
    UserError: when a leaf is not what was written.
  """
  if not wanted:
    return {}
  known, digests = stored(folder), read_about(folder)["digests"]
  if is_packed(folder):
    tensors, made = _packed(folder), {}
    for path, like in wanted.items():
      made[path] = _placed(_checked(folder, path, tensors[_in_file(path)], digests[path]), like)
    return made
  # Without 64-bit types JAX would round them before their digest could be taken.
  wide = {path for path in wanted if np.dtype(known[path].dtype).itemsize > 4}
  made = {p: _placed(read_leaf(folder, p, digests[p]), wanted[p]) for p in sorted(wide)}
  wanted = {path: x for path, x in wanted.items() if path not in wide}
  if not wanted:
    return made
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  # In the dtype of the folder: the digests are of what was written.
  like = {
    path: jax.ShapeDtypeStruct(x.shape, known[path].dtype, sharding=x.sharding)
    for path, x in wanted.items()
  }
  with context, _damage(folder):
    tree = ocp.load(places.absolute(folder) / WEIGHTS, _nest(like))
  found = trees.paths(tree)
  if wrong := digest.differing(found, digests):
    raise errors.UserError(_damaged(folder, wrong[0]))
  return made | {path: x.astype(wanted[path].dtype) for path, x in found.items()}


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
  array = array.astype(like.dtype)
  return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def read_leaf(folder: str, path: str, expected: str | None = None) -> np.ndarray:
  """One leaf of a folder, as it was written.

  Args:
    folder, path: of the leaf.
    expected: its digest, for who reads thousands; None looks it up.

  Raises:
    UserError: when it is not what was written.
  """
  expected = expected or read_about(folder)["digests"][path]
  if is_packed(folder):
    return _checked(folder, path, _packed(folder)[_in_file(path)], expected)
  with _damage(folder):
    there = _open(places.absolute(folder) / WEIGHTS, path)
    array = np.empty(there.shape, there.dtype.numpy_dtype)
    # All at once, its chunks would be in memory a second time, encoded.
    for place in _chunks(there):
      array[place] = there[place].read().result()
  return _checked(folder, path, array, expected)


def _checked(folder: str, path: str, array: np.ndarray, expected: str) -> np.ndarray:
  if _digest(array) != expected:
    raise errors.UserError(_damaged(folder, path))
  return array


def _in_file(path: str) -> str:
  """The name of a leaf in a safetensors file, where names have no slash."""
  return path.replace("/", ".")


def _packed(folder: str) -> dict[str, np.ndarray]:
  """What the one file of a folder holds, by name, mapped from disk."""
  places.pull(folder, FILE)
  return files.read(places.local(folder) / FILE).tensors


@contextlib.contextmanager
def _damage(folder: str) -> Iterator[None]:
  """Orbax and TensorStore raise almost anything on damaged files."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise
  except Exception as error:
    raise errors.UserError(_damaged(folder, str(error).splitlines()[0][:160])) from error


def _damaged(folder: str, what: str) -> str:
  return f"the weights in {folder} are damaged ({what}): make or fetch them again"


def _keys(path: str) -> tuple[Any, ...]:
  """The keys of a path in Orbax's tree; the key of a file's tensor is one, whatever is in it."""
  if path.startswith("left/"):
    return tuple(path.split("/", 1))
  return tuple(int(key) if key.isdigit() else key for key in path.split("/"))


def _nest(flat: Mapping[str, Any]) -> dict[Any, Any]:
  """The tree that Orbax is given."""
  left = {_keys(path)[1]: x for path, x in flat.items() if path.startswith("left/")}
  tree = trees.nest({path: x for path, x in flat.items() if not path.startswith("left/")})
  return tree | ({"left": left} if left else {})


def _remove(aside: epath.Path) -> None:
  """What a write that was stopped has left behind."""
  for stale in aside.parent.glob(f"{aside.name}*"):
    stale.rmtree()


def _open(path: epath.Path, leaf: str) -> tensorstore.TensorStore:
  """A leaf where Orbax keeps it."""
  folder = path / "state" / ".".join(map(str, _keys(leaf)))
  # A chunk of zeros is to be stored as well: Orbax takes one that is not for lost.
  spec = {"driver": "zarr3", "kvstore": f"{folder.as_uri()}/"}
  return tensorstore.open(spec | {"store_data_equal_to_fill_value": True}, open=True).result()


def _chunks(there: tensorstore.TensorStore) -> Iterator[tuple[slice, ...]]:
  """Where the chunks of an array are in it."""
  size = there.chunk_layout.write_chunk.shape or ()  # None of a scalar
  for cell in np.ndindex(*(-(-n // k) for n, k in zip(there.shape, size, strict=True))):
    ends = zip(cell, size, there.shape, strict=True)
    yield tuple(slice(i * k, min((i + 1) * k, n)) for i, k, n in ends)


def _zeros(like: Any) -> np.ndarray:
  """Zeros of this shape and dtype that take no memory."""
  return np.broadcast_to(np.zeros((), like.dtype), like.shape)
