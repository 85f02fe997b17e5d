"""Candidates drawn by statistics: rows and columns as often as they should be, of what a layer has really seen."""

import torch
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.sparsity.drawn_candidates import DECAY, ByStatistics, drawn, keep_statistics, spread
from hf_efficient import BiDSTConfig, train_sparsely


def test_shares_are_kept_to_one() -> None:
    shares = torch.tensor([1.0, 0.0, 3.0, 4.0])
    found = spread(shares, 80)
    assert found.tolist() == sorted(found.tolist())
    assert torch.bincount(found, minlength=4).tolist() == [10, 0, 30, 40]
    uneven = torch.rand(50, generator=torch.Generator().manual_seed(0))
    often = torch.bincount(spread(uneven, 999), minlength=50)
    assert int(often.sum()) == 999
    assert (often - 999 * uneven / uneven.sum()).abs().max() < 1


def test_what_is_taken_is_not_drawn_and_what_is_likely_is_drawn_more_often() -> None:
    taken = torch.rand(100 * 80, generator=torch.Generator().manual_seed(0)) < 0.3
    rows, columns = torch.ones(100), torch.arange(1.0, 81.0)
    found = drawn(rows, columns, 600, taken)
    assert not taken[found].any()
    assert len(found.unique()) == len(found)
    assert 540 <= len(found) <= 660
    by_column = torch.bincount(found % 80, minlength=80).double()
    assert by_column[40:].sum() > 2 * by_column[:40].sum()  # three times as likely
    assert len(drawn(rows, columns, 0, taken)) == 0


def test_statistics_are_the_running_moments_of_the_steps_that_are_read() -> None:
    """And after the first read no step reads a whole gradient, at an exchange neither."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(12, 8)), BiDSTConfig(sparsity=0.8, target_modules=["0"], update_interval=10)
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training = train_sparsely(model, optimizer, 40)
    rule = training.topology = ByStatistics(40, update_interval=10, score_interval=5, candidates=1.0)
    (weight,) = training.weights.values()
    rule.begin(weight)
    means: list[Tensor] = []
    hook = keep_statistics()
    try:
        for step in range(1, 21):
            x = torch.randn(6, 12) * torch.arange(1.0, 13.0)
            y: Tensor = model(x)
            y.retain_grad()
            y.square().mean().backward()
            assert y.grad is not None
            seen = [x.square().mean(0), y.grad.square().mean(0)]
            if step % 5 == 0:
                means = [DECAY * a + (1 - DECAY) * b for a, b in zip(means or seen, seen, strict=True)]
                assert (weight.gradient_indices is None) == (step == 5)
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 0:
                torch.testing.assert_close(weight.memory["inputs"], means[0])
                torch.testing.assert_close(weight.memory["outputs"], means[1])
    finally:
        hook.remove()
    candidates = weight.memory["candidates"]
    assert 0 < len(candidates) <= len(weight.indices)
    assert not weight.mask()[candidates].any()
    assert training.report()["mask_updates"] > 0
