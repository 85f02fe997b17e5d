"""How sure JSTDO's lead is: `python -m benchmarks.video.stdo_seeds`, after `stdo_quality` with several seeds.

`stdo_quality --seed N --output benchmarks/results/stdo_quality/seed_N` fits and measures; here its rows at equal steps
are compared in pairs of one seed: JSTDO minus each other method, mean and 95 % interval over the seeds, clip by clip,
and over the clips' means.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.harness.intervals import half_interval
from benchmarks.harness.options import RESULTS, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import read_json, record_run, write_table
from benchmarks.harness.tables import gain, markdown

OURS = "JSTDO"
Leads = dict[str, dict[str, list[float]]]  # clip -> other method -> a lead for each seed, dB


def leads_of(seeds: Sequence[Mapping[str, Mapping[str, float]]], scale: int) -> Leads:
    """Leads of every seed's rows, where all seeds have both methods."""
    found: Leads = {}
    for key in seeds[0]:
        clip, at, backbone, method, equal = key.split(" / ")
        ours = f"{clip} / {at} / {backbone} / {OURS} / {equal}"
        wanted = (at, backbone, equal) == (str(scale), "wdsr", "steps") and method != OURS
        if wanted and all(key in rows and ours in rows for rows in seeds):
            found.setdefault(clip, {})[method] = [rows[ours]["psnr"] - rows[key]["psnr"] for rows in seeds]
    return found


def table(leads: Leads, seeds: int) -> str:
    """A row a clip, a column a method; last the mean of the clips, whose interval is over the clips."""
    methods = list(next(iter(leads.values())))
    rows = [[clip, *(gain(by[method]) for method in methods)] for clip, by in leads.items()]
    rows.append(["mean of the clips", *(gain([mean(by[m]) for by in leads.values()]) for m in methods)])
    said = f"{OURS} minus each, PSNR of whole frames in dB; {seeds} seeds, 95 % intervals.\n\n"
    return said + markdown(["clip", *(f"minus {method}" for method in methods)], rows)


def draw(leads: Leads, path: Path) -> None:
    """A panel a clip: leads over each method, with their intervals."""
    figure, panels = plt.subplots(1, len(leads), figsize=(3.2 * len(leads), 2.6), squeeze=False, layout="constrained")
    for axes, (clip, by) in zip(panels[0], leads.items(), strict=True):
        axes.errorbar(
            [mean(v) for v in by.values()], range(len(by)), xerr=[half_interval(v) for v in by.values()], fmt="o"
        )  # fmt: skip
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(by)), list(by))
        axes.set(title=clip, xlabel=f"{OURS} minus it, dB")
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "stdo_seeds")
    quality = RESULTS / "stdo_quality"
    usual = [quality / "conversion_2", quality / "seed_2", quality / "seed_3"]
    made.add_argument("--folders", nargs="+", type=Path, default=usual, help="results of stdo_quality, a seed each")
    made.add_argument("--scale", type=int, default=4)
    return made


def main() -> None:
    arguments = parser().parse_args()
    record_run(arguments.output)
    leads = leads_of([read_json(folder / "results.json", {})["rows"] for folder in arguments.folders], arguments.scale)
    draw(leads, arguments.output / "leads.png")
    write_table(arguments.output / "table.md", table(leads, len(arguments.folders)))


if __name__ == "__main__":
    main()
