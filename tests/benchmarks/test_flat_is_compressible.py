"""What the benchmark of rounding, pruning and forgetting does to a network, and how it chooses and compares."""

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.optimization import flat_is_compressible as bench
from benchmarks.optimization import two_tasks
from benchmarks.sparsity.tasks import Data


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
    made = two_tasks.Pair(lambda: blobs(0), lambda: blobs(1), two_tasks.WordsMLP, steps=12)
    monkeypatch.setitem(two_tasks.PAIRS, "words", made)
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
    for name, made in two_tasks.compressed(net, blobs(0)[0]):
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
    for seed in bench.TUNING_SEEDS:  # what is best when pruned is chosen there, and nowhere else
        for dial in bench.RHOS:
            key = bench.Run("words", "s2sam", dial, seed, True).key
            one[key] = dict.fromkeys(one[key], 50.0) | ({"50% Wanda": 90.0} if dial == 0.5 else {"3 bits": 60.0 - dial})
    assert bench.chosen(one, "words", "s2sam", "pruned") == 0.5
    assert bench.chosen(one, "words", "s2sam", "rounded") == 0.02
    plain, ours = (runs[bench.Run("words", m, d, 0, False).key] for m, d in
                   (("plain", 1.0), ("s2sam", bench.chosen(runs, "words", "s2sam", "remembered"))))  # fmt: skip
    gain = bench.gains(runs, "words", "s2sam", "remembered", "second", one_rate=True)[0]
    assert gain == pytest.approx(ours["second"] - plain["second"])
    text = bench.table(runs)
    assert "| pruned: 90% Wanda |" in text
    assert "averaged (WiSE-FT)" in text
    bench.plot(runs, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").exists()
