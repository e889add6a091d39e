"""I3D in the names of pytorch-i3d, whose files are its bare state dict."""

from typing import Any

from fbjax.port.leaf import Table, at, conv, linear, same

LEFT_OVER = (r".*\.num_batches_tracked",)
# Channels of b0, b1a, b1b, b2a, b2b and b3b.
BLOCKS = {
  "3b": (64, 96, 128, 16, 32, 32),
  "3c": (128, 128, 192, 32, 96, 64),
  "4b": (192, 96, 208, 16, 48, 64),
  "4c": (160, 112, 224, 24, 64, 64),
  "4d": (128, 128, 256, 24, 64, 64),
  "4e": (112, 144, 288, 32, 64, 64),
  "4f": (256, 160, 320, 32, 128, 128),
  "5b": (256, 160, 320, 32, 128, 128),
  "5c": (384, 192, 384, 48, 128, 128),
}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
  """Arguments of `models.i3d.I3D`."""
  return {"classes": config["num_classes"], "epsilon": config.get("bn_eps", 1e-3)}


def table(classes: int = 400, **_: Any) -> Table:
  leaves = at("conv1a", "Conv3d_1a_7x7", unit(3, 64, 7))
  leaves += at("conv2b", "Conv3d_2b_1x1", unit(64, 64, 1))
  leaves += at("conv2c", "Conv3d_2c_3x3", unit(64, 192, 3))
  c = 192
  for i, (name, (b0, b1a, b1b, b2a, b2b, b3b)) in enumerate(BLOCKS.items()):
    block = at("b0", "b0", unit(c, b0, 1))
    block += at("b1a", "b1a", unit(c, b1a, 1)) + at("b1b", "b1b", unit(b1a, b1b, 3))
    block += at("b2a", "b2a", unit(c, b2a, 1)) + at("b2b", "b2b", unit(b2a, b2b, 3))
    block += at("b3b", "b3b", unit(c, b3b, 1))
    leaves += at(f"blocks/{i}", f"Mixed_{name}", block)
    c = b0 + b1b + b2b + b3b
  return leaves + at("logits", "logits.conv3d", linear(c, classes, ones=3))


def unit(c_in: int, c_out: int, size: int) -> Table:
  """A convolution and batch normalization with running statistics."""
  leaves = at("conv", "conv3d", conv(c_in, c_out, size, size, size, bias=False))
  return leaves + at("norm", "bn", norm(c_out))


def norm(c: int) -> Table:
  """Batch normalization with running statistics."""
  leaves = same("scale", "weight", c) + same("bias", "bias", c)
  return leaves + same("mean", "running_mean", c) + same("var", "running_var", c)
