"""Moving shapes with captions: unlimited clips from (seed, split, index) alone, and their truth.

  scene     what the first frame shows: shape, colour, texture, size, place, angle, background
  motion    what happens then, named by the caption alone: direction, spin, growth, bounce, orbit
  speed     how far it goes by the last frame, also named by the caption

Scenes are drawn before and without the motion, so a first frame says nothing about what follows,
and any image may be given any caption. First frame, caption and number of frames determine the
clip. Positions are (x, y) in units of the shorter side, (0, 0) upper left and y pointing down;
times run from 0 at the first frame to 1 at the last.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from fbjax import checks, errors
from fbjax.data import buckets, transforms
from fbjax.data import video as video_lib

COLOURS = {
  "red": (0.90, 0.10, 0.12),
  "green": (0.10, 0.70, 0.20),
  "blue": (0.12, 0.25, 0.95),
  "yellow": (0.98, 0.88, 0.10),
  "orange": (0.98, 0.52, 0.05),
  "purple": (0.52, 0.12, 0.70),
  "cyan": (0.10, 0.85, 0.90),
  "pink": (1.00, 0.50, 0.75),
  "white": (0.98, 0.98, 0.98),
  "black": (0.04, 0.04, 0.04),
}
TEXTURES = ("plain", "striped", "checkered")
SIZES = {"small": 0.10, "medium": 0.135, "large": 0.17}
BACKGROUNDS = ("plain", "gradient", "rings", "stripes", "checks", "noise")

_DIAGONAL = 0.5**0.5
DIRECTIONS = {
  "right": (1.0, 0.0),
  "lower right": (_DIAGONAL, _DIAGONAL),
  "down": (0.0, 1.0),
  "lower left": (-_DIAGONAL, _DIAGONAL),
  "left": (-1.0, 0.0),
  "upper left": (-_DIAGONAL, -_DIAGONAL),
  "up": (0.0, -1.0),
  "upper right": (_DIAGONAL, -_DIAGONAL),
}
# The phrase of each motion; its place in this table is its class id.
MOTIONS = {
  **{
    name: f"moves {{}} {'' if name in ('up', 'down') else 'to the '}{name}" for name in DIRECTIONS
  },
  "spin clockwise": "spins {} clockwise",
  "spin counter-clockwise": "spins {} counter-clockwise",
  "grow": "grows {}",
  "shrink": "shrinks {}",
  "bounce": "bounces {}",
  "orbit clockwise": "circles {} clockwise",
  "orbit counter-clockwise": "circles {} counter-clockwise",
}


class Speed(NamedTuple):
  """What one clip covers at a named speed."""

  word: str
  travel: float  # of a straight motion, in sides
  turn: float  # of a spin, in degrees
  scale: float  # of growth; shrinking divides by it
  bounces: float
  orbit: float  # part of the full circle


SPEEDS = {
  "slow": Speed("slowly", travel=0.12, turn=45, scale=1.35, bounces=1.0, orbit=0.35),
  "normal": Speed("", travel=0.20, turn=90, scale=1.65, bounces=1.5, orbit=0.60),
  "quick": Speed("quickly", travel=0.28, turn=160, scale=2.00, bounces=2.0, orbit=0.85),
}
_BOUNCE_HEIGHT = 0.26
_ORBIT_RADIUS = 0.14
_REACH = 0.295  # no motion carries a centre further than 0.28 from its start; the rest is margin


def _star(x, y):
  sector = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
  radius = np.hypot(x, y)
  u, v = radius * np.cos(sector), radius * np.sin(sector)
  # The edge from the tip (1, 0) to the notch at 36 degrees; its outward normal.
  notch_u, notch_v = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
  length = np.hypot(1 - notch_u, notch_v)
  return (u - 1) * (notch_v / length) + v * ((1 - notch_u) / length)


def _triangle(x, y):
  return np.maximum(y, np.abs(x) * 0.75**0.5 - 0.5 * y) - 0.5


def _cross(x, y):
  x, y = np.abs(x), np.abs(y)
  return np.minimum(np.maximum(x - 0.95, y - 0.34), np.maximum(x - 0.34, y - 0.95))


# Signed distance to the edge, negative inside, of shapes of about unit radius.
SHAPES = {
  "circle": lambda x, y: np.hypot(x, y) - 0.85,
  "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.27,
  "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.7,
  "triangle": _triangle,
  "star": _star,
  "cross": _cross,
  "bar": lambda x, y: np.maximum(np.abs(x) - 0.95, np.abs(y) - 0.36),
  "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y)),
}
_ROUND = ("circle", "ring")

# Every word of every caption, in the order in which a word tokenizer numbers them.
WORDS = tuple(
  sorted(
    {"a", *COLOURS, *TEXTURES, *SIZES, *SHAPES}
    | {word for phrase in MOTIONS.values() for word in phrase.split() if word != "{}"}
    | {speed.word for speed in SPEEDS.values() if speed.word}
  )
)


class Truth(NamedTuple):
  """Ground truth of a clip; positions as in the module, coverage from 0 to 1."""

  motion: str
  speed: str
  direction: str | None  # a key of DIRECTIONS where the motion is straight
  path: Float[np.ndarray, "t 2"]  # centroid of the object, (x, y)
  background: UInt8[np.ndarray, "h w 3"]  # the scene without its object
  coverage: Float[np.ndarray, "t h w"]  # how much of each pixel is the object


class Scene(NamedTuple):
  shape: str
  colour: str
  texture: str
  size: str
  start: tuple[float, float]
  angle: float
  background: Float[np.ndarray, "h w 3"]
  motion: str
  speed: str


class Shapes:
  """A source of `clips` clips of one object each; clip i of a split is the same on any machine.

  `motions`, `speeds`, `shapes`, `textures` and `backgrounds` narrow the choice to the names given;
  class ids stay those of the full table `MOTIONS`. The splits share no clip.
  """

  def __init__(
    self,
    frames: int = 8,
    size: int | Sequence[int] = 32,
    clips: int = 1_000_000,
    *,
    seed: int = 0,
    split: str = "train",
    motions: Sequence[str] = (),
    speeds: Sequence[str] = (),
    shapes: Sequence[str] = (),
    textures: Sequence[str] = (),
    backgrounds: Sequence[str] = (),
  ):
    self.frames = checks.whole("config.data.frames", frames)
    self.clips = checks.whole("config.data.clips", clips)
    self.seed = checks.whole("config.data.seed", seed, least=0)
    self.height, self.width = checks.pair("config.data.size", size, "height and width")
    self.split = _names("split", (split,), ("train", "val"))[0]
    self.motions = _names("motions", motions, MOTIONS)
    self.speeds = _names("speeds", speeds, SPEEDS)
    self.shapes = _names("shapes", shapes, SHAPES)
    self.textures = _names("textures", textures, TEXTURES)
    self.backgrounds = _names("backgrounds", backgrounds, BACKGROUNDS)
    if all(motion.startswith("spin") for motion in self.motions):
      # A circle that spins stands still.
      self.shapes = tuple(shape for shape in self.shapes if shape not in _ROUND)
    if not self.shapes:
      raise errors.UserError(
        f"shapes {shapes} show no rotation, the only motion asked for; add another."
      )
    self._measure()

  def _measure(self) -> None:
    side = min(self.height, self.width)
    self.x = ((np.arange(self.width) + 0.5 - self.width / 2) / side + 0.5).astype(np.float32)
    self.y = ((np.arange(self.height) + 0.5 - self.height / 2) / side + 0.5).astype(np.float32)[
      :, None
    ]
    self.pixel = 1 / side

  def __len__(self) -> int:
    return self.clips

  def name(self, index: int) -> str:
    return f"synthetic/{self.split}/{self.seed}/{index}"

  def caption(self, index: int) -> str:
    return _caption(self.scene(index))

  def resized(self, frames: int, size: tuple[int, int]) -> "Shapes":
    """The same scenes and motions at another length and (height, width)."""
    other = copy.copy(self)
    other.frames, (other.height, other.width) = frames, size
    other._measure()
    return other

  def placed(self, taken: Sequence[buckets.Bucket], hosts: buckets.Hosts) -> Int[np.ndarray, "n"]:
    """A bucket for each clip, drawn: they can be of any size. See `buckets.Sizable`."""
    rng = np.random.default_rng((self.seed, ("train", "val").index(self.split)))
    return rng.integers(len(taken), size=self.clips, dtype=np.int16)

  def digest(self) -> str:
    choices = (self.motions, self.speeds, self.shapes, self.textures, self.backgrounds)
    return transforms.digest([(self.seed, self.split, self.clips, *choices)])

  def __getitem__(self, index: int) -> video_lib.Clip:
    scene = self.scene(index)
    video, _ = self._render(scene)
    label = list(MOTIONS).index(scene.motion)
    return video_lib.Clip(video, _caption(scene), stride=1, label=label)

  def read(self, index: int, rng: np.random.Generator) -> video_lib.Clip:
    """The clip of this index; nothing in it is left to `rng`."""
    del rng
    return self[index]

  def truth(self, index: int) -> Truth:
    scene = self.scene(index)
    _, coverage = self._render(scene)
    weight = coverage.sum((1, 2))
    x, y = (coverage * self.x).sum((1, 2)) / weight, (coverage * self.y).sum((1, 2)) / weight
    direction = scene.motion if scene.motion in DIRECTIONS else None
    path = np.stack([x, y], axis=-1)
    background = _to_uint8(scene.background)
    return Truth(scene.motion, scene.speed, direction, path, background, coverage)

  def scene(self, index: int) -> Scene:
    if not 0 <= index < self.clips:
      raise IndexError(f"clip {index} of {self.clips}")
    # PCG64 on a SeedSequence: independent streams for neighbouring indices.
    rng = np.random.default_rng((self.seed, ("train", "val").index(self.split), index))
    shape, texture = _pick(rng, self.shapes), _pick(rng, self.textures)
    colour, size = _pick(rng, tuple(COLOURS)), _pick(rng, tuple(SIZES))
    slack = 0.5 - SIZES[size] - _REACH
    start = tuple(0.5 + slack * (2 * rng.random(2) - 1))
    angle = 2 * np.pi * rng.random()
    background = self._background(rng, colour)
    # Last, so that scenes are the same whatever motions are asked for.
    motions = [m for m in self.motions if not (m.startswith("spin") and shape in _ROUND)]
    motion, speed = _pick(rng, motions), _pick(rng, self.speeds)
    return Scene(shape, colour, texture, size, start, angle, background, motion, speed)

  def _background(self, rng: np.random.Generator, colour: str) -> Float[np.ndarray, "h w 3"]:
    kind = _pick(rng, self.backgrounds)
    # Two of the four candidates that differ most from the object's own two colours.
    ours = np.stack([np.array(COLOURS[colour]), _second(colour)])
    candidates = 0.1 + 0.8 * rng.random((12, 3))
    contrast = np.abs(candidates[:, None] - ours).sum(-1).min(-1)
    first, second = candidates[np.argsort(-contrast)[rng.permutation(4)[:2]]].astype(np.float32)
    a, b, c, d = rng.random(4)
    along = np.cos(2 * np.pi * a) * self.x + np.sin(2 * np.pi * a) * self.y
    across = np.cos(2 * np.pi * a) * self.y - np.sin(2 * np.pi * a) * self.x
    waves = 2 * np.pi * (2 + 3 * b)
    if kind == "plain":
      mix = np.full_like(along, 0.0)
    elif kind == "gradient":
      mix = (along - along.min()) / np.ptp(along)
    elif kind == "rings":
      mix = 0.5 + 0.5 * np.sin(waves * np.hypot(self.x - c, self.y - d) + a)
    elif kind == "stripes":
      mix = 0.5 + np.clip(1.5 * np.sin(waves * along + c), -0.5, 0.5)
    elif kind == "checks":
      mix = 0.5 + np.clip(3 * np.sin(waves * along + c) * np.sin(waves * across + d), -0.5, 0.5)
    else:
      frequency = rng.normal(0, 2 * np.pi * 1.5, (8, 2, 1, 1)).astype(np.float32)
      phase = 2 * np.pi * rng.random((8, 1, 1), dtype=np.float32)
      mix = np.cos(frequency[:, 0] * self.x + frequency[:, 1] * self.y + phase).sum(0)
      mix = np.clip(0.5 + mix / 5, 0, 1)
    mix = mix.astype(np.float32)[..., None]
    return first + mix * (second - first)

  def _render(
    self, scene: Scene
  ) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """Returns the frames and how much of each pixel the object covers."""
    time = np.linspace(0, 1, self.frames) if self.frames > 1 else np.zeros(1)
    centre_x, centre_y, turn, scale = (
      np.asarray(value, np.float32)[:, None, None] for value in _trajectory(scene, time)
    )
    radius = SIZES[scene.size] * scale
    cos, sin = np.cos(scene.angle + turn), np.sin(scene.angle + turn)
    x, y = (self.x - centre_x) / radius, (self.y - centre_y) / radius
    x, y = cos * x + sin * y, cos * y - sin * x
    coverage = np.clip(0.5 - SHAPES[scene.shape](x, y) * (radius / self.pixel), 0, 1)

    ours = np.asarray(COLOURS[scene.colour], np.float32)
    if scene.texture != "plain":
      wave = np.sin(7 * x) if scene.texture == "striped" else np.sin(5 * x) * np.sin(5 * y) * 2
      mix = 0.5 + np.clip(1.5 * wave, -0.5, 0.5)[..., None]
      ours = ours + mix * (_second(scene.colour) - ours)
    video = scene.background + coverage[..., None] * (ours - scene.background)
    return _to_uint8(video), coverage


def _trajectory(scene: Scene, time: Float[np.ndarray, "t"]) -> tuple[np.ndarray, ...]:
  """Centre x and y, turn in radians (clockwise on the screen) and scale at every time."""
  x, y = (np.full_like(time, value) for value in scene.start)
  turn, scale = np.zeros_like(time), np.ones_like(time)
  motion, speed = scene.motion, SPEEDS[scene.speed]
  sign = -1 if motion.endswith("counter-clockwise") else 1
  if motion in DIRECTIONS:
    x += DIRECTIONS[motion][0] * speed.travel * time
    y += DIRECTIONS[motion][1] * speed.travel * time
  elif motion.startswith("spin"):
    turn += sign * np.deg2rad(speed.turn) * time
  elif motion == "grow":
    scale *= speed.scale**time
  elif motion == "shrink":
    scale *= speed.scale**-time
  elif motion == "bounce":
    y -= _BOUNCE_HEIGHT * np.abs(np.sin(np.pi * speed.bounces * time))
  else:  # An orbit begins at the top of its circle.
    angle = sign * 2 * np.pi * speed.orbit * time
    x += _ORBIT_RADIUS * np.sin(angle)
    y += _ORBIT_RADIUS * (1 - np.cos(angle))
  return x, y, turn, scale


def _caption(scene: Scene) -> str:
  size = "" if scene.size == "medium" else scene.size
  texture = "" if scene.texture == "plain" else scene.texture
  phrase = MOTIONS[scene.motion].format(SPEEDS[scene.speed].word)
  return " ".join(f"a {size} {scene.colour} {texture} {scene.shape} {phrase}".split())


def _second(colour: str) -> Float[np.ndarray, "3"]:
  """The other colour of a textured object: towards black, or grey for black itself."""
  return np.asarray(COLOURS[colour], np.float32) * 0.5 + (0.3 if colour == "black" else 0.0)


def _names(key: str, chosen, known) -> tuple[str, ...]:
  """`chosen` (all of `known` where it is empty), or one sentence about the name that is unknown."""
  chosen = checks.strings(f"config.data.{key}", chosen)
  for name in chosen:
    if name not in known:
      raise errors.UserError(f"config.data.{key} has no {name!r}; there are {', '.join(known)}.")
  return chosen or tuple(known)


def _pick(rng: np.random.Generator, choices):
  return choices[int(rng.random() * len(choices))]


def _to_uint8(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  return (image * 255 + 0.5).astype(np.uint8)


# Measuring a video, real or generated.


def centroids(
  video: UInt8[np.ndarray, "t h w 3"], background: UInt8[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "t 2"]:
  """Centroid (x, y) of what differs from the background in each frame; nan where nothing does.

  In units of the shorter side, see the module. A pixel's weight rises from 0 to 1 as its
  difference, summed over RGB, goes from 15 % to 40 % of each frame's largest (the median over
  frames, 60 at least), so that blur and noise of a generated clip carry no weight.
  """
  difference = np.abs(video.astype(np.float32) - background.astype(np.float32)).sum(-1)
  strong = max(np.quantile(difference.max((1, 2)), 0.5), 60.0)
  weight = np.clip((difference / strong - 0.15) / 0.25, 0, 1)
  h, w = background.shape[:2]
  x = (np.arange(w) + 0.5 - w / 2) / min(h, w) + 0.5
  y = (np.arange(h) + 0.5 - h / 2) / min(h, w) + 0.5
  total = weight.sum((1, 2))
  with np.errstate(invalid="ignore"):
    return np.stack([weight.sum(1) @ x / total, weight.sum(2) @ y / total], axis=-1)


def displacement(path: Float[np.ndarray, "t 2"]) -> Float[np.ndarray, "2"]:
  """Displacement (x, y) from first to last frame: the slope of a least-squares line through a path.

  Frames without a centroid are left out; nan where fewer than two have one.
  """
  time = np.linspace(0, 1, len(path))
  seen = np.isfinite(path).all(-1)
  if seen.sum() < 2:
    return np.full(2, np.nan)
  return np.polyfit(time[seen], path[seen], 1)[0]


def nearest_direction(vector: Float[np.ndarray, "2"], least: float = 0.03) -> str | None:
  """The named direction next to `vector`; None below a length of `least` sides, or for nan."""
  if not np.hypot(*vector) >= least:
    return None
  scores = {name: float(np.dot(vector, unit)) for name, unit in DIRECTIONS.items()}
  return max(scores, key=scores.__getitem__)


def direction_agrees(video: UInt8[np.ndarray, "t h w 3"], truth: Truth) -> bool | None:
  """Whether the object goes where the caption says; None for motions that are not straight."""
  if truth.direction is None:
    return None
  measured = nearest_direction(displacement(centroids(video, truth.background)))
  return measured == truth.direction


def error_left_behind(
  video: UInt8[np.ndarray, "t h w 3"], true: UInt8[np.ndarray, "t h w 3"], truth: Truth
) -> tuple[float, float]:
  """Summed squared error of the last frame over the pixels that the object has uncovered.

  Args:
    video: real or generated, uint8.
    true: the clip itself.
    truth: of the clip.

  Returns:
    The error of the video, and that of the first frame repeated, in squared grey levels of 255;
    both 0 for a clip in which the object uncovers no pixel.
  """
  left = (truth.coverage[0] > 0.5) & (truth.coverage[-1] < 0.05)
  last = true[-1][left].astype(np.float32)
  errors = (np.sum((frame[left] - last) ** 2) for frame in (video[-1], true[0]))
  made, still = map(float, errors)
  return made, still
