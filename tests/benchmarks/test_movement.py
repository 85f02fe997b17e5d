"""Movement pruning, the peer of sparse fine-tuning: its gradients by hand, its masks, and what it finds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.sparsity import fine_tuning, half_zeros, pretrained_tasks
from benchmarks.sparsity.fine_tuning import METHODS, Book, climbed, is_dense, run, searches
from benchmarks.sparsity.movement import MovementPruning, Scores, largest
from benchmarks.sparsity.pretrained_tasks import Task


def test_scores_get_the_gradient_of_the_masked_weight_times_the_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, requires_grad=True)
    scores = Scores(weight.detach())
    scores.mask.copy_(torch.rand(3, 4) > 0.5)
    target = torch.randn(3, 4)
    (scores(weight) * target).sum().backward()
    assert torch.equal(scores(weight), weight * scores.mask)
    assert weight.grad is not None
    assert scores.scores.grad is not None
    torch.testing.assert_close(weight.grad, target * scores.mask)
    torch.testing.assert_close(scores.scores.grad, target * weight.detach())


@pytest.mark.parametrize("soft", [False, True])
def test_weights_that_move_away_from_zero_stay(soft: bool) -> None:
    """Loss (w - t)^2: the half that starts far too large moves towards zero, the other half grows."""
    torch.manual_seed(0)
    layer = nn.Linear(10, 8, bias=False)
    grows = torch.rand(8, 10) > 0.5
    with torch.no_grad():
        layer.weight.copy_(torch.where(grows, 0.3, 1.0))
    target = torch.where(grows, 1.0, 0.3)
    sparsity = 1 - float(grows.float().mean())
    peer = MovementPruning([layer], sparsity, 60, soft, 1e-3)
    weight = [p for name, p in layer.named_parameters() if name.endswith("original")]
    optimizer = torch.optim.SGD([{"params": weight, "lr": 0.01}, {"params": peer.parameters(), "lr": 0.1}])
    for step in range(1, 81):
        ((layer.weight - target * peer.scores[0].mask).square().sum() + peer.loss(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        peer.step(step)
    assert torch.equal(peer.scores[0].mask.bool(), grows)


def test_the_hard_form_falls_along_the_cubic_curve() -> None:
    peer = MovementPruning([nn.Linear(10, 10)], 0.9, 40, False, 0.0)
    shares = []
    for step in range(1, 51):
        peer.step(step)
        shares.append(int(peer.scores[0].mask.sum()))
    assert shares[19] == round(100 * (0.1 + 0.9 * 0.5**3))
    assert shares[39:] == [10] * 11


def test_largest_marks_the_share() -> None:
    assert largest(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5).tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_benchmark_ends_with_the_zeros_it_is_asked_for(method: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 30), torch.randint(3, (200,))
    network = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    task = Task(lambda: (x, y, x, y), lambda: network, "[02]", steps=24, batch=16, interval=4)
    settings = {name: values[0] for search in searches(task, METHODS[method]) for name, values in search.items()}
    result = run(task, task.data(), METHODS[method][0], 0.8, settings, 0)
    assert result["sparsity"] == pytest.approx(0.0 if is_dense(method) else 0.8, abs=0.002)


@pytest.mark.parametrize("method", [name for name in half_zeros.COMPARED if half_zeros.PATTERN in name])
def test_methods_with_a_pattern_end_with_two_of_every_four(method: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 32), torch.randint(3, (200,))
    network = nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    task = Task(lambda: (x, y, x, y), lambda: network, "[02]", steps=24, batch=16, interval=4)
    fixed, _ = of = half_zeros.COMPARED[method]
    settings = {name: values[0] for search in searches(task, of) for name, values in search.items()}
    assert "distribution" not in settings
    zeros = run(task, task.data(), fixed, 0.5, settings, 0)["sparsity"]
    assert zeros == pytest.approx(0.5, abs=0.01)  # a grown weight that has not moved yet is zero too


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Instead of training: RigL is best at 4e-3 with a share of 0.1, SET at 2e-3; what was asked for is listed."""
    asked: list[tuple[str, float]] = []

    def trained(
        task: Task, data: Any, fixed: dict[str, Any], sparsity: float, settings: dict[str, Any], seed: int
    ) -> dict[str, float]:
        topology = fixed["topology"]
        asked.append((topology, settings["lr"]))
        far = abs(settings["lr"] - {"rigl": 4e-3, "set": 2e-3}[topology]) + abs(settings["drop_fraction"] - 0.1)
        return {"accuracy": 100 - far, "sparsity": sparsity}

    x, y = torch.randn(20, 3), torch.randint(3, (20,))
    task = Task(lambda: (x, y, x, y), nn.Identity, "", rates=(1e-3, 5e-4, 2e-3, 4e-3, 8e-3))
    monkeypatch.setattr(fine_tuning, "run", trained)
    monkeypatch.setattr(fine_tuning, "TASKS", {"one": task})
    return asked


def test_a_book_chooses_what_is_best_on_held_back_data_and_does_nothing_twice(
    tmp_path: Path, worth: list[tuple[str, float]]
) -> None:
    Book(tmp_path, METHODS).compare("one", ["rigl"], [0.9], 3)
    book = Book(tmp_path, METHODS)  # from the files
    assert {name: book.chosen["one"]["rigl"][name] for name in ("lr", "drop_fraction")} == {
        "lr": 4e-3,
        "drop_fraction": 0.1,
    }
    assert sorted(book.tested("one")) == [("rigl", "0.9", seed) for seed in "012"]
    done = len(worth)
    book.compare("one", ["rigl"], [0.9], 3)
    assert len(worth) == done


def test_a_method_like_another_searches_its_learning_rate_alone(tmp_path: Path, worth: list[tuple[str, float]]) -> None:
    book = Book(tmp_path, METHODS)
    book.compare("one", ["rigl"], [0.9], 1)
    book.compare("one", ["set"], [0.9], 1, like="one")
    rigl, other = book.chosen["one"]["rigl"], book.chosen["one"]["set"]
    assert other == {name: rigl[name] for name in ("drop_fraction", "distribution", "grow_from")} | {"lr": 2e-3}
    assert sorted({rate for topology, rate in worth if topology == "set"}) == [5e-4, 1e-3, 2e-3, 4e-3]


def test_climbing_ends_where_no_neighbour_is_better() -> None:
    assert climbed([1.0, 2.0, 3.0, 4.0], 1.0, lambda v: -abs(v - 3)) == 3.0
    assert climbed([1.0, 2.0], 2.0, lambda v: v) == 2.0


def test_the_head_of_a_run_does_not_depend_on_whether_the_network_was_pretrained_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pretraining happens once, within the first run."""
    x, y = torch.rand(40, 2000), torch.arange(40) % 20
    monkeypatch.setattr(pretrained_tasks, "newsgroups", lambda: (x, y, x, y))
    pretrained_tasks.even_network.cache_clear()
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        heads.append(pretrained_tasks.moved()[4].weight)  # type: ignore[index]
    pretrained_tasks.even_network.cache_clear()
    assert torch.equal(*heads)


def test_a_variant_is_like_what_it_is_a_variant_of(tmp_path: Path, worth: list[tuple[str, float]]) -> None:
    book, texts = Book(tmp_path, METHODS), fine_tuning.TASKS["one"].data()
    book.chosen["two"] = {"rigl": {"grow_from": "zero"}, "set": {"grow_from": "start"}}
    of_set = book.settings_like("one", texts, "set, Wanda's mask", like="two")
    del book.chosen["two"]["set"]
    of_rigl = book.settings_like("one", texts, "set, Wanda's mask", like="two")
    assert [found["grow_from"] for found in (of_set, of_rigl)] == ["start", "zero"]
