import numpy as np
import PIL.Image
import pytest

from fbjax.data import prompts
from fbjax.data import video as video_lib


def fill(folder, *names):
  for name in names:
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name)


def test_images_by_name_pair_with_lines_in_order(tmp_path):
  fill(tmp_path, "b.jpeg", "a.PNG", "c.v2.jpg")
  (tmp_path / "test.txt").write_text("\ufefffirst\r\n\r\n  second \r\nthird\n\n", "utf-8")
  (tmp_path / "zzz.txt").write_text("not this one")
  found = prompts.read_prompts(tmp_path)
  assert [(p.image.name, p.text, p.output) for p in found] == [
    ("a.PNG", "first", "a.mp4"),
    ("b.jpeg", "second", "b.mp4"),
    ("c.v2.jpg", "third", "c.v2.mp4"),
  ]


def test_a_prompt_may_hold_whatever_else_separates_lines_elsewhere(tmp_path):
  """Line breaks of slides and web pages; else prompts would shift from image to image unnoticed."""
  fill(tmp_path, "a.png", "b.png", "c.png")
  for separator in ("\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1c"):
    for end in ("\n", "\r\n", "\r"):
      prompt = f"a cat{separator}on a mat"
      (tmp_path / "p.txt").write_bytes(end.join([prompt, "b", "", prompt]).encode())
      assert [p.text for p in prompts.read_prompts(tmp_path)] == [prompt, "b", prompt]


def test_outputs_never_overwrite_each_other(tmp_path):
  fill(tmp_path, "a.jpg", "a.png", "b.png")
  (tmp_path / "p.txt").write_text("1\n2\n3")
  assert [p.output for p in prompts.read_prompts(tmp_path)] == ["a.jpg.mp4", "a.png.mp4", "b.mp4"]


def test_a_prompt_file_may_lie_elsewhere(tmp_path):
  (tmp_path / "images").mkdir()
  fill(tmp_path / "images", "a.png")
  (tmp_path / "p.txt").write_text("hello")
  assert prompts.read_prompts(tmp_path / "images", tmp_path / "p.txt")[0].text == "hello"


def test_what_does_not_pair_up_ends_in_one_sentence(tmp_path):
  with pytest.raises(video_lib.BrokenData, match="no folder of images at"):
    prompts.read_prompts(tmp_path / "none")
  with pytest.raises(video_lib.BrokenData, match="no images in"):
    prompts.read_prompts(tmp_path)
  fill(tmp_path, "a.png", "b.png")
  with pytest.raises(video_lib.BrokenData, match="no prompt file in"):
    prompts.read_prompts(tmp_path)
  with pytest.raises(video_lib.BrokenData, match="no prompt file at"):
    prompts.read_prompts(tmp_path, tmp_path / "p.txt")
  (tmp_path / "p.txt").write_text("only one")
  with pytest.raises(video_lib.BrokenData, match="p.txt has 1 prompts for 2 images"):
    prompts.read_prompts(tmp_path)


def test_the_published_prompts_pair_as_meant(shared):
  found = {p.output: p.text for p in prompts.read_prompts(shared / "videos/prompts")}
  assert len(found) == 8
  assert found["squirrel_cls.mp4"] == "a red squirrel eating on a tree branch"
  assert found["zreal_boat.mp4"] == "a boat traveling on the ocean"


def test_a_system_that_is_told_no_text_takes_images_alone(tmp_path):
  fill(tmp_path, "a.png", "b.png")
  found = prompts.read_prompts(tmp_path, told=False)
  assert [(p.text, p.output) for p in found] == [("", "a.mp4"), ("", "b.mp4")]
  (tmp_path / "p.txt").write_text("one\ntwo")
  with pytest.raises(video_lib.BrokenData, match="p.txt is a prompt file, but this system is not"):
    prompts.read_prompts(tmp_path, told=False)
