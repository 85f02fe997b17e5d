"""`hf-efficient stdo info`: what a bundle contains."""

from __future__ import annotations

import argparse
from typing import Any

from .output import Content


def played_bytes(bundle: Any) -> int:
    """Bytes of the files that a player needs."""
    return sum(bundle.sizes().values())


def sizes_of(bundle: Any) -> Content:
    """The two sums of a bundle: of what a player needs, whose rate is said, and of the whole folder."""
    from hf_efficient.video.measure.break_even import total_bytes

    return {
        "files": bundle.sizes(), "bytes_to_play": played_bytes(bundle), "bytes_of_folder": total_bytes(bundle.path),
        "kilobits_per_second": bundle.kilobits,
    }  # fmt: skip


def info(arguments: argparse.Namespace) -> Content:
    """Print what a bundle contains."""
    from hf_efficient.video.files.bundle import Bundle
    from hf_efficient.video.measure.break_even import verdicts

    bundle = Bundle.open(arguments.bundle)
    sizes, manifest = sizes_of(bundle), bundle.manifest
    warnings = verdicts(manifest, sizes["bytes_of_folder"])
    print("\n".join([*head_of(bundle), *lines_of_sizes(sizes, manifest["source"]["bytes"]), *lines_of_fit(manifest)]))
    for sentence in warnings:
        print(f"warning: {sentence}")
    return {"bundle": bundle.path, **sizes, "manifest": manifest, "warnings": warnings}


def head_of(bundle: Any) -> list[str]:
    """Source, stream, networks and map."""
    from hf_efficient.video.networks.experts import load_config

    source, g, config = bundle.source, bundle.geometry, load_config(bundle.model)
    method = bundle.manifest.get("fit", {}).get("method", "not known")
    return [
        f"source      {bundle.manifest['source']['name']}: {source.width}x{source.height}, {source.frames} frames, "
        f"{source.seconds:.2f} s, {float(source.rate):.3f} frames a second",
        f"stream      {bundle.low_resolution.name}: {g.lr_width}x{g.lr_height}, 1/{g.scale} of the source",
        f"networks    {config.num_experts} x {config.backbone}, width {config.num_features}, depth "
        f"{config.num_blocks}, {config.weight_dtype}; method {method}",
        f"map         {g.rows} x {g.columns} patches a frame, {config.routing_bytes} bytes",
    ]


def lines_of_sizes(sizes: Content, source: int) -> list[str]:
    """Each file that is played, and the two sums."""
    return [
        *(f"{size:>11,} {name}" for name, size in sizes["files"].items()),
        f"{sizes['bytes_to_play']:>11,} to play, {sizes['kilobits_per_second']:.0f} kbit/s",
        f"{sizes['bytes_of_folder']:>11,} in the folder, with what no player needs; the source has {source:,}",
    ]


def lines_of_fit(manifest: Any) -> list[str]:
    """Networks, what else a budget offered, and the comparison with bicubic enlargement."""
    record = manifest.get("candidates", {})
    lines = []
    for m, expert in enumerate(manifest.get("experts", [])):
        # a delta may be fitted and something else be taken
        name, stored = ("fitted", "") if record else (f"network {m}", f" ({expert['psnr_stored']:.2f} as stored)")
        lines.append(
            f"{name:<11} {expert['patches']} patches, {expert['steps']} steps, {expert['psnr_float32']:.2f} dB{stored},"
            f" {expert['error_share']:.1%} of the error"
        )
    for row in record.get("rows", []):
        taken = "  <- taken" if row["name"] == record["taken"] else ""
        lines.append(
            f"{row['name']:<11} {row['psnr_luma']:.2f} dB of luma, {row['psnr']:.2f} of RGB, "
            f"{row['bytes']:,} bytes{taken}"
        )
    if record.get("scenes") and record["taken"] == "scenes":
        lines.append("scenes      " + ", ".join(f"from frame {scene['frame']} {scene['by']}"
                                                for scene in record["scenes"]))  # fmt: skip
    if compared := manifest.get("compared"):
        lines.append(f"played      {compared['psnr']:.2f} dB on {compared['frames']} whole frames; its stream by "
                     f"bicubic {compared['psnr_bicubic']:.2f}")  # fmt: skip
    return lines
