"""Exceptions whose message is meant for the person who runs the program."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence


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
# Of these, and some that reading alone meets, what says nothing of a file that cannot be read.
MACHINE = (
  *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
  *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
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
    if found := code(error, OUTER):
      raise UserError(f"{what} ({os.strerror(found).lower()}): {then()}") from error
    raise


def code(error: Exception, of: Sequence[int]) -> int | None:
  """The errno of an exception if it is one of these, by the message where that alone has it."""
  told = f"{error!r}".lower()
  return next(
    (x for x in of if getattr(error, "errno", None) == x or os.strerror(x).lower() in told), None
  )
