"""What a container carries beside its frames: it travels through a bundle, or its loss is said."""

import re
import struct
import subprocess
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.bundle import Bundle
from hf_efficient.video.files.reader import probe, read_frames
from hf_efficient.video.files.remuxing import not_kept
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.play.decode import decode
from tests.video.bundles import QUICK
from tests.video.clips import make_clip, moving_frames

MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def ffmpeg(*arguments: object) -> str:
    done = subprocess.run(["ffmpeg", "-hide_banner", "-y", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def stream_lines(path: Path) -> list[str]:
    """What FFmpeg says of a file's streams, one line each, without numbers of the coding."""
    log = subprocess.run(["ffmpeg", "-hide_banner", "-i", str(path)], capture_output=True, text=True).stderr
    return [line.strip() for line in log.splitlines() if line.startswith("  ")]


def rich(folder: Path, suffix: str) -> Path:
    """Two sounds and two subtitles with flags, names and languages, chapters, tags; in Matroska a font and a cover."""
    video = make_clip(folder / "video.mkv", moving_frames(25, 96, 80))
    (folder / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,600\nHello\n")
    (folder / "c.txt").write_text(
        ";FFMETADATA1\ntitle=A film\nartist=Somebody\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=Two\n"
    )
    (folder / "font.ttf").write_bytes(b"\0\1\0\0" + bytes(range(200)))
    Image.fromarray(moving_frames(1, 40, 40, seed=5)[0]).save(folder / "cover.jpg")
    path = folder / f"source.{suffix}"
    sound = ["-f", "lavfi", "-i", "sine=440:d=1", "-f", "lavfi", "-i", "sine=880:d=1"]
    maps = ["-map", "0:v", "-map", "1:a", "-map", "2:a", "-map", "3:s", "-map", "3:s", "-map_metadata", "4"]
    flags = ["-disposition:a:0", "0", "-disposition:a:1", "default", "-disposition:s:0", "0",
             "-disposition:s:1", "default+forced" if suffix == "mkv" else "default"]  # fmt: skip
    names = ["-metadata:s:v", "language=fra", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu",
             "-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=jpn"]  # fmt: skip
    extra: list[object] = ["-c:s", "mov_text"]
    names += ["-metadata:s:a:1", "title=Kommentar", "-metadata:s:v", "title=Main"]
    if suffix == "mkv":
        extra = ["-attach", folder / "font.ttf", "-metadata:s:t:0", "mimetype=application/x-truetype-font"]
        extra += ["-attach", folder / "cover.jpg", "-metadata:s:t:1", "mimetype=image/jpeg"]
    ffmpeg("-i", video, *sound, "-i", folder / "s.srt", "-i", folder / "c.txt", *maps, "-c:v", "copy", "-c:a", "aac",
           *flags, *names, *extra, path)  # fmt: skip
    if suffix == "mp4":
        plain = path.rename(folder / "plain.mp4")
        ffmpeg("-i", plain, "-i", folder / "cover.jpg", "-map", "0", "-map", "1", "-c", "copy",
               *names, "-disposition:v:1", "attached_pic", path)  # fmt: skip
    return path


def streams(path: Path) -> list[str]:
    """Kind, language, flags and name of every stream but data, by FFmpeg."""
    found, lines = [], stream_lines(path)
    for line in lines:
        match = re.match(r"Stream #0:\d+(?:\[0x\w+\])?(?:\((\w+)\))?: (Video|Audio|Subtitle|Attachment): (\w+)", line)
        if match:
            flags = sorted(re.findall(r"\((default|forced|attached pic)\)", line))
            codec = "" if match[2] == "Video" and "attached pic" not in flags else match[3]
            found.append(f"{match[2]} {codec} {match[1] or 'und'} {flags}")
    return sorted(found)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_all_that_a_container_carries_travels_through_a_bundle(tmp_path: Path, suffix: str) -> None:
    source = rich(tmp_path, suffix)
    assert len(streams(source)) == (7 if suffix == "mkv" else 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = fit_video(source, tmp_path / "bundle", **QUICK)
        output = decode(bundle.path, tmp_path / f"out.{suffix}", codec="libx264", preset="ultrafast")
    for path in (bundle.low_resolution, output):
        assert streams(path) == streams(source)
        assert not_kept(source, path) == []
        lines = stream_lines(path)
        for word in ("A film", "Somebody", "One", "Two", "Kommentar", "Main"):
            assert any(line.endswith(f": {word}") for line in lines), word
    if suffix == "mkv":
        ffmpeg("-dump_attachment:t:0", tmp_path / "dumped.ttf", "-i", output, "-t", "0", "-f", "null", "-")
        assert (tmp_path / "dumped.ttf").read_bytes() == (tmp_path / "font.ttf").read_bytes()
    cover = "0:v:1"
    ffmpeg("-i", output, "-map", cover, "-c", "copy", "-f", "image2pipe", tmp_path / "dumped.jpg")
    assert (tmp_path / "dumped.jpg").read_bytes() == (tmp_path / "cover.jpg").read_bytes()


def test_what_a_container_cannot_carry_is_said(tmp_path: Path) -> None:
    full = rich(tmp_path, "mkv")
    source = tmp_path / "no_text.mkv"
    ffmpeg("-i", full, "-map", "0:v:0", "-map", "0:a", "-map", "0:t", "-c", "copy", source)
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    with pytest.warns(
        UserWarning, match=r"out.mp4' does not keep from its source: .*attached file 1 \(font.ttf"
    ) as said:
        decode(bundle.path, tmp_path / "out.mp4", codec="libx264", preset="ultrafast")
    assert not any("handler_name" in str(warning.message) for warning in said)  # which muxers make up


def test_a_second_angle_is_said(tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "a.mkv", moving_frames(6, 96, 80)), tmp_path / "two.mkv"
    ffmpeg("-i", clip, "-i", clip, "-map", "0", "-map", "1", "-c", "copy", source)
    with pytest.warns(UserWarning, match=r"video 2 \(h264\)"):
        fit_video(source, tmp_path / "bundle", **QUICK)


MATRICES = {
    "mirrored": (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
    "upside down": (65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    "turned": (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    "turned and mirrored": (0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
}


def matrix_of(path: Path) -> tuple[int, ...]:
    with av.open(str(path)) as container:
        frame: Any = next(container.decode(video=0))
        data = {d.type.name: bytes(d) for d in frame.side_data}.get("DISPLAYMATRIX")
        return struct.unpack("=9i", data) if data else ()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("name", MATRICES)
def test_a_image_is_shown_as_its_source(tmp_path: Path, name: str, suffix: str) -> None:
    source, matrix = tmp_path / f"a.{suffix}", MATRICES[name]
    with av.open(str(source), "w") as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuv420p"
        stream.set_display_matrix(matrix)
        for t, rgb in enumerate(moving_frames(6, 96, 80)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert matrix_of(source) == matrix
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    assert matrix_of(bundle.low_resolution) == matrix
    assert Bundle.open(bundle.path).source.side.display_matrix == matrix
    output = decode(bundle.path, tmp_path / f"out.{suffix}", preset="ultrafast")
    assert matrix_of(output) == matrix
    ffmpeg("-i", source, "-frames:v", "1", tmp_path / "source.png")  # shown as a player would
    ffmpeg("-i", output, "-frames:v", "1", tmp_path / "out.png")
    theirs, ours = (np.asarray(Image.open(tmp_path / f"{n}.png"), float) for n in ("source", "out"))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 0.7 * np.abs(ours - theirs[::-1, ::-1]).mean()
    assert np.abs(ours - theirs).mean() < 0.7 * np.abs(ours - theirs[:, ::-1]).mean()


def hdr_clip(path: Path) -> Path:
    raw = moving_frames(6, 96, 80)
    make: list[Any] = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-s", "96x80", "-pix_fmt", "rgb24", "-i", "-"]
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=limited"
    make += ["-vf", f"format=yuv420p10le,{tags}", "-c:v", "libx265"]
    make += ["-x265-params", f"log-level=error:master-display={MASTERING}:max-cll=1000,400"]
    subprocess.run([*make, path], input=raw.tobytes(), check=True)
    return path


@pytest.mark.filterwarnings("ignore:.*10 bits per color")
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_the_display_of_hdr_is_kept(tmp_path: Path, codec: str) -> None:
    source = hdr_clip(tmp_path / "a.mkv")
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    output = decode(
        bundle.path, tmp_path / "out.mkv", codec=codec, preset="12" if codec == "libsvtav1" else "ultrafast"
    )
    before, after = probe(source), probe(output)
    assert before.side.mastering == (34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450, 10000000, 50)
    assert before.side.light == (1000, 400)
    assert (after.color.space, after.color.primaries, after.color.transfer) == (9, 9, 16)
    assert after.side.light == before.side.light
    np.testing.assert_allclose(after.side.mastering, before.side.mastering, rtol=1e-3, atol=2)
    log = ffmpeg("-i", output, "-vf", "showinfo", "-frames:v", "1", "-f", "null", "-")
    assert "MaxCLL=1000" in log.replace(" ", "") or "Content light level" in log


@pytest.mark.filterwarnings("ignore:.*10 bits per color")
def test_what_a_codec_cannot_say_of_hdr_is_said(tmp_path: Path) -> None:
    bundle = fit_video(hdr_clip(tmp_path / "a.mkv"), tmp_path / "bundle", **QUICK)
    with pytest.warns(UserWarning, match="mastering display; content light level"):
        decode(bundle.path, tmp_path / "out.mkv", codec="ffv1")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_two_views_stay_two_views(tmp_path: Path, suffix: str) -> None:
    source = make_clip(
        tmp_path / f"a.{suffix}", moving_frames(6, 96, 80), options={"crf": "10", "x264-params": "frame-packing=3"}
    )
    assert probe(source).side.stereo == 1
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    output = decode(bundle.path, tmp_path / f"out.{suffix}", preset="ultrafast")
    assert "side by side" in ffmpeg("-i", output, "-vf", "showinfo", "-frames:v", "1", "-f", "null", "-")


@pytest.mark.parametrize(("name", "codec"), [("out.mkv", "libsvtav1"), ("out.mp4", "libx264")])
def test_two_views_of_matroska_are_kept_by_container_or_codec(tmp_path: Path, name: str, codec: str) -> None:
    clip, source = make_clip(tmp_path / "a.mkv", moving_frames(6, 96, 80)), tmp_path / "two.mkv"
    ffmpeg("-i", clip, "-c", "copy", "-metadata:s:v", "stereo_mode=left_right", source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = fit_video(source, tmp_path / "bundle", **QUICK)
        output = decode(bundle.path, tmp_path / name, codec, preset="12" if codec == "libsvtav1" else "ultrafast")
    assert "side by side" in ffmpeg("-i", output, "-vf", "showinfo", "-frames:v", "1", "-f", "null", "-")


def test_a_container_that_cannot_turn_the_image_is_said(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(6, 96, 80), rotation=90, time_base=Fraction(1, 25))
    writer = VideoWriter(tmp_path / "b.avi", probe(source), (96, 80))
    for frame in read_frames(source):
        writer.write(*frame)
    with pytest.warns(UserWarning, match="how frames are turned"):
        writer.__exit__(None, None, None)


def test_the_time_code_is_kept(tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "a.mp4", moving_frames(6, 96, 80)), tmp_path / "timed.mov"
    ffmpeg("-i", clip, "-c", "copy", "-timecode", "10:11:12:13", source)
    bundle = fit_video(source, tmp_path / "bundle", **QUICK)
    output = decode(bundle.path, tmp_path / "out.mov", preset="ultrafast")
    assert any("10:11:12:13" in line for line in stream_lines(output))


def test_captions_inside_frames_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hf_efficient.video.files.side_data.OF_THE_CODING", ()
    )  # x264's own note stands in for captions
    source = make_clip(tmp_path / "a.mp4", moving_frames(6, 96, 80))
    assert "sei unregistered" in probe(source).dropped
    with pytest.warns(UserWarning, match="sei unregistered"):
        fit_video(source, tmp_path / "bundle", **QUICK)


def test_a_packet_without_a_time_is_not_lost(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mkv", moving_frames(10, 64, 48), audio="aac")
    info = probe(source)
    with VideoWriter(tmp_path / "b.mkv", info, (64, 48), copy_from=source) as writer:
        for frame in read_frames(source, info):
            writer.write(*frame)
    counts = []
    for path in (source, tmp_path / "b.mkv"):
        with av.open(str(path)) as container:
            counts.append(sum(1 for p in container.demux(audio=0) if p.size))
    assert counts[0] == counts[1] > 0


def test_a_frame_that_the_container_cuts_off_is_said(tmp_path: Path) -> None:
    source = tmp_path / "cropped.mp4"
    raw = make_clip(tmp_path / "a.mp4", moving_frames(6, 96, 80)).read_bytes()
    aperture = struct.pack(">I4s8I", 40, b"clap", 64, 1, 48, 1, 0, 1, 0, 1)
    start = raw.index(b"avc1", raw.index(b"stsd")) - 4
    end = start + int.from_bytes(raw[start : start + 4], "big")
    made = bytearray(raw[:end] + aperture + raw[end:])
    for name in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):  # which all grow by it
        at = raw.rindex(name, 0, start + 8) - 4
        made[at : at + 4] = struct.pack(">I", int.from_bytes(raw[at : at + 4], "big") + len(aperture))
    source.write_bytes(made)
    assert probe(source).dropped == ("borders that the container cuts off its frames",)
    assert not probe(tmp_path / "a.mp4").dropped
    with pytest.warns(UserWarning, match="that the container cuts off its frames, which is not kept"):
        fit_video(source, tmp_path / "bundle", **QUICK)
