"""Memory of the process, for modes that pass many gigabytes through it."""

import ctypes


def return_freed() -> None:
  """Makes glibc return freed arrays of 1 MiB and more to the system at once.

  By default it keeps up to 64 MB for every thread, 450 MB with TensorStore's threads.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc only
  if mallopt is not None:
    m_mmap_threshold = -3
    mallopt(m_mmap_threshold, 2**20)
