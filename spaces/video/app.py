"""Space: a clip becomes a small video and a tiny network that was fitted to it; both play together."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from hf_efficient.files import written_whole
from hf_efficient.files.temporary import work_folder
from hf_efficient.space import (
    LONGEST_QUEUE,
    Deadline,
    guarded,
    in_one_thread,
    launch_options,
    one_of,
    own_folder,
    refusal,
    whole,
)
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.containers import measure_extent
from hf_efficient.video.files.reader import MediaError, probe, read_frames
from hf_efficient.video.measure.evaluation import enlarged_frames, evaluate, general_frames
from hf_efficient.video.play.decode import decode
from hf_efficient.video.play.player import Player

METHODS = {
    "The general network, and what this clip changes of it": "delta",
    "One network, hard patches first (JSTDO)": "jstdo",
    "A network for each of 2 chunks (STDO)": "stdo",
    "One network, all patches alike": "single",
}
SCALES = [2, 3, 4]
LABELS = {"stdo": "this network", "general": "the general network", "lanczos": "Lanczos", "bicubic": "bicubic"}
STEPS, FEWEST_STEPS, MOST_STEPS = 400, 20, 2000
MOST_PIXELS, SMALLEST_SIDE = 80_000_000, 48  # of all frames together: five seconds of 640 x 360; of one frame
MOST_SECONDS = 600  # of work for a clip

INTRODUCTION = """
# A video that knows itself

Sent as a **small video** and a **tiny network** that has learned this one clip by heart, it plays sharper than the
small video alone. Upload a few seconds, choose how much smaller the video is made, and compare.
"""
LAUNCH_OPTIONS = launch_options(__file__, "teal", largest_upload=40 << 20)


class Outcome(NamedTuple):
    """What became of a clip.

    Args:
        frame: number of the frame shown, the one that gains most.
        images: that frame, plainly enlarged and played, (height, width, 3) uint8.
        beside: the same frame by every way to enlarge it and as it was, with their names.
        measures: what `evaluate` says.
    """

    frame: int
    images: tuple[np.ndarray, np.ndarray]
    beside: list[tuple[np.ndarray, str]]
    measures: dict[str, Any]


def check_clip(path: str | None) -> Path:
    """The path of an upload that the page can handle in a minute or two; else an error that says what is wrong."""
    if not path or not isinstance(path, str):
        raise refusal("Upload a clip of a few seconds.")
    try:
        info = probe(path, most_frames=MOST_PIXELS // SMALLEST_SIDE**2)
        most = MOST_PIXELS // (info.width * info.height)
        frames = measure_extent(path, most).frames  # whatever the header says
    except (MediaError, OSError) as error:
        raise refusal(str(error).replace(path, Path(path).name)) from None
    if min(info.width, info.height) < SMALLEST_SIDE:
        raise refusal(f"This clip has {info.width} x {info.height} pixels; it needs at least {SMALLEST_SIDE} a side.")
    if frames > most:
        known = f"{info.frames}" if info.frames > most else f"more than {most}"
        raise refusal(
            f"This clip has {known} frames of {info.width} x {info.height}; this page takes {most} of that size. "
            "Cut it shorter, scale it down, or run hf-efficient stdo encode on a machine of yours."
        )
    return Path(path)


def look(player: Player, source: Path, step: Callable[[int], object] | None = None) -> Outcome:
    """Measure a bundle, and take the frame that gains most; `step` is called for every frame."""
    measures = evaluate(player.bundle.path, source, progress=step)
    curves = measures["frame_psnr"]
    best = int(np.argmax(np.subtract(curves["stdo"], curves["bicubic"])))
    every, at = max(best, 1), min(best, 1)  # the frames between are decoded, but not enlarged
    low = player.bundle.low_resolution

    def shown(frames: Iterator[Any]) -> Any:
        return next(islice(frames, at, None))

    plain, lanczos = (shown(enlarged_frames(low, player, name, every)) for name in ("bicubic", "lanczos"))
    played, general = shown(player.frames(every)).rgb, shown(general_frames(low, player, every))
    original = next(islice(read_frames(source, player.bundle.probe_source(source)), best, None)).rgb
    beside = [(played, "this network"), (general, "general network"), (lanczos, "Lanczos"), (original, "original")]
    return Outcome(best, (plain, played), beside, measures)


Shown = tuple[tuple[np.ndarray, np.ndarray], str, str, str, list[tuple[np.ndarray, str]]]
PROGRESS = gr.Progress(track_tqdm=True)  # Gradio finds it as the default of an argument


def fit(path: str | None, scale: int, method: str, steps: int, progress: gr.Progress = PROGRESS) -> Iterator[Shown]:
    """What the page shows: two images, measures as HTML, the played video, the bundle as an archive, and the gallery.

    A generator, so that its files live until the page has taken them.
    """
    with work_folder(own_folder()) as folder:
        yield in_one_thread(_fit, path, scale, method, steps, folder)


def _fit(path: str | None, scale: int, method: str, steps: int, folder: Path) -> Shown:
    deadline = Deadline(MOST_SECONDS, "Take a shorter clip or fewer steps.")
    scale, method = one_of("Make it smaller by", scale, SCALES), one_of("Method", method, METHODS.values())
    steps, source = whole("Training steps", steps, FEWEST_STEPS, MOST_STEPS), check_clip(path)
    try:
        bundle = fit_video(
            source, folder / "bundle", scale=scale, method=method, steps=steps,
            num_chunks=2 if method == "stdo" else "auto", progress=deadline,
        )  # fmt: skip
        player = Player(bundle)
        outcome = look(player, source, deadline)
        played = decode(player, folder / f"{source.stem}.mp4", progress=deadline)
    except (ValueError, OSError) as error:  # the clip is broken further on, or too small for this scale
        raise refusal(str(error).replace(str(source), source.name).replace(f"{folder}/", "")) from None
    archive = folder / f"{source.stem}-bundle.zip"
    with written_whole(archive) as draft:
        shutil.make_archive(str(draft.with_suffix("")), "zip", bundle.path)
    return outcome.images, describe(outcome, source), str(played), str(archive), outcome.beside


def describe(outcome: Outcome, source: Path) -> str:
    """Quality and size, in HTML."""
    sizes, all_of_it = outcome.measures["bytes"], source.stat().st_size
    stream = sum(size for name, size in sizes.items() if name.startswith("low_resolution"))
    parts = [("Your file", all_of_it), ("Small video", stream), ("Network and the rest", sum(sizes.values()) - stream)]
    bars = "".join(
        f'<span>{name}</span><span class="bar"><i style="width:{min(100, 100 * size / all_of_it):.0f}%"></i></span>'
        f'<span class="number">{size / 1024:,.0f} KiB</span>'
        for name, size in parts
    )
    rows = "".join(
        f"<tr><td>{label}</td><td>{(sum(sizes.values()) if name == 'stdo' else stream) / 1024:,.0f} KiB</td>"
        f"<td>{outcome.measures[name]['psnr']:.2f} dB</td><td>{outcome.measures[name]['ssim']:.4f}</td></tr>"
        for name, label in LABELS.items()
    )
    head = "<tr><th>enlarged by</th><th>sent</th><th>PSNR</th><th>SSIM</th></tr>"
    note = f"All {outcome.measures['frames']} frames, measured against yours. Frame {outcome.frame} is shown."
    advice = advise({name: outcome.measures[name]["psnr"] for name in LABELS}, sum(sizes.values()), stream, all_of_it)
    table = f'<table class="quality">{head}{rows}</table>'
    return f'<div class="weights">{bars}</div>{table}<p class="advice">{advice}</p><p class="note">{note}</p>'


def advise(psnr: dict[str, float], total: int, stream: int, source: int) -> str:
    """Which of them to use, in a sentence.

    Args:
        psnr: dB of "stdo", "general", "lanczos", "bicubic".
        total: bytes of the bundle.
        stream: bytes of its small video.
        source: bytes of the clip.
    """
    if stream >= source:
        return "<b>Keep your file:</b> the small video alone is not smaller."
    plain = max(("lanczos", "bicubic"), key=lambda name: psnr[name])
    free = max((plain, "general"), key=lambda name: psnr[name])
    if psnr["stdo"] > psnr[free] and total < source:
        return (
            f"<b>Use this network:</b> it adds {psnr['stdo'] - psnr[free]:.2f} dB to what is free ({LABELS[free]}) "
            f"for {(total - stream) / 1024:,.1f} KiB, {(total - stream) / total:.0%} of what is sent."
        )
    reason = "the bundle is larger than your file" if psnr["stdo"] > psnr[free] else f"{LABELS[free]} is as good, free"
    advice = "enlarge it by the general network" if free == "general" else f"enlarge it by {LABELS[plain]}"
    return f"<b>This network does not pay here:</b> {reason}. Send the small video alone and {advice}."


def build_demo() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="A video that knows itself") as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=4):
                clip = gr.File(label="Clip", file_types=["video"], type="filepath", elem_id="clip")
                scale = gr.Radio(SCALES, value=2, label="Make it smaller by", elem_id="scale")
                method = gr.Dropdown(list(METHODS.items()), value="delta", label="Method", elem_id="method")
                steps = gr.Slider(
                    FEWEST_STEPS, MOST_STEPS, STEPS, step=20, label="Training steps", elem_id="steps"
                )  # fmt: skip
                button = gr.Button("Fit", variant="primary", elem_id="fit")
            with gr.Column(scale=7):
                images = gr.ImageSlider(
                    label="Enlarged plainly | with the network", format="png", interactive=False, elem_id="images"
                )
                measures = gr.HTML(elem_id="measures", padding=True)
                beside = gr.Gallery(label="Side by side", columns=2, format="png", interactive=False, elem_id="beside")
                with gr.Row():
                    played = gr.Video(label="Played", interactive=False, elem_id="played")
                    archive = gr.File(label="Bundle", interactive=False, elem_id="archive")
        button.click(
            fit,
            [clip, scale, method, steps],
            [images, measures, played, archive, beside],
            api_name="fit",
            concurrency_limit=1,
            show_progress_on=measures,
        )
    return guarded(demo, scale, method, steps)


demo = build_demo()

if __name__ == "__main__":
    demo.queue(max_size=LONGEST_QUEUE).launch(**LAUNCH_OPTIONS)
