"""Animates an image with a sampler that `--mode=export --format=sampler` wrote, without fbjax.

pip install jax flatbuffers pillow safetensors
python run_sampler.py models/shapes_sampler star.png "a large white star grows quickly" star.gif
"""

import json
import pathlib
import sys
import zlib

import jax.export
import numpy as np
import PIL.Image
import PIL.ImageOps
import safetensors.numpy


def byte_ids(prompt: str, words: list[str], length: int) -> list[int]:
  """Start, 257 + place of a known word, 1 + each byte of any other and of a space between two such, end.

  Start and end are the next two ids behind the words; 0 fills up. Other tokenizers than `bytes` are
  those of CLIP and T5, whose ids come from packages such as transformers.
  """
  start, ids, spelt = 257 + len(words), [], False
  for word in prompt.lower().split():
    known = word.strip(".,;:!?\"'()") in words
    if known:
      ids.append(257 + words.index(word.strip(".,;:!?\"'()")))
    else:
      ids += [1 + byte for byte in (b" " if spelt else b"") + word.encode()]
    spelt = not known
  ids = [start, *ids[: length - 2], start + 1]
  return ids + [0] * (length - len(ids))


def main(folder: str, image: str, prompt: str, out: str, seed: str = "0") -> None:
  there = pathlib.Path(folder)
  about = json.loads((there / "sampler.json").read_text())
  program = jax.export.deserialize((there / "sampler.jax").read_bytes())
  weights = safetensors.numpy.load_file(there / "weights.safetensors")
  height, width = about["output"]["shape"][1:3]
  picture = PIL.ImageOps.fit(PIL.Image.open(image).convert("RGB"), (width, height))
  # A label or a stride has a default; a network that is given both ends wants `last` too.
  told = {name: x for name, x in about["inputs"].items() if "default" in x}
  inputs = {name: np.full(x["shape"], x["default"], x["dtype"]) for name, x in told.items()}
  inputs["image"] = np.asarray(picture)[None]
  if "tokens" in about["inputs"]:
    tokenizer = about["tokenizer"]
    assert tokenizer["name"] == "bytes", f"make the ids with the tokenizer {tokenizer}"
    ids = byte_ids(prompt, tokenizer["words"], tokenizer["length"])
    inputs["tokens"] = np.array([ids], np.int32)
  number = zlib.crc32(inputs["image"]) & 0x7FFFFFFF  # any other gives another clip of the seed
  video, finite = program.call(weights, inputs, np.array([int(seed), number], np.uint32))
  assert finite, "the numbers became infinite: export with less guidance or more steps"
  frames = [PIL.Image.fromarray(frame) for frame in np.asarray(video)]
  shown = {"save_all": True, "append_images": frames[1:], "loop": 0}
  frames[0].save(out, duration=1000 // about["fps"], **shown)


if __name__ == "__main__":
  main(*sys.argv[1:])
