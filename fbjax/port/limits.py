"""How much a file may ask for before anything is allocated, and the refusal beyond that.

Published checkpoints stay far below: 10 GB of weights are described by a megabyte.
"""

PICKLE = 2**26  # bytes
OPCODES = 1_000_000  # of a pickle; a tensor takes about 40
HEADER = 2**24  # bytes of JSON: a safetensors header, an index, a config
DIRECTORY = 2**23  # bytes of a zip file's list of entries
TENSORS = 100_000
VISITS = 300_000  # of what objects hold, in search of tensors
NESTED = 32  # modules in modules
NAME = 200  # bytes of a tensor's name: it becomes the name of a folder
RANK = 32
# Tensors may share a storage, and may be larger than it (`expand`), but not without end.
SHARED = 16

LFS = b"version https://git-lfs"  # how a file starts that Git LFS has not fetched


class Refused(Exception):
  """Why a file is not read, said of the file and without its name: "is truncated: ..." """
