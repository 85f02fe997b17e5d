"""How small frames are best made for a network that enlarges them: `python -m benchmarks.video.small_frames`.

Bicubic frames, sharper ones (Lanczos, in luma), and frames made at the encoder for the network that plays them, by one
or two rounds of back-projection. Each is played by the general network as it ships and, where it says so, by one that
went on training (1,500 steps) on such frames behind the codecs, of the same sources; "twice" makes the frames for that
network and trains once more. BD-rate against SVT-AV1 alone, everything at x2, AV1 streams, no delta. The clips are for
choosing: 72 frames of `Megamind.avi` and the photographs of the validation split, each as a shot of six frames; neither
is trained on, and none is a test clip. Resumable.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from benchmarks.harness.options import common_parser
from benchmarks.harness.results import Rows, record_run, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.fetch_clips import fetch
from examples.photo_vlm.sources import SPLITS, photograph
from examples.train_general_upscaler import HEIGHT, PAN, WIDTH, Crops, save
from hf_efficient.video.codecs import LOSSLESS, encoder_options
from hf_efficient.video.encode.low_resolution import Enlarger, back_projection, downscaled, write_stream
from hf_efficient.video.encode.overfit import Recipe, overfit
from hf_efficient.video.files.reader import Frame, VideoInfo, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.measure.rate_distortion import bd_rate
from hf_efficient.video.networks.backbones.luma import luma, luma_error
from hf_efficient.video.networks.general import general_network
from hf_efficient.video.networks.inference import enlarge_whole
from hf_efficient.video.networks.weights import add_weight_norm, fold_weight_norm
from hf_efficient.video.patches import Geometry, pad_to_grid, psnr, round8, to_rgb8, to_tensor
from hf_efficient.video.settings import FitSettings

QUALITIES, ALONE = (40, 48, 56, 62), (40, 48, 56, 63, 68)  # of the streams, of the codec alone
CLIPS = ("Megamind.avi", "photographs")
EVERY = 3  # frames are measured on every third
Way = Callable[[Iterable[Frame], Geometry, Enlarger], Iterator[Frame]]
Points = list[tuple[float, float, float]]


def sharper(frames: Iterable[Frame], geometry: Geometry, player: Enlarger) -> Iterator[Frame]:
    """Luma by Pillow's Lanczos filter, chroma bicubic."""
    size = (geometry.lr_width, geometry.lr_height)
    for frame, plain in ((f, next(downscaled([f], geometry))) for f in frames):
        large = Image.fromarray(to_rgb8(pad_to_grid(to_tensor(frame.rgb), geometry)))
        sharp, soft = to_tensor(np.array(large.resize(size, Image.Resampling.LANCZOS))), to_tensor(plain.rgb)
        yield frame._replace(rgb=to_rgb8(soft + luma(sharp - soft)))


def projected(frames: Iterable[Frame], geometry: Geometry, player: Enlarger, rounds: int) -> Iterator[Frame]:
    """Made for a network."""
    for frame in frames:
        large = pad_to_grid(to_tensor(frame.rgb), geometry)
        yield frame._replace(rgb=to_rgb8(back_projection(large, geometry, player, rounds)))


def plain(frames: Iterable[Frame], geometry: Geometry, player: Enlarger) -> Iterator[Frame]:
    """Bicubic."""
    return downscaled(frames, geometry)


WAYS: dict[str, Way] = {
    "bicubic": plain, "Lanczos": sharper, "back-projected, one round": partial(projected, rounds=1),
    "back-projected, two rounds": partial(projected, rounds=2),
}  # fmt: skip
#: Way, how often the network was trained on such frames.
ROWS = (
    ("bicubic", 0), ("back-projected, two rounds", 0), ("back-projected, two rounds", 1), ("Lanczos", 1),
    ("bicubic", 1), ("back-projected, one round", 1), ("back-projected, two rounds", 2),
)  # fmt: skip
TRAINED = ("as it ships", "trained on such frames", "twice")


class MadeFrames(Crops):
    """Crops of frames that are made in some way."""

    def __init__(self, folder: Path, way: Way, player: Enlarger) -> None:
        self.way, self.player = way, player
        super().__init__(folder, 2)

    def downscaled(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        return self.way(frames, self.geometry, self.player)


def playing(net: nn.Module) -> Enlarger:
    """A network on whole frames."""
    return torch.no_grad()(partial(enlarge_whole, net, general_network(2, 8).spec))


def network(way: str, times: int, folder: Path, steps: int) -> nn.Module:
    """The general network after so many trainings, each on frames that are made for the one before."""
    net = general_network(2, 8).load()
    if times == 0:
        return net
    own = folder / f"{way.replace(', ', '-').replace(' ', '-')}-{times}"
    own.mkdir(parents=True, exist_ok=True)
    done, before = own / "network.safetensors", network(way, times - 1, folder, steps)
    if not done.exists():
        crops = MadeFrames(own, WAYS[way], playing(before))
        add_weight_norm(before.requires_grad_(True))
        recipe = Recipe(steps, 8, 1e-3, 1000 + times, 100, trim=True)
        save(fold_weight_norm(overfit(before, crops, recipe, own / "checkpoint", loss=luma_error)), done)
        for array in own.glob("*.npy"):
            array.unlink()
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(done).items()})
    return net


def clip(name: str, folder: Path) -> Path:
    """One of CLIPS, without loss."""
    path = folder / f"{name}.mkv"
    if path.exists():
        return path
    frames: list[np.ndarray] = []
    if name != "photographs":
        frames = [frame.rgb for frame in islice(read_frames(fetch(name)), 60, 132)]
    rng = np.random.default_rng(7)
    for picture in map(np.asarray, map(photograph, SPLITS["validation"] if name == "photographs" else ())):
        if picture.shape[0] >= HEIGHT + 8 * PAN and picture.shape[1] >= WIDTH + 8 * PAN:
            ends = zip(picture.shape, (HEIGHT, WIDTH), strict=False)
            top, left = (int(rng.integers(0, whole - side - 8 * PAN)) for whole, side in ends)
            frames += [picture[top + t :, left + PAN * t :][:HEIGHT, :WIDTH] for t in range(6)]
    height, width = frames[0].shape[:2]
    like = replace(probe(fetch("bikes.mp4")), rate=Fraction(25), time_base=Fraction(1, 25), width=width, height=height)
    codec, pixels, options = LOSSLESS
    with VideoWriter(path, replace(like, pixel_aspect=Fraction(0)), (width, height), codec, pixels, options) as writer:
        for t, frame in enumerate(frames):
            writer.write(np.ascontiguousarray(frame), t, 1)
    return path


def quality(coded: Path, source: Path, info: VideoInfo, player: Enlarger | None) -> tuple[float, float]:
    """dB of luma and RGB."""
    errors = []
    for a, b in islice(zip(read_frames(coded), read_frames(source, info), strict=True), 0, None, EVERY):
        played, truth = to_tensor(a.rgb), to_tensor(b.rgb)
        if player is not None:
            played = round8(player(played))[..., : info.height, : info.width] / 255
        errors.append((float(luma_error(played, truth)), float((played - truth).square().mean())))
    of_luma, of_rgb = np.mean(errors, 0).tolist()
    return psnr(of_luma), psnr(of_rgb)


def codec_alone(source: Path, folder: Path) -> Points:
    """Bytes and dB of SVT-AV1 at full size."""
    info, target = probe(source), folder / "alone.mkv"
    points: Points = []
    color = replace(info.color, space=info.color.matrix(info.height))
    for crf in ALONE:
        size, options = (info.width, info.height), encoder_options("libsvtav1", crf)
        with VideoWriter(target, replace(info, color=color), size, "libsvtav1", options=options) as writer:
            for frame in read_frames(source, info):
                writer.write(*frame)
        points.append((target.stat().st_size, *quality(target, source, info, None)))
    return points


def small(source: Path, folder: Path, way: Way, player: Enlarger) -> Points:
    """Bytes and dB of streams of frames made in some way."""
    info, target = probe(source), folder / "small.mkv"
    points: Points = []
    geometry = Geometry.choose(info.width, info.height, 2)
    for crf in QUALITIES:
        settings = FitSettings(lr_codec="libsvtav1", lr_quality=crf)
        frames = way(read_frames(source, info), geometry, player)
        write_stream(source, info, frames, geometry, settings, target)
        points.append((target.stat().st_size, *quality(target, source, info, player)))
    return points


def write(results: Rows, output: Path) -> None:
    """The table."""
    lines = []
    for way, times in ROWS:
        cells = []
        for name in CLIPS:
            row, alone = results.rows.get(f"{way} / {times} / {name}"), results.rows.get(f"alone / 0 / {name}")
            for n in (1, 2):
                curves = [[(p[0], p[n]) for p in r["points"]] for r in (alone, row) if r]
                cells.append(f"{100 * bd_rate(*curves):+.1f} %" if len(curves) == 2 else "")
        lines.append([way, TRAINED[times], *cells])
    head = ["small frames", "network", *(f"{name}, {what}" for name in CLIPS for what in ("luma", "RGB"))]
    write_table(output / "table.md", "BD-rate against SVT-AV1 alone\n\n" + markdown(head, lines))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "small_frames", threads=True)
    made.add_argument("--work", type=Path, default=Path("runs/small_frames"), help="streams, checkpoints and networks")
    made.add_argument("--steps", type=int, default=1500, help="of each training (default: 1500)")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = Rows(arguments.output / "results.json", arguments, ("steps",))
    record_run(arguments.output)
    for name in CLIPS:
        if (key := f"alone / 0 / {name}") not in results.rows:
            results.add(key, {"points": codec_alone(clip(name, arguments.work), arguments.work)})
    for way, times in tqdm(ROWS, unit="row"):
        missing = [name for name in CLIPS if f"{way} / {times} / {name}" not in results.rows]
        player = playing(network(way, times, arguments.work, arguments.steps)) if missing else None
        for name in missing:
            assert player is not None
            points = small(clip(name, arguments.work), arguments.work, WAYS[way], player)
            results.add(f"{way} / {times} / {name}", {"points": points})
        write(results, arguments.output)


if __name__ == "__main__":
    main()
