"""Files as they are in the wild, read and written."""

import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hf_efficient.video.codecs import LOSSLESS
from hf_efficient.video.files import reader
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from tests.video.clips import clip, make_clip, moving_frames, packets


def rewrite(source: Path, target: Path, **settings: object) -> Path:
    info = probe(source)
    with VideoWriter(target, info, (info.width, info.height), copy_from=source, **settings) as writer:  # type: ignore[arg-type]
        for frame in read_frames(source, info):
            writer.write(*frame)
    return target


def test_frames_are_those_of_pyav(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(5, 64, 48), pixel_format="yuv444p", options={"qp": "0"})
    with av.open(str(source)) as container:
        expected = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    got = list(read_frames(source))
    assert len(got) == 5
    # BT.601 is the default of both; PyAV rounds less exactly
    assert max(np.abs(g.rgb.astype(int) - e).max() for g, e in zip(got, expected, strict=True)) <= 2


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (1, 1), (17, 130)])
def test_lossless_keeps_every_pixel_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = moving_frames(4, *size)
    source = make_clip(tmp_path / "a.mkv", frames, codec="libx264rgb", pixel_format="rgb24", options={"qp": "0"})
    codec, pixel_format, options = LOSSLESS
    copy = rewrite(source, tmp_path / "b.mkv", codec=codec, pixel_format=pixel_format, options=options)
    np.testing.assert_array_equal(np.stack([f.rgb for f in read_frames(copy)]), frames)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_time_stamps(tmp_path: Path, suffix: str) -> None:
    base, pts = Fraction(1, 1000), [0, 33, 100, 105, 500, 2000]
    source = make_clip(tmp_path / f"a.{suffix}", moving_frames(6, 64, 48), pts=pts, time_base=base)
    copy = rewrite(source, tmp_path / f"b.{suffix}")
    for path in (source, copy):
        info = probe(path)
        assert [round(f.pts * info.time_base / base) for f in read_frames(path, info)] == pts


def test_audio_is_copied_bit_for_bit_and_stays_in_sync(tmp_path: Path) -> None:
    pts = [5120 + 512 * t for t in range(25)]  # the video starts 0.4 s after the sound
    source = make_clip(tmp_path / "a.mp4", moving_frames(25, 64, 48), audio="aac", pts=pts)
    copy = rewrite(source, tmp_path / "b.mp4")
    assert [data for _, data in packets(copy, "audio")] == [data for _, data in packets(source, "audio")]
    np.testing.assert_allclose(
        [t for t, _ in packets(copy, "audio")], [t for t, _ in packets(source, "audio")], atol=1e-3
    )
    assert [f.pts for f in read_frames(copy)] == pts


def test_subtitles_and_chapters_are_copied(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "plain.mkv", moving_frames(25, 64, 48))
    (tmp_path / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,600\nHello there\n")
    (tmp_path / "c.txt").write_text(
        ";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n"
    )
    source = tmp_path / "a.mkv"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", plain, "-i", tmp_path / "s.srt", "-i", tmp_path / "c.txt", "-map_metadata", "2",
         "-c", "copy", source], check=True
    )  # fmt: skip
    copy = rewrite(source, tmp_path / "b.mkv")
    assert packets(copy, "subtitle") == packets(source, "subtitle") != []
    with av.open(str(copy)) as container:
        assert [c["metadata"]["title"] for c in container.chapters()] == ["One"]
        assert container.metadata["title"] == "A film"


def test_tags_are_kept(tmp_path: Path) -> None:
    source = make_clip(
        tmp_path / "a.mp4", moving_frames(3, 64, 48), rotation=90, aspect=Fraction(4, 3), color=(1, 1, 1, 2)
    )
    before, after = probe(source), probe(rewrite(source, tmp_path / "b.mp4"))
    assert (before.rotation, before.pixel_aspect, before.color) == (90, Fraction(4, 3), reader.ColorTags(1, 1, 1, 2))
    for name in ("rotation", "pixel_aspect", "color", "time_base", "rate", "frames"):
        assert getattr(after, name) == getattr(before, name), name


@pytest.mark.parametrize("color", [(1, 1, 1, 1), (6, 6, 6, 1), (1, 1, 1, 2)])
def test_colours_come_back_by_the_tagged_matrix(tmp_path: Path, color: tuple[int, int, int, int]) -> None:
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :, :20], frames[:, :, 20:40], frames[:, :, 40:] = (220, 30, 40), (20, 200, 60), (30, 60, 230)
    source = tmp_path / "a.mkv"
    info = reader.VideoInfo(
        64, 48, "yuv444p", Fraction(25), Fraction(1, 1000), Fraction(1), reader.ColorTags(*color), 0, 0, 0, "", ()
    )
    with VideoWriter(source, info, (64, 48), pixel_format="yuv444p", options={"qp": "0"}) as writer:
        for t, frame in enumerate(frames):
            writer.write(frame, 40 * t)
    assert probe(source).color == info.color
    ours = next(read_frames(source)).rgb.astype(int)
    assert np.abs(ours - frames[0]).max() <= 2
    name = {1: "bt709", 6: "smpte170m"}[color[0]]  # an independent reader that is told the matrix
    scale = f"scale=in_color_matrix={name}:flags=bicubic+accurate_rnd+full_chroma_int"
    command: list[Any] = ["ffmpeg", "-v", "error", "-i", source, "-frames:v", "1", "-vf", scale, "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-"]
    theirs = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8)
    assert np.abs(ours - theirs.reshape(48, 64, 3)).max() <= 2


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(3, 64, 48))
    info = probe(source)
    with pytest.raises(ValueError, match="ndim"), VideoWriter(tmp_path / "b.mp4", info, (64, 48)) as writer:
        writer.write(np.zeros((48, 64), np.uint8), 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


def test_sound_that_the_container_cannot_hold_is_said(tmp_path: Path) -> None:
    video, source = make_clip(tmp_path / "video.mkv", moving_frames(3, 64, 48)), tmp_path / "a.mkv"
    sound = ["-f", "lavfi", "-i", "sine=d=0.2", "-c:v", "copy", "-c:a", "pcm_u8"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", video, *sound, source], check=True)
    with pytest.raises(MediaError, match=r"cannot hold the source's audio \(pcm_u8\): write to a .mkv"):
        rewrite(source, tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
    assert packets(rewrite(source, tmp_path / "b.mkv"), "audio") != []
    no_mkv = tmp_path / "a.wmv"
    made: list[Any] = ["ffmpeg", "-v", "error", "-i", source, "-c:v", "wmv2", "-c:a", "wmav2", "-ar", "44100", no_mkv]
    subprocess.run(made, check=True)
    with pytest.raises(MediaError, match=r"audio \(wmav2\): convert it first \(ffmpeg"):  # .mp4 cannot hold it either
        rewrite(no_mkv, tmp_path / "b.mkv")


def test_what_a_container_refuses_late_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    source, video = tmp_path / "a.avi", make_clip(tmp_path / "video.mkv", moving_frames(3, 64, 48))
    sound = ["-f", "lavfi", "-i", "anullsrc=cl=stereo:d=0.2", "-t", "0.2"]  # AVI says two channels, not which
    codecs = ["-c:v", "mpeg4", "-c:a", "pcm_s16le"]
    subprocess.run(["ffmpeg", "-v", "error", "-i", video, *sound, *codecs, source], check=True)
    with pytest.raises(MediaError, match=r"b\.mp4'.*write to a \.mkv file") as caught:
        rewrite(source, tmp_path / "b.mp4")
    assert "partial" not in str(caught.value)


def test_damage_that_ffmpeg_conceals_is_said(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", moving_frames(12, 96, 80))
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"a\.mp4' is damaged: .* guessed .* at 0\.\d+ s") as said:
        assert len(list(read_frames(path))) == 12
    assert len(said) == 1


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> (file, what the error says)."""
    whole = make_clip(folder / "whole.mp4", moving_frames(30, 128, 96), options={"crf": "1"}).read_bytes()
    flat = folder / "flat.mkv"
    flat.write_bytes(make_clip(folder / "whole.mkv", moving_frames(30, 128, 96), options={"crf": "1"}).read_bytes())
    files = {
        "text": (b"this is no video at all\n" * 100, "cannot be read as video"),
        "empty": (b"", "cannot be read as video"),
        "no index": (whole[: len(whole) // 2], "cannot be read as video"),
    }
    made = {}
    for name, (data, message) in files.items():
        made[name] = (folder / f"{name.replace(' ', '_')}.mp4", message)
        made[name][0].write_bytes(data)
    sound = folder / "sound.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=d=0.5", "-c:a", "aac", sound], check=True)
    made["audio only"] = (sound, "no video stream, only audio")
    alpha = make_clip(folder / "alpha.mkv", moving_frames(2, 64, 48), codec="ffv1", pixel_format="yuva420p", options={})
    made["alpha"] = (alpha, "alpha channel")
    huge = folder / "huge.avi"
    huge.write_bytes(huge_avi())
    made["huge"] = (huge, "100000x100000|cannot be read as video")
    made["absent"] = (folder / "gone.mp4", "no file")
    made["folder"] = (folder, "no file")
    return made


def huge_avi() -> bytes:
    """An AVI header for raw frames of 100,000 x 100,000 pixels, with one chunk of data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    def numbers(*values: int) -> bytes:
        return b"".join(v.to_bytes(4, "little") for v in values)

    side = 100_000
    main = chunk(b"avih", numbers(40000, 0, 0, 16, 1, 0, 1, 0, side, side, 0, 0, 0, 0))
    header = chunk(b"strh", b"vidsDIB " + numbers(0, 0, 0, 1, 25, 0, 1, 0, 0, 0) + b"\0" * 8)
    bitmap = chunk(b"strf", numbers(40, side, side) + b"\1\0\x18\0" + numbers(0, 0, 0, 0, 0, 0))
    tracks = chunk(b"LIST", b"strl" + header + bitmap)
    body = chunk(b"LIST", b"hdrl" + main + tracks) + chunk(b"LIST", b"movi" + chunk(b"00db", b"\0" * 600))
    return chunk(b"RIFF", b"AVI " + body)


def test_bad_files_are_clear_errors(tmp_path: Path) -> None:
    for name, (path, message) in bad_files(tmp_path).items():
        with pytest.raises(MediaError, match=message):
            list(read_frames(path))
        assert name


def test_a_file_cut_in_the_middle_is_an_error_not_a_shorter_video(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(30, 128, 96), options={"crf": "1"})
    front = rewrite(source, tmp_path / "front.mp4").read_bytes()  # its index comes first
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front[: len(front) * 6 // 10])
    with pytest.raises(MediaError, match=r"cannot be read|cut off"):
        list(read_frames(cut))


@pytest.mark.parametrize(("name", "frames"), [("carphone_pristine.mp4", 120), ("bikes.mp4", 250)])
def test_public_clips_read_whole(name: str, frames: int) -> None:
    info = probe(clip(name))
    stamps = [frame.pts for frame in read_frames(clip(name), info)]
    assert len(stamps) == info.frames == frames
    assert all(b > a for a, b in pairwise(stamps))
