"""The command blocks of the README and of docs/, each chain run as written, one process a command.

Sizes alone are made small: every config gets its `smoke`, and those that train on videos of the
user's own get a few tiny ones. A block that is run nowhere must say what it needs.
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import settings
from benchmarks import fake_checkpoint
from configs import webvid_saf
from fbjax import build
from fbjax.data import video
from fbjax.port import files, table

PAGES = (settings.ROOT / "README.md", *sorted((settings.ROOT / "docs").glob("*.md")))
TEXT = "\n".join(page.read_text() for page in PAGES)
TINY = (
  *("--config.data.size=16", "--config.data.frames=3", "--config.train.batch_size=2"),
  *("--config.loader.threads=1", "--config.sampling.batch_size=2"),
)
TINY_UNET = (
  *("--config.system.unet.width=8", "--config.system.unet.head_dim=8"),
  *("--config.system.unet.groups=4", "--config.system.unet.attention_levels=()"),
)
TINY_LATTE = ("--config.system.latte.width=16", "--config.system.latte.size=4")
# Regexes of commands -> the chain that runs them, in the order of the pages.
CHAINS = {
  "quickstart": r"(runs|models|zoo)/(quickstart|shapes)",
  "videos": r"^(?!.*weights/vc1).*(my_videos|runs/webvid|tfds/mine)",
  "pretrained": r"^(?!.*caches/).*(weights/vc1|runs/saf)",
  "cached": r"caches/webvid",
  "released": r":released",
  "ucf101": r"ucf101_",
  "alignment": r"alignment\.align\(",
}
BEFORE = {"cached": r"--mode=port.* --out=weights/vc1$"}  # what a chain needs of another
ELSEWHERE = r"pip install|pytest|--help"  # run by .ci/run, this, and command_test


def blocks(text: str, language: str) -> list[str]:
  """The fenced blocks of a language."""
  found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
  return [block for name, block in found if name == language]


def commands(text: str) -> list[str]:
  """The commands of the fenced blocks that hold any, each on one line."""
  lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
  pattern = r"\b(python -m|pip|pytest)\b|\bpython examples/|\bfbjax \w+ --"
  found = [line for line in lines if re.search(pattern, line)]
  return list(dict.fromkeys(found))


def test_every_command_is_run_or_says_what_it_needs():
  for command in commands(TEXT):
    chains = [name for name, pattern in CHAINS.items() if re.search(pattern, command)]
    assert len(chains) == 1 or re.search(ELSEWHERE, command) or "# needs" in command, command


def small(command: str) -> list[str]:
  """The command at toy size."""
  words = shlex.split(command.split("&&")[-1], comments=True)
  named = next((w for w in words if w.startswith("--config=")), "")
  if named:
    file, _, changes = named.partition(":")
    words[words.index(named)] = f"{file}:{'+'.join(filter(None, [changes, 'smoke']))}"
    if re.search("quickstart|folder|/webvid.py", file):
      words += TINY + (TINY_LATTE if "quickstart" in file else TINY_UNET)
    else:  # at toy size they train on moving shapes
      if "--config.data.name=folder" not in words:
        words = [w for w in words if not w.startswith("--config.data.path")]
      if "caches/" in command:  # of a million
        words.append("--config.data.clips=4")
  if words[0] == "fbjax":
    return [sys.executable, "-c", "from fbjax.command import cli; cli()", *words[1:]]
  assert words[0] == "python"
  return [sys.executable, *words[1:]]


def write_videos(folder: pathlib.Path, names) -> None:
  rng = np.random.default_rng(0)
  for name in names:
    video.write_mp4(folder / name, rng.integers(0, 256, (20, 24, 24, 3), np.uint8))


def prepare(tmp_path: pathlib.Path) -> None:
  """The files that the README speaks of."""
  for name in ("configs", "examples", "zoo"):
    (tmp_path / name).symlink_to(settings.ROOT / name)
  noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "cat.png")
  write_videos(tmp_path / "my_videos", ["a cat.mp4", "a dog.mp4"])
  for split in ("train", "val"):
    write_videos(tmp_path / f"webvid/2M_{split}", ["000.mp4"])
    (tmp_path / f"webvid/results_2M_{split}.csv").write_text("videoid,name\n000,a cat\n")


def write_checkpoints(folder: pathlib.Path) -> None:
  system = build.make_networks(webvid_saf.get_config("smoke").to_dict(), None)
  files.write(folder / "vc1_t2v_256.ckpt", fake_checkpoint.text_to_video(system))
  files.write(folder / "open_clip_vit_h_14.safetensors", fake_checkpoint.open_clip(system))
  released = {}
  for spec in system.networks.values():
    prefix = table.prefix(spec.network, table.layout_name(spec.network, spec.sizes))
    released |= fake_checkpoint.tensors(spec, prefix)
  files.write(folder / "framebridge_vc.ckpt", released)


def test_every_program_is_run():
  found = [block for block in blocks(TEXT, "python") if "# needs" not in block]
  assert found and all(any(re.search(p, x) for p in CHAINS.values()) for x in found)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("chain", [
  pytest.param(name, marks=[pytest.mark.thorough] if name == "cached" else []) for name in CHAINS
])  # fmt: skip
def test_a_chain_of_commands_works_as_written(chain, tmp_path):
  prepare(tmp_path)
  if chain in ("pretrained", "cached", "released"):
    write_checkpoints(tmp_path)
  environment = os.environ | {
    "PYTHONPATH": f"{settings.ROOT}:{settings.BARE}",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(settings.CACHE),
    "XLA_FLAGS": settings.FAST_COMPILATION,
  }
  wanted = f"{CHAINS[chain]}|{BEFORE[chain]}" if chain in BEFORE else CHAINS[chain]
  chosen = [c for c in commands(TEXT) if re.search(wanted, c) and "# needs" not in c]
  programs = [block for block in blocks(TEXT, "python") if re.search(CHAINS[chain], block)]
  assert chosen or programs
  for command in chosen + programs:
    words = [sys.executable, "-c", command] if command in programs else small(command)
    done = subprocess.run(
      words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
  made = {
    "quickstart": ["cat.mp4", "runs/quickstart/samples/0000002.png"],
    "videos": ["runs/mine/loss.png", "runs/webvid/loss.png"],
    "pretrained": ["runs/saf/samples/0000002.png"],
    "cached": ["runs/saf_cached/loss.png"],
    "released": ["cat.mp4"],
    "ucf101": ["runs/bridge/samples/0000002.png"],
    "alignment": [],
  }
  for name in made[chain]:
    assert (tmp_path / name).stat().st_size > 500, name
