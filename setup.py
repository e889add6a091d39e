"""Puts the configs and the models in the box into the wheel, where `fbjax.box` finds them.

All else about the package is in pyproject.toml, which cannot both search for packages and place some.
"""

import pathlib

import setuptools

PLACE = "fbjax.bundled"  # beside the package in a checkout, within it in a wheel
MODELS = sorted(file.parent.name for file in pathlib.Path("zoo").glob("*/config.json"))

setuptools.setup(
  packages=[
    *setuptools.find_packages(include=["fbjax*"]),
    f"{PLACE}.configs",
    *(f"{PLACE}.zoo.{name}" for name in MODELS),
  ],
  package_dir={f"{PLACE}.configs": "configs"}
  | {f"{PLACE}.zoo.{name}": f"zoo/{name}" for name in MODELS},
  package_data={f"{PLACE}.zoo.{name}": ["*"] for name in MODELS},
)
