import pathlib

import pytest
from etils import epath

from fbjax import errors, places

BUCKET = "gs://bucket/run"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder that stands for the bucket."""
  monkeypatch.setattr(places, "remote", lambda workdir: epath.Path(tmp_path))
  places.local.cache_clear()
  places._pushed.cache_clear()
  yield tmp_path
  places.local.cache_clear()
  places._pushed.cache_clear()


def test_a_folder_of_this_machine_is_its_own_place(tmp_path):
  assert places.local(str(tmp_path)) == tmp_path
  places.push(str(tmp_path))
  assert list(tmp_path.iterdir()) == []


def test_a_bucket_stays_a_bucket_and_a_folder_becomes_absolute(monkeypatch):
  monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: name)
  assert str(places.absolute(BUCKET)) == BUCKET
  assert places.absolute("runs/a") == epath.Path(pathlib.Path("runs/a").absolute())


def test_what_is_written_is_pushed_once_and_again_when_it_changes(bucket):
  here = places.local(BUCKET)
  assert here.is_dir() and here != bucket
  (here / "samples").mkdir()
  (here / "samples/a.png").write_bytes(b"picture")
  places.push(BUCKET)
  assert (bucket / "samples/a.png").read_bytes() == b"picture"
  (bucket / "samples/a.png").write_bytes(b"kept")
  places.push(BUCKET)
  assert (bucket / "samples/a.png").read_bytes() == b"kept"
  (here / "samples/a.png").write_bytes(b"another picture")
  places.push(BUCKET)
  assert (bucket / "samples/a.png").read_bytes() == b"another picture"


def test_a_file_of_the_bucket_is_fetched_to_go_on_with(bucket):
  (bucket / "metrics.jsonl").write_text("{}\n")
  places.pull(BUCKET, "metrics.jsonl")
  places.pull(BUCKET, "nothing")
  assert (places.local(BUCKET) / "metrics.jsonl").read_text() == "{}\n"
  assert not (places.local(BUCKET) / "nothing").exists()


def test_a_bucket_that_nothing_reads_says_what_to_install(monkeypatch):
  monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
  for address, package in (("gs://a/b", "gcsfs"), ("s3://a/b", "s3fs")):
    with pytest.raises(
      errors.UserError, match=f"{address} needs another package: pip install {package}"
    ):
      places.absolute(address)
  with pytest.raises(errors.UserError, match="http://a/b is an address of a kind that is not"):
    places.exists("http://a/b")


def test_a_folder_that_cannot_be_written_is_told_and_one_that_can_is_left_empty(tmp_path):
  places.check_writable(str(tmp_path / "a/b"))
  assert list((tmp_path / "a/b").iterdir()) == []
  (tmp_path / "file").touch()
  for folder in ("/dev/null", tmp_path / "file", tmp_path / "file/below"):
    with pytest.raises(errors.UserError, match="cannot write to .*: it is no folder"):
      places.check_writable(str(folder))
  with pytest.raises(errors.UserError, match="cannot write to /proc "):
    places.check_writable("/proc")


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
  file = tmp_path / "config.json"
  places.write_text(str(file), "old")
  with pytest.raises(UnicodeEncodeError):
    places.write_text(str(file), "\ud800")
  assert [x.name for x in tmp_path.iterdir()] == ["config.json"] and file.read_text() == "old"
