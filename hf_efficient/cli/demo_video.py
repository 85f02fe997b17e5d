"""The video methods in the demonstration: a clip that pans over pictures, sent small, enlarged by its own networks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hf_efficient.quiet import errors_alone
from hf_efficient.representation.evaluation.questions import Scene
from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.color import ColorTags
from hf_efficient.video.files.reader import VideoInfo
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.measure import break_even
from hf_efficient.video.measure.evaluation import enlarged_frames, evaluate
from hf_efficient.video.play.player import Player
from hf_efficient.video.settings import AUTO

from .demo_line import Line

FRAMES, SIDE, STEPS = 12, 192, 200
_OWN = {"num_features": 8, "num_blocks": 1}
#: Name in the table -> settings of the fit.
NETWORKS: dict[str, dict[str, Any]] = {
    "STDO": {"method": "stdo", "num_chunks": 2, **_OWN},
    "JSTDO": {"method": "jstdo", "num_chunks": AUTO, **_OWN},
    "a delta to the general network": {"method": "delta"},
}


def played(scenes: Sequence[Scene], folder: Path) -> tuple[list[Line], Image.Image]:
    """Bytes and PSNR by bicubic enlargement and by each method; and the first frame: source, bicubic, played.

    Args:
        scenes: whose pictures are panned over.
        folder: for the clip and what is made of it.
    """
    clip, frames = folder / "clip.mp4", pan(scenes)
    about = VideoInfo(SIDE, SIDE, "yuv420p", Fraction(12), Fraction(1, 12), Fraction(1), ColorTags(), 0, FRAMES, 1.0,
                      "mov,mp4,m4a,3gp,3g2,mj2", ())  # fmt: skip
    with VideoWriter(clip, about, (SIDE, SIDE), options={"crf": "4"}) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, number)
    lines: list[Line] = []
    shown: list[np.ndarray] = []
    for number, (name, settings) in enumerate(tqdm(NETWORKS.items(), desc="video", unit="method", leave=False)):
        bundle = folder / f"bundle{number}"
        with errors_alone(break_even.__name__):  # that networks are larger than so short a clip, the table says
            fit_video(clip, bundle, steps=STEPS, lr_quality=20, progress_bar=False, device="cpu", **settings)
        found = evaluate(bundle, clip)
        size, player = sum(found["bytes"].values()), Player(bundle, "cpu")
        if not lines:
            low = player.bundle.low_resolution
            lines.append(Line("representation", "video at half its size, bicubic", f"{low.stat().st_size:,} bytes",
                              f"{found['bicubic']['psnr']:.2f} dB"))  # fmt: skip
            shown = [frames[0], next(enlarged_frames(low, player, "bicubic"))]
        lines.append(Line("representation", f"video by {name}", f"{size:,} bytes to play",
                          f"{found['stdo']['psnr']:.2f} dB"))  # fmt: skip
        shown.append(next(player.frames()).rgb)
    return lines, Image.fromarray(np.concatenate(shown, axis=1)).resize((len(shown) * 2 * SIDE, 2 * SIDE))


def pan(scenes: Sequence[Scene]) -> list[np.ndarray]:
    """(SIDE, SIDE, 3) uint8 frames that move over a sheet of pictures."""
    sheet = Image.new("RGB", (4 * 96, 3 * 96))
    for number, scene in enumerate(scenes[:12]):
        sheet.paste(scene.image.convert("RGB").resize((96, 96)), (number % 4 * 96, number // 4 * 96))
    return [np.asarray(sheet.crop((6 * i, 3 * i, 6 * i + SIDE, 3 * i + SIDE))) for i in range(FRAMES)]
