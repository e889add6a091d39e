"""Makes features.npz anew: the network that names what happens in a moving shapes' clip.

python -m studies.train_features --steps=2000      # ten minutes of two CPU cores
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from jaxtyping import Int

from fbjax import trees
from fbjax.data import synthetic
from studies import asked, features

SIZES = ((8, 16), (8, 32))  # frames and side of the clips that it learns from
HELD_OUT = 2048


def labels(source: synthetic.Shapes, index: int) -> list[int]:
  scene = source.scene(index)
  return [names.index(getattr(scene, head)) for head, names in features.HEADS.items()]


def batches(split: str) -> Iterator[tuple[features.Clips, Int[np.ndarray, "b heads"]]]:
  """Clips of all sizes by turns, and their labels."""
  first = 0
  sources = [synthetic.Shapes(frames, side, split=split) for frames, side in SIZES]
  while True:
    source = sources[first // features.BATCH % len(sources)]
    rows = range(first, first + features.BATCH)
    clips = np.stack([source[i].video for i in rows])
    yield (
      np.asarray(features.seen(clips, features.FRAMES, features.SIDE)),
      np.array([labels(source, i) for i in rows]),
    )
    first += features.BATCH


def train(steps: int) -> tuple[dict[str, Any], dict[str, float]]:
  """Trains the network, and says how many of the labels of held-out clips it names."""
  graph = features.NETWORK.graph()
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  @jax.jit
  def step(params, state, clips, wanted):
    def loss(params):
      _, logits = nnx.merge(graph, params)(clips)
      each = optax.softmax_cross_entropy_with_integer_labels
      return sum(each(logits[head], wanted[:, i]).mean() for i, head in enumerate(features.HEADS))

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  @jax.jit
  def right(params, clips, wanted):
    _, logits = nnx.merge(graph, params)(clips)
    return jnp.stack([logits[head].argmax(-1) for head in features.HEADS], 1) == wanted

  params = jax.jit(features.NETWORK.init)(jax.random.key(0))
  state = tx.init(params)
  for number, batch in zip(range(steps), batches("train"), strict=False):
    params, state, value = step(params, state, *batch)
    if number % 100 == 0:
      print(f"step {number}: loss {value:.3f}", flush=True)
  some = zip(range(HELD_OUT // features.BATCH), batches("val"), strict=False)
  agree = np.concatenate([right(params, *batch) for _, batch in some]).mean(0)
  return params, {head: float(x) for head, x in zip(features.HEADS, agree, strict=True)}


OWN = flags.FlagValues()  # apart from those of the program, some of which have the same names
STEPS = flags.DEFINE_integer("steps", 3000, "Steps of training", flag_values=OWN)


def main(argv: Sequence[str]) -> None:
  OWN(argv)
  params, accuracy = train(STEPS.value)
  np.savez(features.FILE, **{path: np.float16(x) for path, x in trees.flatten(params).items()})
  card = {"steps": STEPS.value, "held_out_clips": HELD_OUT, "accuracy": accuracy}
  features.FILE.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
  print(card)


if __name__ == "__main__":
  asked.start(main, OWN, __doc__)
