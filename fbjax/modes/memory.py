"""Memory of the process, for modes that pass many gigabytes through it."""

import ctypes


def return_freed() -> None:
  """From now on arrays that are freed go back to the system at once.

  By itself glibc keeps up to 64 MB of them for every thread, 450 MB with TensorStore's threads.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc only
  if mallopt is not None:
    m_mmap_threshold = -3
    mallopt(m_mmap_threshold, 2**20)
