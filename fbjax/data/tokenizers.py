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
import zlib
from typing import Any

import ftfy
import huggingface_hub
import numpy as np
import sentencepiece
import tokenizers as library
from jaxtyping import Int32

from fbjax import checks
from fbjax.data import synthetic, text
from fbjax.data import video as video_lib

logger = logging.getLogger(__name__)

MARKS = ".,;:!?\"'()"  # around a word, which is known without them


class Bytes:
  """An id for every byte, one for each word of the synthetic captions, and nothing to download.

  0 is padding, 1-256 are the bytes, then come `words`, start and end of text. The end has the
  largest id, as in CLIP, whose text network finds it by that. A known word takes one id, with or
  without a mark such as a full stop behind it, so a synthetic caption of up to 11 words fits into
  16; any other text is spelt byte by byte.
  """

  def __init__(self, length: int = 16, words: tuple[str, ...] = synthetic.WORDS):
    self.length = length
    self.words = checks.strings("config.tokenizer.words", words)
    self._words = {word: 257 + i for i, word in enumerate(self.words)}
    self._start = 257 + len(self.words)
    self.vocab = self._start + 2
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    ids = np.zeros((len(captions), self.length), np.int32)
    for row, caption in zip(ids, map(text.clean, captions), strict=True):
      tokens, spelt = [], False
      for word in self._split(caption):
        known = word in self._words
        if tokens and not known and spelt:
          tokens.append(1 + ord(" "))  # Only between two spelt words: elsewhere it says nothing.
        tokens += [self._words[word]] if known else [1 + byte for byte in word.encode()]
        spelt = not known
      kept = tokens[: self.length - 2]
      self._report(caption, len(tokens) - len(kept))
      row[: len(kept) + 2] = [self._start, *kept, self._start + 1]
    return ids

  def spelt(self, caption: str) -> list[str]:
    """The words of a caption that have no id of their own."""
    return [word for word in self._split(text.clean(caption)) if word not in self._words]

  def _split(self, caption: str) -> list[str]:
    words = caption.lower().split()
    bare = [word.strip(MARKS) for word in words]
    return [b if b in self._words else word for b, word in zip(bare, words, strict=True)]


class CLIP:
  """Byte-pair encoding of CLIP, id for id that of open_clip, padded with 0.

  `path` is a folder with vocab.json and merges.txt or with tokenizer.json, open_clip's
  bpe_simple_vocab_16e6.txt.gz, or the name of a repository on the Hugging Face hub, such as
  openai/clip-vit-large-patch14. Special tokens that a caption spells out are encoded as plain text.
  """

  def __init__(self, path: str, length: int = 77):
    self.length = length
    vocab, merges = _clip_files(path)
    try:
      # A dict for certain: of a string, the library would read the file of that name.
      model = library.models.BPE(dict(vocab), list(merges), end_of_word_suffix="</w>")
    except Exception as e:  # The library raises no other class.
      raise video_lib.BrokenData(f"{path} is no CLIP tokenizer: {_reason(e)}.") from None
    self._bpe = library.Tokenizer(model)
    self.vocab = len(vocab)
    # Start and end are the last two, whatever the file calls them.
    self._start, self._end = self.vocab - 2, self.vocab - 1
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    split = library.pre_tokenizers.Split(library.Regex(words), behavior="removed", invert=True)
    to_bytes = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    self._bpe.pre_tokenizer = library.pre_tokenizers.Sequence([split, to_bytes])
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    clean = [
      html.unescape(html.unescape(ftfy.fix_text(text.clean(caption)))) for caption in captions
    ]
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

  `path` is a spiece.model, a tokenizer.json, a folder that holds one of them, or the name of a
  repository on the Hugging Face hub, such as google/t5-v1_1-xxl. Of the two files, spiece.model is
  preferred: it gives SentencePiece's own ids, and encodes a special token that a caption spells out
  as plain text.
  """

  def __init__(self, path: str, length: int = 226):
    self.length = length
    file = _file(path, "spiece.model", "tokenizer.json")
    pieces = _Unigram(file) if file.suffix == ".json" else _SentencePiece(file)
    self._encode, self._end, self.vocab = pieces.encode, pieces.end, pieces.vocab
    self._report = _ReportOnce(length)

  def __call__(self, captions: list[str]) -> Int32[np.ndarray, "b n"]:
    captions = [text.clean(caption) for caption in captions]
    ids = np.zeros((len(captions), self.length), np.int32)
    for row, caption, found in zip(ids, captions, self._encode(captions), strict=True):
      kept = found[: self.length - 1]
      self._report(caption, len(found) - len(kept))
      row[: len(kept) + 1] = [*kept, self._end]
    return ids


class _SentencePiece:
  """A spiece.model."""

  def __init__(self, file: pathlib.Path):
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
      raise video_lib.BrokenData(f"{file} is no SentencePiece model.") from None
    self.end, self.vocab = self._model.eos_id(), self._model.get_piece_size()
    if self.end < 0:
      raise video_lib.BrokenData(f"{file} has no end token; T5's own has.")

  def encode(self, captions: list[str]) -> list[list[int]]:
    return self._model.encode(captions)


class _Unigram:
  """A tokenizer.json, which some repositories have in place of the model it was made of."""

  def __init__(self, file: pathlib.Path):
    try:
      self._model = library.Tokenizer.from_file(str(file))
    except Exception as e:  # The library raises no other class.
      raise video_lib.BrokenData(f"{file} is no tokenizer: {_reason(e)}.") from None
    self._model.no_truncation()
    self._model.no_padding()
    self.end, self.vocab = self._model.token_to_id("</s>"), self._model.get_vocab_size()
    if self.end is None:
      raise video_lib.BrokenData(f"{file} has no token </s>, with which T5 ends a text.")

  def encode(self, captions: list[str]) -> list[list[int]]:
    found = self._model.encode_batch(captions, add_special_tokens=False)
    return [tokens.ids for tokens in found]


def _clip_files(path: str) -> tuple[Any, Any]:
  """The ids of CLIP's tokens and the pairs that it merges, best first, unchecked."""
  if path.endswith(".txt.gz"):
    try:
      with gzip.open(_file(path, ""), "rt", encoding="utf-8") as file:
        lines = file.read(_GZIP_LETTERS).split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as e:
      raise video_lib.BrokenData(f"{path} cannot be read: {e}.") from None
    merges = _pairs(lines[1 : 49152 - 256 - 2 + 1])
    alphabet = _byte_letters()
    ends = [letter + "</w>" for letter in alphabet]
    tokens = itertools.chain(alphabet, ends, map("".join, merges), ["<start>", "<end>"])
    return {token: i for i, token in enumerate(tokens)}, merges
  file = _file(path, "vocab.json", "tokenizer.json")
  content = text.read(file)
  try:
    vocab = json.loads(content)
    if file.name == "tokenizer.json":
      model = vocab["model"]
      merges = [pair.split() if isinstance(pair, str) else pair for pair in model["merges"]]
      return model["vocab"], [tuple(pair) for pair in merges]
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise video_lib.BrokenData(f"{file} is no CLIP tokenizer: {e!r}.") from None
  return vocab, _pairs(text.read(_file(path, "merges.txt")).split("\n"))


_GZIP_LETTERS = 1 << 23  # open_clip's file has three million.


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
  pairs = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
  return [pair for pair in pairs if len(pair) == 2]


def _byte_letters() -> list[str]:
  """A printable letter for each byte, in the order in which CLIP numbers them."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = 256 - len(printable)
  return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _file(path: str, *names: str) -> pathlib.Path:
  """`path` where it is a file, else the first of `names` that its folder has, or the hub under it.

  On the hub, a path goes on into a repository: zai-org/CogVideoX-2b/tokenizer.
  """
  local = pathlib.Path(path)
  if local.is_file():
    return local
  if local.is_dir():
    for name in names:
      if (local / name).is_file():
        return local / name
    raise video_lib.BrokenData(f"the tokenizer folder {path} has no {' and no '.join(names)}.")
  if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)+", path):
    raise video_lib.BrokenData(f"no tokenizer file or folder at {path}.")
  owner, repository, *inside = path.split("/")
  for name in names:
    try:
      name_there = "/".join([*inside, name])
      return pathlib.Path(huggingface_hub.hf_hub_download(f"{owner}/{repository}", name_there))
    except Exception as e:  # Those of its network library come through, too.
      reason = _reason(e)
  raise video_lib.BrokenData(
    f"no tokenizer file or folder at {path}, and no {' and no '.join(names)} from the hub under "
    f"that name: {reason}"
  )


def _reason(error: Exception) -> str:
  """The first line of a library's message."""
  return str(error).strip().split("\n")[0] or type(error).__name__


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
