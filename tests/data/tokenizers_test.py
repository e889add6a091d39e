import logging

import numpy as np

from fbjax.data import synthetic, tokenizers


def test_synthetic_captions_fit_and_stay_apart():
  tokenizer, source = tokenizers.Bytes(), synthetic.Shapes()
  captions = {source.caption(i) for i in range(500)}
  ids = tokenizer(sorted(captions))
  assert ids.shape == (len(captions), tokenizer.length) and ids.dtype == np.int32
  assert len(np.unique(ids, axis=0)) == len(captions)
  assert ids.max() == tokenizer.vocab - 1 and (ids[:, 0] == tokenizer.vocab - 2).all()
  # Every word of every caption is known: nothing is spelt.
  assert not ((ids > 0) & (ids <= 256)).any()


def test_unknown_words_are_spelt_in_bytes_and_can_be_read_back():
  tokenizer = tokenizers.Bytes(length=64)
  text = "a \u00e9l\u00e8ve and two cats on the red star"
  ids = tokenizer([text])[0]
  names = {257 + i: word for i, word in enumerate(synthetic.WORDS)}
  bytes_, words = bytearray(), []
  for i in ids[1 : list(ids).index(tokenizer.vocab - 1)]:
    if i in names:
      words += bytes_.decode().split() + [names[i]]
      bytes_.clear()
    else:
      bytes_.append(i - 1)
  assert " ".join(words + bytes_.decode().split()) == text


def test_the_empty_caption_is_start_and_end():
  tokenizer = tokenizers.Bytes(length=5, words=())
  assert tokenizer([""]).tolist() == [[257, 258, 0, 0, 0]]
  assert tokenizer(["A"]).tolist() == [[257, 98, 258, 0, 0]]


def test_too_long_captions_keep_their_end_token_and_are_reported_once(caplog):
  tokenizer = tokenizers.Bytes(length=6, words=())
  with caplog.at_level(logging.WARNING):
    ids = tokenizer(["abcdefgh", "ijklmnop"])
  assert (ids[:, -1] == tokenizer.vocab - 1).all()
  assert len(caplog.records) == 1 and "the first loses 4 tokens: abcdefgh" in caplog.text
