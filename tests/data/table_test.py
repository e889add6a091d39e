import numpy as np
import pytest
from data import clips

from fbjax import build, errors
from fbjax.data import table as tables
from fbjax.data import video as video_lib


@pytest.mark.parametrize(
  ("header", "root"),
  [("file,caption", "clips"), ("video,caption,aesthetic score", "clips"), ("path,text", "")],
)
def test_a_table_names_its_clips(header, root, tmp_path, caplog):
  home = tmp_path / root
  more = "," * (header.count(",") - 1)
  clips.write_clip(home / "sub" / "7.mp4", 50)
  clips.write_clip(home / "8.mp4", 150)
  rows = [f"sub/7.mp4,a cat{more}", f"{home / '8.mp4'},a dog{more}", f"{more},"]
  (tmp_path / "clips.csv").write_text("\n".join([header, *rows]) + "\n")
  (tmp_path / "val.csv").write_text(f"{header}\n./8.mp4,a dog{more}\n")
  where = {"root": str(home)} if root else {}
  table = tmp_path / "clips.csv"
  source = tables.Table(table, **where, frames=4, size=16, strides=1)
  assert [(source.name(i), source.caption(i)) for i in range(len(source))] == [
    ("sub/7.mp4", "a cat"),
    ("8.mp4", "a dog"),
  ]
  clip = source.read(0, np.random.default_rng(0))
  assert clip.video.shape == (4, 16, 16, 3) and abs(clip.video.mean() - 50) < 5
  held_out = tables.Table(table, "val", **where, val=str(tmp_path / "val.csv"))
  assert [held_out.name(i) for i in range(len(held_out))] == ["8.mp4"]
  assert len(tables.Table(table, "val", **where)) == 2 and "nothing is held out" in caplog.text


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("clip,caption\n1,x\n", "has none of the columns file, video,.* it has clip, caption"),
    ("file,words\n1,x\n", "has none of the columns caption, text, prompt"),
    ("file,caption\na.mp4,x\n./a.mp4,y\n", "a second time"),
    ("", "it has nothing"),
  ],
)
def test_a_table_of_another_form_ends_in_one_sentence(text, words, tmp_path):
  (tmp_path / "clips.csv").write_text(text)
  with pytest.raises(video_lib.BrokenData, match=words):
    tables.Table(tmp_path / "clips.csv")


def test_a_table_names_videos_of_tars_that_have_no_captions(tmp_path):
  names = {"cat.mp4": 20, "a.dog.mp4": 60, "two.mp4": 100, "two.webm": 140}
  clips.write_tar(tmp_path / "0.tar", [(name, clips.encoded(x)) for name, x in names.items()])
  rows = "".join(f"0.tar/{name},words\n" for name in names)
  (tmp_path / "clips.csv").write_text(f"file,caption\n{rows}")
  source = tables.Table(tmp_path / "clips.csv", frames=4, size=16, strides=1)
  for i, level in enumerate(names.values()):
    clip = source.read(i, np.random.default_rng(0))
    assert clip.caption == "words" and abs(clip.video.mean() - level) < 3


def test_a_tar_that_is_not_there_is_a_broken_clip_whatever_is_asked_of_it(tmp_path):
  (tmp_path / "clips.csv").write_text("file,caption\ngone.tar/cat.mp4,a cat\n")
  source = tables.Table(tmp_path / "clips.csv")
  for ask in (source.content, source.file_size, source.shape):
    with pytest.raises(video_lib.BrokenClip, match=r"no file .*gone.tar"):
      ask(0)


def test_a_table_may_have_classes(tmp_path):
  (tmp_path / "clips.csv").write_text("file,caption,label\na.mp4,a cat,3\nb.mp4,a dog,\n")
  assert [entry.label for entry in tables.Table(tmp_path / "clips.csv").entries] == [3, -1]
  for label in ("feline", "9999999999"):
    (tmp_path / "clips.csv").write_text(f"file,caption,label\na.mp4,a cat,{label}\n")
    words = f"label of a.mp4 is '{label}'; expected the number"
    with pytest.raises(video_lib.BrokenData, match=words):
      tables.Table(tmp_path / "clips.csv")


@pytest.mark.parametrize("name", ["table", "folder", "webdataset"])
@pytest.mark.parametrize("path", [None, 5, ("a", "b")])
def test_what_is_no_path_is_told_with_its_key(name, path):
  with pytest.raises(errors.UserError, match=r"config.data.path is .*; expected a text or a path"):
    build.make_source({"data": {"name": name, "path": path}}, "train")


def test_a_table_does_not_lead_out_of_its_folder(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "clips.csv").write_text("file,caption\n../a.mp4,x\n/etc/b.mp4,y\n")
  source = tables.Table(tmp_path / "in" / "clips.csv")
  for i in range(2):
    with pytest.raises(video_lib.BrokenClip, match="which is no file below it"):
      source.read(i, np.random.default_rng(0))


def test_a_class_that_the_network_does_not_know_is_named(tmp_path):
  """The number behind the last class is that of no class."""
  clips.write_clip(tmp_path / "1.mp4", 50)
  clips.write_clip(tmp_path / "2.mp4", 50)
  (tmp_path / "t.csv").write_text("file,caption,label\n1.mp4,a cat,1\n2.mp4,a dog,2\n")
  data = {"name": "table", "path": str(tmp_path / "t.csv"), "frames": 4, "size": 16}
  config = {"data": data, "system": {"latte": {"classes": 2}}}
  with pytest.raises(
    errors.UserError, match=r"label of 2.mp4 is 2, .* knows 2 classes, from 0 to 1"
  ):
    build.make_source(config, "train")
  config["system"]["latte"]["classes"] = 3
  assert len(build.make_source(config, "train")) == 2
