"""Space: which visual tokens a vision-language model keeps, what it answers with them, and what that costs."""

from collections.abc import Callable
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from hf_efficient import TokenPrunerConfig
from hf_efficient.images import ImageError, read_image
from hf_efficient.methods import REPRESENTATION
from hf_efficient.representation.evaluation.drawing import draw_kept_tokens
from hf_efficient.representation.evaluation.questions import (
    TINY_VLM,
    Cost,
    Scene,
    answer_questions,
    compare_costs,
    exact_match,
    load_evaluation_set,
    load_vlm,
    pruned,
)
from hf_efficient.space import LONGEST_QUEUE, Deadline, guarded, in_one_thread, launch_options, one_of, refusal, whole

MODEL = TINY_VLM
METHODS = REPRESENTATION.names
EXAMPLES = 12
TOKENS, START_BUDGET = 144, 16  # of an image, as the shipped model sees it
ROUNDS, PROMPTS_TIMED = 3, 8  # one prompt alone takes too short to be timed on a busy machine
LONGEST_QUESTION, LONGEST_TEXT = 24, 1000  # words, characters
MOST_SECONDS = 120  # of work for a question, on a busy machine

INTRODUCTION = """
# What can an image lose?

A vision-language model reads an image as a row of **visual tokens**, here 144 patches, and pays for each of them.
Choose how many it may keep and see which they are. The model is a small one that ships with hf_efficient: it knows
scenes composed of **Fashion-MNIST garments** (trousers, pullovers, sandals, bags, boots) and questions like
those in the list.
"""
ABOUT_UPLOADS = """
Your own photograph works too, to see what the pruner keeps of it. The model has never seen a photograph, though:
what it *answers* means something for the garment scenes only.

Kept tokens may lie beside a garment, or on the background, and the answer still be right: a token tells of what
surrounds it too, since all patches have looked at each other before any of them is dropped.
"""
LAUNCH_OPTIONS = launch_options(__file__, "amber", largest_upload=20 << 20)


class Comparison(NamedTuple):
    """A question answered twice.

    Args:
        drawn: the image with the kept tokens.
        answers: stock, pruned.
        costs: stock, pruned.
        importance_retained: share of the importance that the kept tokens hold.
        coverage: how well the kept tokens stand for all.
    """

    drawn: Image.Image
    answers: tuple[str, str]
    costs: tuple[Cost, Cost]
    importance_retained: float
    coverage: float


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any]:
    """The shipped model and its processor, loaded when the first question is asked."""
    return load_vlm(MODEL)


@lru_cache(maxsize=1)
def examples() -> list[Scene]:
    """The images to pick from, with their questions and right answers."""
    return load_evaluation_set(limit=EXAMPLES)


def check_image(path: str | None) -> Image.Image:
    """Open an upload, or say what is wrong with it."""
    if not path or not isinstance(path, str):
        raise refusal("Pick an image from the row, or upload one.")
    try:
        return read_image(path)
    except ImageError as error:
        raise refusal(str(error)) from None


def check_question(question: str | None, processor: Any) -> str:
    """The question as the model was taught to read it, or what is wrong with it."""
    if question is not None and (not isinstance(question, str) or len(question) > LONGEST_TEXT):
        raise refusal(f"Ask in at most {LONGEST_QUESTION} words.")
    words = (question or "").lower().replace("?", " ? ").replace(".", " . ").split()
    if not set(words) - {"?", "."}:
        raise refusal("Pick a question from the list, or write one.")
    if len(words) > LONGEST_QUESTION:
        raise refusal(f"Ask in at most {LONGEST_QUESTION} words.")
    if words[-1] not in {"?", "."}:
        words.append("." if words[0] == "list" else "?")
    tokenizer = processor.tokenizer
    known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    unknown = [word for word in words if word not in known]
    if unknown:
        vocabulary = ", ".join(sorted(word for word in known if word.isalpha() and len(word) > 2))
        raise refusal(f"The model does not know {', '.join(map(repr, unknown))}. It knows: {vocabulary}.")
    return " ".join(words)


def compare(
    image: Image.Image, question: str, method: str, budget: int, step: Callable[[], object] = lambda: None
) -> Comparison:
    """Ask the stock and the pruned model the same about the same image; `step` is called as it goes on."""
    model, processor = load()
    configs = [None, TokenPrunerConfig(method=method, budget=budget)]
    replies = []
    for config in configs:
        step()
        with pruned(model, processor, config):
            replies += answer_questions(model, processor, [image], [question])
            kept = model.base_model.token_pruner.last[0] if config else None
    assert kept is not None
    timed = [image] * PROMPTS_TIMED, [question] * PROMPTS_TIMED
    stock, fewer = compare_costs(model, processor, *timed, configs, ROUNDS, step)
    step()
    return Comparison(
        draw_kept_tokens(image, kept.indices.tolist(), kept.grid),
        (replies[0], replies[1]),
        (stock, fewer),
        float(kept.importance_retained),
        float(kept.coverage),
    )


def ask(path: str | None, question: str | None, method: str, budget: int) -> tuple[Image.Image, str, str, str]:
    """What the page shows: the drawn image, both answers, and the costs as HTML."""
    return in_one_thread(_ask, path, question, method, budget)


def _ask(path: str | None, question: str | None, method: str, budget: int) -> tuple[Image.Image, str, str, str]:
    deadline = Deadline(MOST_SECONDS, "Try again later.")
    method, budget = one_of("Method", method, METHODS), whole("Visual tokens to keep", budget, 1, TOKENS)
    image = check_image(path)
    asked = check_question(question, load()[1])
    result = compare(image, asked, method, budget, deadline)
    return result.drawn, *result.answers, describe(result, right_answer(image, asked))


def right_answer(image: Image.Image, question: str) -> str | None:
    """The answer that is known for an example's own questions."""
    for scene in examples():
        if scene.image.size == image.size and scene.image.tobytes() == image.tobytes():
            return next((q.answer for q in scene.questions if q.question == question), None)
    return None


def describe(result: Comparison, right: str | None) -> str:
    """Costs as bars, and a note, in HTML."""
    stock, fewer = result.costs
    kibibytes = 1024 * PROMPTS_TIMED
    rows = [
        ("Visual tokens", stock.visual_tokens, fewer.visual_tokens, "{:.0f}"),
        (f"Prefill, {PROMPTS_TIMED} prompts", stock.prefill_seconds * 1e3, fewer.prefill_seconds * 1e3, "{:.0f} ms"),
        ("KV cache, 1 prompt", stock.kv_cache_bytes / kibibytes, fewer.kv_cache_bytes / kibibytes, "{:.0f} KiB"),
    ]
    cells = '<span></span><span></span><span class="head">all</span><span class="head">kept</span>'
    for name, every, part, form in rows:
        cells += (
            f'<span>{name}</span><span class="bar"><i style="width:{min(100, 100 * part / every):.0f}%"></i></span>'
            f'<span class="number">{form.format(every)}</span><span class="number">{form.format(part)}</span>'
        )
    notes = [
        f"The kept tokens hold {result.importance_retained:.0%} of the importance "
        f"and cover the image to {result.coverage:.0%}."
    ]
    if right is not None:
        verdict = {
            (True, True): "both find it",
            (True, False): "only all tokens find it",
            (False, True): "only the kept tokens find it",
            (False, False): "neither finds it",
        }[tuple(exact_match(result.answers, [right, right]))]  # type: ignore[index]
        notes.append(f"The right answer is <b>{escape(right)}</b>: {verdict}.")
    return f'<div class="costs">{cells}</div><p class="note">{" ".join(notes)}</p>'


def pick(selection: gr.SelectData) -> tuple[Image.Image, Any]:
    """An example and its questions."""
    scene = examples()[selection.index]
    asked = [question.question for question in scene.questions]
    return scene.image, gr.Dropdown(choices=asked, value=asked[0])


def about_method(name: str) -> str:
    """What a method does, in one sentence."""
    return f"**{name}**: {REPRESENTATION.row(name).line}."


def path_of(payload: ImageData | None) -> str | None:
    """An upload as it came. Gradio would open it first, and fail without a word to the user."""
    return payload.path if payload else None


def show_images(first: Image.Image) -> tuple[gr.Image, gr.Gallery]:
    """The image that is asked about, and the scenes to pick from."""
    image = gr.Image(
        first, label="Image", type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
        height=330, elem_id="image",
    )  # fmt: skip
    image.preprocess = path_of  # type: ignore[method-assign]
    gallery = gr.Gallery(
        [scene.image for scene in examples()],
        label="Scenes to pick from",
        show_label=False,
        columns=6,
        height="auto",
        format="png",
        allow_preview=False,
        buttons=[],
        interactive=False,
        elem_id="examples",
    )
    return image, gallery


def show_answers() -> list[Any]:
    """Where the results of `ask` appear: kept tokens, both answers, costs."""
    kept = gr.Image(
        label="Kept tokens",
        show_label=False,  # it would hide a corner of the image
        format="png",
        interactive=False,
        height=470,
        buttons=["download", "fullscreen"],
        elem_id="kept",
    )
    with gr.Row():
        stock_answer = gr.Textbox(
            label="Answer with all tokens", interactive=False, elem_id="stock-answer", elem_classes="answer"
        )
        pruned_answer = gr.Textbox(
            label="Answer with the kept tokens", interactive=False, elem_id="pruned-answer", elem_classes="answer"
        )
    return [kept, stock_answer, pruned_answer, gr.HTML(elem_id="costs", padding=True)]


def build_demo() -> gr.Blocks:
    """The page. Weights are loaded by the first question."""
    first = examples()[0]
    asked = [question.question for question in first.questions]
    with gr.Blocks(title="What can an image lose?") as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=5):
                image, gallery = show_images(first.image)
                question = gr.Dropdown(
                    asked, value=asked[0], label="Question", allow_custom_value=True, elem_id="question"
                )
                with gr.Row():
                    method = gr.Dropdown(list(METHODS), value="id_pruner", label="Method", elem_id="method")
                    budget = gr.Slider(
                        1, TOKENS, START_BUDGET, step=1, label="Visual tokens to keep", scale=2, elem_id="budget"
                    )
                about = gr.Markdown(about_method("id_pruner"), elem_id="about-method")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                gr.Markdown(ABOUT_UPLOADS)
            with gr.Column(scale=6):
                outputs = show_answers()
        inputs = [image, question, method, budget]
        method.input(about_method, method, about, api_visibility="private", queue=False)
        one_at_a_time: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "show_progress_on": outputs[-1],  # the rest of the last result stays in sight meanwhile, and after an error
        }
        gr.on(
            [demo.load, button.click, budget.release, method.input],
            ask,
            inputs,
            outputs,
            api_name="ask",
            **one_at_a_time,
        )
        gallery.select(pick, None, [image, question], api_visibility="private").then(
            ask, inputs, outputs, api_visibility="private", **one_at_a_time
        )
    return guarded(demo, question, method, budget)


demo = build_demo()

if __name__ == "__main__":
    demo.queue(max_size=LONGEST_QUEUE).launch(**LAUNCH_OPTIONS)
