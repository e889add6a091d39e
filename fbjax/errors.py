"""The one class of exception that is meant for the person who runs the program."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator


class UserError(ValueError):
  """What the user got wrong, as one sentence: the file, key or field, what was expected, what to do.

  The command line prints it without a traceback. Every other exception is a bug of the program's
  and keeps its traceback.
  """


class LostPeer(UserError):
  """Another process of this run has ended, so that nothing can be done together any more."""


# What the machine, not the program, did wrong.
OUTER = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
  *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EMFILE, errno.EFBIG, errno.ESTALE),
)


@contextlib.contextmanager
def of_the_disk(what: str, then: Callable[[], str]) -> Iterator[None]:
  """Turns a failure of the file system into a sentence; TensorStore has the reason in its text.

  Args:
    what: that failed.
    then: what there is to do about it, asked when it has failed.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    told = f"{error!r}"
    for code in OUTER:
      if getattr(error, "errno", None) == code or os.strerror(code).lower() in told.lower():
        raise UserError(f"{what} ({os.strerror(code).lower()}): {then()}") from error
    raise
