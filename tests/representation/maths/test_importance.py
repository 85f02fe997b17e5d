"""Importance against its formulas, written with whole attention maps and pairwise cosines."""

import pytest
import torch
from torch import Tensor

from hf_efficient.representation.maths.importance import (
    cls_attention,
    distinctiveness,
    norms,
    received_attention,
    relevance,
    rescale,
    shares,
)


@pytest.fixture
def attention() -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys (B, H, N, d) and the whole attention map (B, H, N, N), in float64."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 3, 4, 37, 8).double()
    return queries, keys, (queries @ keys.transpose(-1, -2) / 8**0.5).softmax(-1)


def test_cls_attention_is_one_row_of_the_map(attention: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, whole = attention
    torch.testing.assert_close(
        cls_attention(queries[:, :, 0], keys).double(), whole[:, :, 0].mean(1), atol=1e-7, rtol=0
    )


def test_received_attention_is_the_mean_over_queries_in_chunks_of_any_size(
    attention: tuple[Tensor, Tensor, Tensor],
) -> None:
    queries, keys, whole = attention
    for chunk in (1, 10, 37, 256):
        received = received_attention(queries, keys, chunk=chunk)
        torch.testing.assert_close(received.double(), whole.mean((1, 2)), atol=1e-7, rtol=0)


def test_attention_takes_the_scale_of_the_model(attention: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, _ = attention
    whole = (queries @ keys.transpose(-1, -2) * 0.7).softmax(-1)
    torch.testing.assert_close(
        cls_attention(queries[:, :, 0], keys, 0.7).double(), whole[:, :, 0].mean(1), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(received_attention(queries, keys, 0.7).double(), whole.mean((1, 2)), atol=1e-6, rtol=0)


def test_keys_that_a_query_does_not_see_get_nothing_of_it(attention: tuple[Tensor, Tensor, Tensor]) -> None:
    """Two images in one sequence, of 20 and 15 tokens, and two tokens that nobody sees."""
    queries, keys, _ = attention
    image = torch.tensor([0] * 20 + [1] * 15 + [2] * 2)
    seen = (image[:, None] == image) & (image < 2)
    seen[image == 2, 0] = True  # every query sees a key
    bias = torch.zeros(1, 1, 37, 37).masked_fill(~seen, -torch.inf)
    whole = (queries @ keys.transpose(-1, -2) / 8**0.5 + bias).softmax(-1)
    expected = whole.mean(1).sum(1) / seen.sum(0).clamp_min(1)
    for chunk in (10, 256):
        received = received_attention(queries, keys, chunk=chunk, bias=bias)
        torch.testing.assert_close(received.double(), expected, atol=1e-6, rtol=0)
    assert (received[:, 35:] == 0).all()
    row = cls_attention(queries[:, :, 3], keys, bias=bias[:, :, 3])
    torch.testing.assert_close(row.double(), whole[:, :, 3].mean(1), atol=1e-6, rtol=0)


def test_distinctiveness_ranks_by_mean_cosine_to_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 6) + 1
    cosine = torch.nn.functional.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    mean = -(cosine.sum(-1) - 1) / 19
    expected = (mean - mean.amin(1, keepdim=True)) / (mean.amax(1, keepdim=True) - mean.amin(1, keepdim=True))
    torch.testing.assert_close(distinctiveness(x), expected, atol=1e-5, rtol=0)


def test_distinctiveness_ignores_invalid_tokens() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 10, 6)
    padded = torch.cat([x, 100 * torch.randn(1, 3, 6)], 1)
    valid = torch.arange(13)[None] < 10
    score = distinctiveness(padded, valid)
    torch.testing.assert_close(score[:, :10], distinctiveness(x), atol=1e-6, rtol=0)
    assert (score[:, 10:] == 0).all()


def test_relevance_ranks_by_cosine_to_the_question_and_its_sign_turns_the_ranking() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [1, 1]]])
    question = torch.tensor([[[2.0, 0]]])
    torch.testing.assert_close(relevance(x, question), torch.tensor([[1, 0.5, 0, (1 + 0.5**0.5) / 2]]))
    torch.testing.assert_close(relevance(x, question, sign=-1), 1 - relevance(x, question))


def test_every_word_of_a_question_counts_alike_however_long_its_vector() -> None:
    torch.manual_seed(0)
    x, question = torch.randn(2, 12, 6), torch.randn(2, 5, 6) * torch.tensor([0.1, 1, 10, 100, 1])[None, :, None]
    cosine = torch.nn.functional.cosine_similarity(x[:, :, None], question[:, None], dim=-1).mean(-1)
    torch.testing.assert_close(relevance(x, question), rescale(cosine), atol=1e-5, rtol=0)


def test_norms_of_16_bit_features_do_not_overflow() -> None:
    assert norms(torch.full((1, 2, 4), 60000.0, dtype=torch.float16)).tolist() == [[120000.0, 120000.0]]


def test_rescale_is_per_unit_and_flat_units_become_zero() -> None:
    scores = torch.tensor([[1.0, 2, 3], [100, 300, 200], [7, 7, 7]])
    assert rescale(scores).tolist() == [[0, 0.5, 1], [0, 1, 0.5], [0, 0, 0]]
    torch.testing.assert_close(rescale(2**-20 * scores), rescale(scores))  # attention may differ by so little
    valid = torch.tensor([[True, True, False]]).expand(3, 3)
    assert rescale(scores, valid).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_shares_sum_to_one_also_for_zeros_and_extremes() -> None:
    scores = torch.tensor([[1.0, 3, 0], [0, 0, 0], [3e38, 3e38, 0], [1e-40, 3e-40, 0]])
    expected = torch.tensor([[0.25, 0.75, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.25, 0.75, 0]])
    torch.testing.assert_close(shares(scores), expected, atol=1e-4, rtol=0)
    valid = torch.tensor([[False, True, True]]).expand(4, 3)
    expected = torch.tensor([[0, 1, 0], [0, 0.5, 0.5], [0, 1, 0], [0, 1, 0.0]])
    torch.testing.assert_close(shares(scores, valid), expected)


@pytest.mark.parametrize("score", [distinctiveness, norms, lambda x: relevance(x, x[:, :5])])
def test_score_of_a_unit_has_the_same_bits_in_any_batch(score) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    x = torch.randn(5, 196, 96)
    together = score(x)
    for row in range(5):
        assert torch.equal(together[row], score(x[row : row + 1])[0])
