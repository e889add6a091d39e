"""What a request may hold, and what is made of it."""

import os
import shlex

import numpy as np
import PIL.Image
import pytest

from fbjax import errors, main, options
from fbjax.app import asked

MODEL = {"model": "zoo/shapes"}


@pytest.fixture(scope="module")
def ways(pipe):
  return asked.ways(pipe)


def test_a_network_is_asked_what_it_can_be(ways):
  assert ways.prompt and ways.seed and not ways.last and not ways.label
  assert ways.guidance == 1 and ways.steps == 2 and (ways.frames, ways.size) == (3, (16, 16))
  assert "heun" in ways.samplers and "ddpm" not in ways.samplers  # a diffusion's, of a bridge


def test_fields_that_a_network_has_not_are_not_looked_at(ways):
  bare = ways._replace(prompt=False, guidance=None, steps=None, seed=False)
  values = {"prompt": "up", "guidance": "x", "steps": -1, "seed": "x", "label": 7, "last": 1}
  assert asked.read(values, bare) == asked.Asked()


def test_what_the_config_says_is_left_out(ways):
  own = {"steps": ways.steps, "guidance": ways.guidance, "frames": 3, "sampler": ways.sampler}
  assert asked.read(own, ways) == asked.read({}, ways) == asked.Asked()
  other = {"steps": 7.0, "guidance": 2, "frames": 2, "sampler": "heun", "seed": 9}
  assert asked.read(other, ways) == asked.Asked("", None, 7, 2.0, "heun", 2, 9)


@pytest.mark.parametrize(
  "values, sentence",
  [
    ({"steps": 0}, "steps is 0; expected a whole number from 1 to 250"),
    ({"steps": 1e9}, "steps is 1000000000; expected a whole number from 1 to 250"),
    ({"steps": 2.5}, "steps is 2.5; expected"),
    ({"steps": "9" * 10}, "steps is '9999999999'; expected"),
    ({"frames": 129}, "frames is 129; expected a whole number from 1 to 128"),
    ({"seed": -1}, "seed is -1; expected"),
    ({"seed": True}, "seed is True; expected"),
    ({"guidance": float("nan")}, "guidance is nan; expected"),
    ({"guidance": 1e9}, "guidance is 1000000000.0; expected"),
    ({"sampler": "../x"}, "the sampler is '../x'; this network has"),
    ({"sampler": {"name": "sde"}}, "the sampler is .*; this network has"),
    ({"prompt": "x" * 1001}, "the prompt is not a text of at most 1,000 letters"),
    ({"prompt": ["x"]}, "the prompt is not a text"),
  ],
  ids=str,
)
def test_what_is_out_of_bounds_is_one_sentence(ways, values, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    asked.read(values, ways)


@pytest.mark.parametrize(
  "prompt",
  [
    "кот спит",
    "猫がジャンプする",
    "قطة تقفز",
    "🐈 ⬅️",
    "e\u0301\u200b",
    "a\tb\nc\x00d",
    "'; --out=x",
  ],
)
def test_a_prompt_of_any_script_is_sampled_and_can_be_said_on_a_command_line(pipe, ways, prompt):
  clip = asked.read({"prompt": prompt}, ways)
  settings = asked.settings(pipe, ways, clip)
  assert pipe.inputs([np.zeros((16, 16, 3), np.uint8)], [clip.prompt], settings)
  words = shlex.split(asked.command(MODEL, clip, "cat.png"))
  assert f"--prompt={clip.prompt}" in words and "\n" not in " ".join(words)


def test_letters_that_are_joined_stay_joined(ways):
  for prompt in ("\U0001f468\u200d\U0001f469\u200d\U0001f467 walks", "می\u200cرود"):
    assert asked.read({"prompt": prompt}, ways).prompt == prompt


def test_what_a_terminal_stumbles_over_is_spelt_out(ways, image):
  assert asked.read({"prompt": "a \x1b[2J\n b\x00"}, ways).prompt == r"a \x1b[2J b\x00"
  given = {"path": image, "orig_name": "\x1b[2J.png"}
  assert asked.picture(given, os.path.dirname(image)).name == r"\x1b[2J.png"


def test_the_command_line_asks_for_the_same(pipe, ways):
  values = {
    "prompt": "up it's",
    "steps": 5,
    "guidance": 1.1,
    "seed": 3,
    "frames": 2,
    "sampler": "heun",
  }
  clip = asked.read(values, ways)
  words = shlex.split(asked.command({"workdir": "runs/x y"}, clip, "my cat.png", out="a.mp4"))
  assert words[:3] == ["python", "-m", "fbjax.main"]
  main.parse_flags(words[2:])
  taken = options.taken("sample")
  assert taken.pop("workdir") == "runs/x y" and taken.pop("image") == "my cat.png"
  changes = {k: taken[k] for k in (*values, "chunks", "stride", "size", "label")}
  said, told = pipe.settings(**changes), asked.settings(pipe, ways, clip)
  assert said._replace(sample=None) == told._replace(sample=None)


def upload(folder, name, data: bytes) -> dict:
  path = folder / name
  path.write_bytes(data)
  return {"path": str(path), "orig_name": name}


def test_only_what_was_uploaded_is_read(tmp_path, image):
  home = tmp_path / "home"
  home.mkdir()
  (home / "link.png").symlink_to(image)
  outside = [image, f"{home}/../x.png", f"{home}/link.png", "/etc/passwd", str(home), f"{home}2/x"]
  for path in (*outside, "", "http://localhost/x.png", "a\0b", 7, None):
    with pytest.raises(errors.UserError, match="not one that was uploaded here"):
      asked.picture({"path": path, "orig_name": "cat.png"}, str(home))
  assert asked.picture(None, str(home)) is None
  given = {"path": image, "orig_name": "../../etc/<b>.png"}
  assert asked.picture(given, os.path.dirname(image)).name == "<b>.png"


def test_a_bad_image_is_one_sentence_that_names_it(tmp_path):
  wide = PIL.Image.new("1", (10_000, 10_000))
  wide.save(tmp_path / "wide.png")
  for given, sentence in (
    (upload(tmp_path, "a.png", b"no image"), "^a.png is not an image of a format that is read"),
    (upload(tmp_path, "b.png", b""), "^the image b.png is empty"),
    ({"path": f"{tmp_path}/wide.png"}, "^the image wide.png has more than 64 megapixels"),
    (
      upload(tmp_path, "c.png", bytes(asked.MOST_BYTES + 1)),
      "^the image c.png has more than 32 MiB",
    ),
  ):
    with pytest.raises(errors.UserError, match=sentence) as caught:
      asked.picture(given, str(tmp_path))
    assert str(tmp_path) not in str(caught.value)


def test_of_an_animation_the_first_picture_is_taken_and_it_is_said(tmp_path):
  red, blue = (PIL.Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
  red.save(tmp_path / "x.gif", save_all=True, append_images=[blue])
  found = asked.picture({"path": f"{tmp_path}/x.gif"}, str(tmp_path))
  assert found.note == "x.gif is an animation, of which the first picture is taken."
  assert found.image[0, 0].tolist() == [255, 0, 0] and found.image.shape == (8, 8, 3)
