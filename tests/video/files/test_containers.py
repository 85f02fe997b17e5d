"""FFmpeg opens the file that was named and nothing else; a number that the file does not give is measured."""

import subprocess
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.containers import FORMATS, ONLY_THIS_FILE, measure_extent
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.measure.vmaf import vmaf_of_file
from tests.video.bundles import QUICK
from tests.video.clips import make_clip, moving_frames

LIVE = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n"  # no end: FFmpeg asks for more for ever
HLS = LIVE + "#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"
bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>"""
CONCAT = "ffconcat version 1.0\nfile {}\n"
SDP = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50001 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)
PLAYLISTS = {"hls": HLS, "hls, live": LIVE, "dash": DASH, "concat": CONCAT, "sdp": SDP}
SUFFIXES = {"hls": "m3u8", "hls, live": "m3u8", "dash": "mpd", "concat": "ffconcat", "sdp": "sdp"}


def within(seconds: float, act: Callable[[], object]) -> None:
    """What an action raises; it must end in time."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"not done after {seconds} s"
    if raised:
        raise raised[0]


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("renamed", [None, "mp4", "mkv"])
def test_a_playlist_opens_nothing(tmp_path: Path, kind: str, renamed: str | None) -> None:
    secret = make_clip(tmp_path / "secret.ts", moving_frames(5, 64, 48))
    path = tmp_path / f"list.{renamed or SUFFIXES[kind]}"
    for target in (secret.name, secret, f"file:{secret}"):
        path.write_text(PLAYLISTS[kind].format(target))
        for act in (probe, lambda p: list(read_frames(p)), measure_extent):
            with pytest.raises(MediaError, match=r"Playlists and sequences of images"):
                within(5, lambda act=act: act(path))  # type: ignore[misc]
        with pytest.raises(MediaError):
            within(5, lambda: VideoWriter(tmp_path / "out.mkv", probe(secret), (64, 48), copy_from=path))
    with pytest.raises(MediaError):
        within(5, lambda: fit_video(path, tmp_path / "bundle", **QUICK))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "secret.ts"])


def test_the_playlists_of_this_test_are_read_without_the_list(tmp_path: Path) -> None:
    """What the lists keep out: with them away FFmpeg follows a playlist to another file."""
    make_clip(tmp_path / "secret.ts", moving_frames(5, 64, 48))
    (tmp_path / "list.m3u8").write_text(HLS.format("secret.ts"))
    (tmp_path / "list.ffconcat").write_text(CONCAT.format("secret.ts"))
    for name in ("list.m3u8", "list.ffconcat"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5


def test_images_by_number_are_one_image_at_most(tmp_path: Path) -> None:
    from PIL import Image

    for suffix in ("png", "jpg"):
        for n in range(3):
            Image.fromarray(moving_frames(1, 64, 48, seed=n)[0]).save(tmp_path / f"a{n}.{suffix}")
        numbered = tmp_path / f"a%d.{suffix}"
        numbered.write_bytes((tmp_path / f"a1.{suffix}").read_bytes())
        try:
            frames = list(read_frames(numbered))
        except MediaError:
            continue
        assert len(frames) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "A.JPEG", "a.webp", "a.bmp", "a.tiff", "grey.png", "palette.png"])
def test_a_single_image_is_a_video_of_one_frame(tmp_path: Path, name: str) -> None:
    from PIL import Image

    image = Image.fromarray(moving_frames(1, 64, 48)[0])
    image = {"grey.png": image.convert("L"), "palette.png": image.quantize(32)}.get(name, image)
    options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    image.save(tmp_path / name, **options)
    (tmp_path / "b1.jpg").write_text("not read")
    info = probe(tmp_path / name, alpha="drop")
    (frame,) = read_frames(tmp_path / name, info)
    assert (info.frames, info.width, info.height) == (1, 64, 48)
    theirs = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(float)
    assert np.abs(frame.rgb - theirs).mean() < (1.5 if name.lower().endswith(("jpg", "jpeg")) else 0.01)


def test_an_external_track_of_mp4_is_not_followed(tmp_path: Path) -> None:
    secret = make_clip(tmp_path / "secret.mov", moving_frames(5, 64, 48))
    data = secret.read_bytes()
    # the data reference "url " with flag 1 (in this file) becomes an alias to another file
    old = b"\0\0\0\x0curl \0\0\0\x01"
    assert data.count(old) >= 1
    outside = tmp_path / "outside.mov"
    outside.write_bytes(data.replace(old, b"\0\0\0\x0calis\0\0\0\0"))
    try:
        frames = list(read_frames(outside))
    except MediaError:
        return
    assert len(frames) == 5  # its own


@pytest.mark.parametrize("name", ["out.m3u8", "out.mpd", "out%d.png", "out.ffconcat"])
def test_nothing_is_written_as_several_files(tmp_path: Path, name: str) -> None:
    source = make_clip(tmp_path / "a.mp4", moving_frames(3, 64, 48))
    with pytest.raises(MediaError, match=r"\.mp4 or \.mkv"):
        VideoWriter(tmp_path / name, probe(source), (64, 48))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_formats_are_known_and_none_opens_others() -> None:
    known = {name for names in av.formats_available for name in names.split(",")}
    assert set(FORMATS) <= known
    others = {"hls", "dash", "concat", "sdp", "rtsp", "image2", "lavfi", "avisynth", "vobsub", "imf", "rtp", "tee"}
    assert not others & set(FORMATS)
    assert ONLY_THIS_FILE["protocol_whitelist"] == "file"


def test_vmaf_is_not_measured_against_a_playlist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Run:
        stderr = "nothing was measured"

    def run(command: list[str], **_: Any) -> Any:
        seen.append(command)
        return Run()

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="nothing was measured"):
        vmaf_of_file(tmp_path / "decoded.mkv", tmp_path / "source.mp4")
    inputs = [n for n, word in enumerate(seen[0]) if word == "-i"]
    assert len(inputs) == 2
    for n in inputs:
        assert seen[0][n - 4 : n] == [w for k, v in ONLY_THIS_FILE.items() for w in (f"-{k}", v)]


def without_length(path: Path, frames: int, pts: list[int] | None = None) -> Path:
    """Matroska as a live recording writes it: no duration, no frame count."""
    with av.open(str(path), "w", format="matroska", options={"live": "1"}) as out:
        stream: Any = out.add_stream("libx264", rate=25, options={"crf": "40", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), t % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (pts[t] if pts else 40 * t), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_what_the_header_does_not_say_is_measured(tmp_path: Path) -> None:
    path = without_length(tmp_path / "a.mkv", 60)
    with av.open(str(path)) as container:
        assert container.duration is None
        assert container.streams.video[0].frames == 0
    info = probe(path)
    assert (info.frames, float(info.rate)) == (60, 25.0)
    assert info.seconds == pytest.approx(2.4)
    sparse = probe(without_length(tmp_path / "b.mkv", 4, pts=[0, 100, 5000, 9000]))
    assert sparse.frames == 4
    assert 9.0 <= sparse.seconds <= 12.1


def test_a_header_at_odds_with_itself_is_not_believed(tmp_path: Path) -> None:
    late = [90_000_000 + 40 * t for t in range(10)]
    path = make_clip(tmp_path / "late.mkv", moving_frames(10, 64, 48), time_base=Fraction(1, 1000), pts=late)
    info = probe(path)  # FFmpeg counts its length from 0
    assert (info.frames, float(info.rate)) == (10, 25)
    assert info.seconds == pytest.approx(0.4)
    path = tmp_path / "a.dv"  # FFmpeg gives its time base as its rate
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=720x576:rate=25:duration=0.2"]
    subprocess.run([*make, "-pix_fmt", "yuv420p", "-c:v", "dvvideo", str(path)], check=True)
    info = probe(path, interlaced="keep")
    assert (info.frames, float(info.rate)) == (5, 25)
    assert info.seconds == pytest.approx(0.2)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "gif", "png", "h264"])
def test_every_file_has_frames_seconds_and_a_rate(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"a.{suffix}", 1 if suffix == "png" else 10
    if suffix == "png":
        from PIL import Image

        Image.fromarray(moving_frames(1, 64, 48)[0]).save(path)
    elif suffix == "gif":
        make_clip(path, moving_frames(10, 64, 48), codec="gif", pixel_format="rgb8", options={})
    else:
        make_clip(path, moving_frames(10, 64, 48), options={"crf": "10", "bf": "0"}, time_base=Fraction(1, 25))
    info, extent = probe(path, alpha="drop"), measure_extent(path)
    assert info.frames == extent.frames == frames == len(list(read_frames(path, info)))
    assert info.rate == pytest.approx(25)
    assert info.seconds == pytest.approx(frames / 25, abs=0.05)
    assert extent.seconds == pytest.approx(frames / 25, abs=0.05)


def test_counting_stops_where_it_may(tmp_path: Path) -> None:
    path = without_length(tmp_path / "a.mkv", 60)
    assert measure_extent(path, most_frames=10).frames == 11
    short = measure_extent(path, most_seconds=1.0)
    assert 1.0 < short.seconds < 1.2
    assert short.frames < 30
    assert probe(path, most_frames=10).frames == 11


def test_a_long_live_recording_is_counted_at_once(tmp_path: Path) -> None:
    path = without_length(tmp_path / "a.mkv", 1500)
    start = time.monotonic()
    assert measure_extent(path).frames == 1500
    assert time.monotonic() - start < 5
