"""Torch checkpoints opcode by opcode, so that they can hold what torch would never write."""

import contextlib
import io
import struct
import tracemalloc
import zipfile

MAKE = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(s):
  return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def number(n):
  return b"\x8a\x08" + struct.pack("<q", n)


def numbers(*items):
  return b"(" + b"".join(map(number, items)) + b"t"


def table(entries):
  """A dictionary of text to opcodes."""
  return b"}(" + b"".join(text(key) + x for key, x in entries.items()) + b"u"


def tensor(key="0", dtype="torch\nFloatStorage", offset=0, shape=(4,), stride=(1,), count=4):
  pid = b"(" + text("storage") + f"c{dtype}\n".encode() + text(key) + text("cpu") + number(count)
  place = number(offset) + numbers(*shape) + numbers(*stride)
  return MAKE + b"(" + pid + b"tQ" + place + b"\x89ccollections\nOrderedDict\n)RtR"


def pickle(tree):
  return b"\x80\x02" + tree + b"."


def archive(data, storages=None, method=zipfile.ZIP_STORED):
  """The bytes of a torch checkpoint with this pickle; storage 0 holds four floats."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as out:
    out.writestr("archive/data.pkl", data)
    out.writestr("archive/byteorder", "little")
    for key, raw in ({"0": bytes(16)} if storages is None else storages).items():
      out.writestr(f"archive/data/{key}", raw)
  return file.getvalue()


@contextlib.contextmanager
def at_most(size):
  """Fails when Python takes more bytes than this at once."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < size
  finally:
    tracemalloc.stop()
