"""Captions -> fixed-length int32 ids, 0 where the caption has ended.

A tokenizer is called with a list of strings and says `vocab`, how many ids there are, and
`length`, how many it returns for each string. It works on numpy alone and needs no network.
"""

import logging

import numpy as np
from jaxtyping import Int32

from fbjax.data import synthetic

logger = logging.getLogger(__name__)


class Bytes:
  """An id for every byte, one for each word of the synthetic captions, and nothing to download.

  0 is padding, 1-256 are the bytes, then come `words`, start and end of text. The end has the
  largest id, as in CLIP, whose text network finds it by that. A known word takes one id, so a
  synthetic caption of up to 11 words fits into 16; any other text is spelt byte by byte.
  """

  def __init__(self, length: int = 16, words: tuple[str, ...] = synthetic.WORDS):
    self.length = length
    self._words = {word: 257 + i for i, word in enumerate(words)}
    self._start = 257 + len(words)
    self.vocab = self._start + 2
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    ids = np.zeros((len(captions), self.length), np.int32)
    for row, caption in zip(ids, captions, strict=True):
      tokens, spelt = [], False
      for word in caption.lower().split():
        known = word in self._words
        if tokens and not known and spelt:
          tokens.append(1 + ord(" "))  # Only between two spelt words: elsewhere it says nothing.
        tokens += [self._words[word]] if known else [1 + byte for byte in word.encode()]
        spelt = not known
      kept = tokens[: self.length - 2]
      self._report(caption, len(tokens) - len(kept))
      row[: len(kept) + 2] = [self._start, *kept, self._start + 1]
    return ids


class _ReportOnce:
  """One log line for the first caption that does not fit, silence for the rest."""

  def __init__(self, length: int):
    self._length, self._done = length, False

  def __call__(self, caption: str, lost: int) -> None:
    if lost > 0 and not self._done:
      self._done = True
      logger.warning(
        "captions longer than %d tokens are cut; the first loses %d tokens: %s",
        self._length,
        lost,
        caption,
      )
