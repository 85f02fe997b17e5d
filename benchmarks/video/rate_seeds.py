"""What the seed of a fit changes of the rate: `python -m benchmarks.video.rate_seeds`.

Reads the results of `python -m benchmarks.video.rate` and of the same with `--seed 1 --output .../seed_1`, and so on,
whose streams are the same byte for byte. BD-rates of the bundle for each seed, their mean and 95 % interval (Student's
t), and what the seed changes at one point. bundle.json counts as long as the newest run wrote it: a few bytes fewer
than older ones would otherwise look like a seed's. Nothing is trained here.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import RESULTS
from benchmarks.harness.results import read_json, write_table
from benchmarks.harness.tables import markdown
from benchmarks.video.rate import MEASURES
from hf_efficient.video.measure.rate_distortion import bd_rate

ANCHORS = ("x2 bicubic", "SVT-AV1", "x265", "x265, tune=psnr", "x264")
BUNDLE, GENERAL = "x2 bundle", "x2 general"


def points(rows: dict[str, dict[str, Any]], clip: str, kind: str) -> dict[str, dict[str, Any]]:
    """Quality -> row."""
    found = {tuple(key.split(" / ")): row for key, row in rows.items()}
    return {quality: row for (of, name, quality), row in found.items() if (of, name) == (clip, kind)}


def common(rows: dict[str, dict[str, Any]], seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The rows that all seeds have: a seed may have fewer streams."""
    return {key: row for key, row in rows.items() if all(key in one for one in seeds)}


def of_one_manifest(rows: dict[str, dict[str, Any]], newest: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows, their bundles with the bundle.json of the newest run, whose length the general network's bytes tell."""
    found = dict(rows)
    for key in newest:
        clip, kind, quality = key.split(" / ")
        if kind == BUNDLE:
            general = f"{clip} / {GENERAL} / {quality}"
            found[key] = {**rows[key], "bytes": rows[key]["bytes"] + newest[general]["bytes"] - rows[general]["bytes"]}
    return found


def curve(rows: dict[str, dict[str, Any]], clip: str, kind: str, measure: str) -> list[tuple[float, float]]:
    """(bytes, dB) of every point."""
    return [(row["bytes"], row[measure]) for row in points(rows, clip, kind).values()]


def rate_rows(seeds: list[dict[str, dict[str, Any]]], clip: str) -> list[list[str]]:
    """BD-rates of the bundle, a row for each measure and anchor."""
    found = []
    for measure, label in MEASURES.items():
        for anchor in ANCHORS:
            gains = [
                100 * bd_rate(curve(rows, clip, anchor, measure), curve(rows, clip, BUNDLE, measure)) for rows in seeds
            ]
            cells = [f"{gain:+.2f} %" for gain in gains]
            found.append([clip, label, anchor, f"{mean(gains):+.2f} ± {half_interval(gains):.2f} %", *cells])
    return found


def point_rows(seeds: list[dict[str, dict[str, Any]]], clip: str) -> list[list[str]]:
    """What the seed changes of each stream's bundle."""
    found = []
    for quality in points(seeds[0], clip, BUNDLE):
        rows = [points(one, clip, BUNDLE)[quality] for one in seeds]
        spread = [max(r[name] for r in rows) - min(r[name] for r in rows) for name in ("bytes", *MEASURES)]
        sent = ", ".join(f"{row['model']:,}" for row in rows)
        found.append([clip, quality, sent, f"{spread[0]:,.0f}", *(f"{s:.3f}" for s in spread[1:])])
    return found


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, default=RESULTS / "rate", help="folder of the first seed's results")
    return made


def main() -> None:
    folder = parser().parse_args().results
    folders = [folder, *sorted(folder.glob("seed_*"))]
    read = [read_json(one / "results.json", {"rows": {}})["rows"] for one in folders]
    read = [common(rows, read) for rows in read]
    seeds = [of_one_manifest(rows, read[-1]) for rows in read]
    clips = list(dict.fromkeys(key.split(" / ")[0] for key in seeds[-1]))
    head = ["clip", "PSNR of", "against", "mean", *(f"seed {n}" for n in range(len(seeds)))]
    text = (
        f"**BD-rate of the bundle**\n\n{markdown(head, [row for clip in clips for row in rate_rows(seeds, clip)])}\n\n"
    )
    head = ["clip", "crf", "bytes sent of the network", "largest difference, bytes", "luma, dB", "RGB, dB"]
    text += f"**Points**\n\n{markdown(head, [row for clip in clips for row in point_rows(seeds, clip)])}"
    write_table(folder / "seeds.md", text)


if __name__ == "__main__":
    main()
