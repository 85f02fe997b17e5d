"""Token selection as the public code of other methods does it, written anew step by step, for timing beside ours.

Each does the same work on the same shapes as the public implementation: the same matrix products, the same
intermediate tensors, the same loop over kept tokens. Read for this:

- DivPrune (Alvar et al., CVPR 2025): github.com/vbdi/divprune, LLaVA/llava/model/llava_arch.py
- CDPruner (Zhang et al., NeurIPS 2025): github.com/Theia-4869/CDPruner, llava/model/llava_arch.py
- VisionZip (Yang et al., CVPR 2025): github.com/dvlab-research/VisionZip, visionzip/clip_encoder.py and utils.py
"""

import torch
from torch import Tensor


def divprune(tokens: Tensor, k: int) -> Tensor:
    """Max-min diversity on 1 - cosine; every step gathers the rows of all tokens taken and reduces them anew.

    Args:
        tokens: (N, D).
        k: tokens to keep.

    Returns:
        (k, D) kept tokens in order of position.
    """
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    distance = 1.0 - unit @ unit.t()
    taken = torch.empty(k, dtype=torch.long, device=tokens.device)
    for step in range(k):
        if step == 0:
            nearest = distance.topk(2, dim=0, largest=False).values[1]  # the smallest is the token itself
        else:
            nearest = distance.index_select(0, taken.index_select(0, torch.arange(step))).min(dim=0).values
        taken[step] = nearest.argmax()
    return tokens[taken.sort().values]


def cdpruner(tokens: Tensor, image_embeds: Tensor, text_embeds: Tensor, k: int) -> Tensor:
    """Greedy MAP of a determinantal point process, conditioned on relevance to the text.

    Args:
        tokens: (B, N, D).
        image_embeds: (B, N, C) tokens in the space shared with text.
        text_embeds: (M, C).
        k: tokens to keep.

    Returns:
        (B, k, D) kept tokens in order of position.
    """
    batch, n, _ = tokens.shape
    unit = (tokens / tokens.norm(dim=-1, keepdim=True)).float()
    cosine = unit @ unit.transpose(1, 2)
    image_unit = image_embeds / image_embeds.norm(dim=-1, keepdim=True)
    text_unit = text_embeds / text_embeds.norm(dim=-1, keepdim=True)
    score = -(image_unit @ text_unit.t()).mean(-1)
    score = (score - score.min() + 1e-6) / (score.max() - score.min())
    kernel = score.unsqueeze(2) * cosine * score.unsqueeze(1)
    basis = torch.zeros(k, batch, n, device=tokens.device)
    residual = kernel.diagonal(dim1=1, dim2=2).clone()
    taken = torch.empty(k, batch, dtype=torch.long, device=tokens.device)
    rows = torch.arange(batch)
    for step in range(k):
        best = residual.argmax(-1)
        taken[step] = best
        projected = torch.einsum("tb,tbn->bn", basis[:step, rows, best], basis[:step])
        direction = (kernel[rows, best] - projected) / residual[rows, best].sqrt().unsqueeze(-1)
        basis[step] = direction
        residual -= direction.square()
        residual[rows, best] = -torch.inf
    kept = torch.zeros(batch, n, dtype=torch.bool, device=tokens.device)
    kept.scatter_(1, taken.t().sort().values, True)
    return tokens[kept].view(batch, k, -1)


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """The whole attention map (B, H, N, N) of queries and keys (B, H, N, d), as eager attention makes it."""
    batch, heads, n, width = queries.shape
    queries = (queries * width**-0.5).reshape(batch * heads, n, width)
    logits = torch.bmm(queries, keys.reshape(batch * heads, n, width).transpose(1, 2))
    return logits.softmax(-1).view(batch, heads, n, n)


def visionzip(hidden: Tensor, attention: Tensor, keys: Tensor, k: int) -> Tensor:
    """[CLS] and the tokens it attends to most, then evenly spaced tokens with the mean of their likes added.

    Args:
        hidden: (B, 1 + N, D) with [CLS] first.
        attention: (B, H, 1 + N, 1 + N).
        keys: (B, H, 1 + N, d) of the same layer.
        k: tokens to keep; split 54 to 10 at 64, as the method's settings do. [CLS] comes on top, as there.

    Returns:
        (B, 1 + k, D).
    """
    batch, n, width = hidden.shape
    contextual = max(1, round(k * 10 / 64))
    dominant = k - contextual
    metric = keys.mean(1)
    top = attention[:, :, 0, 1:].sum(1).topk(dominant, dim=1).indices + 1
    taken = torch.cat([top.new_zeros(batch, 1), top], dim=1)
    rest = torch.ones(batch, n, dtype=torch.bool, device=hidden.device).scatter_(1, taken, False)
    kept = hidden.masked_select(~rest.unsqueeze(-1)).view(batch, dominant + 1, width)
    left = n - dominant - 1
    metric = metric[rest].view(batch, left, -1)
    others = hidden.masked_select(rest.unsqueeze(-1)).view(batch, left, width)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    targets = torch.arange(0, left, max(1, left // contextual))[:contextual]
    merged = ~torch.isin(torch.arange(left), targets)
    likeness = torch.bmm(metric[:, merged], metric[:, targets].transpose(1, 2))
    belongs = torch.zeros_like(likeness, dtype=hidden.dtype).scatter_(2, likeness.argmax(2).unsqueeze(-1), 1)
    count = belongs.sum(1).clamp(min=1).unsqueeze(-1)
    mean = torch.bmm(belongs.transpose(1, 2), others[:, merged]) / count
    return torch.cat([kept, others[:, targets] + mean], dim=1)
