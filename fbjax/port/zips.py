"""Zip files whose entries are not compressed, mapped from disk."""

import io
import pathlib
import struct
import zipfile
import zlib

import numpy as np

from fbjax.port import limits

ENCRYPTED = 1


class Archive:
  """The entries of a zip file by name; none is read before it is asked for."""

  def __init__(self, path: pathlib.Path, data: np.ndarray):
    """data: the bytes of the whole file."""
    self.data = data
    try:
      with _Capped(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    except zipfile.BadZipFile as error:
      raise limits.Refused("is truncated or damaged: download it again") from error
    self.infos = {info.filename: info for info in infos}
    if len(self.infos) != len(infos):
      raise limits.Refused("is a zip file with two entries of one name: download it again")

  def __contains__(self, name: str) -> bool:
    return name in self.infos

  def mapped(self, name: str) -> np.ndarray:
    """The bytes of an entry, where they lie in the file."""
    info = self.infos[name]
    if info.flag_bits & ENCRYPTED:
      raise limits.Refused("is an encrypted zip file: unpack it and zip it without a password")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
      raise limits.Refused(
        "is compressed, which torch never does: save it again with torch, or zip it with zip -0"
      )
    head = info.header_offset
    if head < 0 or self.data[head : head + 4].tobytes() != zipfile.stringFileHeader:
      raise limits.Refused(
        "is damaged (an entry is not where the zip file says): download it again"
      )
    names = struct.unpack_from("<HH", self.data, head + 26)
    start = head + 30 + sum(names)
    if start + info.file_size > len(self.data):
      raise limits.Refused("is truncated: download it again")
    return self.data[start : start + info.file_size]

  def read(self, name: str, limit: int) -> bytes:
    """The bytes of a small entry, compared with their checksum."""
    data = self.mapped(name)
    if len(data) > limit:
      raise limits.Refused(
        f"has {len(data):,} bytes beside its tensors, more than the {limit:,} that are read: "
        "save its state dict alone"
      )
    # torch can be told to leave checksums out; they are 0 then.
    if self.infos[name].CRC not in (0, zlib.crc32(data)):
      raise limits.Refused("is damaged (a checksum does not fit): download it again")
    return data.tobytes()


class _Capped(io.BufferedReader):
  """A file of which zipfile reads no more at once than a list of entries may have."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > limits.DIRECTORY:
      raise limits.Refused(f"lists entries in {size:,} bytes: that is no checkpoint")
    return super().read(size)
