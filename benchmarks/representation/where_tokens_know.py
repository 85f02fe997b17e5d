"""Where a VLM keeps what it knows of an object: in the tokens that show it, or in others?

`python -m benchmarks.representation.where_tokens_know`

A method that keeps "background" loses nothing where what is known of an object also stands in tokens beside it. Asked
of any LLaVA, with scenes of which it is known what every patch shows (by default held-out scenes of the tiny VLM, which
need Fashion-MNIST; others by `--source module:function`, see `object_scenes`):

1. The language model sees some of the tokens only, by their distance to the nearest object: accuracy by question
   family, with original and compact positions, and as many random tokens beside it. Distances are in patches; tokens at
   distance 0 show an object. "Others blank": the others are there and say nothing, as each is the mean of all tokens
   far from objects.
2. Linear probes of single tokens, before the first layer of the tower (patch and position alone), after each, and
   behind the projector: the word of the nearest object, and its place (a raster of 3 x 3), by distance. Beside it the
   last layer of the same tower with random weights: what mixing by itself brings along.
3. Where the tower's tokens attend to, layer by layer, and what is left of 1. with some of that attention cut.
4. Registers: do background tokens of large norm hold more than others? Their norms, and accuracy from them alone.

`--tower` asks what can be asked of an encoder alone: probes, attention and norms.

Writes a table, a JSON and a plot, anew after each part; grades are written as they are made, and an interrupted run
goes on.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.options import at_least_one, common_parser
from benchmarks.harness.plots import plt, save
from benchmarks.harness.results import record_run, write_json
from benchmarks.harness.tables import markdown
from benchmarks.representation.grade_book import GradeBook
from benchmarks.representation.identity import model_digest
from benchmarks.representation.limited_sight import CUTS, Looks, grades_of, look, tower_alone, vlm_of
from benchmarks.representation.object_scenes import ObjectScene, scenes_of
from benchmarks.representation.retention_statistics import bootstrap_of, row_of
from benchmarks.representation.token_probes import by_group
from hf_efficient.files import write_text
from hf_efficient.representation.evaluation.questions import TINY_VLM

Distances = NDArray[np.int64]
#: Which tokens the language model sees, by their distances.
VIEWS: dict[str, Callable[[Distances], NDArray[np.bool_]]] = {
    "all": lambda d: d >= 0,
    "none": lambda d: d < 0,
    "objects (0)": lambda d: d == 0,
    "within 1": lambda d: d <= 1,
    "within 2": lambda d: d <= 2,
    "beside them (1)": lambda d: d == 1,
    "all but beside": lambda d: d != 1,
    "background (from 1)": lambda d: d >= 1,
    "from 2": lambda d: d >= 2,
    "from 3": lambda d: d >= 3,
}
BLANKED = ("objects (0)", "beside them (1)", "background (from 1)")
BLANK_FROM = 3  # tokens at this distance and beyond are far from objects
CUT_VIEWS = ("all", "objects (0)", "background (from 1)", "from 2")
FARTHEST = 4  # probes: tokens at this distance and beyond are one group
DISTANCES = [str(d) for d in range(FARTHEST)] + [f"{FARTHEST} +"]


class Study:
    """One model and its scenes.

    Args:
        arguments: of the command line.

    Raises:
        ValueError, OSError: no scenes, or no model, of these arguments.
        SystemExit: the grades in `--output` are of others.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.scenes = scenes_of(arguments.source, arguments.seed, arguments.layout, arguments.scenes)
        self.asked = [one.scene for one in self.scenes]
        if arguments.tower:
            self.model, self.processor = tower_alone(arguments.tower, arguments.layer, self.scenes[0].owner.shape)
        else:
            self.model, self.processor = vlm_of(arguments.model, self.scenes[0].owner.size)
        self.distance = np.stack([one.distance for one in self.scenes])
        made_with = {"model": model_digest(arguments.tower or arguments.model)}
        self.book = GradeBook(arguments.output / "grades.json", self.asked, made_with)
        self.bootstrap = bootstrap_of(self.asked)

    def row(self, label: str, features: Tensor, visible: NDArray[np.bool_], compact: bool = False) -> dict[str, Any]:
        """Accuracy from the visible (S, N) tokens alone."""
        shown = torch.from_numpy(visible)
        measure = lambda: grades_of(self.model, self.processor, self.scenes, features, shown, compact)  # noqa: E731
        name = f"{label}, compact" if compact else label
        graded = self.book(name, measure)
        row = row_of(self.asked, [graded], self.bootstrap, tokens=round(float(visible.sum(1).mean()), 1))
        print(name, row["accuracy"], flush=True)
        return row


def by_distance(study: Study, features: Tensor) -> list[dict[str, Any]]:
    """Part 1: a row for each view."""
    rng, rows = np.random.default_rng(0), []
    for view, rule in VIEWS.items():
        visible = rule(study.distance)
        rank = rng.random(visible.shape).argsort(1).argsort(1)
        as_many = rank < visible.sum(1, keepdims=True)
        rows.append(
            {
                "view": view,
                **study.row(view, features, visible),
                "compact": study.row(view, features, visible, compact=True)["accuracy"],
                "as many at random": study.row(f"as many as {view}", features, as_many)["accuracy"],
            }
        )
    everything = study.distance >= 0
    for view in BLANKED:
        made = features.clone()
        made[torch.from_numpy(~VIEWS[view](study.distance))] = features[study.distance >= BLANK_FROM].mean(0)
        rows.append({"view": f"{view}, others blank", **study.row(f"{view}, others blank", made, everything)})
    return rows


def probes(scenes: Sequence[ObjectScene], looks: Looks, untrained: Tensor) -> dict[str, Any]:
    """Part 2: for each layer and distance the share read rightly, and that of the most frequent answer."""
    n = looks.features.shape[1]
    distance = torch.from_numpy(np.stack([one.distance for one in scenes])).clamp_max(FARTHEST)
    nearest = [torch.from_numpy(one.nearest) for one in scenes]
    labels = {"place": torch.stack([torch.tensor(one.places)[at] for one, at in zip(scenes, nearest, strict=True)])}
    if all(one.words for one in scenes):
        number = {word: at for at, word in enumerate(sorted({word for one in scenes for word in one.words}))}
        of = [torch.tensor([number[word] for word in one.words]) for one in scenes]
        labels["word"] = torch.stack([words[at] for words, at in zip(of, nearest, strict=True)])
    levels = [(f"layer {at}", looks.hidden[:, at, -n:]) for at in range(looks.hidden.shape[1])]
    levels += [("projected", looks.features), ("random weights", untrained)]
    return {
        what: {level: by_group(tokens, label, distance, FARTHEST + 1) for level, tokens in levels}
        for what, label in labels.items()
    }


def untrained_layer(study: Study) -> Tensor:
    """(S, N, D) what the last layer of the same tower says with random weights."""
    model, seen = study.model, study.scenes[0].owner.size
    trained = model.base_model.vision_tower
    torch.manual_seed(0)
    model.base_model.vision_tower = type(trained)(trained.config).eval()
    hidden = look(model, study.processor, study.scenes).hidden[:, -1, -seen:]
    model.base_model.vision_tower = trained
    return hidden


def cuts(study: Study, features: Tensor) -> list[dict[str, Any]]:
    """Part 3: accuracy in `CUT_VIEWS` with each of `CUTS` in all layers of the tower."""
    rows = []
    for cut in CUTS:
        names = {view: view if cut == "nothing" else f"{view}, cut {cut}" for view in CUT_VIEWS}
        graded = cut == "nothing" or study.book.books.keys() >= set(names.values())  # then no look is needed
        made = features if graded else look(study.model, study.processor, study.scenes, cut).features
        for view, name in names.items():
            rows.append({"cut": cut, "view": view, **study.row(name, made, VIEWS[view](study.distance))})
    return rows


def norms(study: Study, looks: Looks) -> NDArray[np.float32]:
    """(S, N) lengths of tokens in the layer that is read."""
    layer, n = study.model.config.vision_feature_layer, looks.features.shape[1]
    return np.asarray(looks.hidden[:, layer, -n:].float().norm(dim=-1))


def ratios(norm: NDArray[np.float32]) -> dict[str, float]:
    """Part 4: how far the largest norms of an image are above its median."""
    ratio = norm / np.median(norm, axis=1, keepdims=True)
    shares = {f"above {times} medians": round(float((ratio > times).mean()), 4) for times in (1.5, 2, 4)}
    return {"largest norm over median": round(float(ratio.max(1).mean()), 3), **shares}


def registers(study: Study, looks: Looks, norm: NDArray[np.float32]) -> dict[str, Any]:
    """Part 4: accuracy from background tokens of large norm alone, and without them."""
    background, count = study.distance > 0, norm.shape[1] // 16
    rng = np.random.default_rng(0)
    chosen = {
        "of largest norm": np.where(background, norm, -1).argsort(1)[:, -count:],
        "at random": np.where(background, rng.random(norm.shape), -1).argsort(1)[:, -count:],
    }
    rows = {}
    for name, at in chosen.items():
        mask = np.zeros_like(background)
        np.put_along_axis(mask, at, True, axis=1)
        rows[f"{count} background tokens {name}"] = study.row(f"registers, {name}", looks.features, mask)
        rows[f"all but {count} background tokens {name}"] = study.row(f"no registers, {name}", looks.features, ~mask)
    return rows


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    percent = lambda value: "" if value is None else f"{value:.1%}"  # noqa: E731
    parts = []
    if "views" in result:
        families = list(result["views"][0]["families"])
        views = []
        for row in result["views"]:
            low, high = row["interval"]
            cells = [row["view"], row["tokens"], percent(row["accuracy"]), f"{low:.1%} to {high:.1%}"]
            cells += [percent(row.get(key)) for key in ("compact", "as many at random")]
            views.append(cells + [percent(row["families"][family]) for family in families])
        head = ["seen", "tokens", "accuracy", "95 % interval", "compact", "as many at random", *families]
        parts += ["What the language model sees, by distance to objects", markdown(head, views)]
    for what, levels in result.get("probes", {}).items():
        read = [[name, *(percent(cell and cell[0]) for cell in row)] for name, row in levels.items()]
        last = next(reversed(levels.values()))
        read.append(["always the most frequent", *(percent(cell and cell[1]) for cell in last)])
        title = f"Linear probes: {what} of the nearest object, by distance of the token"
        parts += [title, markdown(["tokens of", *DISTANCES], read)]
    kinds = ("[CLS]", "background", "objects")
    flow = [[at + 1, *(percent(x) for row in layer[1:] for x in row)] for at, layer in enumerate(result["flow"])]
    head = [f"{a} to {b}" for a in kinds[1:] for b in kinds]
    shown = f"Attention of the tower (objects are {result['object share']:.1%} of the patches)"
    parts += [shown, markdown(["layer", *head], flow)]
    if "cuts" in result:
        accuracy = {(row["cut"], row["view"]): percent(row["accuracy"]) for row in result["cuts"]}
        cut = [[name, *(accuracy[name, view] for view in CUT_VIEWS)] for name in CUTS]
        parts += ["Accuracy with attention cut in the tower, by what is seen", markdown(["cut", *CUT_VIEWS], cut)]
    parts.append("Norms: " + ", ".join(f"{key} {value}" for key, value in result["norms"].items()))
    if "registers" in result:
        rows = [[name, row["tokens"], percent(row["accuracy"])] for name, row in result["registers"].items()]
        parts.append(markdown(["seen", "tokens", "accuracy"], rows))
    return "\n\n".join(parts)


def plot(result: dict[str, Any], path: Any) -> None:
    """Accuracy of the views, and the probes by distance."""
    probed = result.get("probes", {})
    panels = ("views" in result) + len(probed)
    figure, grid = plt.subplots(1, panels, figsize=(5 * panels, 4.5), layout="constrained", squeeze=False)
    axes = list(grid[0])
    if "views" in result:
        first, rows = axes.pop(0), [row for row in result["views"] if "compact" in row][::-1]
        first.barh([row["view"] for row in rows], [row["accuracy"] for row in rows], color="lightsteelblue")
        first.plot([row["as many at random"] for row in rows], range(len(rows)), "k|", label="as many at random")
        first.set(title="tokens the language model sees, by distance", xlabel="accuracy", xlim=(0, 1))
        first.legend(fontsize=8)
    for axis, (what, levels) in zip(axes, probed.items(), strict=True):
        for name, cells in levels.items():
            axis.plot(DISTANCES, [np.nan if cell is None else cell[0] for cell in cells], marker="o", label=name)
        last = next(reversed(levels.values()))
        axis.plot(DISTANCES, [np.nan if cell is None else cell[1] for cell in last], "k:", label="most frequent")
        axis.set(title=f"linear probe: {what} of the nearest object", xlabel="distance in patches", ylim=(0, 1))
        axis.legend(fontsize=8)
    save(figure, path)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = common_parser(__doc__, "where_tokens_know")
    made.add_argument("--model", default=str(TINY_VLM), help="folder or id of a LLaVA")
    made.add_argument("--tower", help="folder or id of an encoder alone, instead of a model")
    made.add_argument("--layer", type=int, default=-6, help="its hidden states that are read")
    made.add_argument("--source", default="benchmarks.representation.object_scenes:tiny_scenes")
    made.add_argument("--layout", default="standard", help="what the scenes look like, a word of the source")
    made.add_argument("--seed", type=int, default=123, help="of the scenes")
    made.add_argument("--scenes", type=at_least_one, default=256)
    return made


def main() -> None:
    arguments = (options := parser()).parse_args()
    try:
        study = Study(arguments)
    except (ValueError, OSError) as error:
        options.error(" ".join(str(error).split()))
    record_run(arguments.output)
    looks = look(study.model, study.processor, study.scenes)
    norm = norms(study, looks)
    result: dict[str, Any] = {
        "scenes": len(study.scenes),
        "source": f"{arguments.source}, {arguments.layout}, seed {arguments.seed}",
        "object share": round(float((study.distance == 0).mean()), 4),
        "flow": [[[round(float(x), 4) for x in row] for row in layer] for layer in looks.flow],
        "norms": ratios(norm),
    }
    parts: dict[str, Callable[[], Any]] = {
        "views": lambda: by_distance(study, looks.features),
        "probes": lambda: probes(study.scenes, looks, untrained_layer(study)),
        "cuts": lambda: cuts(study, looks.features),
        "registers": lambda: registers(study, looks, norm),
    }
    for name in ("probes",) if arguments.tower else parts:
        result[name] = parts[name]()
        write_json(arguments.output / "results.json", result)  # an interrupted run leaves what it has
        plot(result, arguments.output / "plot.png")
        write_text(arguments.output / "table.md", table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
