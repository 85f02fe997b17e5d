"""From a bundle to a folder for players without torch."""

from __future__ import annotations

from pathlib import Path

from hf_efficient.checks import check_choice
from hf_efficient.files import check_output, copy_file, folder_written_whole, write_bytes
from hf_efficient.video.files.reader import StrPath
from hf_efficient.video.networks.inference import best_tile
from hf_efficient.video.play.player import Player

from .archive import write_archive
from .folder import ARCHIVE, EXPORT, ROUTING, Export, Network, write_record
from .networks import to_onnx
from .web import add_page, check_playable, find_runtime, has_webgpu

FORMATS = ("onnx", "web")


def export_bundle(
    bundle: StrPath, output: StrPath, format: str = "onnx", runtime: StrPath | None = None, overwrite: bool = False
) -> Export:
    """Write what players without torch need of a bundle.

    Args:
        bundle: the folder.
        output: the new folder, which appears whole or not at all.
        format: "onnx": networks as ONNX, and a player for onnxruntime and PyAV; "web": also a page that plays in a
            browser.
        runtime: for "web", folder with the files of onnxruntime-web; None: npm fetches them, in the one version that
            the page was tested with.
        overwrite: replace an earlier export.

    Raises:
        BundleError: the bundle is damaged.
        ValueError: the format is not known, or browsers do not play the bundle's stream.
        FileExistsError: `output` is there, and is not an export or not to be overwritten.
        FileNotFoundError: the files of onnxruntime-web are not there.
        ImportError: onnx or onnxscript is not installed.
    """
    check_choice("format", format, FORMATS)
    player = Player(bundle)
    opened = player.bundle
    target = check_output(output, "folder", [opened.path])
    if format == "web":
        check_playable(opened.low_resolution)
    runtime = find_runtime(runtime) if format == "web" else None
    with folder_written_whole(target, EXPORT if overwrite else None) as folder:
        (folder / "networks").mkdir()
        networks = []
        for m, (net, spec) in enumerate(zip(player.experts, player.specs, strict=True)):
            networks.append(Network(f"networks/{m}.onnx", spec.receptive_radius, best_tile(spec, player.device)))
            write_bytes(folder / networks[m].file, to_onnx(net, spec))
        copy_file(opened.low_resolution, folder / opened.low_resolution.name)
        if len(networks) > 1:
            write_bytes(folder / ROUTING, player.packed)
        web = {}
        if runtime is not None:
            add_page(folder, folder / opened.low_resolution.name, Path(runtime))
            web = {"webgpu": has_webgpu(Path(runtime))}
        write_archive(folder / ARCHIVE)
        opened.check_unchanged()
        write_record(folder, opened.manifest["source"], opened.low_resolution.name, opened.geometry, networks, web)
    return Export.open(target)
