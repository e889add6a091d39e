"""A trained network as a function: images and prompts in, clips out.

pipe = fbjax.load("zoo/shapes")
frames = pipe("cat.png", "a cat moves quickly to the left", seed=0, steps=8)  # uint8 [t, h, w, 3]
"""

import functools
import inspect
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Key, UInt8

from fbjax import box, build, checkpoint, checks, errors, loading, places, sampling, weights
from fbjax.data import tokenizers, video
from fbjax.systems import base, formulation, neural_prior

logger = logging.getLogger(__name__)

FLAGS = ("prompt", "label", "stride")  # that a network may be told
NOT_FINITE = "the numbers became infinite; lower guidance, take more steps, or set config.precision to 'highest'"
# A path, a PIL image, or an array of NumPy or JAX, [h, w] or [h, w, 1, 3 or 4], uint8 or from 0 to 1.
Image = str | os.PathLike[str] | PIL.Image.Image | np.ndarray | jax.Array


class Settings(NamedTuple):
  """What is asked of the clips, checked against what the network can do: see `Pipe.settings`."""

  sample: sampling.Sample
  spec: build.Sampling
  frames: int
  size: tuple[int, int]
  seed: int
  label: int | None
  last: Image | None
  chunks: int
  negative_prompt: str


class Pipe:
  """A trained network that animates images.

  Weights are read for the first clip. A program is compiled for the first clip of each size, length,
  number of images and setting, and is there for all later ones.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    workdir: str | None = None,
    *,
    step: int | None = None,
    ema: bool = True,
  ):
    """
    Args:
      config: nested plain values.
      workdir: of the trained run; None takes the weights of `config.weights` as they are.
      step: of the run's checkpoint; None takes the newest.
      ema: takes the moving average of the run's weights; otherwise as the last step left them.

    Raises:
      UserError: for a config that does not fit together.
    """
    build.set_precision(config)
    if not workdir and (step is not None or not ema):
      raise errors.UserError(
        "step and ema (--step, --no-ema) choose among the weights of a trained run: give its workdir, or "
        "leave them out"
      )
    self.config, self.workdir, self.step, self.ema = dict(config), workdir, step, ema
    self.tokenizer = build.make_tokenizer(config)
    self.system = build.make_system(build.for_sampling(config), self.tokenizer)
    self.mesh = build.make_mesh(config)
    self._programs: dict[Any, sampling.Sample] = {}

  def __call__(
    self,
    images: Image | Sequence[Image],
    prompts: str | Sequence[str] = "",
    **options: Any,
  ) -> UInt8[np.ndarray, "*n t h w 3"]:
    """Clips that begin with the given images.

    Args:
      images: one image, or several: paths, PIL images or arrays, or one array of several. They are
        cropped to the clip's shape.
      prompts: what happens, one for all images or one for each.
      options: the arguments of `settings`, such as seed, steps, guidance, size and frames.

    Returns:
      Frames from 0 to 255: [t, h, w, 3] of one image, [n, t, h, w, 3] of several. Each clip is the one
      that its image makes alone; for several of one image give other seeds.

    Raises:
      UserError: for images, prompts or options that do not fit, and a clip that is not finite.
    """
    one = not isinstance(images, list | tuple) and getattr(images, "ndim", 3) != 4
    images = [images] if one else list(images)
    for name in ("fps", "images"):
      if name in options:
        raise errors.UserError(f"{name} is of files and previews; frames have none: leave it out")
    if "prompt" in options:
      raise errors.UserError(
        "prompts, one or a list of them, come behind the images: leave prompt out"
      )
    if not images:
      raise errors.UserError("there is no image to animate: give one at least")
    texts = [prompts] * len(images) if isinstance(prompts, str) else prompts
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
      raise errors.UserError(f"prompts are {prompts!r}; expected a text, or a list of texts")
    if len(texts) != len(images):
      raise errors.UserError(f"{len(images)} images have {len(texts)} prompts; give one for each")
    settings = self.settings(prompt=next(filter(None, texts), None), **options)
    frames = [frame(image, settings.size) for image in images]
    clips = list(self.animate(frames, texts, settings))
    if bad := [str(i) for i, clip in enumerate(clips) if clip is None]:
      raise errors.UserError(f"of {len(clips)} clips, {', '.join(bad)}: {NOT_FINITE}")
    return clips[0] if one else np.stack(clips)

  def __repr__(self) -> str:
    return f"<fbjax.pipe.Pipe: {self.told()}>"

  def told(self) -> str:
    """The system's name, frames and size of its clips, and what it is conditioned on, as a text."""
    frames, (height, width) = build.clip_size(self.config)
    told = ", ".join(sorted(self.system.conditions)) or "nothing"
    name = self.config["system"]["name"]
    return f"{name}, {frames} frames of {height}x{width}, told the image and {told}"

  @property
  def is_told_text(self) -> bool:
    """Whether the network is conditioned on text."""
    return "text" in self.system.conditions

  def settings(
    self,
    *,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    label: int | None = None,
    stride: int | None = None,
    last: Image | None = None,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    chunks: int = 1,
    **changes: Any,
  ) -> Settings:
    """Checks what is asked of the clips; reads no weights.

    Args:
      prompt: one of the prompts, to check that the network is conditioned on text; not kept.
      negative_prompt: text of the unconditional branch of guidance; None for the empty text.
      label: class of the clips, for a class-conditional network; None for none.
      stride: frame stride that the network is conditioned on; None takes the config's, also below.
      last: an image to end at, for a network that is given both ends; the same image makes a loop.
      seed: of the noise, from 0 to 2^32 - 1.
      size: (height, width) of the clips, or one number for both.
      frames: of a clip.
      chunks: clips to append to each other, each from the last frame of the one before.
      changes: other keys of `config.sampling`, such as steps, guidance and image_guidance; sampler
        and grid may be just a name.

    Raises:
      UserError: for what the network is not told, or cannot make.
    """
    if unknown := [name for name in changes if name not in build.Sampling._fields]:
      own = [x.name for x in inspect.signature(self.settings).parameters.values()][:-1]
      takes = ", ".join(dict.fromkeys([*own, *build.Sampling._fields]))
      raise errors.UserError(f"there is no option {', '.join(unknown)}; there are {takes}")
    if not isinstance(negative_prompt, str | None):
      raise errors.UserError(
        f"negative_prompt is {negative_prompt!r}; expected one text for all clips"
      )
    checks.whole("--chunks", chunks)
    checks.whole("--seed", seed, 0, checks.SEED)
    spec = build.sampling_options(self.config, stride=stride, **changes)
    told = {"prompt": prompt, "negative_prompt": negative_prompt, "label": label, "stride": stride}
    check_told(self.config, self.system, **told)
    if negative_prompt and spec.guidance == 1 and spec.image_guidance is None:
      raise errors.UserError(
        "--negative_prompt is what guidance leads away from, and guidance is 1: give --guidance too"
      )
    asked = changes.get("guidance") not in (None, 1) and spec.image_guidance is None
    if asked and label is None and not (prompt or negative_prompt):
      raise errors.UserError(
        f"--guidance={spec.guidance} leads towards what a clip is told, and it is told nothing: give "
        "--prompt or --label, or leave --guidance out"
      )
    if changes.get("rescale"):
      build.check_rescale(spec)
    check_ends(self.system, last is not None, chunks)
    check_seed(self.system.whole, seed, spec.draw)
    trained_frames, trained_size = build.clip_size(self.config)
    frames = trained_frames if frames is None else checks.whole("--frames", frames)
    size = trained_size if size is None else checks.pair("--size", size, "height and width")
    checks.clip(frames * chunks, size)
    sample = self._program(spec, frames, size)
    return Settings(sample, spec, frames, size, seed, label, last, chunks, negative_prompt or "")

  def animate(
    self,
    frames: Sequence[UInt8[np.ndarray, "h w 3"]],
    texts: Sequence[str],
    settings: Settings,
  ) -> Iterator[UInt8[np.ndarray, "t h w 3"] | None]:
    """Clips of first frames, each with its text.

    A clip's noise is a function of the seed and its first frame, whatever is beside or before it.

    Yields:
      The clips in their order, as they are made; None for one that is not finite.
    """
    inputs, keys = self.inputs(frames, texts, settings)
    params, frozen = self.weights
    yield from sampling.generate(
      settings.sample, params, frozen, inputs, keys=keys, batch_size=settings.spec.batch_size
    )

  def inputs(
    self,
    frames: Sequence[UInt8[np.ndarray, "h w 3"]],
    texts: Sequence[str],
    settings: Settings,
  ) -> tuple[dict[str, np.ndarray], Key[Array, "chunks n"]]:
    """The batch that a sampler takes, with leading axis n, and a PRNG key per chunk and clip."""
    n, spec = len(frames), settings.spec
    if self.is_told_text:
      tell_words(self.config, self.tokenizer, texts)
    inputs = {
      "image": np.stack(frames),
      "tokens": self.tokenizer(list(texts)),
      "stride": np.full(n, spec.stride, np.int32),
      "label": np.full(n, -1 if settings.label is None else settings.label, np.int32),
    }
    if settings.negative_prompt:
      inputs["null_tokens"] = self.tokenizer([settings.negative_prompt] * n)
    if settings.last is not None:
      inputs["last"] = np.repeat(frame(settings.last, settings.size)[None], n, axis=0)
    pictures = [zlib.crc32(np.ascontiguousarray(image)) & checks.INT32 for image in frames]
    keys = [sampling.clip_keys(settings.seed, pictures, chunk) for chunk in range(settings.chunks)]
    return inputs, jnp.stack(keys)

  @functools.cached_property
  def weights(self) -> tuple[base.Params, base.Params]:
    """(trained, frozen) weights, read when first needed."""
    config, system, mesh = self.config, self.system, self.mesh
    if not self.workdir:
      starting = loading.starting_weights(config, system, mesh, complete=True)
      return starting.params(), starting.frozen
    return loading.trained_weights(config, system, mesh, self.workdir, self.step, self.ema)

  def _program(self, spec: build.Sampling, frames: int, size: tuple[int, int]) -> sampling.Sample:
    """The compiled sampler of these settings, made once.

    Raises:
      UserError: for settings that do not fit the config.
    """
    key = frames, size, repr(spec)
    if key not in self._programs:
      system, form = self.system_for(spec, frames, size)
      self._programs[key] = build.make_sample(self.config, system, form, self.mesh, spec)
    return self._programs[key]

  def system_for(
    self, spec: build.Sampling, frames: int, size: tuple[int, int]
  ) -> tuple[base.System, formulation.Formulation]:
    """The system for clips of this length and size, and the bridge formulation.

    Raises:
      UserError: where it cannot make them.
    """
    config, system = self.config, self.system
    if spec.draw != config["sampling"].get("draw"):
      config = config | {"sampling": config["sampling"] | {"draw": spec.draw}}
      system = build.make_system(build.for_sampling(config), self.tokenizer)
    return system.for_clips(frames, size), build.make_formulation(config)


def load(
  folder: str | os.PathLike[str],
  config: Any | None = None,
  *,
  step: int | None = None,
  ema: bool = True,
) -> Pipe:
  """The network of a packed model, a trained run, or ported weights, ready to animate images.

  Args:
    folder: a model that --mode=pack wrote, such as zoo/shapes; a workdir; or with `config` a folder
      of ported weights.
    config: ml_collections config or nested dict of the ported weights.
    step: of a trained run's checkpoint; None takes the newest.
    ema: takes the moving average of a run's weights; otherwise as the last step left them.

  Raises:
    UserError: when nothing was trained there.
  """
  if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
    raise errors.UserError(f"fbjax.load takes a folder, such as zoo/shapes, and not {folder!r}")
  folder = box.find(os.path.expanduser(os.fspath(folder)))
  if not places.exists(folder):
    raise errors.UserError(
      f"there is no folder {folder}: give a packed model, such as zoo/shapes, or the workdir of a training"
    )
  if config is None and weights.is_packed(folder):
    return Pipe(loading.packed_config(folder), step=step, ema=ema)
  if config is None:
    config = loading.trained_config(folder)
    checkpoint.check_trained(folder)
    return Pipe(config, folder, step=step, ema=ema)
  config = config.to_dict() if hasattr(config, "to_dict") else config
  if not isinstance(config, Mapping):
    raise errors.UserError(f"config is {config!r}; expected a ConfigDict or a dict, not its file")
  build.check(config)
  return Pipe(dict(config) | {"weights": folder}, step=step, ema=ema)


def frame(image: Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
  """An image in the shape of a clip: enlarged or reduced, and cropped at its centre.

  Raises:
    UserError: for what is no image.
  """
  if isinstance(image, np.ndarray | jax.Array):
    image = pixels(np.asarray(image))
  elif isinstance(image, PIL.Image.Image):
    image = np.asarray(video.rgb(image))
  elif isinstance(image, str | os.PathLike):
    image = video.read_image(box.find(image))
  else:
    raise errors.UserError(
      f"an image is a {type(image).__name__}; expected a path, a PIL image or an array"
    )
  return video.resize_crop(image, size)


def pixels(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """Converts an image array, [h, w] or [h, w, 1, 3 or 4], to uint8 RGB.

  Raises:
    UserError: for another shape; for numbers that are neither floats from 0 to 1 nor whole from 0 to
      255.
  """
  image = image[..., None] if image.ndim == 2 else image
  if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or not image.size:
    raise errors.UserError(
      f"an image is an array of {image.shape}; expected [h, w, 3], [h, w, 4] with alpha, or grey [h, w]"
    )
  floats = jnp.issubdtype(image.dtype, jnp.floating)  # bfloat16 too
  if not floats and not np.issubdtype(image.dtype, np.integer):
    raise errors.UserError(f"an image is an array of {image.dtype}; expected uint8, or floats")
  least, most = float(image.min()), float(image.max())
  limit, slack = (1, 1e-3) if floats else (255, 0)
  if not (-slack <= least and most <= limit + slack):
    raise errors.UserError(
      f"an image has values from {least:g} to {most:g} in {image.dtype}; expected 0 to 255 in whole "
      "numbers, or 0 to 1 in floats (divide by 255)"
    )
  if floats:
    image = np.round(np.clip(image.astype(np.float32), 0, 1) * 255)
  image = image.astype(np.uint8)
  if image.shape[2] == 3:
    return image
  # Not squeezed: a picture may be one pixel high or wide.
  picture = PIL.Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
  return np.asarray(video.rgb(picture))


def tell_words(config: Mapping[str, Any], tokenizer: Any, texts: Sequence[str]) -> None:
  """Logs what `unheard` says of each distinct prompt."""
  for prompt in dict.fromkeys(texts):
    if sentence := unheard(config, tokenizer, prompt):
      logger.warning("%s", sentence)


def unheard(config: Mapping[str, Any], tokenizer: Any, prompt: str) -> str:
  """A warning for an empty prompt, or for words outside a network's vocabulary; "" for none.

  The vocabulary is known of networks trained on synthetic captions alone.
  """
  if not prompt.strip():
    return "There is no prompt, which is what should happen in the clip."
  knows_words = config["data"]["name"] == "synthetic" and isinstance(tokenizer, tokenizers.Bytes)
  if strange := tokenizer.spelt(prompt) if knows_words else []:
    told = [word if len(word) < 30 else f"{word[:30]}..." for word in strange[:8]]
    told += ["..."] * (len(strange) > 8)
    return (
      "The network has learnt the words of the synthetic captions alone, such as 'a red circle moves to "
      f"the left', and none of: {', '.join(told)}."
    )
  return ""


def check_told(config: dict[str, Any], system: base.System, **given: Any) -> None:
  """Raises a UserError for a condition that the system does not take, or a label out of range."""
  names = {"prompt": "text", "negative_prompt": "text", "label": "label", "stride": "stride"}
  for flag, value in given.items():
    if value not in (None, "") and names[flag] not in system.conditions:
      told = [f"--{f}" for f in FLAGS if names[f] in system.conditions]
      raise errors.UserError(
        f"--{flag}={value}: the system {config['system']['name']} of this config is not told a "
        f"{names[flag]}; it takes {' and '.join(told) or 'the image alone'}"
      )
  if given["label"] is not None:
    checks.whole("--label", given["label"], 0, system.whole.classes - 1)


def check_seed(system: Any, seed: int, draw: str | None) -> None:
  """Raises a UserError for a seed other than 0 where sampling draws nothing.

  So it is for a neural prior whose codec takes the posterior's mode; `draw` overrides the codec.
  """
  codec = getattr(system, "codec", None)
  drawn = draw == "sample" if draw else getattr(codec, "samples", False)
  if seed and isinstance(system, neural_prior.NeuralPrior) and not drawn:
    raise errors.UserError(
      f"--seed={seed}: a neural prior makes one clip of an image, without noise; leave --seed out"
    )


def check_ends(system: base.System, last: bool, chunks: int) -> None:
  """Raises a UserError when the images given are not those that the system was trained with."""
  ends = "last" in system.conditions
  if ends and not last:
    raise errors.UserError(
      "this network goes from a first to a last frame: give --last=<image> too (the same: a loop)"
    )
  if last and not ends:
    raise errors.UserError(
      "this network was trained with the first frame alone: leave --last out, or train with "
      "--config.system.given=ends"
    )
  if ends and chunks > 1:
    raise errors.UserError(
      "a clip that has its last frame given cannot be continued: leave out --chunks"
    )
