"""Space: the best plan for a model that may cost no more than it is allowed to."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hf_efficient import LimitError, find_plan
from hf_efficient.budget.plan.file import NAME
from hf_efficient.budget.planner.found import Candidate, FoundPlan
from hf_efficient.budget.planner.limits import COSTS, said
from hf_efficient.budget.planner.ready import exact_answers, rows_of_pictures
from hf_efficient.files.temporary import work_folder
from hf_efficient.representation.evaluation.questions import load_vlm
from hf_efficient.space import (
    LONGEST_QUEUE,
    Deadline,
    guarded,
    in_one_thread,
    launch_options,
    own_folder,
    refusal,
    some_of,
    whole,
)

#: Slider -> the cost that it limits, and its value at the start, in percent of what the model costs now.
LIMITS = {
    "Operations, with weights that are not zero": ("prefill_flops_nonzero", 50),
    "Key-value cache": ("cache_bytes", 100),
    "Bytes in a file": ("file_bytes", 100),
}
TOKENS = "fewer visual tokens"
LEVERS = {
    TOKENS: "",
    "zeros, by SparseGPT": "sparsegpt",
    "zeros, by Wanda": "wanda",
    "8 bits": "int8",
    "4 bits": "int4",
}
METHOD = "itg"  # of the selections the one that keeps most answers right
LEAST, NO_LIMIT = 5, 100  # percent
FEWEST, QUESTIONS, MOST = 8, 48, 96
MOST_SECONDS = 300  # of work for a plan, on a busy machine

INTRODUCTION = """
# What may a model cost?

A small vision-language model answers questions about scenes of garments, with **144 visual tokens** for each image.
Set the most that it may cost, in percent of what it costs now; 100 is no limit. Of all plans that keep your limits you
get the one that answers most of the questions rightly.
"""
NOTHING_YET = '<p class="note">Press the button: a plan takes half a minute to a few.</p>'
LAUNCH_OPTIONS = launch_options(__file__, "emerald", largest_upload=0)
PROGRESS = gr.Progress()  # Gradio finds it as the default of an argument
Shown = tuple[str, Image.Image | None, str, str | None]


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any]:
    """The shipped model and its processor, loaded when the first plan is asked for."""
    return load_vlm()


def plan(
    operations: int, cache: int, file: int, levers: list[str], questions: int, progress: gr.Progress = PROGRESS
) -> Iterator[Shown]:
    """What the page shows: the plan as HTML, the front, all that was tried as HTML, and the plan's file.

    A generator, so that its files live until the page has taken them.
    """
    with work_folder(own_folder()) as folder:
        yield in_one_thread(_plan, (operations, cache, file), levers, questions, progress, Path(folder))


def _plan(asked: Sequence[object], levers: object, questions: object, progress: gr.Progress, folder: Path) -> Shown:
    deadline = Deadline(MOST_SECONDS, "Choose on fewer questions, or allow fewer levers.")
    percents = [whole(label, value, LEAST, NO_LIMIT) for label, value in zip(LIMITS, asked, strict=True)]
    allowed = some_of("What may be done", levers, list(LEVERS))
    if not allowed:
        raise refusal("Allow at least one thing that may be done.")
    count = whole("Questions to choose on", questions, FEWEST, MOST)
    costs = [cost for cost, _ in LIMITS.values()]
    limits = {cost: f"{percent}%" for cost, percent in zip(costs, percents, strict=True) if percent < NO_LIMIT}
    if not limits:
        raise refusal("Nothing is limited: set one of the sliders below 100 percent.")
    tried: list[str] = []

    def step(name: str) -> None:
        deadline()
        tried.append(name)
        progress((len(tried), None), desc=f"trying {name}", unit="plans")

    model, processor = load()
    try:
        found = find_plan(
            model, processor, rows_of_pictures(None, count), exact_answers, limits,
            methods=[METHOD] if TOKENS in allowed else [], levers=[LEVERS[name] for name in allowed if LEVERS[name]],
            progress=step,
        )  # fmt: skip
    except LimitError as error:
        return f'<p class="binds"><b>This cannot be kept.</b> {escape(str(error))}</p>', None, "", None
    found.plan.save_pretrained(folder / "plan")
    found.plot(folder / "front.png")
    with Image.open(folder / "front.png") as image:
        drawn = image.convert("RGB")
    return described(found), drawn, others(found), str(folder / "plan" / NAME)


def described(found: FoundPlan) -> str:
    """The plan, and what it costs, in HTML."""
    rows = ""
    for name, now in found.stock.measured.items():
        limit = said(name, found.limits[name]) if name in found.limits else ""
        predicted = said(name, found.predicted[name]) if name in found.predicted else ""
        cells = (said(name, now), limit, predicted, said(name, found.measured[name]))
        rows += f"<tr><td>{COSTS[name][1]}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    rows += (
        f"<tr><td>questions answered rightly</td><td>{found.stock.quality:.1%}</td><td></td><td></td>"
        f"<td><b>{found.quality:.1%}</b></td></tr>"
    )
    head = "".join(f"<th>{word}</th>" for word in ("", "now", "limit", "predicted", "measured"))
    return (
        f'<p class="plan">{escape(found.best.name)}</p><table class="figures"><tr>{head}</tr>{rows}</table>'
        f'<p class="note">{binding(found)}</p>'
    )


def binding(found: FoundPlan) -> str:
    """Which limit the plan comes closest to."""
    used = {name: found.measured[name] / most for name, most in found.limits.items()}
    name = max(used, key=used.__getitem__)
    return f"What binds: {COSTS[name][1]}, of which {used[name]:.0%} of the limit is used."


def others(found: FoundPlan) -> str:
    """All that was tried, best first, in HTML."""
    front = {one.name for one in found.front()}
    limited = [name for name in COSTS if name in found.limits]
    rows = "".join(
        f"<tr><td>{escape(one.name)}{' ★' if one is found.best else ''}</td><td>{one.quality:.1%}</td>"
        f"{''.join(f'<td>{said(name, one.measured[name])}</td>' for name in limited)}"
        f"<td>{'yes' if kept(one, found) else 'no'}</td><td>{'yes' if one.name in front else ''}</td></tr>"
        for one in sorted((found.stock, *found.tried), key=lambda one: -one.quality)
    )
    words = ["tried", "right", *(COSTS[name][1] for name in limited), "in the limits", "on the front"]
    head = "".join(f"<th>{word}</th>" for word in words)
    return f'<div class="wide"><table class="figures"><tr>{head}</tr>{rows}</table></div>'


def kept(one: Candidate, found: FoundPlan) -> bool:
    """Whether a plan keeps all limits."""
    return all(one.measured[name] <= most for name, most in found.limits.items())


def build_demo() -> gr.Blocks:
    """The page. Weights are loaded by the first plan."""
    with gr.Blocks(title="What may a model cost?") as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=4):
                sliders = [
                    gr.Slider(LEAST, NO_LIMIT, start, step=5, label=f"{label}, % of now", elem_id=cost)
                    for label, (cost, start) in LIMITS.items()
                ]
                levers = gr.CheckboxGroup(list(LEVERS), value=list(LEVERS), label="What may be done", elem_id="levers")
                questions = gr.Slider(
                    FEWEST, MOST, QUESTIONS, step=8, label="Questions to choose on", elem_id="questions"
                )  # fmt: skip
                button = gr.Button("Plan", variant="primary", elem_id="find")
            with gr.Column(scale=7):
                best = gr.HTML(NOTHING_YET, elem_id="best", elem_classes="space-results", padding=True)
                front = gr.Image(
                    label="Quality over cost", show_label=False, format="png", interactive=False, buttons=[],
                    elem_id="front", elem_classes="space-chart",
                )  # fmt: skip
                tried = gr.HTML(elem_id="tried", padding=True)
                file = gr.File(label="The plan", interactive=False, elem_id="file")
        button.click(
            plan,
            [*sliders, levers, questions],
            [best, front, tried, file],
            api_name="plan",
            concurrency_limit=1,
            show_progress_on=best,
        )
    return guarded(demo, *sliders, levers, questions)


demo = build_demo()

if __name__ == "__main__":
    demo.queue(max_size=LONGEST_QUEUE).launch(**LAUNCH_OPTIONS)
