"""The other methods' selection, as timed by the speed benchmark, does what those methods say."""

import torch
from torch import Tensor

from benchmarks.representation.peer_selectors import attention_map, cdpruner, divprune, visionzip
from hf_efficient import TokenPrunerConfig
from hf_efficient.representation.selection import divprune as ours


def tokens(n: int, width: int = 16) -> Tensor:
    return torch.randn(1, n, width, generator=torch.Generator().manual_seed(0))


def test_divprune_is_max_min_diversity() -> None:
    x = tokens(60)
    order = ours.select(x, torch.ones(1, 60), 12, TokenPrunerConfig())
    assert torch.equal(divprune(x[0], 12), x[0, order[0].sort().values])


def test_cdpruner_raises_the_determinant_most_in_every_step() -> None:
    x = tokens(20, 30).double()
    image, text = torch.rand(1, 20, 8).double(), torch.rand(3, 8).double()
    kept = cdpruner(x, image, text, 5)
    unit = torch.nn.functional.normalize(x[0], dim=-1)
    score = -torch.nn.functional.cosine_similarity(image[0][:, None], text[None], dim=-1).mean(-1)
    score = (score - score.min() + 1e-6) / (score.max() - score.min())
    kernel = score[:, None] * (unit @ unit.T) * score[None]
    chosen: list[int] = []
    for _ in range(5):
        gains = [-1.0 if j in chosen else float(torch.det(kernel[[*chosen, j]][:, [*chosen, j]])) for j in range(20)]
        chosen.append(gains.index(max(gains)))
    assert torch.equal(kept[0], x[0, sorted(chosen)])


def test_visionzip_keeps_cls_and_the_most_attended_and_adds_means_to_the_rest() -> None:
    hidden, (queries, keys) = tokens(65), torch.randn(2, 1, 4, 65, 8, generator=torch.Generator().manual_seed(1))
    attention = attention_map(queries, keys)
    torch.testing.assert_close(attention, (queries @ keys.transpose(-1, -2) / 8**0.5).softmax(-1))
    out = visionzip(hidden, attention, keys, 32)
    top = (attention[0, :, 0, 1:].sum(0).topk(27).indices + 1).sort().values
    assert out.shape == (1, 33, 16)
    assert torch.equal(out[0, 0], hidden[0, 0])
    assert torch.equal(out[0, 1:28], hidden[0, top])
    rest = [i for i in range(1, 65) if i not in top.tolist()]
    targets = [rest[at] for at in range(0, 37, 7)][:5]
    metric = torch.nn.functional.normalize(keys.mean(1)[0], dim=-1)
    merged = [i for i in rest if i not in targets]
    nearest = (metric[merged] @ metric[targets].T).argmax(1)
    for place, target in enumerate(targets):
        likes = [i for i, at in zip(merged, nearest.tolist(), strict=True) if at == place]
        added = hidden[0, likes].mean(0) if likes else torch.zeros(16)
        torch.testing.assert_close(out[0, 28 + place], hidden[0, target] + added)
