import fractions
import gc
import os
import pathlib
import socket
import struct
import zlib

import av
import numpy as np
import PIL.Image
import pytest

from fbjax.data import playback
from fbjax.data import video as video_lib

STEP = 4  # Grey levels between two frames of a counting video.


def write_counting(path, count, *, size=(48, 64), gop=12, times=None, codec="libx264"):
  """A video whose k-th frame is grey of level STEP k, but for a white upper left corner."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    stream.gop_size = gop
    stream.options = {"crf": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    stream.codec_context.time_base = fractions.Fraction(1, 25)
    for k in range(count):
      image = np.full((*size, 3), STEP * k, np.uint8)
      image[: size[0] // 4, : size[1] // 4] = 255
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame.pts = k if times is None else times[k]
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def numbers(video):
  """The frame numbers of a counting video, read in its lower right quarter."""
  t, h, w, _ = video.shape
  grey = video[:, h // 2 :, w // 2 :].astype(float)
  levels = grey.mean((1, 2, 3)) / STEP
  assert np.abs(levels - levels.round()).max() < 0.4
  return levels.round().astype(int).tolist()


def read(path, frames=8, size=(48, 64), strides=(1, 6), seed=0):
  return video_lib.read_clip(path, frames, size, strides, np.random.default_rng(seed))


@pytest.mark.parametrize(
  "name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_clips_are_evenly_spaced_frames_of_the_file(tmp_path, name, codec):
  path = write_counting(tmp_path / name, 60, codec=codec)
  starts, strides = set(), set()
  for seed in range(24):
    video, stride = read(path, seed=seed)
    found = numbers(video)
    assert found == list(range(found[0], found[0] + 8 * stride, stride))
    starts.add(found[0])
    strides.add(stride)
  assert strides == {1, 2, 3, 4, 5, 6} and max(starts) > 20


def test_the_first_and_the_last_frame_can_be_drawn(tmp_path):
  path = write_counting(tmp_path / "a.mp4", 10)
  found = [numbers(read(path, strides=(1, 1), seed=seed)[0]) for seed in range(20)]
  assert {f[0] for f in found} == {0, 1, 2} and {f[-1] for f in found} == {7, 8, 9}


def played(path):
  """The numbers of the frames that decoding a counting video from its start shows."""
  with av.open(str(path)) as container:
    frames = container.decode(container.streams.best("video"))
    return numbers(np.stack([f.to_ndarray(format="rgb24") for f in frames]))


def sought(path, wanted):
  with playback.opened(path) as video:
    index = playback.read_index(video)
    return index and [p.image for p in playback.from_keyframe(video, index, wanted)]


def check_even(path, count, frames=8, seeds=24):
  """Clips are frames of what is shown, evenly spaced by the stride told, from all of the file."""
  shown, starts = played(path), set()
  assert len(shown) == count
  for seed in range(seeds):
    rng = np.random.default_rng(seed)
    start, stride = video_lib.choose_frames(count, frames, (1, 6), rng)
    video, used = read(path, frames, strides=(1, 6), seed=seed)
    assert used == stride and numbers(video) == shown[start : start + frames * stride : stride]
    starts.add(start)
  assert len(starts) > 3


def test_seeking_changes_speed_but_not_frames(tmp_path):
  """From the last keyframe before the start on, or from the beginning of the file: the same."""
  path = write_counting(tmp_path / "a.mp4", 60, gop=10)
  wanted = range(43, 58, 2)
  with playback.opened(path) as video:
    index = playback.read_index(video)
  assert len(index.pts) == 60 and len(index.keys) == 6
  found = np.stack(sought(path, wanted))
  assert numbers(found) == list(wanted)
  np.testing.assert_array_equal(found, [p.image for p in playback.from_start(path, None, wanted)])


def test_a_file_that_does_not_keep_what_its_packets_promise_is_played(tmp_path, monkeypatch):
  """No frame comes of a seek from where it disagrees with the index, and the draw is then that of a
  file whose packets say nothing."""
  path = write_counting(tmp_path / "a.mp4", 60, gop=10)
  with playback.opened(path) as video:
    index = playback.read_index(video)
    lie = index._replace(pts=np.sort(np.append(index.pts, index.pts[45] + 1)))
    before = [p.image for p in playback.from_keyframe(video, lie, range(43, 58))]
    assert numbers(np.stack(before)) == [43, 44, 45]
  monkeypatch.setattr(playback, "read_index", lambda video: None)
  silent = [read(path, frames=30, strides=(1, 1), seed=seed)[0] for seed in range(12)]
  monkeypatch.setattr(playback, "read_index", lambda video: lie)
  contradicted = 0
  for seed, expected in enumerate(silent):
    video, _ = read(path, frames=30, strides=(1, 1), seed=seed)
    start, _ = video_lib.choose_frames(61, 30, (1, 1), np.random.default_rng(seed))
    if start + 30 > 46:
      np.testing.assert_array_equal(video, expected)
      contradicted += 1
    else:
      assert numbers(video) == list(range(start, start + 30))
  assert 0 < contradicted < 12


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_a_draw_does_not_depend_on_what_is_remembered(tmp_path, monkeypatch, name, codec):
  path = write_counting(tmp_path / name, 40, codec=codec)
  os.utime(path, (1, 1))
  played, decode = [], playback._frames
  monkeypatch.setattr(playback, "_frames", lambda video: played.append(1) or decode(video))
  draws = []
  for memo in (playback._Memo(1), playback._Memo(2**20)):  # The first has room for nothing.
    monkeypatch.setattr(playback, "_memo", memo)
    draws += [read(path, seed=seed) for seed in (0, 1, 2, 0)]
  for (ours, stride), (theirs, other) in zip(draws[:4], draws[4:], strict=True):
    np.testing.assert_array_equal(ours, theirs)
    assert stride == other
  # Each draw decodes for its frames, and once more to count them, unless the count is known.
  assert len(played) == (0 if name == "a.mp4" else (4 + 4) + (1 + 4))


def test_what_is_remembered_is_bounded_and_forgotten_with_the_file(tmp_path):
  memo = playback._Memo(5000)
  made = [memo(i, "x", lambda i=i: i) for i in range(100)]
  assert made == list(range(100)) and len(memo._kept) == 10
  assert memo(99, "x", lambda: None) == 99 and memo(0, "x", lambda: "anew") == "anew"
  path = write_counting(tmp_path / "a.avi", 20, codec="mpeg4")
  os.utime(path, (1, 1))
  assert len(numbers(read(path, frames=20)[0])) == 20
  os.utime(write_counting(path, 30, codec="mpeg4"), (1, 1))
  assert len(numbers(read(path, frames=30)[0])) == 30


def remux(source, path, keep=None, change=None, **options):
  """Copies the packets of a video."""
  with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
    stream = new.add_stream_from_template(old.streams.video[0])
    packets = [p for p in old.demux(video=0) if p.size]
    for packet in packets if keep is None else packets[keep]:
      packet.stream = stream
      if change:
        change(packet)
      new.mux(packet)
  return path


def with_b_frames(path, count=60, codec="libx264", **options):
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width, stream.pix_fmt, stream.gop_size = 48, 64, "yuv420p", 20
    stream.codec_context.max_b_frames = 2
    quality = {"crf": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    stream.options = quality | options
    for k in range(count):
      frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * k, np.uint8), format="rgb24")
      frame.pts = k
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


@pytest.mark.parametrize(
  "name, codec",
  [
    ("a.avi", "libx264"),
    ("a.avi", "mpeg4"),
    ("a.mp4", "mpeg4"),
    ("a.flv", "libx264"),
    ("a.ts", "libx264"),
    ("a.mpg", "mpeg2video"),
    ("a.mov", "libx264"),
    ("a.mkv", "libx264"),
  ],
)
def test_b_frames_come_in_the_order_shown(tmp_path, name, codec):
  check_even(with_b_frames(tmp_path / name, codec=codec), 60)


def test_packed_b_frames_and_those_never_shown_are_not_counted(shared):
  for name in ("06-vp8-alt-ref/alt_ref.webm", "07-avi-b-frames/ucf_packed_b1_g50.avi"):
    path = shared / "cases" / name
    with av.open(str(path)) as container:
      shown = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    for seed in range(6):
      rng = np.random.default_rng(seed)
      start, stride = video_lib.choose_frames(len(shown), 16, (6, 6), rng)
      video, _ = read(path, 16, shown[0].shape[:2], (6, 6), seed)
      np.testing.assert_array_equal(video, shown[start : start + 16 * stride : stride])


def test_empty_chunks_of_an_avi_are_no_frames(tmp_path):
  """Its muxer fills the gaps of a variable frame rate with them, and its header counts them."""
  times = [2 * k for k in range(20)] + [60, 61, 62]
  path = write_counting(tmp_path / "a.avi", 23, codec="mpeg4", times=times)
  with av.open(str(path)) as container:
    assert container.streams.video[0].frames == 63
  check_even(path, 23)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts"])
@pytest.mark.parametrize("first", [15, 33])
def test_a_stream_cut_out_of_another_shows_what_can_be_decoded(tmp_path, name, first):
  """Begins and ends in the middle of a group of pictures: only some of its packets are shown."""
  whole = with_b_frames(tmp_path / "whole.ts", 60)
  path = remux(whole, tmp_path / name, slice(first, 57))
  shown = played(path)
  assert len(shown) < 57 - first
  check_even(path, len(shown), frames=4)


def test_pictures_that_lead_the_first_keyframe_are_not_shown(tmp_path):
  """A cut before a keyframe of an open group: what refers to the group before cannot be decoded."""
  options = {
    "x265-params": "log-level=none:open-gop=1:keyint=24:crf=4:bframes=3:b-adapt=0:scenecut=0"
  }
  whole = with_b_frames(tmp_path / "whole.mkv", codec="libx265", **options)
  with av.open(str(whole)) as container:
    keys = [i for i, p in enumerate(container.demux(video=0)) if p.is_keyframe]
  path = remux(whole, tmp_path / "a.mkv", slice(keys[1], None))
  shown = played(path)
  assert 0 < len(shown) < 60 - keys[1]
  check_even(path, len(shown), frames=4)


def test_an_edit_list_trims(tmp_path):
  """As phones and QuickTime cut: all is in the file, the edit list says what of it is shown."""
  data = bytearray(write_counting(tmp_path / "a.mp4", 60, gop=12).read_bytes())
  at = data.index(b"elst")
  assert struct.unpack(">III", data[at + 4 : at + 16])[1] == 1
  duration, start = struct.unpack(">Ii", data[at + 12 : at + 20])
  for first, count in ((10, 40), (40, 20), (17, 12)):
    ticks = start + first * 512  # In 12800ths of a second; the duration is in thousandths.
    data[at + 12 : at + 20] = struct.pack(">Ii", duration * count // 60, ticks)
    path = tmp_path / f"{first}.mp4"
    path.write_bytes(data)
    assert played(path) == list(range(first, first + count))
    check_even(path, count, frames=4)
    assert sought(path, range(2, 6)) is not None


def test_time_stamps_may_wrap(tmp_path):
  """Those of MPEG-TS have 33 bits."""
  whole = with_b_frames(tmp_path / "whole.mp4", 60)

  def shift(packet):
    ticks = int((2**33 / 90000 - 1) / packet.time_base)
    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks

  path = remux(whole, tmp_path / "a.ts", change=shift, muxdelay="0", mpegts_copyts="1")
  with av.open(str(path)) as container:
    assert container.streams.video[0].start_time < 0  # FFmpeg has seen it wrap.
  check_even(path, 60)


def test_cover_art_and_thumbnails_are_not_the_video(tmp_path):
  video = write_counting(tmp_path / "a.mkv", 30)
  for name, disposition in (("cover.mp4", "attached_pic"), ("thumb.mkv", "forced")):
    path = tmp_path / name
    with av.open(str(video)) as old, av.open(str(path), "w") as new:
      picture = new.add_stream("mjpeg", rate=25)
      picture.width, picture.height, picture.pix_fmt = 200, 200, "yuvj420p"
      picture.disposition = av.stream.Disposition[disposition]
      stream = new.add_stream_from_template(old.streams.video[0])
      stream.disposition = av.stream.Disposition.default
      frame = av.VideoFrame.from_ndarray(np.zeros((200, 200, 3), np.uint8), format="rgb24")
      new.mux(picture.encode(frame))
      new.mux(picture.encode())
      for packet in old.demux(video=0):
        if packet.size:
          packet.stream = stream
          new.mux(packet)
    assert numbers(read(path, frames=30)[0]) == list(range(30))
  with av.open(str(tmp_path / "only.mp4"), "w") as new:
    picture = new.add_stream("mjpeg", rate=25)
    picture.width, picture.height, picture.pix_fmt = 200, 200, "yuvj420p"
    picture.disposition = av.stream.Disposition.attached_pic
    new.mux(picture.encode(frame))
    new.mux(picture.encode())
  with pytest.raises(video_lib.BrokenClip, match="has no video stream"):
    read(tmp_path / "only.mp4")


@pytest.mark.parametrize("grey", [False, True])
def test_palettes_keep_their_colours(tmp_path, grey):
  path = tmp_path / ("a.mov" if grey else "a.avi")
  rng = np.random.default_rng(0)
  colours = np.full((256, 4), 255, np.uint8)
  colours[:, 1:] = np.arange(256)[:, None] if grey else rng.integers(0, 256, (256, 3))
  indices = rng.integers(0, 256, (12, 48, 64), dtype=np.uint8)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("qtrle" if grey else "rawvideo", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "gray" if grey else "pal8"
    for image in indices:
      given = (image, "gray") if grey else ((image, colours), "pal8")
      container.mux(stream.encode(av.VideoFrame.from_ndarray(given[0], format=given[1])))
    container.mux(stream.encode())
  video, _ = read(path, frames=12)
  np.testing.assert_allclose(video, colours[indices][..., 1:], atol=2)


def test_sizes_may_change_on_the_way(tmp_path):
  parts = []
  for size in ((48, 64), (96, 128), (48, 80)):
    parts.append(write_counting(tmp_path / "part.ts", 20, size=size).read_bytes())
  (tmp_path / "a.ts").write_bytes(b"".join(parts))
  video, _ = read(tmp_path / "a.ts", frames=60, strides=(1, 1))
  assert numbers(video) == list(range(20)) * 3


def test_a_variable_frame_rate_is_read_by_order(tmp_path):
  times = np.cumsum(np.random.default_rng(0).integers(1, 30, 40)).tolist()
  path = write_counting(tmp_path / "a.mp4", 40, times=times)
  for seed in range(6):
    video, stride = read(path, seed=seed)
    assert set(np.diff(numbers(video))) == {stride}


def test_the_stride_shrinks_to_what_a_short_video_has_room_for():
  rng = np.random.default_rng(0)
  assert {video_lib.choose_frames(15, 8, (6, 6), rng) for _ in range(40)} == {(0, 2)}
  assert {video_lib.choose_frames(16, 8, (3, 6), rng) for _ in range(40)} == {(0, 2), (1, 2)}
  assert {video_lib.choose_frames(8, 8, (1, 6), rng) for _ in range(40)} == {(0, 1)}
  strides = [video_lib.choose_frames(30, 8, (1, 6), rng)[1] for _ in range(600)]
  assert set(strides) == {1, 2, 3, 4}
  # What does not fit counts for the longest stride that does.
  assert 0.4 < np.mean(np.array(strides) == 4) < 0.6
  assert video_lib.choose_frames(5, 1, (1, 6), rng)[0] in range(5)
  with pytest.raises(video_lib.BrokenClip, match="has 0 frames, fewer than the 1 of a clip"):
    video_lib.choose_frames(0, 1, (1, 6), rng)


@pytest.mark.parametrize(
  "name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")]
)
def test_a_video_in_memory_is_read_as_its_file_is(tmp_path, name, codec):
  path = write_counting(tmp_path / name, 60, codec=codec)
  data = path.read_bytes()
  for seed in range(6):
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    ours = video_lib.read_clip("it", 8, (20, 30), (1, 6), rngs[0], data)
    theirs = video_lib.read_clip(path, 8, (20, 30), (1, 6), rngs[1])
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1] and rngs[0].random() == rngs[1].random()
  for content, reason in (
    (data[: len(data) // 2], ""),
    (b"no video", "cannot be"),
    (b"", "cannot be"),
  ):
    with pytest.raises(video_lib.BrokenClip, match=rf"^it {reason}.*\.$"):
      video_lib.read_clip("it", 60, (20, 30), (1, 6), np.random.default_rng(0), content)


def test_the_frame_rate_is_told_of_files_that_are_whole(tmp_path):
  path = write_counting(tmp_path / "a.mp4", 20)
  assert video_lib.frame_rate(path) == 25
  (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:1000])
  (tmp_path / "zero.mp4").touch()
  for name, reason in {
    "cut.mp4": "cannot be decoded",
    "zero.mp4": "is empty",
    "none.mp4": "does not exist",
  }.items():
    with pytest.raises(video_lib.BrokenClip, match=rf"{name} {reason}.*\.$"):
      video_lib.frame_rate(tmp_path / name)
  # The table of frames is there, the frames are not.
  data = bytearray(path.read_bytes())
  start = data.index(b"mdat") + 4
  data[start : start + 400] = bytes(400)
  (tmp_path / "wiped.mp4").write_bytes(data)
  with pytest.raises(video_lib.BrokenClip, match=r"wiped\.mp4 (cannot be decoded|has no frames)"):
    video_lib.frame_rate(tmp_path / "wiped.mp4")


def test_short_empty_and_foreign_files_end_in_one_sentence_naming_the_file(tmp_path):
  short = write_counting(tmp_path / "short.mp4", 5)
  (tmp_path / "zero.mp4").touch()
  (tmp_path / "text.mp4").write_text("this is no video")
  whole = write_counting(tmp_path / "whole.mp4", 60).read_bytes()
  (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
  with av.open(str(tmp_path / "sound.mp4"), "w") as container:
    stream = container.add_stream("aac", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  for path, reason in {
    short: "has 5 frames, fewer than the 8 of a clip",
    tmp_path / "zero.mp4": "is empty",
    tmp_path / "text.mp4": "cannot be decoded: Invalid data",
    tmp_path / "cut.mp4": "cannot be decoded: Invalid data",
    tmp_path / "sound.mp4": "has no video stream",
    tmp_path / "none.mp4": "does not exist",
    tmp_path: "cannot be decoded",
  }.items():
    with pytest.raises(video_lib.BrokenClip) as e:
      read(path)
    assert str(e.value).startswith(f"{path} {reason}") and str(e.value).endswith(".")


def test_a_video_that_breaks_off_is_broken_wherever_the_clip_would_start(tmp_path):
  path = write_counting(tmp_path / "a.mov", 60)
  with (
    av.open(str(path)) as source,
    av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container,
  ):
    stream = container.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(video=0):
      if packet.size:
        packet.stream = stream
        container.mux(packet)
  whole = (tmp_path / "fast.mp4").read_bytes()
  assert numbers(read(tmp_path / "fast.mp4")[0])
  cut = tmp_path / "cut.mp4"
  cut.write_bytes(whole[: len(whole) * 2 // 3])
  for seed in range(5):
    with pytest.raises(video_lib.BrokenClip, match=r"cut\.mp4 breaks off: \d+ of its 60 frames"):
      read(cut, seed=seed)


def with_matrix(path, matrix):
  """Writes (a, b, c, d) into the track header: it maps (x, y) to (a x + c y, b x + d y)."""
  data = bytearray(path.read_bytes())
  at = data.index(b"tkhd") + 4 + 40
  a, b, c, d = (value << 16 for value in matrix)
  data[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
  turned = path.with_stem("turned")
  turned.write_bytes(data)
  return turned


# Corners of what is shown, by those of the file: upper left 0, upper right 1, lower left 2, lower
# right 3; as ffmpeg shows files with these matrices.
@pytest.mark.parametrize(
  "matrix, corners",
  [
    ((1, 0, 0, 1), (0, 1, 2, 3)),
    ((0, 1, -1, 0), (2, 0, 3, 1)),
    ((-1, 0, 0, -1), (3, 2, 1, 0)),
    ((0, -1, 1, 0), (1, 3, 0, 2)),
    ((-1, 0, 0, 1), (1, 0, 3, 2)),
    ((1, 0, 0, -1), (2, 3, 0, 1)),
    ((0, 1, 1, 0), (0, 2, 1, 3)),
    ((0, -1, -1, 0), (3, 1, 2, 0)),
  ],
)
def test_pictures_are_turned_and_mirrored_as_players_do(tmp_path, matrix, corners):
  image = np.zeros((48, 64, 3), np.uint8)
  image[:24, 32:], image[24:, :32], image[24:, 32:] = 80, 160, 240
  video_lib.write_mp4(tmp_path / "a.mp4", np.stack([image] * 8))
  size = (48, 64) if matrix[0] else (64, 48)
  shown = read(with_matrix(tmp_path / "a.mp4", matrix), size=size)[0][0, ..., 0]
  found = shown[np.ix_((10, -10), (10, -10))].ravel() / 80
  assert found.round().astype(int).tolist() == list(corners)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0)])
def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are(tmp_path, matrix):
  y, x = np.mgrid[:96, :96]
  disc = np.where(np.hypot((x - 47.5) * 2, y - 47.5) < 40, 255, 0).astype(np.uint8)
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(2, 1)
    for _ in range(8):
      frame = av.VideoFrame.from_ndarray(np.stack([disc] * 3, -1), format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  path = with_matrix(tmp_path / "a.mp4", matrix)
  for size in ((96, 96), (192, 192), (96, 192)):
    shown = read(path, size=size)[0][0, ..., 0] > 127
    # 192 wide and 96 high, or turned; the scale that covers the size.
    scale = max(np.divide(size, (96, 192) if matrix[0] else (192, 96)))
    expected = np.minimum(80 * scale, size[::-1])
    np.testing.assert_allclose((shown.any(0).sum(), shown.any(1).sum()), expected, atol=3)


def test_all_of_a_clip_is_not_made_where_its_pixels_are_too_wide(tmp_path):
  with av.open(str(tmp_path / "a.mp4"), "w") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(2, 1)
    stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
    frame = av.VideoFrame.from_ndarray(np.zeros((48, 48, 3), np.uint8), format="rgb24")
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  data = bytearray((tmp_path / "a.mp4").read_bytes())
  at = data.index(b"pasp") + 4
  data[at : at + 8] = (2**28).to_bytes(4) + (1).to_bytes(4)
  (tmp_path / "a.mp4").write_bytes(data)
  with pytest.raises(video_lib.BrokenClip, match="has 1 frames of .* beyond what a clip has"):
    video_lib.read_all(tmp_path / "a.mp4")


def test_what_is_no_regular_file_ends_at_once(tmp_path):
  os.mkfifo(tmp_path / "pipe.mp4")
  (tmp_path / "folder.mp4").mkdir()
  (tmp_path / "device.mp4").symlink_to("/dev/zero")
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(str(tmp_path / "socket.mp4"))
  for path in tmp_path.iterdir():
    with pytest.raises(video_lib.BrokenClip, match=f"{path.name} cannot be decoded: "):
      read(path)
    with pytest.raises(video_lib.BrokenData, match=f"{path.name} cannot be read: "):
      video_lib.read_image(path)
  with pytest.raises(video_lib.BrokenClip, match="cannot be decoded"):
    read("a\0b.mp4")


@pytest.mark.parametrize(
  "name", ["12:30 cat.mp4", "http:x.mp4", "-x.mp4", "%03d.mp4", "a?b#c.mp4", "concat:a|b.mp4"]
)
def test_names_are_nothing_but_names(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  written = write_counting(tmp_path / "a.mp4", 10)
  pathlib.Path(name).write_bytes(written.read_bytes())
  assert set(np.diff(numbers(read(name)[0]))) == {1}
  video_lib.write_mp4("to:" + name, read(name)[0])
  assert len(read("to:" + name)[0]) == 8
  video_lib.write_gif("gif:" + name, read(name)[0])
  assert video_lib.read_image("gif:" + name).shape == (48, 64, 3)


def test_a_video_that_refers_to_other_files_is_none(tmp_path):
  other = write_counting(tmp_path / "other.mp4", 20)
  segment = write_counting(tmp_path / "other.ts", 20)
  for text in (
    f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n",
    f"ffconcat version 1.0\nfile {other.name}\n",
    f"ffconcat version 1.0\nfile '{other}'\n",
  ):
    (tmp_path / "x.mp4").write_text(text)
    with pytest.raises(video_lib.BrokenClip, match="x.mp4 cannot be decoded"):
      read(tmp_path / "x.mp4")
    with pytest.raises(video_lib.BrokenClip, match="it cannot be decoded"):
      video_lib.read_clip("it", 8, (48, 64), (1, 6), np.random.default_rng(0), text.encode())


def test_frames_too_large_are_not_decoded(tmp_path, monkeypatch):
  path = write_counting(tmp_path / "a.mp4", 10, size=(48, 64))
  monkeypatch.setattr(playback, "MAX_PIXELS", 48 * 64)
  assert numbers(read(path)[0])
  monkeypatch.setattr(playback, "MAX_PIXELS", 48 * 64 - 1)
  with pytest.raises(video_lib.BrokenClip, match="has frames of 64 x 48, more than 0 megapixels"):
    read(path)
  # Nor those to which a video changes on its way.
  large = write_counting(tmp_path / "large.ts", 10, size=(96, 128)).read_bytes()
  small = write_counting(tmp_path / "small.ts", 10, size=(48, 64)).read_bytes()
  (tmp_path / "a.ts").write_bytes(small + large)
  monkeypatch.setattr(playback, "MAX_PIXELS", 48 * 64)
  with pytest.raises(video_lib.BrokenClip, match="cannot be decoded"):
    read(tmp_path / "a.ts", frames=20)


def test_a_title_in_another_encoding_is_no_obstacle(tmp_path):
  path = tmp_path / "a.avi"
  with av.open(str(path), "w") as container:
    container.metadata["title"] = "cafeXteria"
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    stream.options = {"qmin": "1", "qmax": "1"}
    for k in range(10):
      frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * k, np.uint8), format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  path.write_bytes(path.read_bytes().replace(b"cafeX", b"caf\xe9 "))
  assert set(np.diff(numbers(read(path)[0]))) == {1}


def test_an_index_keeps_no_packets(tmp_path, monkeypatch):
  """A video of 1 GB would cost 1 GB."""
  path, packets, alive = write_counting(tmp_path / "a.mp4", 60), playback._packets, []

  def watched(video):
    yield from packets(video)
    alive.append(sum(isinstance(o, av.Packet) for o in gc.get_objects()))

  monkeypatch.setattr(playback, "_packets", watched)
  with playback.opened(path) as video:
    assert len(playback.read_index(video).pts) == 60
  assert alive[0] < 5


def mutated(data, rng):
  """Flips bits, cuts, or moves a stretch of a file."""
  data = bytearray(data)
  kind = rng.integers(3)
  if kind == 0:
    for at in rng.integers(0, len(data), rng.integers(1, 40)):
      data[at] ^= 1 << rng.integers(8)
  elif kind == 1:
    data = data[: rng.integers(1, len(data))]
  else:
    a, b, n = rng.integers(0, len(data), 3)
    data[a : a + n // 8] = data[b : b + n // 8]
  return bytes(data)


def test_damaged_files_are_read_or_refused(tmp_path):
  """Nothing but BrokenClip and BrokenData, with the name of the file, comes of them."""
  rng, read_well = np.random.default_rng(0), 0
  videos = [
    write_counting(tmp_path / "a.mp4", 20).read_bytes(),
    write_counting(tmp_path / "b.avi", 20, codec="mpeg4").read_bytes(),
    with_b_frames(tmp_path / "c.mkv", 20).read_bytes(),
    with_b_frames(tmp_path / "d.ts", 20).read_bytes(),
  ]
  image = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
  images = []
  for name in ("png", "jpeg", "webp", "bmp", "tiff", "gif"):
    image.save(tmp_path / f"a.{name}")
    images.append((tmp_path / f"a.{name}").read_bytes())
  path = tmp_path / "hurt"
  for data in videos * 12:
    path.write_bytes(mutated(data, rng))
    try:
      read_well += len(read(path)[0]) > 0
    except video_lib.BrokenClip as e:
      assert str(path) in str(e)
  for data in images * 20:
    path.write_bytes(mutated(data, rng))
    try:
      read_well += video_lib.read_image(path).shape[2] == 3
    except video_lib.BrokenData as e:
      assert str(path) in str(e)
  assert read_well > 20


def test_the_box_of_a_resize_never_leaves_the_image():
  """Not by rounding either, whatever the sizes are."""
  rng = np.random.default_rng(0)
  pairs = [
    ((98, 98), (16, 16)),
    ((392, 700), (256, 256)),
    ((47, 63), (48, 64)),
    ((1, 300), (40, 1)),
  ]
  pairs += [((n, n + k), (2**e, 2**e)) for n in range(1, 200, 3) for k in (0, 7) for e in (4, 5)]
  pairs += [(rng.integers(1, 300, 2), rng.integers(1, 80, 2)) for _ in range(600)]
  for shape, size in pairs:
    image = np.full((*shape, 3), 100, np.uint8)
    for aspect in (1, float(rng.uniform(0.3, 3))):
      resized = video_lib.resize_crop(image, tuple(map(int, size)), aspect)
      assert resized.shape == (*size, 3) and (resized == 100).all()


def test_resizing_keeps_the_centre_and_the_aspect_ratio():
  y, x = np.mgrid[:120, :200]
  disc = (np.hypot(x - 99.5, y - 59.5) < 40)[..., None] * np.full(3, 255, np.uint8)
  for size in ((60, 60), (60, 100), (240, 240), (33, 47)):
    small = video_lib.resize_crop(disc.astype(np.uint8), size)
    assert small.shape == (*size, 3) and small.dtype == np.uint8
    weight = small[..., 0] / 255
    scale = max(size[0] / 120, size[1] / 200)
    assert weight.sum() == pytest.approx(np.pi * (40 * scale) ** 2, rel=0.02)
    rows, columns = weight.sum(1), weight.sum(0)
    np.testing.assert_allclose(rows, rows[::-1], atol=0.1)
    np.testing.assert_allclose(columns, columns[::-1], atol=0.1)


def test_resizing_is_antialiased():
  noise = np.random.default_rng(0).integers(0, 256, (256, 256, 1), dtype=np.uint8).repeat(3, -1)
  # Averages of about 8 x 8 pixels; picking pixels would leave a spread of 74.
  assert video_lib.resize_crop(noise, (32, 32)).std() < 12


def image_of(mode, path, **options):
  PIL.Image.fromarray(np.asarray(mode)).save(path, **options)
  return video_lib.read_image(path)


def test_images_of_every_kind_become_rgb(tmp_path):
  colour = np.zeros((6, 9, 3), np.uint8)
  colour[:, :, 0] = 200
  grey = np.full((6, 9), 77, np.uint8)
  np.testing.assert_array_equal(image_of(colour, tmp_path / "a.png"), colour)
  assert np.abs(image_of(colour, tmp_path / "a.jpeg").astype(int) - colour).max() < 4
  np.testing.assert_array_equal(image_of(grey, tmp_path / "g.png"), np.stack([grey] * 3, -1))
  ramp = np.arange(256, dtype=np.uint16).reshape(8, 32)
  deep = image_of(ramp * 257, tmp_path / "d.png")
  np.testing.assert_array_equal(deep, np.stack([ramp] * 3, -1))
  palette = PIL.Image.fromarray(colour).quantize()
  palette.save(tmp_path / "p.png")
  np.testing.assert_array_equal(video_lib.read_image(tmp_path / "p.png"), colour)
  PIL.Image.fromarray(colour).convert("CMYK").save(tmp_path / "c.jpg")
  assert np.abs(video_lib.read_image(tmp_path / "c.jpg").astype(int) - colour).max() < 6
  bilevel = PIL.Image.new("1", (4, 4), 1)
  bilevel.save(tmp_path / "b.png")
  assert (video_lib.read_image(tmp_path / "b.png") == 255).all()


def test_transparent_pixels_show_white(tmp_path):
  image = np.zeros((2, 2, 4), np.uint8)
  image[0, :, 3] = 255
  image[1, 0, 3] = 128
  np.testing.assert_allclose(
    image_of(image, tmp_path / "a.png")[..., 0], [[0, 0], [127, 255]], atol=1
  )
  palette = PIL.Image.fromarray(np.zeros((2, 2, 3), np.uint8)).quantize()
  palette.save(tmp_path / "p.png", transparency=0)
  assert (video_lib.read_image(tmp_path / "p.png") == 255).all()


def test_images_are_upright(tmp_path):
  image = np.zeros((40, 80, 3), np.uint8)
  image[:, :40] = 255
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # Turn clockwise to see it as it was taken.
  upright = image_of(image, tmp_path / "a.png", exif=exif)
  np.testing.assert_array_equal(upright, np.rot90(image, -1))


def test_unreadable_images_end_in_one_sentence(tmp_path):
  (tmp_path / "text.png").write_text("no image")
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
  image_of(noise, tmp_path / "whole.png")
  (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
  for name, words in {
    "none.png": "no image at",
    "text.png": "is not an image",
    "cut.png": "cannot be read",
  }.items():
    with pytest.raises(video_lib.BrokenData, match=words) as e:
      video_lib.read_image(tmp_path / name)
    assert str(tmp_path / name) in str(e.value)
  with pytest.raises(video_lib.BrokenData, match="cannot be read"):
    video_lib.read_image(tmp_path)


def test_images_are_of_the_formats_that_are_named(tmp_path):
  image = PIL.Image.fromarray(np.full((4, 6, 3), 90, np.uint8))
  for name in video_lib.IMAGE_FORMATS:
    image.save(tmp_path / "named.png", name)
    assert np.abs(video_lib.read_image(tmp_path / "named.png").astype(int) - 90).max() < 4
  for name in ("EPS", "PPM", "PCX", "ICO"):
    image.save(tmp_path / "named.png", name)
    with pytest.raises(video_lib.BrokenData, match="named.png is not an image of a format that"):
      video_lib.read_image(tmp_path / "named.png")
  frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
  frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
  assert (video_lib.read_image(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_images_too_large_are_not_decoded(tmp_path, monkeypatch):
  """Their size is known before; a few kB of PNG may say 20,000 x 20,000."""
  path = tmp_path / "a.png"
  PIL.Image.new("L", (16, 10)).save(path)
  monkeypatch.setattr(video_lib, "MAX_IMAGE_PIXELS", 160)
  assert video_lib.read_image(path).shape == (10, 16, 3)
  monkeypatch.setattr(video_lib, "MAX_IMAGE_PIXELS", 159)
  monkeypatch.setattr(PIL.Image.Image, "load", None)
  with pytest.raises(video_lib.BrokenData, match="a.png has more than 0 megapixels"):
    video_lib.read_image(path)
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack(">II", 20000, 20000)
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  path.write_bytes(data)
  with pytest.raises(video_lib.BrokenData, match="more than 0 megapixels"):
    video_lib.read_image(path)


@pytest.mark.parametrize("h, w", [(32, 32), (33, 47)])
def test_written_videos_read_back(tmp_path, h, w):
  y, x = np.mgrid[:h, :w] / 10
  phases = np.arange(9)[:, None, None, None] / 3 + np.array([0.0, 1.0, 2.0])
  video = (127 + 100 * np.sin(x[None, ..., None] + y[None, ..., None] + phases)).astype(np.uint8)
  path = tmp_path / "new" / "a.mp4"
  video_lib.write_mp4(path, video, fps=8)
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    assert stream.average_rate == 8 and stream.codec_context.pix_fmt == "yuv420p"
    back = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
  assert back.shape == (9, h + h % 2, w + w % 2, 3)
  assert np.abs(back[:, :h, :w].astype(int) - video).mean() < 4


@pytest.mark.parametrize("write", [video_lib.write_mp4, video_lib.write_gif])
def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch, write):
  path = tmp_path / "new" / "a.clip"
  video = np.zeros((4, 16, 16, 3), np.uint8)
  write(path, video)
  before = path.read_bytes()
  seen = []

  def fails(*_, **__):
    seen.extend(path.parent.iterdir())
    raise OSError("no space")

  monkeypatch.setattr(pathlib.Path, "replace", fails)
  with pytest.raises(OSError, match="no space"):
    write(path, video + 9)
  assert len(seen) == 2  # It was written beside.
  assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_a_gif_shows_the_clip_again_and_again(tmp_path):
  y, x = np.mgrid[:40, :48]
  phases = np.arange(10)[:, None, None, None] / 2 + np.array([0.0, 2.0, 4.0])
  video = (127 + 120 * np.sin((x + 2 * y)[None, ..., None] / 15 + phases)).astype(np.uint8)
  video_lib.write_gif(tmp_path / "a.gif", video, fps=12)
  with PIL.Image.open(tmp_path / "a.gif") as gif:
    assert gif.format == "GIF" and gif.info["loop"] == 0 and gif.n_frames == 10
    times = []
    for k in range(10):
      gif.seek(k)
      times.append(gif.info["duration"])
      shown = np.asarray(gif.convert("RGB")).astype(int)
      assert np.abs(shown - video[k]).mean() < 8
  assert set(times) == {80, 90} and sum(times) == 830  # 10 frames, 12 a second.
  flat = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 77, 255)])
  video_lib.write_gif(tmp_path / "b.gif", flat)
  with PIL.Image.open(tmp_path / "b.gif") as gif:
    for k in range(3):
      gif.seek(k)
      np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), flat[k])


def test_every_corrupt_file_has_a_sensible_end(shared):
  broken = {
    "audio_only": "has no video stream",
    "five_frames": "has 5 frames",
    "text": "cannot be decoded",
    "truncated": "cannot be decoded",
    "truncated_faststart": "breaks off: 27 of its 61",
    "zero_byte": "is empty",
  }
  for path in sorted((shared / "videos/corrupt").glob("*.mp4")):
    if path.stem in broken:
      with pytest.raises(video_lib.BrokenClip, match=broken[path.stem]):
        read(path)
    else:
      video, stride = read(path, size=(64, 64))
      assert video.shape == (8, 64, 64, 3) and 1 <= stride <= 6 and video.std() > 10


def test_real_clips_hold_the_frames_that_playing_them_shows(shared):
  for name in ("webvid/2M_train/901002.mp4", "ucf101/UCF-101/TurningBox/v_TurningBox_g01_c01.avi"):
    path = shared / "videos" / name
    with av.open(str(path)) as container:
      played = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for seed in range(3):
      start, stride = video_lib.choose_frames(len(played), 8, (1, 6), np.random.default_rng(seed))
      video, used = read(path, size=(40, 40), seed=seed)
      wanted = played[start : start + 8 * stride : stride]
      np.testing.assert_array_equal(video, [video_lib.resize_crop(f, (40, 40)) for f in wanted])
      assert used == stride


@pytest.mark.parametrize("scale", [1, 255])
def test_a_picture_of_floats_is_as_bright_as_it_was_drawn(tmp_path, scale):
  grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
  PIL.Image.fromarray(grey * scale).save(tmp_path / "a.tiff")
  expected = np.repeat(np.round(grey * 255)[..., None], 3, axis=-1)
  np.testing.assert_array_equal(video_lib.read_image(tmp_path / "a.tiff"), expected)


def test_a_picture_of_floats_of_another_scale_is_refused(tmp_path):
  PIL.Image.fromarray(np.full((3, 4), 4000, np.float32)).save(tmp_path / "a.tiff")
  with pytest.raises(
    video_lib.BrokenData, match="a.tiff .* floats from 4000 to 4000; expected 0 to 1"
  ):
    video_lib.read_image(tmp_path / "a.tiff")


def test_a_file_that_the_disk_does_not_give_is_a_broken_clip(tmp_path):
  (tmp_path / "a.mp4").symlink_to("/proc/self/mem")  # regular; its first byte is an I/O error
  with pytest.raises(video_lib.BrokenClip, match=r"a\.mp4 cannot be read: Input/output error"):
    read(tmp_path / "a.mp4")


def test_a_pipe_is_no_image(tmp_path):
  os.mkfifo(tmp_path / "a.png")
  with pytest.raises(video_lib.BrokenData, match="a.png cannot be read: it is no regular file.$"):
    video_lib.read_image(tmp_path / "a.png")
