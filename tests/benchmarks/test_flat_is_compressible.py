"""What the benchmark of rounding, pruning and forgetting does to a network, and how it chooses and compares."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from benchmarks.optimization import flat_is_compressible as bench
from benchmarks.optimization import two_tasks
from benchmarks.optimization.pairs import tiny_vlm
from benchmarks.optimization.pairs.words import MLP
from benchmarks.sparsity.tasks import Data
from examples.tiny_vlm.data import IGNORED
from examples.tiny_vlm.scenes import FASHION_MNIST, LAYOUTS, compose_scene, load_fashion_mnist
from hf_efficient import TokenPrunerConfig, token_pruner
from hf_efficient.representation.evaluation.questions import load_vlm


def blobs(seed: int) -> Data:
    """Three classes that a small network separates, as 2000 features."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, 2000, generator=generator)
    parts: list[torch.Tensor] = []
    for count in (200, 60):
        y = torch.arange(count) % 3
        parts += [centers[y] + torch.randn(count, 2000, generator=generator), y]
    return parts[0], parts[1], parts[2], parts[3]


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> two_tasks.Pair:
    made = two_tasks.Pair(lambda: blobs(0), lambda: blobs(1), functools.partial(MLP, inputs=2000), steps=12)
    monkeypatch.setitem(bench.PAIRS, "words", made)
    return made


def test_rounding_is_to_the_nearest_of_its_levels() -> None:
    weight = torch.tensor([[0.9, -3.0, 1.6, 0.4], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(two_tasks.rounded(weight, 3), torch.tensor([[1.0, -3.0, 2.0, 0.0], [0.0] * 4]))
    assert (two_tasks.rounded(torch.randn(8, 64), 4).unique(dim=1).abs().max()) < 10
    exact = torch.randn(8, 64)
    step = exact.abs().amax(1, keepdim=True) / 127
    assert bool(((two_tasks.rounded(exact, 8) - exact).abs() <= step / 2 + 1e-6).all())


def test_the_smallest_weights_go() -> None:
    weight = torch.randn(10, 40)
    left = two_tasks.without_smallest(weight, 0.7)
    assert int((left == 0).sum()) == 280
    assert weight[left == 0].abs().max() < left[left != 0].abs().min()


def test_compressing_changes_copies_and_no_head(pair: two_tasks.Pair) -> None:
    net = pair.network(3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for name, made in two_tasks.compressed(net, pair, blobs(0)[0]):
        assert torch.equal(made.head.weight, net.head.weight), name
        zeros = float((made.layers[2].weight == 0).float().mean())
        if "%" in name:
            assert zeros == pytest.approx(float(name.split("%")[0]) / 100, abs=0.01), name
        assert not torch.equal(made.layers[0].weight, net.layers[0].weight) or name == "8 bits"
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_remedies_are_between_the_two_networks(pair: two_tasks.Pair) -> None:
    first, second = blobs(0), blobs(1)
    torch.manual_seed(0)
    net = pair.network(3)
    two_tasks.train(net, pair, first[0], first[1], torch.optim.AdamW(net.parameters(), 1e-3), 0, 12)
    before = net.layers[0].weight.clone()
    still = dataclasses.replace(pair, steps=0)
    assert two_tasks.after_second(net, still, second, first, 0)[0] == two_tasks.percent_right(net, first[2], first[3])
    for remedy in ("", *two_tasks.REMEDIES):
        there, new = two_tasks.after_second(net, pair, second, first, 0, remedy)
        assert 0 <= there <= 100
        assert new > 40, remedy  # a third by chance
    assert torch.equal(net.layers[0].weight, before)


def test_the_dial_is_chosen_for_each_group_on_held_back_data(pair: two_tasks.Pair, tmp_path: Path) -> None:
    runs: bench.Runs = {}
    for run in bench.work(runs, ["words"], ["plain", "s2sam"], 2):
        runs[run.key] = run.done()
    assert {key.split("|")[4] for key in runs} == {"True", "False"}
    one = dict(runs)
    for seed in bench.tuning_seeds("words"):  # what is best when pruned is chosen there, and nowhere else
        for dial in bench.RHOS:
            key = bench.Run("words", "s2sam", dial, seed, True).key
            one[key] = dict.fromkeys(one[key], 50.0) | ({"50% Wanda": 90.0} if dial == 0.5 else {"3 bits": 60.0 - dial})
    assert bench.chosen(one, "words", "s2sam", "pruned") == 0.5
    assert bench.chosen(one, "words", "s2sam", "rounded") == 0.02
    plain, ours = (runs[bench.Run("words", m, d, 0, False).key] for m, d in
                   (("plain", 1.0), ("s2sam", bench.chosen(runs, "words", "s2sam", "remembered"))))  # fmt: skip
    gain = bench.gains(runs, "words", "s2sam", "remembered", "second", one_rate=True)[0]
    assert gain == pytest.approx(ours["second"] - plain["second"])
    forgot = bench.on_test(runs, "words", "plain", "remembered", "change by first after second")
    at = bench.chosen(runs, "words", "plain", "remembered")
    there = runs[bench.Run("words", "plain", at, 1, False).key]
    assert forgot[1] == pytest.approx(there["first after second"] - there["whole"])
    text = bench.table(runs)
    assert "| pruned: 90% Wanda |" in text
    assert "| change by first after second |" in text
    assert "averaged (WiSE-FT)" in text
    bench.plot(runs, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").exists()


class Adapted(torch.nn.Module):
    """LoRA on the words' network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        net = MLP(classes, 2000)
        self.head, net.head = net.head, torch.nn.Identity()  # type: ignore[assignment]
        config = LoraConfig(r=4, target_modules=r"layers\.[02]", init_lora_weights=False)
        self.body = get_peft_model(net, config)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_adapters_are_merged_before_anything_is_rounded_or_averaged(pair: two_tasks.Pair) -> None:
    x = blobs(0)[0]
    net, other = Adapted(3).eval(), Adapted(3).eval()
    assert torch.allclose(two_tasks.merged(net)(x), net(x), atol=1e-4)
    lora, there = (one.body.get_submodule("base_model.model.layers.0") for one in (net, other))
    whole, last = (one.base_layer.weight + one.get_delta_weight("default") for one in (lora, there))  # type: ignore
    made = dict(two_tasks.compressed(net, dataclasses.replace(pair, bits=(4,), pruned=(0.5,)), x))
    assert torch.allclose(made["4 bits"].body.layers[0].weight, two_tasks.rounded(whole, 4), atol=1e-6)
    assert float((made["50% Wanda"].body.layers[2].weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    between = two_tasks.averaged(other, net)
    assert torch.allclose(between.body.layers[0].weight, (whole + last) / 2, atol=1e-6)
    assert torch.equal(between.head.weight, other.head.weight)
    assert hasattr(net.body, "peft_config")


def test_merged_weights_are_perturbed_where_lora_trains(monkeypatch: pytest.MonkeyPatch, pair: two_tasks.Pair) -> None:
    few: dict[str, Any] = {"steps": 2, "bits": (4,), "pruned": (), "tuning_seeds": 1}
    monkeypatch.setitem(bench.PAIRS, "words", dataclasses.replace(pair, **few))
    assert not any("merged" in run.method for run in tuning(["words"], list(bench.METHODS)))
    monkeypatch.setitem(bench.PAIRS, "words", dataclasses.replace(pair, network=Adapted, low_rank=True, **few))
    assert {run.method for run in tuning(["words"], list(bench.METHODS))} == set(bench.METHODS)
    optimizer = bench.Run("words", "s2sam, merged", 0.1, 0, False).optimizer(net := Adapted(3), 0.1, 1e-3)
    assert optimizer.merged is net
    assert len(optimizer.param_groups[0]["params"]) == 6  # A and B of two layers, and the head
    runs = {run.key: run.done() for run in tuning(["words"], ["plain", "s2sam, merged"])}
    assert bench.measures(runs, "words") == {"whole": ["whole"], "rounded": ["4 bits"],
                                             "remembered": ["first after second"]}  # fmt: skip


def tuning(pairs: list[str], methods: list[str]) -> list[bench.Run]:
    """The runs that come before anything is chosen."""
    made: list[bench.Run] = []
    with contextlib.suppress(KeyError):
        for run in bench.work({}, pairs, methods, 1):
            made.append(run)  # what came before the error stays
    return made


def test_a_pair_without_tuning_seeds_or_second_task_takes_what_everybody_takes(
    monkeypatch: pytest.MonkeyPatch, pair: two_tasks.Pair
) -> None:
    lone = dataclasses.replace(
        pair, second=None, tuning_seeds=0, steps=2, bits=(2,), pruned=(), more=lambda net, x, y: {"9 tokens": len(x)}
    )
    monkeypatch.setitem(bench.PAIRS, "words", lone)
    runs: bench.Runs = {}
    for run in bench.work(runs, ["words"], ["plain", "s2sam"], 2):
        runs[run.key] = run.done()
    assert {key.split("|")[2:4][0] for key in runs} == {"1.0", str(bench.UNTUNED_RHO)}
    assert len(runs) == 4
    groups = {"whole": ["whole"], "rounded": ["2 bits"], "fewer visual tokens": ["9 tokens"]}
    assert bench.measures(runs, "words") == groups
    assert "| fewer visual tokens: 9 tokens | 60.00 ± 0.00 | +0.00 ± 0.00 |" in bench.table(runs)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs Fashion-MNIST")
def test_a_vlm_shown_fewer_tokens_answers_as_behind_the_pruner() -> None:
    rows, right = tiny_vlm.part(3)
    net = tiny_vlm.Answers(0).eval()
    net.budget = 36
    with torch.no_grad():
        logits = net(rows[:2])
    model, processor = load_vlm()
    drawn, scene = scene_of(3, 0), tiny_vlm.scenes()
    with token_pruner(model, processor, TokenPrunerConfig(budget=36)), torch.no_grad():
        inputs = processor(images=[drawn], text=[processor.image_token], return_tensors="pt")
        encoded = model.base_model.get_image_features(inputs["pixel_values"], return_dict=True)
        first = (scene["turn"][rows[0]] == 1).nonzero()[:, 0]
        ids = torch.cat([inputs["input_ids"][0], scene["input_ids"][rows[0], first]])
        at = torch.cat([torch.tensor([0]), 1 + encoded.kept[0].indices, scene["position_ids"][rows[0], first]])
        given = model(input_ids=ids[None], position_ids=at[None], mm_encoder_outputs={"image": encoded}).logits[0]
    assert torch.allclose(given[37:-1], logits[0, :, first[:-1]].T, atol=1e-3)
    assert 80 < tiny_vlm.percent_answered(net, rows, right) <= 100
    assert tiny_vlm.percent_answered(net, rows, (right + 1) * (right != IGNORED) + right * (right == IGNORED)) < 20


def scene_of(part: int, number: int) -> Image.Image:
    """The image of a row."""
    _, layout, split, seed = tiny_vlm.PARTS[part]
    return compose_scene(np.random.default_rng((seed, number)), load_fashion_mnist(split), LAYOUTS[layout]).image()
