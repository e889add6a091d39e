"""Exceptions whose message is meant for the person who runs the program."""

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
  """Context that turns errors of the file system, such as a full disk, into a UserError.

  Recognized by errno, or by its text in the message: TensorStore has it there alone. Other
  exceptions pass unchanged.

  Args:
    what: the failure, such as "cannot write x"; begins the message.
    then: called after a failure, for the remedy that ends the message.
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
