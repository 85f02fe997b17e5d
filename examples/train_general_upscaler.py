"""Train the general networks that the package ships: `python -m examples.train_general_upscaler --output-dir runs/up`.

Tiny WDSRs on luma that enlarge any decoded stream better than the bicubic filter, and from which every fit of
`method="delta"` starts, at x1.5, x2, x3 and x4. They learn from photographs, each as a shot of four frames that pans,
and from a night in a city (`cityCC0.mpg`): downscaled, encoded with AV1, HEVC and H.264 at several qualities, decoded.
None of the other clips of `benchmarks.video.fetch_clips` is seen, so that these can be tests.

Resumable: run the same command again. Photographs and clip are fetched once (`examples.photo_vlm.sources`,
`benchmarks.video.fetch_clips`). `--publish` writes OUTPUT/*.safetensors into the package.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.video.fetch_clips import fetch
from examples.photo_vlm.sources import SPLITS, photograph
from hf_efficient.files import write_bytes, written_whole
from hf_efficient.video.codecs import LOSSLESS
from hf_efficient.video.encode.low_resolution import downscaled, write_stream
from hf_efficient.video.encode.overfit import Recipe, load_checkpoint, overfit
from hf_efficient.video.encode.patch_store import paired_frames
from hf_efficient.video.files.reader import Frame, probe, read_frames
from hf_efficient.video.files.writer import VideoWriter
from hf_efficient.video.networks.backbones.luma import luma_error
from hf_efficient.video.networks.general import whole_or_half
from hf_efficient.video.networks.spec import GENERAL_WIDTHS, NetworkSpec, sub_pixels
from hf_efficient.video.networks.weights import add_weight_norm, fold_weight_norm
from hf_efficient.video.patches import Geometry
from hf_efficient.video.settings import FitSettings

WIDTH, HEIGHT = 648, 384  # even at two thirds, a half, a third and a quarter
PAN = 2  # pixels a frame
#: Codec and qualities of the streams; a worse one is drawn as often as a better one.
STREAMS = (("libsvtav1", 32), ("libsvtav1", 44), ("libsvtav1", 52), ("libsvtav1", 58), ("libx265", 32), ("libx264", 30))
SIDE, HALO = 40, 6
ORDER = (2, 3, 4, 1.5)  # scales
FROM_X2 = (3, 4)  # those that start from head and blocks of x2


def shots() -> Iterator[np.ndarray]:
    """Frames (HEIGHT, WIDTH, 3) uint8: each photograph pans for four frames; then the city."""
    rng = np.random.default_rng(0)
    for name in SPLITS["training"]:
        image = np.asarray(photograph(name))
        if image.shape[0] < HEIGHT + 4 * PAN or image.shape[1] < WIDTH + 4 * PAN:
            continue
        top, left = (rng.integers(0, image.shape[i] - side - 4 * PAN) for i, side in ((0, HEIGHT), (1, WIDTH)))
        for t in range(4):
            yield np.ascontiguousarray(image[top + t : top + t + HEIGHT, left + PAN * t : left + PAN * t + WIDTH])
    for frame in islice(read_frames(fetch("cityCC0.mpg")), 0, None, 4):
        yield np.ascontiguousarray(frame.rgb[:HEIGHT, :WIDTH])


def make_source(folder: Path) -> Path:
    """All shots as one lossless video."""
    path = folder / "shots.mkv"
    if not path.exists():
        like = replace(
            probe(fetch("bikes.mp4")), rate=Fraction(25), time_base=Fraction(1, 25)
        )  # its form, not its frames
        like = replace(like, width=WIDTH, height=HEIGHT, pixel_aspect=Fraction(0))
        codec, pixels, options = LOSSLESS
        with VideoWriter(path, like, (WIDTH, HEIGHT), codec, pixels, options) as writer:
            for t, frame in enumerate(shots()):
                writer.write(frame, t, 1)
    return path


class Crops:
    """Patches at random places of all streams; a number names one. Batches as those of `PatchStore`.

    Args:
        folder: where streams and arrays are kept.
        scale: s.
    """

    def __init__(self, folder: Path, scale: float) -> None:
        self.block, self.out = sub_pixels(scale)
        self.hr, self.name = folder / "shots.npy", f"x{scale}"
        source = make_source(folder)
        info, self.geometry = probe(source), Geometry.choose(WIDTH, HEIGHT, scale)
        if not self.hr.exists():
            with written_whole(self.hr) as draft, open(draft, "wb") as file:
                np.save(file, np.stack([frame.rgb for frame in read_frames(source, info)]))
        self.lr = [folder / f"{self.name}-{codec}-{quality}.npy" for codec, quality in STREAMS]
        for (codec, quality), array in zip(STREAMS, self.lr, strict=True):
            if array.exists():
                continue
            stream, settings = array.with_suffix(".mkv"), FitSettings(lr_codec=codec, lr_quality=quality)
            write_stream(source, info, self.downscaled(read_frames(source, info)), self.geometry, settings, stream)
            small = np.stack([(pair.lr[0] * 255).round().byte().permute(1, 2, 0).numpy()
                              for pair in paired_frames(source, info, stream, self.geometry)])  # fmt: skip
            with written_whole(array) as draft, open(draft, "wb") as file:
                np.save(file, small)
        self.large, self.small = np.load(self.hr), [np.load(array) for array in self.lr]

    def downscaled(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The small frames."""
        return downscaled(frames, self.geometry)

    def __len__(self) -> int:
        return 2**31

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """(B, 3, SIDE + 2h, SIDE + 2h) and (B, 3, s·SIDE, s·SIDE) in [0, 1], turned and mirrored; h >= HALO."""
        pairs = [self._crop(np.random.default_rng(int(index))) for index in indices]
        lr, hr = (
            torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 255 for side in zip(*pairs, strict=True)
        )
        return lr, hr

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        small, block, halo = self.small[rng.integers(len(self.small))], self.block, HALO * self.block
        whole, large = SIDE + 2 * halo, SIDE * self.out // block
        t, row, column = (
            int(rng.integers(0, n)) for n in (len(small), *((side - whole) // block + 1 for side in small.shape[1:3]))
        )
        y, x = block * row, block * column
        lr = small[t, y : y + whole, x : x + whole]
        y, x = ((at + halo) * self.out // block for at in (y, x))
        hr = self.large[t, y : y + large, x : x + large]
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        lr, hr = (np.rot90(part[:, ::-1] if mirrored else part, int(turns)) for part in (lr, hr))
        return np.ascontiguousarray(lr), np.ascontiguousarray(hr)


def train(folder: Path, width: int, scale: float, steps: int) -> Path:
    """One network; at x3 and x4 it starts from the head and the blocks of x2, as EDSR does."""
    target, first = folder / f"luma_x{scale}_w{width}.safetensors", folder / f"luma_x2_w{width}.safetensors"
    if target.exists():
        return target
    torch.manual_seed(0)
    net = NetworkSpec("luma_wdsr", scale, width, 2).build()
    if scale in FROM_X2:
        shared = {name: tensor for name, tensor in load_file(first).items() if name.startswith(("head", "blocks"))}
        net.load_state_dict({**net.state_dict(), **{name: tensor.float() for name, tensor in shared.items()}})
    add_weight_norm(net)
    recipe = Recipe(steps, 8, 1e-3 if scale in FROM_X2 else 2e-3, 100 * width + int(scale), 100, trim=True)
    checkpoint, began = folder / f"x{scale}-w{width}.checkpoint", time.monotonic()
    begun = load_checkpoint(checkpoint, net)
    overfit(net, Crops(folder, scale), recipe, checkpoint, loss=luma_error)
    fold_weight_norm(net)
    save(net, target)
    print(f"{target.name}: {steps} steps, the last {steps - begun} in {time.monotonic() - began:.0f} s", flush=True)
    return target


def save(net: nn.Module, path: Path) -> None:
    """Weights in float16, under their names."""
    with written_whole(path) as draft:
        save_file({name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}, draft)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output-dir", type=Path, required=True, help="folder of streams, checkpoints and networks")
    made.add_argument("--steps", type=int, default=4000, help="of each network (default: 4000)")
    made.add_argument("--width", type=int, help="num_features (default: 8, at x1.5 16)")
    made.add_argument("--scales", type=whole_or_half, nargs="+", default=ORDER, choices=ORDER, help="(default: all)")
    made.add_argument("--publish", type=Path, help="copy the networks into this folder")
    return made


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for scale in arguments.scales:
        width = arguments.width or GENERAL_WIDTHS[scale][0]
        path = train(arguments.output_dir, width, scale, arguments.steps)
        if arguments.publish:
            write_bytes(arguments.publish / path.name, path.read_bytes())


if __name__ == "__main__":
    main()
