"""The model card of a bundle: what it is, how large it is, how to play it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CARD = """---
library_name: hf_efficient
tags: [stdo, video-super-resolution, video]
---

# {name}, for STDO

A {lr_note} and {networks} ({backbone}, width {features}, depth {blocks}, {dtype}) that enlarge it by {scale}.
{known}
{notes}
| part | bytes |
|---|---|
{sizes}

Played size {width} x {height}, {frames} frames, {seconds:.1f} s: {rate:.0f} kbit/s to play, sound included.

## Play it

```bash
hf-efficient stdo decode THIS_FOLDER out.mp4
```

```python
from hf_efficient import STDOPipeline

frames = STDOPipeline.from_pretrained("THIS_FOLDER_OR_HUB_ID")(output_type="pil").frames
```

## Training

Method `{method}`, {steps} steps in all. PSNR on training patches (8-bit RGB, mean of squared errors): {psnr}; the
general model that chose them ({scorer}), on all patches: {general:.2f} dB.

## Citation

```bibtex
@inproceedings{{li2023stdo,
  title     = {{Towards High-Quality and Efficient Video Super-Resolution via Spatial-Temporal Data Overfitting}},
  author    = {{Li, Gen and Ji, Jie and Qin, Minghai and Niu, Wei and Ren, Bin and Afghah, Fatemeh and Guo, Linke and
               Ma, Xiaolong}},
  booktitle = {{CVPR}},
  year      = {{2023}}
}}
```
"""

OWN = "The networks know this one video and nothing else."
GENERAL = """What is sent of the network is its difference to a general one, which comes with hf_efficient; of the parts
that were tried the cheapest that pays was taken."""


def model_card(manifest: dict[str, Any], config: dict[str, Any], notes: Sequence[str] = ()) -> str:
    """The card in Markdown, from bundle.json and the model's config; `notes` stand at its top."""
    source, fit = manifest["source"], manifest["fit"]
    sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
    k = config["num_experts"]
    return CARD.format(
        name=source["name"],
        notes="".join(f"\n> **{note}**\n" for note in notes),
        lr_note=f"low-resolution stream ({fit['lr_codec'] if fit['lr_quality'] else 'lossless'})",
        networks="one network" if k == 1 else f"{k} networks",
        backbone=config["backbone"],
        features=config["num_features"],
        blocks=config["num_blocks"],
        dtype=config["weight_dtype"],
        scale=config["scale"],
        known=GENERAL if "candidates" in manifest else OWN,
        sizes="\n".join(f"| {name} | {size:,} |" for name, size in sizes.items()),
        width=source["width"],
        height=source["height"],
        frames=source["frames"],
        seconds=source["seconds"],
        rate=sum(sizes.values()) * 8 / 1000 / source["seconds"],
        method=fit["method"],
        steps=fit["steps"],
        psnr=", ".join(f"{e['psnr_float32']:.2f} dB{_sent(e, manifest)}" for e in manifest["experts"]),
        scorer="bicubic enlargement" if fit["scorer"] == "bicubic" else "a network",
        general=manifest["general_patch_psnr"],
    )


def _sent(expert: dict[str, Any], manifest: dict[str, Any]) -> str:
    """What became of a network that was trained: of a delta another part may be sent."""
    if "candidates" in manifest:
        return f" by the delta that was trained (sent: {manifest['candidates']['taken']})"
    return f", {expert['psnr_stored']:.2f} as stored"
