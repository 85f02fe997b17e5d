"""The options of `hf-efficient stdo`, without torch."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from .output import add_json
from .push import add_push


def at_least_one(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def threads(text: str) -> int:
    """A whole number from 1 to 1024; a process cannot start more threads."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def number_or_auto(text: str) -> int | str:
    """A whole number, or "auto"."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto")
    return text if text == "auto" else int(text)


def one_or_more(text: str) -> int | list[int]:
    """A whole number, or several separated by commas: one for each network."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor several of them separated by commas")
    numbers = [int(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


def scale(text: str) -> float:
    """A scale, which is a whole number or 1.5."""
    return float(text) if "." in text else int(text)


TYPES: dict[str, Any] = {
    "scale": scale,
    "num_chunks": number_or_auto,
    "num_features": one_or_more,
    "num_blocks": one_or_more,
}


def add_stdo(commands: Any) -> None:
    """Add the command to the parser."""
    from hf_efficient.video.codecs import CODECS

    stdo = commands.add_parser("stdo", help="encode video as a low-resolution stream and tiny networks, and decode it")
    actions = stdo.add_subparsers(dest="action", required=True, metavar="action")
    stdo.set_defaults(module="hf_efficient.cli.stdo")

    encode = _add_encode(actions)

    decode = actions.add_parser("decode", help="decode a bundle to a video")
    decode.add_argument("bundle", type=Path, help="folder")
    decode.add_argument("output", type=Path, help="new video file, .mp4 or .mkv")
    decode.add_argument("--codec", default="libx264", choices=(*CODECS, "ffv1"), help="(default: libx264)")
    decode.add_argument("--quality", type=int, help="constant quality, crf (default: visually lossless)")
    decode.add_argument("--preset", help="preset of the codec (default: a fast one)")
    decode.add_argument("--overwrite", action="store_true", help="replace an existing output")

    export = actions.add_parser("export", help="write a bundle for players without torch, or for a browser")
    export.add_argument("bundle", type=Path, help="folder")
    export.add_argument("output", type=Path, help="new folder")
    export.add_argument("--format", default="onnx", choices=("onnx", "web"), help="(default: onnx)")
    export.add_argument(
        "--runtime", type=Path, help="for web: folder of onnxruntime-web (default: npm fetches the tested version)"
    )
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export")

    info = actions.add_parser("info", help="print what a bundle contains")
    info.add_argument("bundle", type=Path, help="folder")

    evaluate = actions.add_parser("evaluate", help="measure the quality of a bundle against its source")
    evaluate.add_argument("bundle", type=Path, help="folder")
    evaluate.add_argument("source", type=Path, help="the video it was made from")
    evaluate.add_argument("--output", type=Path, help="folder for JSON and plot")
    evaluate.add_argument("--every", type=at_least_one, default=1, metavar="N", help="take every Nth frame")
    evaluate.add_argument("--vmaf", action="store_true", help="also measure VMAF and VMAF-NEG (needs imageio-ffmpeg)")

    compare = actions.add_parser("compare", help="compare a bundle with codecs of the same size")
    compare.add_argument("bundle", type=Path, help="folder")
    compare.add_argument("source", type=Path, help="the video it was made from")
    compare.add_argument("--codecs", nargs="+", default=tuple(CODECS), choices=CODECS, help="encoders (default: all)")

    compare.add_argument("--vmaf", action="store_true", help="also measure VMAF and VMAF-NEG (needs imageio-ffmpeg)")

    for action in (encode, decode, evaluate, compare):
        action.add_argument("--device", default="auto" if action is encode else "cpu", help="cpu, cuda, ...")
        action.add_argument("--threads", type=threads, help="number of threads for torch")
    for action in (encode, decode, export, info, evaluate, compare):
        add_json(action)


def _add_encode(actions: Any) -> argparse.ArgumentParser:
    """`encode` with its options."""
    from hf_efficient.video.codecs import CODECS

    encode: argparse.ArgumentParser = actions.add_parser("encode", help="encode a video as a bundle")
    encode.add_argument("source", type=Path, help="video file")
    encode.add_argument("bundle", type=Path, help="new folder")
    encode.add_argument(
        "--budget",
        metavar="RATE",
        help="bits per second in all, such as 1.5Mbps; settings that you do not give are chosen",
    )
    encode.add_argument(
        "--optimize", choices=("psnr", "vmaf"),
        help="with --budget: what is best, PSNR of luma or VMAF (needs imageio-ffmpeg) (default: psnr)",
    )  # fmt: skip
    encode.add_argument("--codecs", nargs="+", choices=CODECS, help="with --budget: those to try (default: all)")
    encode.add_argument("--overwrite", action="store_true", help="replace an existing output")
    _add_settings(encode)
    add_push(encode)
    encode.set_defaults(goes_on=True)
    return encode


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option for every field of FitSettings, with the help that the field itself carries."""
    from hf_efficient.video.settings import FitSettings

    group = parser.add_argument_group("settings")
    for setting in fields(FitSettings):
        default: Any = setting.default
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=TYPES.get(setting.name, type(default)),
            default=argparse.SUPPRESS,  # so that --budget knows which settings were given
            choices=setting.metadata.get("choices"),
            metavar=None if "choices" in setting.metadata else "VALUE",
            help=f"{setting.metadata['help']} (default: {default})",
        )
