"""Image-to-video generation with bridge models; `load` animates images with a trained network.

pipe = fbjax.load("zoo/shapes")
frames = pipe("cat.png", "a small red circle moves quickly to the left")  # uint8 [t, h, w, 3]
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
  # Only when asked for: it imports all of the package, which no part of it needs.
  if name == "load":
    from fbjax import pipe

    return pipe.load
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
