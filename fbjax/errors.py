"""The one class of exception that is meant for the person who runs the program."""


class UserError(ValueError):
  """What the user got wrong, as one sentence: the file, key or field, what was expected, what to do.

  The command line prints it without a traceback. Every other exception is a bug of the program's
  and keeps its traceback.
  """
