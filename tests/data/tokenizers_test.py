import gzip
import importlib.util
import json
import logging
import pathlib
import pickle

import numpy as np
import pytest
import sentencepiece

from fbjax.data import synthetic, tokenizers
from fbjax.data import video as video_lib


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


def test_marks_around_a_known_word_change_nothing():
  tokenize = tokenizers.Bytes()
  plain, marked = tokenize(["a red circle moves left", '"A red circle, moves left."'])
  np.testing.assert_array_equal(plain, marked)
  assert tokenize.spelt("a red ball, moves left!") == ["ball,"]


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


@pytest.fixture
def clip_folder(tmp_path):
  """A CLIP vocabulary of bytes, their word ends and four merges, as published ones are laid out."""
  alphabet = tokenizers._byte_letters()
  merges = [("c", "a"), ("ca", "t</w>"), ("h", "e"), ("\u00c3", "\u00a9</w>")]
  tokens = [*alphabet, *(a + "</w>" for a in alphabet), *map("".join, merges)]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), "utf-8")
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
  (tmp_path / "merges.txt").write_text("\n".join(lines), "utf-8")
  return tmp_path


def test_clip_merges_lower_cases_cleans_and_splits_as_clip_does(clip_folder):
  clip = tokenizers.CLIP(str(clip_folder), length=8)
  start, end = 516, 517
  assert clip.vocab == 518

  def letter(text, last=False):
    return ord(text) - 33 + 256 * last

  cat, e_acute = 513, 515
  for text, ids in {
    "": [],
    "Cat": [cat],
    "  CAT\n\u200acat ": [cat, cat],
    "cat's": [cat, letter("'"), letter("s", True)],
    "42": [letter("4", True), letter("2", True)],
    "cat!?": [cat, letter("!"), letter("?", True)],
    "\u00e9": [e_acute],
    "e\u0301": [e_acute],  # Composed.
    "\u00c3\u00a9": [e_acute],  # Mended, as from a page read in the wrong encoding.
    "<&amp;amp;": [letter("<"), letter("&", True)],
  }.items():
    want = [start, *ids, end]
    assert clip([text])[0].tolist() == want + [0] * (8 - len(want)), text
  # Special tokens in a caption are text: neither start nor end appears inside.
  assert (np.isin(tokenizers.CLIP(str(clip_folder))(["<|endoftext|>"]), (start, end))).sum() == 2


def test_clip_cuts_long_captions_before_the_end_token(clip_folder, caplog):
  with caplog.at_level(logging.WARNING):
    ids = tokenizers.CLIP(str(clip_folder), length=5)(["cat " * 9, "cat " * 8])
  assert ids.tolist() == [[516, 513, 513, 513, 517]] * 2
  assert len(caplog.records) == 1 and "loses 6 tokens" in caplog.text


def test_clip_ids_are_open_clips(shared):
  """Frozen ids; the vocabulary is taken from open_clip where that happens to be installed."""
  found = importlib.util.find_spec("open_clip")
  if found is None:
    pytest.skip("open_clip, which brings the vocabulary, is not installed")
  vocabulary = pathlib.Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
  manifest = json.loads((shared / "golden/manifests/clip_text_tiny.json").read_text())
  golden = np.load(shared / "golden/clip_text_tiny.npz")["tokens"]
  clip = tokenizers.CLIP(str(vocabulary))
  assert clip.vocab == 49408
  np.testing.assert_array_equal(clip(manifest["config"]["prompts"]), golden)


@pytest.fixture
def t5_folder(tmp_path):
  pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581a", -1.0), ("\u2581cat", -2.0)]
  pieces += [("s", -3.0), ("\u2581", -4.0)]
  library = tokenizers.library
  t5 = library.Tokenizer(library.models.Unigram(pieces, unk_id=2))
  t5.pre_tokenizer = library.pre_tokenizers.Metaspace()
  t5.enable_padding(length=32)
  t5.enable_truncation(3)
  t5.save(str(tmp_path / "tokenizer.json"))
  return tmp_path


def test_t5_ends_pads_and_cuts(t5_folder):
  for path in (t5_folder, t5_folder / "tokenizer.json"):
    t5 = tokenizers.T5(str(path), length=6)
    assert t5.vocab == 7
    assert t5(["a cats", ""]).tolist() == [[3, 4, 5, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert t5(["a a a a a a a"]).tolist() == [[3, 3, 3, 3, 3, 1]]


PIECES = "a panda plays the guitar, two cats run; a dog sleeps on the red sofa. ünïcode 42"


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
  """A folder with what google/t5-v1_1-xxl has: a SentencePiece model and no tokenizer.json."""
  folder = tmp_path_factory.mktemp("t5")
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([PIECES] * 20 + PIECES.split(" ") * 5),
    model_prefix=str(folder / "spiece"),
    vocab_size=48,
    hard_vocab_limit=False,
    **dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    minloglevel=2,
  )
  (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
  return folder


def test_t5_takes_the_model_of_sentencepiece_and_gives_its_ids(spiece):
  model = sentencepiece.SentencePieceProcessor(model_file=str(spiece / "spiece.model"))
  captions = [
    "a panda plays the guitar",
    "",
    "  Two\u3000cats\n run ",
    "\u732b </s> <pad> ﬁve",
    "a" * 99,
  ]
  for path in (spiece, spiece / "spiece.model"):
    t5 = tokenizers.T5(str(path), length=32)
    assert t5.vocab == model.get_piece_size()
    for caption, row in zip(captions, t5(captions), strict=True):
      want = model.encode(caption)[:31] + [1]
      assert row.tolist() == want + [0] * (32 - len(want)), caption


def test_t5_of_the_reported_folder(shared):
  t5 = tokenizers.T5(str(shared / "cases/14-t5-sentencepiece/tokenizer"))
  want = [15, 21, 33, 4, 5, 36, 8, 3, 10, 20, 13, 7, 25, 9, 1]
  assert t5(["a panda plays the guitar"])[0].tolist() == want + [0] * (226 - len(want))


def test_a_special_token_in_a_caption_is_text(spiece):
  ids = tokenizers.T5(str(spiece), length=32)(["a </s> <pad> cat"])[0].tolist()
  assert ids.count(1) == 1 and set(ids[ids.index(1) + 1 :]) == {0} and 0 not in ids[: ids.index(1)]


def test_the_hub_is_asked_for_what_a_repository_may_have(spiece, t5_folder, monkeypatch):
  asked = []

  def ask(folder, name):
    def hub(repository, file):
      asked.append((repository, file))
      if not (place := folder / pathlib.Path(file).name).is_file():
        raise FileNotFoundError(f"404: {file}")
      return str(place)

    monkeypatch.setattr(tokenizers.huggingface_hub, "hf_hub_download", hub)
    asked.clear()
    tokenizers.T5(name)
    return asked

  t5, video = "google/t5-v1_1-xxl", "zai-org/CogVideoX-2b"
  assert ask(spiece, t5) == [(t5, "spiece.model")]
  assert ask(t5_folder, t5) == [(t5, "spiece.model"), (t5, "tokenizer.json")]
  assert ask(spiece, f"{video}/tokenizer") == [(video, "tokenizer/spiece.model")]
  for name in ("../a/b", "a/../b", "a", "a//b", "/a/b", "a/b/"):
    with pytest.raises(video_lib.BrokenData, match="no tokenizer file or folder at"):
      tokenizers.T5(name)


def test_clip_reads_the_one_file_that_newer_repositories_have(clip_folder, tmp_path):
  pairs = tokenizers.CLIP(str(clip_folder))
  vocab = json.loads((clip_folder / "vocab.json").read_text("utf-8"))
  lines = (clip_folder / "merges.txt").read_text("utf-8").split("\n")[1:-1]
  for i, merges in enumerate((lines, [line.split() for line in lines])):
    folder = tmp_path / str(i)
    folder.mkdir()
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    caption = ["a Cat; the caf\u00e9"]
    np.testing.assert_array_equal(tokenizers.CLIP(str(folder))(caption), pairs(caption))


@pytest.mark.parametrize(
  "make, name, content",
  [
    (tokenizers.T5, "spiece.model", b""),
    (tokenizers.T5, "spiece.model", b"not a model"),
    (tokenizers.T5, "tokenizer.json", b"{"),
    (tokenizers.T5, "tokenizer.json", b"[]"),
    (tokenizers.T5, "tokenizer.json", b"\xff\xfe"),
    (tokenizers.CLIP, "vocab.json", b"{"),
    (tokenizers.CLIP, "vocab.json", b"caf\xe9"),
    (tokenizers.CLIP, "vocab.json", b"[" * 100_000),
    (tokenizers.CLIP, "vocab.json", b"[]"),
    (tokenizers.CLIP, "vocab.json", b'{"a": "b"}'),
    (tokenizers.CLIP, "vocab.json", b"{}"),
    (tokenizers.CLIP, "tokenizer.json", b"{}"),
    (tokenizers.CLIP, "tokenizer.json", b'{"model": {"vocab": 1, "merges": [[1, 2, 3]]}}'),
    (tokenizers.CLIP, "bpe.txt.gz", b"no gzip"),
    (tokenizers.CLIP, "bpe.txt.gz", gzip.compress(b"a b\n" * 99, mtime=0)[:-9]),
  ],
)
def test_damaged_tokenizer_files_end_in_one_sentence(tmp_path, make, name, content):
  (tmp_path / name).write_bytes(content)
  (tmp_path / "merges.txt").write_text("a b\n")
  with pytest.raises(video_lib.BrokenData) as e:
    make(str(tmp_path / name if name.endswith(".gz") else tmp_path))
  assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_captions_with_lone_surrogates_are_tokenized(clip_folder, t5_folder, spiece):
  """From json, file names, or a command line in another encoding."""
  for tokenizer in (
    tokenizers.Bytes(32),
    tokenizers.CLIP(str(clip_folder)),
    tokenizers.T5(str(t5_folder)),
    tokenizers.T5(str(spiece)),
  ):
    ids = tokenizer(["a \ud83d cat", "caf\udce9", "a \ufffd cat", "caf\ufffd"])
    np.testing.assert_array_equal(ids[:2], ids[2:])


def test_tokenizers_survive_the_way_to_a_worker(clip_folder, t5_folder, spiece):
  for tokenizer in (
    tokenizers.CLIP(str(clip_folder)),
    tokenizers.T5(str(t5_folder)),
    tokenizers.T5(str(spiece)),
  ):
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["a cat"]), tokenizer(["a cat"]))


def test_missing_tokenizer_files_end_in_one_sentence(tmp_path, monkeypatch):
  with pytest.raises(video_lib.BrokenData, match="no tokenizer file or folder at .*none"):
    tokenizers.CLIP(str(tmp_path / "none"))
  for make, names in {
    tokenizers.T5: "no spiece.model and no tokenizer.json",
    tokenizers.CLIP: "no vocab.json and no tokenizer.json",
  }.items():
    with pytest.raises(video_lib.BrokenData, match=f"the tokenizer folder .* has {names}"):
      make(str(tmp_path))

  def offline(name, file):
    raise FileNotFoundError("cannot reach the hub\nand more")

  monkeypatch.setattr(tokenizers.huggingface_hub, "hf_hub_download", offline)
  with pytest.raises(
    video_lib.BrokenData,
    match="no vocab.json and no tokenizer.json from the hub under that name: cann",
  ) as e:
    tokenizers.CLIP("someone/something")
  assert "\n" not in str(e.value)
