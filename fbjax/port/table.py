"""Which networks can be ported, and by whose names and sizes."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fbjax.port import leaf
from fbjax.port.names import clip, unet3d


class Network(NamedTuple):
  """What a network's checkpoints look like.

  `table` spells the leaves out from the arguments of the model's constructor, `sizes` reads these
  arguments off the published config, and `mark` is a key that only the latter has.
  """

  table: Callable[..., leaf.Table]
  sizes: Callable[[dict[str, Any]], dict[str, Any]]
  mark: str
  prefix: str = ""
  aliases: tuple[tuple[str, str], ...] = ()

  def arguments(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model's constructor: `sizes` itself, or read off the published config."""
    for config in (sizes, *sizes.values()):  # yaml files wrap it in `params`
      if isinstance(config, Mapping) and self.mark in config:
        return self.sizes(dict(config))
    return dict(sizes)

  def leaves(self, sizes: Mapping[str, Any]) -> leaf.Table:
    return self.table(**self.arguments(sizes))

  def plain(self, key: str) -> str:
    """The key without the network's prefix in a whole checkpoint, and old spellings renewed."""
    key = key.removeprefix(self.prefix)
    for old, new in self.aliases:
      key = re.sub(old, new, key)
    return key


NETWORKS = {
  "videocrafter_unet": Network(
    unet3d.table, unet3d.sizes, "model_channels", unet3d.PREFIX, unet3d.ALIASES
  ),
  "clip_text": Network(clip.text_table, clip.text_sizes, "text_cfg", clip.TEXT_PREFIX),
}


def find(network: str) -> Network:
  if network not in NETWORKS:
    raise ValueError(f"no network is called {network!r}; there are {', '.join(NETWORKS)}")
  return NETWORKS[network]
