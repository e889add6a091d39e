import fractions
import struct

import av
import numpy as np
import PIL.Image
import pytest

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


def test_seeking_changes_speed_but_not_frames(tmp_path):
  """From the last keyframe before the start on, or from the beginning of the file: the same."""
  path = write_counting(tmp_path / "a.mp4", 60, gop=10)
  wanted = range(43, 58, 2)
  with av.open(str(path)) as container:
    index = video_lib._index(container)
    assert index.frames == 60 and len(index.keyframes) == 6
    sought = video_lib._frames_from_keyframe(container, index, wanted, (48, 64))
    played = video_lib._frames_from_start(container, wanted, (48, 64))
  assert numbers(np.stack(sought)) == list(wanted)
  np.testing.assert_array_equal(sought, played)


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


@pytest.mark.parametrize(
  "matrix, turns", [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)]
)
def test_the_rotation_flag_is_honoured(tmp_path, matrix, turns):
  """The track header's matrix maps (x, y) to (a x + c y, b x + d y), y pointing down."""
  data = bytearray(write_counting(tmp_path / "a.mp4", 10).read_bytes())
  at = data.index(b"tkhd") + 4 + 40
  a, b, c, d = (value << 16 for value in matrix)
  data[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
  path = tmp_path / "turned.mp4"
  path.write_bytes(data)
  plain = read(tmp_path / "a.mp4", size=(48, 64))[0]
  size = (64, 48) if turns % 2 else (48, 64)
  np.testing.assert_array_equal(read(path, size=size)[0], np.rot90(plain, turns, axes=(1, 2)))


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
