"""Which patches of a clip which of STDO's networks enlarges."""

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from skimage import data

from hf_efficient.video.encode.fit import fit_video
from hf_efficient.video.files.color import ColorTags
from hf_efficient.video.files.reader import VideoInfo
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.measure.evaluation import enlarged_frames, evaluate
from hf_efficient.video.play.player import Player

from .panels import note, panels

FRAMES, HEIGHT, WIDTH, CHUNKS, STEPS = 8, 384, 576, 3, 300


def clip(path: Path) -> np.ndarray:
    """Pan over a photograph of scikit-image (a cup of coffee, public domain); its first frame."""
    sheet = data.coffee()
    frames = [np.ascontiguousarray(sheet[2 * i : 2 * i + HEIGHT, 3 * i : 3 * i + WIDTH]) for i in range(FRAMES)]
    about = VideoInfo(WIDTH, HEIGHT, "yuv420p", Fraction(12), Fraction(1, 12), Fraction(1), ColorTags(), 0, FRAMES,
                      1.0, "mov,mp4,m4a,3gp,3g2,mj2", ())  # fmt: skip
    with VideoWriter(path, about, (WIDTH, HEIGHT), options={"crf": "4"}) as writer:
        for number, frame in enumerate(frames):
            writer.write(frame, number)
    return frames[0]


def stdo() -> Figure:
    """The small stream by bicubic; its patches by difficulty; the frame as the networks play it."""
    with tempfile.TemporaryDirectory() as scratch:
        source, bundle = Path(scratch) / "clip.mp4", Path(scratch) / "bundle"
        first = clip(source)
        fit_video(source, bundle, method="stdo", num_chunks=CHUNKS, steps=STEPS, num_features=8, num_blocks=1,
                  lr_quality=20,
                   device="cpu", progress_bar=False)  # fmt: skip
        found, player = evaluate(bundle, source), Player(bundle, "cpu")
        bicubic = next(enlarged_frames(player.bundle.low_resolution, player, "bicubic"))
        labels, played = next(player.labels()), next(player.frames()).rgb
        side = 2 * player.config.patch_height
    colours = plt.get_cmap("viridis")(labels / (CHUNKS - 1))[..., :3].repeat(side, 0).repeat(side, 1)[:HEIGHT, :WIDTH]
    figure, places = panels(
        ("a frame", "sent: half the size", f"{CHUNKS} networks, by difficulty", "played"), [1.45] * 4
    )
    for place, image in zip(places, (first / 255, bicubic / 255, 0.55 * colours + 0.45 * first / 255, played / 255),
                            strict=True):  # fmt: skip
        place.imshow(image)
    note(places[1], f"bicubic: {found['bicubic']['psnr']:.2f} dB")
    note(places[2], "dark: hardest")
    note(places[3], f"{found['stdo']['psnr']:.2f} dB")
    return figure
