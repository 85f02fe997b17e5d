"""Colour against two independent truths: zimg (FFmpeg's zscale), and floats by the definitions of BT.601, 709, 2020."""

import re
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hf_efficient.video.files import reader
from hf_efficient.video.files.color import ColorTags, FromRGB, to_rgb
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from tests.video.clips import make_clip, moving_frames

MEAN, BIAS = 0.6, 0.1  # of 255
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
ZIMG = {1: "709", 5: "470bg", 9: "2020_ncl"}
EVERY_TAG = [(m, r) for m in LUMA for r in (1, 2)]


def matrix(number: int) -> np.ndarray:
    """(3, 3): R'G'B' in [0, 1] to Y' in [0, 1] and Cb, Cr in [-1/2, 1/2]."""
    red, blue = LUMA[number]
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack(
        [luma, (np.array([0, 0, 1]) - luma) / (2 * (1 - blue)), (np.array([1, 0, 0]) - luma) / (2 * (1 - red))]
    )


def to_yuv(rgb: np.ndarray, number: int, full: bool) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) levels, not rounded."""
    y, cb, cr = np.moveaxis(rgb / 255 @ matrix(number).T, -1, 0)
    return np.stack(
        [255 * y, 128 + 255 * cb, 128 + 255 * cr] if full else [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]
    )


def from_yuv(yuv: np.ndarray, number: int, full: bool) -> np.ndarray:
    """The reverse: (H, W, 3) levels in [0, 255], rounded."""
    y, cb, cr = yuv
    parts = (
        [y / 255, (cb - 128) / 255, (cr - 128) / 255] if full else [(y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224]
    )
    return np.rint(255 * (np.stack(parts, -1) @ np.linalg.inv(matrix(number)).T)).clip(0, 255)


def halved(plane: np.ndarray) -> np.ndarray:
    """Chroma of 4:2:0 on the left: over columns (1, 2, 1)/4 at the even ones, over rows the mean of two."""
    padded = np.pad(plane, ((0, 0), (1, 1)), mode="edge")
    columns = (padded[:, :-2] + 2 * plane + padded[:, 2:])[:, ::2] / 4
    return (columns[::2] + columns[1::2]) / 2


def doubled(plane: np.ndarray) -> np.ndarray:
    """The reverse, linear."""
    after = np.pad(plane, ((0, 0), (0, 1)), mode="edge")[:, 1:]
    wide = np.stack([plane, (plane + after) / 2], -1).reshape(len(plane), -1)
    above, below = np.pad(wide, ((1, 0), (0, 0)), mode="edge")[:-1], np.pad(wide, ((0, 1), (0, 0)), mode="edge")[1:]
    return np.stack([(above + 3 * wide) / 4, (3 * wide + below) / 4], 1).reshape(-1, wide.shape[1])


def smooth(width: int = 160, height: int = 96) -> np.ndarray:
    """(H, W, 3) uint8 with many colours and no edges."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 110 * np.sin(x / 23), 127 + 100 * np.cos(y / 17 + x / 40), 127 + 110 * np.sin((x + 2 * y) / 31)]
    return np.stack(waves, -1).round().astype(np.uint8)


def planes(frame: Any) -> list[np.ndarray]:
    """The planes of a frame of 8 bits."""
    return [np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width].astype(float) for p in frame.planes]


def yuv_frame(parts: list[np.ndarray], pixel_format: str) -> Any:
    """A frame of given planes."""
    height, width = parts[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, parts, strict=True):
        item = values.dtype.itemsize
        rows = np.zeros((plane.height, plane.line_size // item), values.dtype)
        rows[:, : values.shape[1]] = values
        plane.update(rows.tobytes())
    return frame


def zscale(data: bytes, size: tuple[int, int], formats: tuple[str, str], chain: str) -> np.ndarray:
    """Raw frames through zimg."""
    raw: list[Any] = ["-f", "rawvideo", "-s", f"{size[0]}x{size[1]}", "-pix_fmt", formats[0], "-i", "-"]
    command = ["ffmpeg", "-v", "error", *raw, "-vf", chain, "-f", "rawvideo", "-pix_fmt", formats[1], "-"]
    return np.frombuffer(subprocess.run(command, input=data, check=True, capture_output=True).stdout, np.uint8)


def assert_same(ours: np.ndarray, theirs: np.ndarray, mean: float = MEAN, bias: float = BIAS) -> None:
    difference = ours.astype(float) - theirs
    assert np.abs(difference).mean() <= mean
    assert abs(difference.mean()) <= bias
    if difference.ndim == 3 and difference.shape[-1] == 3:
        assert np.abs(difference.mean((0, 1))).max() <= 2 * bias  # no colour cast


@pytest.mark.parametrize(("number", "color_range"), EVERY_TAG)
def test_writing_is_the_definition(number: int, color_range: int) -> None:
    rgb, full = smooth(), color_range == 2
    truth = to_yuv(rgb, number, full)
    whole = planes(FromRGB("yuv444p", number, color_range)(rgb))
    for ours, theirs in zip(whole, truth, strict=True):
        assert_same(ours, np.rint(theirs), 0.1)
    parts = planes(FromRGB("yuv420p", number, color_range)(rgb))
    for ours, theirs in zip(parts, [truth[0], halved(truth[1]), halved(truth[2])], strict=True):
        assert_same(ours, np.rint(theirs), 0.3)


@pytest.mark.parametrize(("number", "color_range"), EVERY_TAG)
@pytest.mark.parametrize("bits", [8, 10])
def test_reading_is_the_definition(number: int, color_range: int, bits: int) -> None:
    full = color_range == 2
    # limited levels of 10 bits are four times those of 8, full ones 1023/255 times but for chroma's middle, 512
    scale, top = (4.0, 1023) if bits == 10 else (1.0, 255)
    exact = to_yuv(smooth(), number, full)
    if full:
        exact = (exact - np.array([0, 128, 128])[:, None, None]) * (top / 255)
        stored = np.rint(exact + np.array([0, 128 * scale, 128 * scale])[:, None, None])
        levels = (stored - np.array([0, 128 * scale, 128 * scale])[:, None, None]) * (255 / top)
        levels[1:] += 128
    else:
        stored = np.rint(exact * scale)
        levels = stored / scale
    deep = "10le" if bits == 10 else ""
    kind = np.dtype("<u2") if bits == 10 else np.dtype("u1")
    frame = yuv_frame(list(stored.clip(0, top).astype(kind)), f"yuv444p{deep}")
    assert_same(to_rgb(frame, number, color_range), from_yuv(levels, number, full), 0.1)


@pytest.mark.parametrize(("number", "color_range"), EVERY_TAG)
def test_halved_chroma_is_interpolated_from_where_it_lies(tmp_path: Path, number: int, color_range: int) -> None:
    full = color_range == 2
    y, cb, cr = to_yuv(smooth(), number, full)
    parts = [np.rint(y), np.rint(halved(cb)), np.rint(halved(cr))]
    path = tmp_path / "a.mkv"
    written(path, yuv_frame([p.astype(np.uint8) for p in parts], "yuv420p"), color_range)
    ours = next(read_frames(path, probe_as(path, number))).rgb
    assert_same(ours, from_yuv(np.stack([parts[0], doubled(parts[1]), doubled(parts[2])]), number, full), 0.3)


def written(path: Path, frame: Any, color_range: int) -> None:
    """One frame as it is, in lossless H.264: chroma lies on the left by the standard."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        stream.codec_context.color_range = color_range
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)


def probe_as(path: Path, number: int) -> reader.VideoInfo:
    """What a file says, under another matrix."""
    info = probe(path)
    return replace(info, color=ColorTags(number, 2, 2, info.color.range))


@pytest.mark.parametrize(("number", "color_range"), EVERY_TAG)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p"])
def test_there_and_back_as_zimg_does(number: int, color_range: int, pixel_format: str) -> None:
    rgb = moving_frames(1, 192, 144)[0]  # with hard edges of saturated colours
    size, name, range_ = (192, 144), ZIMG[number], ("limited", "full")[color_range - 1]
    chain = f"format=gbrp,zscale=m={name}:r={range_}:c=left:f=bicubic:d=none"
    theirs = zscale(rgb.tobytes(), size, ("rgb24", pixel_format), chain)
    frame = FromRGB(pixel_format, number, color_range)(rgb)
    assert_same(np.concatenate([p.ravel() for p in planes(frame)]), theirs, 0.2)
    back = f"zscale=min={name}:rin={range_}:cin=left:f=bicubic:m=gbr:r=full:d=none,format=gbrp"
    expected = zscale(theirs.tobytes(), size, (pixel_format, "rgb24"), back).reshape(rgb.shape)
    assert_same(to_rgb(frame, number, color_range), expected)


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (33, 2), (1, 1)])
def test_any_size_keeps_a_flat_colour(size: tuple[int, int]) -> None:
    rgb = np.full((size[1], size[0], 3), (200, 90, 40), np.uint8)
    for color_range in (1, 2):
        for pixel_format in ("yuv420p", "yuv444p"):
            back = to_rgb(FromRGB(pixel_format, 1, color_range)(rgb), 1, color_range)
            assert np.abs(back.astype(int) - rgb).max() <= 2
            assert back.shape == rgb.shape


@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize(("pixel_format", "top"), [("gray", 255), ("gray10le", 1023), ("gray16le", 65535)])
def test_grey_goes_by_its_range(pixel_format: str, top: int, color_range: int) -> None:
    levels = np.linspace(0, top, 64 * 48).round().reshape(48, 64)
    frame = yuv_frame([levels.astype("u1" if top == 255 else "<u2")], pixel_format)
    unit = (top + 1) / 256
    expected = 255 * levels / top if color_range == 2 else 255 * (levels - 16 * unit) / (219 * unit)
    ours = to_rgb(frame, 1, color_range)
    assert np.abs(ours[..., 0] - np.rint(expected).clip(0, 255)).max() <= 1
    assert_same(ours, np.repeat(np.rint(expected).clip(0, 255)[..., None], 3, -1), 0.1)


@pytest.mark.parametrize(("pixel_format", "bits"), [("gbrp10le", 10), ("gbrp12le", 12), ("gbrp16le", 16)])
def test_deep_rgb_reaches_white(pixel_format: str, bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, 64 * 48).round().reshape(48, 64)
    frame = yuv_frame([levels.astype("<u2")] * 3, pixel_format)
    expected = np.rint(255 * levels / (2**bits - 1))
    assert_same(to_rgb(frame, 5, 0), np.repeat(expected[..., None], 3, -1), 0.1)


@pytest.mark.parametrize("interlaced", ["keep", "deinterlace"])
def test_interlaced_frames_have_the_same_colours(tmp_path: Path, interlaced: str) -> None:
    rgb = smooth()
    path = tmp_path / "a.mkv"
    make = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-s", "160x96", "-pix_fmt", "rgb24", "-i", "-"]
    make += ["-vf", "format=gbrp,zscale=m=470bg:r=limited:c=left:f=bicubic:d=none,format=yuv420p,setfield=tff"]
    make += ["-c:v", "libx264", "-qp", "0", "-flags", "+ilme+ildct", "-x264-params", "tff=1", str(path)]
    subprocess.run(make, input=rgb.tobytes() * 4, check=True)
    frames = list(read_frames(path, probe(path, interlaced=interlaced)))
    assert len(frames) == 4
    for frame in frames[1:]:  # bwdif has to interpolate the first, which has no frame before it
        assert_same(frame.rgb, rgb)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "ffv1"])
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_files_mean_to_zimg_what_they_mean_to_us(tmp_path: Path, codec: str, color_range: int) -> None:
    rgb = np.stack([smooth(192, 144)] * 3)
    path = tmp_path / "a.mkv"
    tags = ColorTags(1, 1, 1, color_range)
    info = reader.VideoInfo(192, 144, "yuv420p", Fraction(25), Fraction(1, 1000), Fraction(1), tags, 0, 0, 0, "", ())
    options = {"libx264": {"qp": "0"}, "libx265": {"x265-params": "lossless=1:log-level=error"},
               "libsvtav1": {"crf": "1", "preset": "8"}}.get(codec, {})  # fmt: skip
    with VideoWriter(path, info, (192, 144), codec, "yuv420p", options) as writer:
        for t, frame in enumerate(rgb):
            writer.write(frame, 40 * t)
    decode: list[Any] = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-vf"]
    decode += ["zscale=f=bicubic:m=gbr:r=full:d=none,format=gbrp", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    theirs = np.frombuffer(subprocess.run(decode, check=True, capture_output=True).stdout, np.uint8)
    loss = 0.6 if codec == "libsvtav1" else 0.0
    assert_same(next(read_frames(path)).rgb, theirs.reshape(rgb[0].shape), 0.3)
    assert_same(next(read_frames(path)).rgb, rgb[0], MEAN + loss, BIAS + loss / 3)
    shown = subprocess.run(["ffmpeg", "-v", "verbose", "-i", str(path)], capture_output=True, text=True).stderr
    assert re.search(r"Stream #0.*yuvj?420p\([^)]*left", shown)


def test_a_matrix_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", moving_frames(2, 64, 48), pixel_format="yuv444p", color=(8, 1, 1, 1))
    with pytest.raises(MediaError, match=r"color matrix YCgCo.*zscale"):
        probe(path)


PLACES = {
    "vp9, not said": ("webm", ["-c:v", "libvpx-vp9", "-lossless", "1"], "", "left"),
    "ffv1, not said": ("avi", ["-c:v", "ffv1"], "", "left"),
    "vp9, center": ("webm", ["-c:v", "libvpx-vp9", "-lossless", "1"], "center", "center"),
    "ffv1, center": ("mkv", ["-c:v", "ffv1"], "center", "center"),
    "ffv1, not said, mkv": ("mkv", ["-c:v", "ffv1"], "", "left"),
    "flv": ("flv", ["-c:v", "flv", "-qscale:v", "1"], "", "left"),
    "wmv": ("wmv", ["-c:v", "wmv2", "-qscale:v", "1"], "", "left"),
    "raw, 4:2:0": ("nut", ["-c:v", "rawvideo", "-pix_fmt", "nv12"], "", "left"),
    "raw, 4:2:2": ("mov", ["-c:v", "rawvideo", "-pix_fmt", "uyvy422"], "", "left"),
    "y4m, center": ("y4m", [], "center", "center"),
    "y4m, left": ("y4m", [], "left", "left"),
    "theora": ("ogv", ["-c:v", "libtheora", "-qscale:v", "10"], "", "center"),
    "h264, not said": ("mkv", ["-c:v", "libx264", "-qp", "0"], "", "left"),
    "h264, left": ("mkv", ["-c:v", "libx264", "-qp", "0"], "left", "left"),
    "h264, center": ("mkv", ["-c:v", "libx264", "-qp", "0"], "center", "center"),
    "h264, top left": ("mkv", ["-c:v", "libx264", "-qp", "0"], "topleft", "topleft"),
    "mpeg1": ("mpg", ["-c:v", "mpeg1video", "-qscale:v", "1"], "", "center"),
}


@pytest.mark.parametrize("name", PLACES)
def test_chroma_is_taken_from_where_it_lies(tmp_path: Path, name: str) -> None:
    suffix, encoder, said, place = PLACES[name]
    rgb, path = moving_frames(1, 192, 144)[0], tmp_path / f"a.{suffix}"
    make = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-r", "25", "-s", "192x144", "-pix_fmt", "rgb24", "-i", "-"]
    chain = f"format=gbrp,zscale=m=470bg:r=limited:c={place}:f=bicubic:d=none,format=yuv420p"
    tag = f",setparams=chroma_location={said or 'unspecified'}"
    subprocess.run([*make, "-vf", chain + tag, *encoder, str(path)], input=rgb.tobytes(), check=True)
    decode = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-vf"]
    ours, distances = next(read_frames(path)).rgb, {}
    for other in ("left", "center", "topleft"):
        back = (
            f"setparams=chroma_location={other},zscale=cin={other}:min=470bg:rin=limited:f=bicubic:m=gbr:r=full:d=none"
        )
        command = [*decode, f"{back},format=gbrp", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        theirs = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8)
        distances[other] = np.abs(ours.astype(float) - theirs.reshape(rgb.shape)).mean()
    assert min(distances, key=distances.__getitem__) == place, distances
    assert distances[place] < 0.35
