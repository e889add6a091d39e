"""Captions -> fixed-length int32 ids, 0 where the caption has ended.

A tokenizer is called with a list of strings and says `vocab`, how many ids there are, and
`length`, how many it returns for each string. The first caption that is too long is named in the
log.
"""

import gzip
import html
import itertools
import json
import logging
import pathlib
import re
import textwrap

import ftfy
import huggingface_hub
import numpy as np
import tokenizers as library
from jaxtyping import Int32

from fbjax.data import synthetic
from fbjax.data import video as video_lib

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


class CLIP:
  """Byte-pair encoding of CLIP, id for id that of open_clip, padded with 0.

  `path` is a folder with vocab.json and merges.txt, open_clip's bpe_simple_vocab_16e6.txt.gz, or the
  name of a repository on the Hugging Face hub, such as openai/clip-vit-large-patch14. In a caption
  that spells the start or end token, it is text like any other.
  """

  def __init__(self, path: str, length: int = 77):
    self.length = length
    vocab, merges = _clip_files(path)
    self.vocab = len(vocab)
    # Start and end are the last two, whatever the file calls them.
    self._start, self._end = self.vocab - 2, self.vocab - 1
    self._bpe = library.Tokenizer(library.models.BPE(vocab, merges, end_of_word_suffix="</w>"))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = library.pre_tokenizers.Split(library.Regex(words), behavior="removed", invert=True)
    to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    self._bpe.pre_tokenizer = library.pre_tokenizers.Sequence([split, to_bytes])
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    clean = [html.unescape(html.unescape(ftfy.fix_text(caption))) for caption in captions]
    clean = [" ".join(caption.split()).lower() for caption in clean]
    found = self._bpe.encode_batch(clean, add_special_tokens=False)
    ids = np.zeros((len(captions), self.length), np.int32)
    for row, caption, tokens in zip(ids, captions, found, strict=True):
      kept = tokens.ids[: self.length - 2]
      self._report(caption, len(tokens.ids) - len(kept))
      row[: len(kept) + 2] = [self._start, *kept, self._end]
    return ids


class T5:
  """SentencePiece ids of T5 with its end token, padded with 0; 226 is CogVideoX's length.

  `path` is a tokenizer.json, a folder that holds one, or the name of a repository on the hub.
  """

  def __init__(self, path: str, length: int = 226):
    self.length = length
    self._pieces = library.Tokenizer.from_file(str(_file(path, "tokenizer.json")))
    self._pieces.no_truncation()
    self._pieces.no_padding()
    self.vocab = self._pieces.get_vocab_size()
    self._end = self._pieces.token_to_id("</s>")
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    found = self._pieces.encode_batch(captions, add_special_tokens=False)
    ids = np.zeros((len(captions), self.length), np.int32)
    for row, caption, tokens in zip(ids, captions, found, strict=True):
      kept = tokens.ids[: self.length - 1]
      self._report(caption, len(tokens.ids) - len(kept))
      row[: len(kept) + 1] = [*kept, self._end]
    return ids


def _clip_files(path: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
  if path.endswith(".txt.gz"):
    file = _file(path, "")
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    alphabet = _byte_letters()
    ends = [letter + "</w>" for letter in alphabet]
    tokens = itertools.chain(alphabet, ends, map("".join, merges), ["<start>", "<end>"])
    return {token: i for i, token in enumerate(tokens)}, merges
  vocab = json.loads(_file(path, "vocab.json").read_text(encoding="utf-8"))
  lines = _file(path, "merges.txt").read_text(encoding="utf-8").split("\n")
  pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
  return vocab, [pair for pair in pairs if len(pair) == 2]


def _byte_letters() -> list[str]:
  """A printable letter for each byte, in the order in which CLIP numbers them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = 256 - len(printable)
  return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _file(path: str, name: str) -> pathlib.Path:
  """`path` itself where it is a file, `name` in it where it is a folder, else from the hub."""
  local = pathlib.Path(path)
  if local.is_file():
    return local
  if local.is_dir():
    if not (local / name).is_file():
      raise video_lib.BrokenData(f"the tokenizer folder {path} has no {name}.")
    return local / name
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
    raise video_lib.BrokenData(f"no tokenizer file or folder at {path}.")
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(path, name))
  except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as e:
    reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
    raise video_lib.BrokenData(
      f"no tokenizer file or folder at {path}, and no {name} from the hub under that name: {reason}"
    ) from None


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
        textwrap.shorten(caption, 100),
      )
