"""Videos: frames evenly over the length, decoded in memory, and served by a model that takes them."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.serving.app import Service
from hf_efficient.serving.clips import clip_of, evenly
from hf_efficient.serving.engine import PrunedModels, Source
from hf_efficient.serving.limits import Limits, Refused
from tests.serving.server.running import data_url, running, words
from tests.tiny import stock

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'video' %}<video> "
    "{% elif part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def film(frames: int = 20, side: int = 64, rate: int = 10) -> bytes:
    """An MP4 whose frame i is of grey 10 i."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv444p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def test_frames_are_taken_evenly_and_told() -> None:
    clip = clip_of(data_url(film(), "video/mp4"), Limits(max_frames=4))
    assert clip.frames.shape == (4, 64, 64, 3)
    assert clip.metadata["frames_indices"] == evenly(20, 4) == [0, 6, 13, 19]
    assert np.abs(clip.frames.mean((1, 2, 3)) / 10 - [0, 6, 13, 19]).max() < 0.3
    assert (clip.metadata["total_num_frames"], clip.metadata["fps"]) == (20, pytest.approx(10))
    assert clip.metadata["duration"] == pytest.approx(2)


def test_a_short_video_is_taken_whole() -> None:
    assert clip_of(data_url(film(3)), Limits()).metadata["frames_indices"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"hello", "cannot be read"),
        (b"", "cannot be read"),
        (film()[:700], "cannot be read"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read"),
    ],
)
def test_what_is_no_video_is_refused(raw: bytes, told: str) -> None:
    with pytest.raises(Refused, match=told):
        clip_of(data_url(raw), Limits())


def test_large_frames_and_files_are_refused() -> None:
    with pytest.raises(Refused, match="Scale it down"):
        clip_of(data_url(film(2, 1040)), Limits(max_megapixels=1))
    with pytest.raises(Refused, match="more than 1 megabytes"):
        clip_of(data_url(bytes(1_100_000)), Limits(max_media_mb=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that takes videos, with a chat template."""
    model, processor = stock("llava_onevision")
    processor.chat_template = TEMPLATE
    folder = tmp_path_factory.mktemp("onevision")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_video_is_answered_as_by_generate(folder: Path) -> None:
    config = TokenPrunerConfig(budget=3)
    models = PrunedModels(Source(str(folder), config, "tiny", device="cpu"))
    model, processor = attach_token_pruner(*stock("llava_onevision"), config)
    clip = clip_of(data_url(film()), Limits(max_frames=4))
    given: Any = {"text": "<video> w1 w2 ", "videos": [clip.frames], "return_tensors": "pt"}
    inputs = processor(**given, do_sample_frames=False)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    with running(Service(models, Limits(max_frames=4))) as client:
        part = {"type": "video_url", "video_url": {"url": data_url(film(), "video/mp4")}}
        status, body = client.ask([part, words("w1 w2")])
        assert status == 200, body
        assert body["choices"][0]["message"]["content"] == processor.decode(ids[0, length:], skip_special_tokens=True)
        assert body["usage"]["prompt_tokens"] == length
        status, body = client.ask([{"type": "video_url", "video_url": {"url": data_url(b"x")}}])
        assert (status, "cannot be read" in body["error"]["message"]) == (400, True)
        status, body = client.ask([words("<video>")])
        assert (status, "stands for a picture" in body["error"]["message"]) == (400, True)
        assert client.ask([part] * 3)[0] == 400
        assert client.metric("failures_total") == 0
