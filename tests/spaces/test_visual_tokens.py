"""The visual tokens Space: its functions, over HTTP, and in a browser."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_efficient.representation.evaluation.questions import (
    EVALUATION_SET,
    TINY_VLM,
    Scene,
    load_evaluation_set,
)
from tests.conftest import ROOT
from tests.scene_vlm import make_scene_vlm
from tests.spaces.running import browser_page, import_app

SPACE = ROOT / "spaces" / "visual_tokens"
EXAMPLE = EVALUATION_SET / "images" / "00000.png"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = import_app(SPACE)
    if not TINY_VLM.is_dir():
        module.MODEL = tmp_path_factory.mktemp("vlm")
        for part in make_scene_vlm():
            part.save_pretrained(module.MODEL)
    return module


@pytest.fixture
def client(url: str) -> Any:
    from gradio_client import Client

    return Client(url, verbose=False)


def bad_uploads(folder: Path) -> dict[str, Path]:
    """File by what the message about it must say."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "text.png").write_text("not an image")
    Image.new("RGB", (8, 64)).save(folder / "tiny.png")
    Image.new("1", (8000, 5001)).save(folder / "huge.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "whole.png")
    (folder / "damaged.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return {
        "not an image": folder / "text.png",
        "animated": folder / "animated.gif",
        "at least 16": folder / "tiny.png",
        "40 megapixels": folder / "huge.png",
        "megapixels": folder / "bomb.png",
        "damaged": folder / "damaged.png",
    }


def test_importing_the_app_loads_no_weights() -> None:
    code = (
        "import safetensors.torch, torch, transformers\n"
        "def refuse(*_, **__): raise AssertionError('weights are read at import')\n"
        "transformers.PreTrainedModel.from_pretrained = refuse\n"
        f"from tests.spaces.running import import_app; from pathlib import Path; import_app(Path({str(SPACE)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_slider_ends_at_the_tokens_of_the_model(app: Any) -> None:
    assert app.load()[0].config.image_seq_length == app.TOKENS


def test_kept_tokens_are_drawn_and_counted(app: Any) -> None:
    result = app.compare(Image.open(EXAMPLE).convert("RGB"), "list all .", "id_pruner", 10)
    stock, fewer = result.costs
    assert (stock.visual_tokens, fewer.visual_tokens) == (144, 10)
    saved = (stock.kv_cache_bytes - fewer.kv_cache_bytes) / app.PROMPTS_TIMED
    text = app.load()[0].config.text_config
    width = text.num_key_value_heads * text.head_dim
    assert saved == 134 * 2 * text.num_hidden_layers * width * 4
    assert min(stock.prefill_seconds, fewer.prefill_seconds) > 0
    assert 0 < result.importance_retained < 1
    assert 0 < result.coverage < 1
    patches = np.asarray(result.drawn).astype(int).reshape(12, 32, 12, 32, 3).swapaxes(1, 2)
    clear = [np.abs(patches[i // 12, i % 12, 6:-6, 6:-6] - 215).mean() > 60 for i in range(144)]
    assert sum(clear) <= 10, "no more patches stand out of the fog than tokens were kept"


def test_all_tokens_kept_answer_as_stock(app: Any) -> None:
    for scene in load_evaluation_set(limit=3):
        result = app.compare(scene.image, scene.questions[0].question, "id_pruner", app.TOKENS)
        assert result.answers[0] == result.answers[1]
        assert result.costs[0].kv_cache_bytes == result.costs[1].kv_cache_bytes


def test_the_right_answer_is_known_for_examples_only(app: Any) -> None:
    scene = load_evaluation_set(limit=2)[1]
    for question in scene.questions:
        assert app.right_answer(scene.image, question.question) == question.answer
    assert app.right_answer(scene.image, "what is at nowhere ?") is None
    assert app.right_answer(Image.new("RGB", (96, 96)), scene.questions[0].question) is None


def test_questions_are_read_as_the_model_was_taught(app: Any) -> None:
    processor = app.load()[1]
    assert app.check_question("  What is at TOP-left?", processor) == "what is at top-left ?"
    assert app.check_question("what is at top-left", processor) == "what is at top-left ?"
    assert app.check_question("list all", processor) == "list all ."


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (None, "Pick a question"),
        ("  ", "Pick a question"),
        ("?", "Pick a question"),
        ("what is the meaning of life ?", "'meaning', 'of', 'life'"),
        ("what is <image> ?", "'&lt;image&gt;'"),
        ("what " * 50, "at most 24 words"),
    ],
)
def test_bad_questions_get_a_message(app: Any, question: str | None, message: str) -> None:
    import gradio as gr

    if question and "life" in question and "of" in app.load()[1].tokenizer.get_vocab():
        message = "'meaning', 'life'"
    with pytest.raises(gr.Error, match=re.escape(message)):
        app.check_question(question, app.load()[1])


def test_a_rotated_photograph_is_turned_upright(app: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera lay on its side
    Image.new("RGB", (64, 32), "red").save(tmp_path / "photo.jpg", exif=exif)
    assert app.check_image(str(tmp_path / "photo.jpg")).size == (32, 64)


def test_every_method_over_http(client: Any) -> None:
    from gradio_client import handle_file

    from tests.representation.methods import METHODS

    for method in METHODS:
        drawn, stock, pruned, costs = client.predict(
            handle_file(str(EXAMPLE)), "list all .", method, 12, api_name="/ask"
        )
        with Image.open(drawn) as image:
            assert image.size == (384, 384)
        assert isinstance(stock, str)
        assert isinstance(pruned, str)
        assert re.findall(r'class="number">([^<]+)<', costs)[:2] == ["144", "12"]
        assert "The right answer is" in costs


def test_bad_uploads_get_a_message(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    for message, path in bad_uploads(tmp_path).items():
        with pytest.raises(AppError, match=message):
            client.predict(handle_file(str(path)), "list all .", "id_pruner", 12, api_name="/ask")
    with pytest.raises(AppError, match="Pick an image"):
        client.predict(None, "list all .", "id_pruner", 12, api_name="/ask")


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (5, "does not have the form"),
        ("x", "does not have the form"),
        ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "does not have the form"),
        ({"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}, "the file itself"),
        (None, "Pick an image"),
    ],
)
def test_what_the_page_never_sends_gets_a_sentence_too(url: str, first: object, said: str) -> None:
    import httpx

    endpoint = f"{url}gradio_api/call/ask"
    calls = [[first, "list all .", "id_pruner", 5]] + ([[], [first]] if first == 5 else [])
    for data in calls:
        event = httpx.post(endpoint, json={"data": data}).json()["event_id"]
        answer = httpx.get(f"{endpoint}/{event}", timeout=60).text
        assert "event: error" in answer
        assert said in answer


def test_in_a_browser(url: str, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.png"
    Image.effect_mandelbrot((300, 200), (-2, -1.5, 1, 1.5), 50).save(photograph)
    first, *others = load_evaluation_set(limit=12)
    picked = next(i for i, s in enumerate(others, 1) if s.questions[0].answer != first.questions[0].answer)

    def right_answer(scene: Scene) -> str:
        return f"document.querySelector('#costs').innerText.includes('right answer is {scene.questions[0].answer}:')"

    with browser_page(url) as page:
        page.wait_for_selector("#costs .costs")
        page.wait_for_function(right_answer(first))  # the first example is answered when the page opens
        page.locator("#examples button").nth(picked).click()
        page.wait_for_function(right_answer(others[picked - 1]))

        page.fill("#budget input[type=number]", "5")
        page.click("#ask")
        page.wait_for_function("/Visual tokens\\s+144\\s+5\\s/.test(document.querySelector('#costs').innerText)")
        assert page.input_value("#stock-answer textarea") != ""

        page.get_by_label("Remove").first.click()  # the cross of the image
        page.set_input_files("#image input[type=file]", str(photograph))
        page.wait_for_selector("#image img")
        page.click("#ask")
        page.wait_for_function("!document.querySelector('#costs').innerText.includes('right answer')")

        page.fill("#question input", "who are you ?")
        page.press("#question input", "Enter")
        page.click("#ask")
        page.wait_for_selector("text=The model does not know")
