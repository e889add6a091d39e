"""Image-to-video generation with bridge models; `load` animates images with a trained network.

pipe = fbjax.load("zoo/shapes")
frames = pipe("cat.png", "a small red circle moves quickly to the left")  # uint8 [t, h, w, 3]

`load` is `fbjax.pipe.load`, and what it returns a `fbjax.pipe.Pipe`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
  # Only when asked for: it imports all of the package, which no part of it needs.
  if name == "load":
    from fbjax import pipe

    return pipe.load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
