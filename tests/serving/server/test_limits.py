"""Where pictures may come from, what is counted, and which pruner is chosen."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

from hf_efficient import TokenPrunerConfig
from hf_efficient.serving.choice import chosen_config
from hf_efficient.serving.limits import Limits, Refused
from hf_efficient.serving.media import picture_of
from hf_efficient.serving.meter import ClientGone, Held, Job, Meter, bytes_saved
from hf_efficient.serving.metrics import Metrics
from hf_efficient.serving.stopping import cut
from tests.serving.server.running import png
from tests.tiny import prompts, pruned

RED = Image.new("RGB", (8, 8), (200, 0, 0))


def test_files_below_the_folder_are_read_and_no_others(tmp_path: Path) -> None:
    allowed = tmp_path / "a b"
    allowed.mkdir()
    (allowed / "red.png").write_bytes(png(RED))
    (tmp_path / "secret.png").write_bytes(png(RED))
    (allowed / "link.png").symlink_to(tmp_path / "secret.png")
    limits = Limits(allow_files=allowed)
    assert picture_of((allowed / "red.png").as_uri(), limits).getpixel((3, 3)) == (200, 0, 0)
    for path in ("secret.png", "a b/../secret.png", "a b/link.png", "a b", "a b/gone.png", "a%20b/\0"):
        with pytest.raises(Refused, match=r"not below the folder|cannot be read"):
            picture_of(f"file://{tmp_path}/{path}", limits)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback with a picture, and with a way to a file."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/red.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(png(RED))
            elif self.path == "/large":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"0" * 1_500_000)
            else:
                self.send_response(302)
                self.send_header("Location", "file:///etc/passwd" if self.path == "/file" else "/red.png")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_remote_pictures_are_fetched_where_that_is_allowed(web: str) -> None:
    limits = Limits(allow_remote=True, max_media_mb=1)
    assert picture_of(f"{web}/red.png", limits).size == (8, 8)
    assert picture_of(f"{web}/moved", limits).size == (8, 8)
    for path, told in (("/file", "cannot be fetched"), ("/large", "more than 1 megabytes")):
        with pytest.raises(Refused, match=told):
            picture_of(web + path, limits)
    with pytest.raises(Refused, match="cannot be fetched"):
        picture_of("http://", limits)
    with pytest.raises(Refused, match="does not fetch"):
        picture_of(f"{web}/red.png", Limits())


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="max_body_mb=0 is out of range"):
        Limits(max_body_mb=0)


def test_metrics_are_in_the_format_of_prometheus() -> None:
    metrics = Metrics()
    metrics.add("requests_total", code=200)
    metrics.add("requests_total", 2, code=400)
    metrics.add("prefill_seconds_sum", 0.25)
    assert metrics.value("requests_total") == 3
    lines = metrics.text().splitlines()
    assert 'hf_efficient_requests_total{code="400"} 2' in lines
    assert "hf_efficient_prefill_seconds_sum 0.25" in lines
    assert "# TYPE hf_efficient_requests_running gauge" in lines
    assert "hf_efficient_requests_running 0" in lines


def test_bytes_saved_layer_by_layer() -> None:
    """One layer holds all of a prompt that was cut to 24, one dropped more, one has a window of 100."""
    layers = [Held(24, 8, None), Held(10, 8, None), Held(24, 8, 100)]
    assert bytes_saved(layers, 150) == 8 * ((150 - 24) + (150 - 10) + (100 - 24))
    assert bytes_saved(layers, 24) == 8 * 14


def test_a_job_whose_client_has_left_is_not_begun_or_ends_at_the_next_token() -> None:
    model, processor = pruned("llava")
    meter = Meter(model, Metrics())
    inputs = prompts("llava", [[0]])
    steps: list[int] = []

    class Leaves(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            steps.append(input_ids.shape[1])
            if len(steps) == 3:
                job.gone.set()
            return scores

    job = Job(5, True)
    given = {**processor(**inputs), "max_new_tokens": 50}
    with pytest.raises(ClientGone):
        meter.run(job, model.generate, **given, logits_processor=[Leaves()])
    assert len(steps) == 3
    with pytest.raises(ClientGone):
        meter.run(job, model.generate, **given)
    assert meter.metrics.value("prefill_seconds_count") == 1
    assert meter.metrics.value("visual_tokens_kept_total") == 0  # counted when a job ends


def test_answers_are_cut_at_the_first_stop() -> None:
    assert cut("one two three", ["three", "two"]) == ("one ", True)
    assert cut("one", ["two"]) == ("one", False)


def test_what_is_given_takes_the_place_of_what_is_saved(tmp_path: Path) -> None:
    folder = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert chosen_config(folder, {}) is None
    assert chosen_config(folder, {"budget": 3}) == TokenPrunerConfig(budget=3)
    TokenPrunerConfig("itg", budget=7, lloyd_steps=2).save_pretrained(tmp_path)
    assert chosen_config(folder, {"budget": 3}) == TokenPrunerConfig("itg", budget=3, lloyd_steps=2)
    assert chosen_config(folder, {"method": "divprune"}) == TokenPrunerConfig("divprune", budget=7)
    with pytest.raises(ValueError, match="kernel"):
        chosen_config(folder, {"method": "divprune", "kernel": "rbf"})
    with pytest.raises(FileNotFoundError):
        chosen_config("/no/such/folder", {})
