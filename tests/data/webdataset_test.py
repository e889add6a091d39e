"""Clips in tars: what of them is listed, read, left out and told."""

import ast
import gzip
import json
import logging
import os
import pickle
import re
import shlex
import tarfile

import numpy as np
import psutil
import pytest
from data import clips

import toy
from fbjax import build, errors
from fbjax.data import kept, tars, tfds_clips, webdataset
from fbjax.data import video as video_lib
from fbjax.modes import doctor

SIZES = dict(frames=4, size=16, strides=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FBJAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture(scope="module")
def grey():
  """Bytes of clips by their grey level."""
  return {level: clips.encoded(level) for level in (20, 60, 100, 140)}


def sample(key, video, caption):
  return [(f"{key}.json", json.dumps({"caption": caption}).encode()), (f"{key}.mp4", video)]


@pytest.fixture
def shards(tmp_path, grey):
  """Two tars to train on and one that is held out, as video2dataset writes them."""
  root = tmp_path / "shards"
  clips.write_tar(
    root / "00000.tar", sample("00000", grey[20], "a cat") + sample("00001", grey[60], "a dog")
  )
  clips.write_tar(root / "00001.tar", sample("00002", grey[100], "a bird"))
  clips.write_tar(root / "val" / "00002.tar", sample("00003", grey[140], "a fish"))
  (root / "00000_stats.json").write_text("{}")
  return root


def level(source, index):
  return round(float(source.read(index, np.random.default_rng(0)).video.mean()), -1)


def captions(source):
  return [source.caption(i) for i in range(len(source))]


def test_clips_are_read_at_any_place(shards, grey):
  source = webdataset.WebDataset(shards / "{00000..00001}.tar", **SIZES)
  assert clips.listed(source) == [
    "00000.tar/00000.mp4",
    "00000.tar/00001.mp4",
    "00001.tar/00002.mp4",
  ]
  assert captions(source) == ["a cat", "a dog", "a bird"]
  assert [level(source, i) for i in (2, 0, 1)] == [100, 20, 60]
  assert [source.content(i)[1] for i in range(3)] == [grey[x] for x in (20, 60, 100)]
  again = pickle.loads(pickle.dumps(source))  # as worker processes get it
  assert level(again, 2) == 100 and again.digest() == source.digest()


@pytest.mark.parametrize(
  ("path", "val", "train", "held_out"),
  [
    ("", "val", ["00000", "00001"], ["00002"]),
    ("*.tar", "val/*", ["00000", "00001"], ["00002"]),
    ("{00000,00001}.tar", "val/0000{2..2}.tar", ["00000", "00001"], ["00002"]),
    ("00001.tar", "", ["00001"], ["00001"]),
    ("**/*.tar", "00000.tar", ["00001", "00002"], ["00000"]),
    ("*", "val/00002.tar", ["00000", "00001"], ["00002"]),
  ],
)
def test_a_path_is_a_folder_a_tar_or_a_pattern(shards, path, val, train, held_out):
  if path == "":
    (shards / "val.txt").touch()
  val = os.path.join(shards, val) if val else ""
  for split, wanted in (("train", train), ("val", held_out)):
    source = webdataset.WebDataset(os.path.join(shards, path), split, val=val)
    tars_of = {re.search(r"(\d+)\.tar/", name)[1] for name in clips.listed(source)}
    assert sorted(tars_of) == wanted


def test_what_is_held_out_is_so_however_its_path_is_spelt(shards, monkeypatch, tmp_path):
  monkeypatch.chdir(shards)
  (tmp_path / "link").symlink_to(shards)
  for val in ("val", f"../{shards.name}/val/*.tar", tmp_path / "link" / "val"):
    source = webdataset.WebDataset(shards, "train", val=str(val))
    assert not any("val/" in name for name in clips.listed(source))


def test_braces_are_expanded_as_a_shell_does():
  assert list(webdataset._expanded("a{08..10}{x,y}")) == [
    *("a08x", "a08y", "a09x", "a09y", "a10x", "a10y")
  ]
  assert list(webdataset._expanded("{9..11}")) == ["9", "10", "11"]
  assert list(webdataset._expanded("{2..0}.{tar}")) == ["2.tar", "1.tar", "0.tar"]


def test_a_sample_is_what_agrees_up_to_the_first_dot_of_the_file_name(tmp_path, grey, caplog):
  members = [
    ("./v1.0/a.mp4", grey[20]),
    ("./v1.0/b.MP4", grey[60]),
    ("./v1.0/b.json", b'{"text": " two\\n words ", "caption": 3}'),
    ("./v1.0/a.txt", "\ufeffein \u201eÜ\u201c".encode()),
    ("c.json", b'{"other": "x"}'),
    ("c.txt", b"of the text"),
    ("c.flow.mp4", grey[100]),
    ("c.mp4", grey[140]),
    ("c.jpg", b""),
    ("._c.mp4", b"what macOS adds"),
    ("d/.mp4", grey[20]),
    ("README", b""),
  ]
  clips.write_tar(tmp_path / "a.tar", members)
  source = webdataset.WebDataset(tmp_path, **SIZES)
  found = dict(zip(clips.listed(source), captions(source), strict=True))
  assert found == {
    "a.tar/v1.0/a.mp4": "ein \u201eÜ\u201c",
    "a.tar/v1.0/b.MP4": "two words",
    "a.tar/c.mp4": "of the text",
  }
  assert [level(source, i) for i in range(3)] == [20, 60, 140]
  assert "left out 1 videos with a dot in their name" in caplog.text
  assert "left out 1 videos with no name before their ending, such as a.tar/d/.mp4" in caplog.text


def typed(name, kind, **more):
  info = tarfile.TarInfo(name)
  info.type = kind
  for key, value in more.items():
    setattr(info, key, value)
  return info


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, grey, caplog):
  video = grey[20]
  members = [
    *sample("good", video, "a cat"),
    *sample("../out", video, "x"),
    *sample("/etc/out", video, "x"),
    (typed("link.mp4", tarfile.SYMTYPE, linkname="good.mp4"), b""),
    (typed("hard.mp4", tarfile.LNKTYPE, linkname="good.mp4"), b""),
    (typed("pipe.mp4", tarfile.FIFOTYPE), b""),
    (typed("folder.mp4", tarfile.DIRTYPE), b""),
    ("good.mp4", grey[60]),
    ("silent.mp4", video),
    ("silent.json", b'{"caption": null}'),
    ("blank.mp4", video),
    ("blank.txt", b" \n"),
    ("broken.mp4", video),
    ("broken.json", b"{'caption'"),
    ("latin.mp4", video),
    ("latin.txt", b"\xe4\xf6"),
    ("failed.json", b'{"caption": "no download"}'),
  ]
  clips.write_tar(tmp_path / "a.tar", members)
  source = webdataset.WebDataset(tmp_path, **SIZES)
  assert clips.listed(source) == ["a.tar/good.mp4"] and level(source, 0) == 20
  for told in (
    "left out 4 names that lead out of the tar, such as a.tar/../out.json",
    "left out 4 links, sparse files and devices, such as a.tar/link.mp4",
    "left out 1 names that come a second time, such as a.tar/good.mp4",
    "left out 2 clips without a caption, such as a.tar/silent.mp4",
    "left out 1 clips with a broken json, such as a.tar/broken.mp4",
    "left out 1 clips with a txt that is not UTF-8, such as a.tar/latin.mp4",
    "left out 1 samples without a video, such as a.tar/failed",
  ):
    assert told in caplog.text


def test_a_sparse_member_is_left_out_and_what_follows_is_read(tmp_path, grey, caplog):
  info = tarfile.TarInfo("holes.mp4")
  info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"} | {
    "GNU.sparse.map": "0,4",
    "GNU.sparse.size": str(1 << 40),
    "GNU.sparse.name": "holes.mp4",
  }
  clips.write_tar(tmp_path / "a.tar", [(info, b"data"), *sample("good", grey[20], "a cat")])
  source = webdataset.WebDataset(tmp_path, **SIZES)
  assert clips.listed(source) == ["a.tar/good.mp4"]
  assert "left out 1 links, sparse files" in caplog.text and "breaks off" not in caplog.text


@pytest.mark.parametrize(
  "cut", ["in a clip", "in a header", "before its end", "by zeros", "by ones"]
)
def test_of_a_damaged_tar_what_lies_before_is_used(tmp_path, grey, caplog, cut):
  members = [part for i in range(3) for part in sample(f"{i}", grey[20], f"{i}")]
  clips.write_tar(tmp_path / "bad.tar", members)
  with tarfile.open(tmp_path / "bad.tar") as tar:
    third = tar.getmember("2.mp4")
    at = {
      "in a clip": third.offset_data + 9,
      "in a header": third.offset + 9,
      "before its end": third.offset_data + -(-third.size // 512) * 512,
    }.get(cut)
  data = bytearray((tmp_path / "bad.tar").read_bytes())
  if at:
    data = data[:at]
  else:
    data[third.offset : third.offset + 512] = (b"\0" if cut == "by zeros" else b"1") * 512
  (tmp_path / "bad.tar").write_bytes(data)
  source = webdataset.WebDataset(tmp_path, **SIZES)
  wanted = 3 if cut == "before its end" else 2
  assert captions(source) == ["0", "1", "2"][:wanted]
  assert [level(source, i) for i in range(wanted)] == [20] * wanted
  # A block of zeros is how a tar ends.
  assert cut == "by zeros" or re.search(r"bad.tar (breaks off|is damaged).*are used", caplog.text)


def test_a_size_below_zero_does_not_lead_backwards(tmp_path):
  clips.write_tar(tmp_path / "a.tar", [("a.mp4", b"x" * 700), ("a.txt", b"words")])
  data = bytearray((tmp_path / "a.tar").read_bytes())
  data[124:136], data[148:156] = b"\xff" * 10 + b"\xfc\0", b" " * 8  # its size, its checksum
  data[148:156] = b"%06o\0 " % sum(data[:512])
  (tmp_path / "a.tar").write_bytes(data)
  with pytest.raises(video_lib.BrokenData, match="a.tar is "):
    webdataset.WebDataset(tmp_path)


@pytest.mark.parametrize(
  ("content", "path", "words"),
  [
    (b"<html>not found</html>", "a.tar", "a.tar is no tar file; fetch it anew"),
    (b"", "a.tar", "a.tar is no tar file"),
    (gzip.compress(b"x" * 2000, mtime=0), "a.tar", r"a.tar is compressed \(gzip\)"),
    (gzip.compress(b"", mtime=0), "a.tar.gz", "a.tar.gz is not called .tar; .* unpack"),
    (b"\0" * 10240, "a.tar", "lists no clips"),
    (None, "a.tar", "no file or folder at .*a.tar"),
    (None, "{0..3}.tar", "no file .*0.tar; set config.data.path to tars that exist"),
    (None, "*.tar", r"no file is of the pattern .*\*.tar"),
    (b"", "nothing", "nothing is not called .tar"),
  ],
)
def test_a_path_to_no_tars_ends_in_one_sentence(tmp_path, content, path, words):
  if content is not None:
    (tmp_path / path).write_bytes(content)
  with pytest.raises(video_lib.BrokenData, match=words) as e:
    webdataset.WebDataset(tmp_path / path)
  assert "\n" not in str(e.value)


def test_a_folder_without_tars_says_what_it_has(tmp_path):
  (tmp_path / "a.tar.gz").touch()
  with pytest.raises(video_lib.BrokenData, match="a.tar.gz is compressed: unpack it"):
    webdataset.WebDataset(tmp_path)
  with pytest.raises(video_lib.BrokenData, match="no path to the tars is given"):
    webdataset.WebDataset("")


def test_tars_without_a_usable_clip_say_why(tmp_path, grey):
  clips.write_tar(tmp_path / "a.tar", [("a.mp4", grey[20]), ("b.mp4", grey[20])])
  with pytest.raises(video_lib.BrokenData, match="2 clips without a caption"):
    webdataset.WebDataset(tmp_path)


def test_an_index_is_made_once_and_anew_for_another_tar(shards, grey, monkeypatch):
  path = shards / "00000.tar"
  scanned = []
  scan = tars.scan
  monkeypatch.setattr(tars, "scan", lambda *args: scanned.append(args[0]) or scan(*args))
  first = tars.index(path)
  tars._index.cache_clear()  # as in another process
  assert tars.index(path) == first and scanned == [path]
  source = webdataset.WebDataset(path, **SIZES)
  clips.write_tar(path, sample("x", grey[140], "new") + sample("00000", grey[60], "new"))
  assert level(source, 0) == 60, "read at the place where it was"
  with pytest.raises(video_lib.BrokenClip, match="00000.tar has no clip 00001.mp4"):
    level(source, 1)
  path.unlink()
  with pytest.raises(video_lib.BrokenClip, match="no file"):
    level(source, 0)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'[1, "", [], {}, ""]'])
def test_an_index_that_is_damaged_is_made_anew(shards, content):
  path = shards / "00000.tar"
  first = tars.index(path)
  tars._index.cache_clear()
  kept.file("tars", str(path)).write_bytes(content)
  assert tars.index(path) == first


def test_without_a_place_to_keep_it_the_index_is_made_each_time(shards, monkeypatch, caplog):
  kept._tell.cache_clear()
  monkeypatch.setenv("FBJAX_CACHE", "/proc/nowhere")
  assert len(webdataset.WebDataset(shards / "*.tar")) == 3
  assert caplog.text.count("nothing is kept there") == 1


def test_reading_leaves_no_file_open(shards):
  source = webdataset.WebDataset(shards / "00000.tar", **SIZES)
  before = psutil.Process().num_fds()
  for i in range(20):
    level(source, i % 2)
  assert psutil.Process().num_fds() == before


def test_a_clip_that_is_broken_in_its_tar_is_named(tmp_path):
  clips.write_tar(tmp_path / "a.tar", sample("a", b"no video", "x"))
  source = webdataset.WebDataset(tmp_path, **SIZES)
  with pytest.raises(video_lib.BrokenClip, match=r"a\.tar/a\.mp4 cannot be decoded"):
    level(source, 0)


def config_of(**data):
  return toy.config() | {"data": {"frames": 4, "size": 16, "strides": 1} | data}


def test_tars_in_a_config_and_in_a_mixture(shards):
  part = dict(name="webdataset", path=str(shards / "*.tar"), val=str(shards / "val"))
  assert len(build.make_source(config_of(**part), "train")) == 3
  mixed = config_of(name="mixture", parts={"a": part | {"weight": 2.0}, "b": part})
  source = build.make_source(mixed, "val")
  assert {source.name(i) for i in range(len(source))} == {
    "a/00002.tar/00003.mp4",
    "b/00002.tar/00003.mp4",
  }


def test_the_doctor_looks_into_tars_and_its_table_reads_what_is_healthy(tmp_path, grey, caplog):
  caplog.set_level(logging.INFO)
  moving = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
  video_lib.write_mp4(tmp_path / "m.mp4", moving.repeat(16, 1).repeat(16, 2))
  good = (tmp_path / "m.mp4").read_bytes()
  clips.write_tar(
    tmp_path / "shards/0.tar",
    sample("a", b"no video", "a cat") + sample("b", good, "a dog") + sample("c", grey[20], "x"),
  )
  config = config_of(name="webdataset", path=str(tmp_path / "shards/{0..0}.tar"))
  found = doctor.doctor(config, str(tmp_path / "out"))["splits"]["train"]["faults"]
  assert set(found["undecodable"]) == {"0.tar/a.mp4"} and set(found["static"]) == {"0.tar/c.mp4"}
  (told,) = shlex.split(caplog.messages[-1].removeprefix("To train on the healthy clips: "))
  data = ast.literal_eval(told.removeprefix("--config.data="))
  source = build.make_source(config | {"data": data}, "train")
  assert [source.caption(i) for i in range(len(source))] == ["a dog"]
  assert source.read(0, np.random.default_rng(0)).video.shape == (4, 16, 16, 3)


def test_tars_read_back_from_tfds(shards, tmp_path):
  flags = [f"--path={shards}/*.tar", f"--val={shards}/val", f"--out={tmp_path}/out"]
  tfds_clips.main(["webdataset", *flags])
  for split in ("train", "val"):
    tar = webdataset.WebDataset(shards / "*.tar", split, val=str(shards / "val"), **SIZES)
    ours = tfds_clips.TFDS(tmp_path / "out", split, **SIZES)
    assert list(ours.entries) == list(tar.entries) and ours.digest() == tar.digest()
    assert [level(ours, i) for i in range(len(tar))] == [level(tar, i) for i in range(len(tar))]
  with pytest.raises(errors.UserError, match="point it at those that the data set was made of"):
    doctor.doctor(config_of(name="tfds", path=f"{tmp_path}/out"), f"{tmp_path}/report")
