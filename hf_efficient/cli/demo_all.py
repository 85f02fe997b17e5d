"""`hf-efficient demo --all`: after the visual tokens the other two budgets, in one table and one page with pictures."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_efficient.extras import extra
from hf_efficient.files import write_text, written_whole
from hf_efficient.optimization.sharpness import loss_along, plot_landscape
from hf_efficient.representation.evaluation.questions import load_evaluation_set

from .demo_line import Line
from .demo_training import DISTANCES, flat_minima, garments_of, loss_of, sparse_weights, with_wrong

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hf_efficient: three budgets</title><style>
body {{ font-family: sans-serif; max-width: 70em; margin: 2em auto; }} img {{ max-width: 100%; }}
td, th {{ padding: .2em .8em; text-align: left; border-bottom: 1px solid #ddd; }}
</style></head><body><h1>Three budgets, cost and quality</h1>
<table><tr><th>budget</th><th>what</th><th>cost</th><th>quality</th></tr>
{rows}
</table>
<p>Small models, one seed, a short training: what can be seen here, not what is claimed. Where intervals overlap, a
difference may be chance. Figures over several seeds stand in the benchmarks.</p>
<ul>
<li><b>prefill</b>: seconds of a forward of the prompts, and <b>cache</b>: bytes of keys and values, both of those with
all visual tokens. <b>ms a step</b>: on this machine. Seconds of a busy machine say little. What S2-SAM adds to a step
grows with the weights, not with the batch: it is much here, where 32 rows go through a small network, and little in
networks of which a step takes longer.</li>
<li><b>right</b>: answers, or classes of {tests} test pictures, with a 95 % interval for so many of them; other seeds
move it too.</li>
<li><b>sharpness</b>: by how much the loss of training rises 0.1 away from the weights, along its gradient. ZO-SAM
estimates that direction from losses alone, which costs it time and precision on networks of this kind.</li>
<li><b>zeros</b>: the smallest weights of the dense network are set to zero and nothing is trained after; BiDST trains
with its zeros.</li>
<li><b>bytes</b> of a video: the small stream, and what is sent beside it: whole networks and maps with STDO and JSTDO,
the difference from a network that ships with the package with a delta. On a clip of one second whole networks weigh
more than the stream; on a longer one they serve more frames. <b>dB</b>: PSNR of RGB; another seed moves it by
tenths.</li>
</ul>
{pictures}
</body></html>
"""


def check_installed() -> None:
    """Refuse to begin where a library is missing that is needed at the end.

    Raises:
        ImportError: it says what to install.
    """
    for name, module in (("plots", "matplotlib"), ("sparsity", "peft"), ("video", f"{__package__}.demo_video")):
        with extra(name):
            import_module(module)


def run_all(folder: Path, tokens: Sequence[Line], kept: Sequence[str]) -> list[Line]:
    """Train, encode, print the table and write the page.

    Args:
        folder: of the page.
        tokens: rows of the visual tokens.
        kept: files of pictures with kept tokens, in the folder.

    Returns:
        All rows of the table.
    """
    scenes = load_evaluation_set()
    data = garments_of(scenes)
    flat, networks = flat_minima(data)
    curves = {
        name: loss_along(net, [(data.x, with_wrong(data))], DISTANCES, loss_of=loss_of)
        for name, net in networks.items()
    }
    with extra("plots"), written_whole(folder / "landscape.png") as draft:
        plot_landscape(curves, DISTANCES, str(draft))
    sparse, masks = sparse_weights(data)
    save(folder / "masks.png", picture_of(masks))
    with extra("video"):
        from .demo_video import played
    with tempfile.TemporaryDirectory() as scratch:
        video, frame = played(scenes, Path(scratch))
    save(folder / "frame.png", frame)
    lines = [*tokens, *video, *flat, *sparse]
    print(f"\n{table_of(lines)}")
    write_text(folder / "report.html", page_of(lines, kept, len(data.y_test)))
    print(f"\nAll of it with pictures: {folder / 'report.html'}")
    return lines


def picture_of(masks: dict[str, torch.Tensor]) -> Image.Image:
    """How much each pixel is used by the first layer, networks side by side; black pixels are not looked at."""
    panels = [np.pad((255 * mask.numpy()).astype(np.uint8), 2, constant_values=128) for mask in masks.values()]
    return Image.fromarray(np.concatenate(panels, axis=1)).resize((len(panels) * 216, 216), Image.Resampling.NEAREST)


def save(path: Path, image: Image.Image) -> None:
    """A picture, whole or not at all."""
    with written_whole(path) as draft:
        image.save(draft)


def table_of(lines: Sequence[Line]) -> str:
    """The rows as text."""
    cells: list[Any] = [("budget", "", "cost", "quality"), *((x.budget, x.name, x.cost, x.quality) for x in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def page_of(lines: Sequence[Line], kept: Sequence[str], tests: int) -> str:
    """The page, whose pictures lie beside it."""
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (x.budget, x.name, x.cost, x.quality)) + "</tr>"
        for x in lines
    )
    shown = [(name, "Kept visual tokens (the others are greyed), and the answers") for name in kept]
    shown += [
        ("landscape.png", "Loss of training, wrong labels included, at a distance from the weights that were found"),
        ("masks.png", "How much the first layer looks at each pixel (white: most): dense, smallest set to zero, BiDST"),
        ("frame.png", "The first frame: source; the small stream enlarged by bicubic; by STDO; by JSTDO; by a delta"),
    ]
    pictures = "\n".join(f'<h2>{text}</h2><img src="{name}" alt="{text}">' for name, text in shown)
    return PAGE.format(rows=rows, pictures=pictures, tests=tests)
