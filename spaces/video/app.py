"""Space: a clip becomes a small video and a tiny network that was fitted to it; both play together."""

import shutil
from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from hf_efficient.files import written_whole
from hf_efficient.video.decode import decode
from hf_efficient.video.evaluation import enlarged_frames, evaluate
from hf_efficient.video.fit import fit_video
from hf_efficient.video.media import MediaError, probe
from hf_efficient.video.player import Player

METHODS = {
    "One network, hard patches first (JSTDO)": "jstdo",
    "A network for each of 2 chunks (STDO)": "stdo",
    "One network, all patches alike": "single",
}
SCALES = [2, 3, 4]
STEPS, FEWEST_STEPS, MOST_STEPS = 400, 20, 2000
MOST_PIXELS, SMALLEST_SIDE = 80_000_000, 48  # of all frames together: five seconds of 640 x 360; of one frame

INTRODUCTION = """
# A video that knows itself

Sent as a **small video** and a **tiny network** that has learned this one clip by heart, it plays sharper than the
small video alone. Upload a few seconds, choose how much smaller the video is made, and compare.
"""
LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],  # none is downloaded
        font_mono=["ui-monospace", "monospace"],
    ),
    "css_paths": Path(__file__).with_name("style.css"),
    "max_file_size": "40mb",
}


class Outcome(NamedTuple):
    """What became of a clip.

    Args:
        frame: number of the frame shown, the one that gains most.
        pictures: that frame, plainly enlarged and played, (height, width, 3) uint8.
        measures: what `evaluate` says.
    """

    frame: int
    pictures: tuple[np.ndarray, np.ndarray]
    measures: dict[str, Any]


def refusal(message: str) -> gr.Error:
    """What to raise when the page cannot work with what it was given; the log stays free of it."""
    return gr.Error(escape(message, quote=False), print_exception=False)


def check_clip(path: str | None) -> Path:
    """An upload the page can fit a network to in a minute or two, or what is wrong with it."""
    if not path:
        raise refusal("Upload a clip of a few seconds.")
    try:
        info = probe(path)
    except MediaError as error:
        raise refusal(str(error).replace(path, Path(path).name)) from None
    if min(info.width, info.height) < SMALLEST_SIDE:
        raise refusal(f"This clip has {info.width} x {info.height} pixels; it needs at least {SMALLEST_SIDE} a side.")
    frames = info.frames or round(info.seconds * info.rate)
    if frames * info.width * info.height > MOST_PIXELS:
        most = MOST_PIXELS // (info.width * info.height)
        raise refusal(
            f"This clip has {frames} frames of {info.width} x {info.height}; this page takes {most} of that size. "
            "Cut it shorter, scale it down, or run hf-efficient stdo encode on a machine of yours."
        )
    return Path(path)


def look(player: Player, source: Path) -> Outcome:
    """Measure a bundle, and take from it the frame that gains most."""
    measures = evaluate(player.bundle.path, source)
    curves = measures["frame_psnr"]
    best = int(np.argmax(np.subtract(curves["stdo"], curves["bicubic"])))
    every, at = max(best, 1), min(best, 1)  # those between are decoded, but not enlarged
    plain = next(islice(enlarged_frames(player.bundle.low_resolution, player, "bicubic", every), at, None))
    played = next(islice(player.frames(every), at, None)).rgb
    return Outcome(best, (plain, played), measures)


PROGRESS = gr.Progress(track_tqdm=True)  # Gradio finds it as the default of an argument


def fit(
    path: str | None, scale: int, method: str, steps: int, progress: gr.Progress = PROGRESS
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], str, str, str]]:
    """What the page shows: the two pictures, the measures as HTML, the played video and the bundle as an archive.

    A generator, so that its files live until the page has taken them.
    """
    source = check_clip(path)
    with TemporaryDirectory() as folder:
        try:
            bundle = fit_video(
                source, Path(folder) / "bundle", scale=int(scale), method=method, steps=int(steps),
                num_chunks=2 if method == "stdo" else "auto",
            )  # fmt: skip
            player = Player(bundle)
            outcome = look(player, source)
            played = decode(player, Path(folder) / f"{source.stem}.mp4")
        except (MediaError, ValueError) as error:  # the clip is broken further on, or too small for this scale
            raise refusal(str(error).replace(str(source), source.name)) from None
        archive = Path(folder) / f"{source.stem}-bundle.zip"
        with written_whole(archive) as draft:
            shutil.make_archive(str(draft.with_suffix("")), "zip", bundle.path)
        yield outcome.pictures, describe(outcome, source), str(played), str(archive)


def describe(outcome: Outcome, source: Path) -> str:
    """Quality and weight, in HTML."""
    sizes, whole = outcome.measures["bytes"], source.stat().st_size
    stream = sum(size for name, size in sizes.items() if name.startswith("low_resolution"))
    parts = [("Your file", whole), ("Small video", stream), ("Network and the rest", sum(sizes.values()) - stream)]
    bars = "".join(
        f'<span>{name}</span><span class="bar"><i style="width:{min(100, 100 * size / whole):.0f}%"></i></span>'
        f'<span class="number">{size / 1024:,.0f} KiB</span>'
        for name, size in parts
    )
    rows = "".join(
        f"<tr><td>{label}</td><td>{outcome.measures[name]['psnr']:.2f} dB</td>"
        f"<td>{outcome.measures[name]['ssim']:.4f}</td></tr>"
        for name, label in (("stdo", "with the network"), ("lanczos", "Lanczos"), ("bicubic", "bicubic"))
    )
    head = "<tr><th>enlarged</th><th>PSNR</th><th>SSIM</th></tr>"
    note = f"All {outcome.measures['frames']} frames, measured against yours; shown is frame {outcome.frame}."
    return f'<div class="weights">{bars}</div><table class="quality">{head}{rows}</table><p class="note">{note}</p>'


def build_demo() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="A video that knows itself", delete_cache=(3600, 3600)) as demo:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=4):
                clip = gr.File(label="Clip", file_types=["video"], type="filepath", elem_id="clip")
                scale = gr.Radio(SCALES, value=2, label="Make it smaller by", elem_id="scale")
                method = gr.Dropdown(list(METHODS.items()), value="jstdo", label="Method", elem_id="method")
                steps = gr.Slider(
                    FEWEST_STEPS, MOST_STEPS, STEPS, step=20, label="Training steps", elem_id="steps"
                )  # fmt: skip
                button = gr.Button("Fit", variant="primary", elem_id="fit")
            with gr.Column(scale=7):
                pictures = gr.ImageSlider(
                    label="Enlarged plainly | with the network", format="png", interactive=False, elem_id="pictures"
                )
                measures = gr.HTML(elem_id="measures", padding=True)
                with gr.Row():
                    played = gr.Video(label="Played", interactive=False, elem_id="played")
                    archive = gr.File(label="Bundle", interactive=False, elem_id="archive")
        button.click(
            fit,
            [clip, scale, method, steps],
            [pictures, measures, played, archive],
            api_name="fit",
            concurrency_limit=1,
            show_progress_on=measures,
        )
    return demo


demo = build_demo()

if __name__ == "__main__":
    demo.queue().launch(**LAUNCH_OPTIONS)
