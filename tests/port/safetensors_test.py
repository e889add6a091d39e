import json

import ml_dtypes
import numpy as np
import pytest

from fbjax import errors
from fbjax.port import files, limits

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path, header, data=bytes(8)):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


@pytest.mark.parametrize(
  ("entry", "why"),
  [
    ({"shape": [-2]}, "impossible"),
    ({"shape": [2**70]}, "impossible"),
    ({"shape": [True]}, "impossible"),
    ({"shape": [1] * 100}, "impossible"),
    ({"shape": "12"}, "impossible"),
    ({"shape": [3]}, r"has 8 bytes for a, not those of float32 \(3,\)"),
    ({"shape": []}, "has 8 bytes for a"),
    ({"dtype": "F64"}, "has 8 bytes for a"),
    ({"dtype": ["F32"]}, "damaged"),
    ({"data_offsets": [-12, -4]}, "impossible"),
    ({"data_offsets": [8, 0]}, "impossible"),
    ({"data_offsets": [0, 9]}, "truncated"),
    ({"data_offsets": [0.0, 8.0]}, "impossible"),
    ({"data_offsets": [0]}, "damaged"),
    ({"data_offsets": None}, "damaged"),
    ({"shape": [1], "data_offsets": [0, 4]}, "bytes of no tensor at its end"),
    ({"shape": [1], "data_offsets": [4, 8]}, "bytes of no tensor at a"),
  ],
)
def test_a_header_describes_exactly_the_bytes_of_the_file(tmp_path, entry, why):
  path = write(tmp_path / "x.safetensors", {"a": GOOD | entry})
  with pytest.raises(errors.UserError, match=why) as error:
    files.read(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  ("header", "why"),
  [
    (b'{"betas": {\0\0\0', "damaged"),
    (b"{" * 100_000, "damaged"),
    (b'{"\xff": 1}', "damaged"),
    (b'{"a": {"dtype": "F32"}}', "damaged"),
    (b'{"a": 1}', "damaged"),
    (b'{"a": {"shape": [' + b"9" * 10_000 + b"]}}", "damaged"),
    (b"{}", "bytes of no tensor at its end"),
    ({"a": GOOD, "b": GOOD}, "tensors that overlap at b"),
    (('{"a": %s, "a": %s}' % ((json.dumps(GOOD),) * 2)).encode(), "names a tensor twice"),
    ({"../../a": GOOD}, "calls a tensor '../../a'"),
  ],
)
def test_a_header_of_another_form_is_one_sentence(tmp_path, header, why):
  path = write(tmp_path / "x.safetensors", header)
  with pytest.raises(errors.UserError, match=why) as error:
    files.read(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_sizes_are_capped_before_anything_is_read(tmp_path, monkeypatch):
  path = write(tmp_path / "x.safetensors", {"a": GOOD})
  path.write_bytes((2**62).to_bytes(8, "little") + b"{" + bytes(100))
  with pytest.raises(errors.UserError, match="truncated or no safetensors file"):
    files.read(path)
  monkeypatch.setattr(limits, "TENSORS", 1)
  path = write(tmp_path / "x.safetensors", {"a": GOOD, "b": GOOD})
  with pytest.raises(errors.UserError, match="lists 2 tensors"):
    files.read(path)


def test_small_floats_and_unsigned_integers_are_read_as_they_are(tmp_path):
  eight = np.arange(256, dtype=np.uint8)
  sixteen = np.arange(128, dtype=np.uint16)
  header = {
    "a": {"dtype": "F8_E4M3", "shape": [256], "data_offsets": [0, 256]},
    "b": {"dtype": "U16", "shape": [2, 64], "data_offsets": [256, 512]},
    "__metadata__": {"format": "pt"},
  }
  path = write(tmp_path / "x.safetensors", header, eight.tobytes() + sixteen.tobytes())
  tensors = files.read(path).tensors
  np.testing.assert_array_equal(tensors["a"].view(np.uint8), eight)
  assert tensors["a"].dtype == ml_dtypes.float8_e4m3fn
  np.testing.assert_array_equal(tensors["b"], sixteen.reshape(2, 64))


@pytest.mark.parametrize(("dtype", "told"), [("C64", "complex64"), ("F4", "F4"), ("X\n", r"X\\n")])
def test_what_no_network_computes_with_matters_when_it_is_asked_for(tmp_path, dtype, told):
  header = {"a": GOOD, "b": {"dtype": dtype, "shape": [1], "data_offsets": [8, 16]}}
  path = write(tmp_path / "x.safetensors", header, bytes(16))
  tensors = files.read(path).tensors
  np.testing.assert_array_equal(tensors["a"], [0, 0])
  assert tensors["b"].shape == (1,)
  for ask in (np.asarray, lambda x: x[:1]):
    with pytest.raises(errors.UserError, match=f"tensor b in .*x.safetensors has the dtype {told}"):
      ask(tensors["b"])
