"""A VLM whose language model sees some of the visual tokens, and whose tower sees some of the patches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoImageProcessor, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from benchmarks.representation.object_scenes import ObjectScene
from benchmarks.representation.packed_turns import grade_scenes
from hf_efficient.representation.evaluation.questions import load_vlm

BATCH = 32
WATCHED = "watched"  # name of the tower's attention while it is looked at
Grades = list[list[bool]]


class LimitedSight:
    """Stands in for a model in `grade_scenes`: of each image, the language model sees the visible tokens alone.

    Nothing attends to the others, in any layer, which is the same as taking them out of the prompt.

    Args:
        model: a LLaVA.
        features: (S, N, D) what the language model is given of each scene.
        visible: (S, N) bool.
        names: of the scenes.
        compact: number the visible tokens anew, without gaps, and the text behind them; else all keep their positions.
    """

    def __init__(self, model: Any, features: Tensor, visible: Tensor, names: Sequence[str], compact: bool) -> None:
        self.model, self.features, self.visible, self.compact = model, features, visible, compact
        self.row = {name: row for row, name in enumerate(names)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def look(self, model: Any, pixel_values: Tensor, scenes: Sequence[Any]) -> tuple[Any, int]:
        """The `vision_inputs` of `grade_scenes`: features made before."""
        rows = torch.tensor([self.row[scene.name] for scene in scenes])
        features = self.features[rows].to(model.device)
        encoded = BaseModelOutputWithPooling(pooler_output=tuple(features))
        encoded.kept = list(self.visible[rows].to(model.device))  # goes with the scenes that are read again
        return encoded, features.shape[1]

    def __call__(
        self, attention_mask: Tensor, position_ids: Tensor, mm_encoder_outputs: dict[str, Any], **inputs: Any
    ) -> Any:
        shown = torch.stack(mm_encoder_outputs["image"].kept)
        n = shown.shape[1]
        inputs |= {"mm_encoder_outputs": mm_encoder_outputs}
        attention_mask = attention_mask.clone()
        attention_mask[..., 1 : 1 + n] &= shown[:, None, None]
        if self.compact:
            count = shown.sum(1, keepdim=True)
            position_ids = position_ids - (n - count) * (position_ids > n)
            position_ids[:, 1 : 1 + n] = shown.cumsum(1).clamp_min(1)
        return self.model(attention_mask=attention_mask, position_ids=position_ids, **inputs)


def grades_of(
    model: Any, processor: Any, scenes: Sequence[ObjectScene], features: Tensor, visible: Tensor, compact: bool = False
) -> Grades:
    """Which questions are answered rightly from the visible tokens; arguments as of `LimitedSight`."""
    asked = [one.scene for one in scenes]
    seen = LimitedSight(model, features, visible, [scene.name for scene in asked], compact)
    return grade_scenes(seen, processor, asked, vision_inputs=seen.look)


def vlm_of(folder: str, patches: int) -> tuple[Any, Any]:
    """A model and its processor, for scenes that say what each of so many patches shows.

    Raises:
        ValueError: it makes another number of tokens of an image.
        FileNotFoundError, OSError: as `load_vlm`.
    """
    model, processor = load_vlm(folder)
    tokens = getattr(model.config, "image_seq_length", None)
    if tokens != patches:
        raise ValueError(
            f"model {folder!r} makes {tokens} tokens of an image, and the scenes say what {patches} patches show; "
            "expected as many. Choose the --source of scenes that belongs to the model."
        )
    return model, processor


def tower_alone(folder: str, layer: int, grid: tuple[int, int]) -> tuple[Any, Any]:
    """An encoder without a language model, as far as `look` needs it, and its image processor.

    Args:
        folder: folder or id of the encoder.
        layer: its hidden states that are read; they stand for what is behind the projector.
        grid: rows and columns of patches that images are scaled to.

    Raises:
        ValueError: it cannot be loaded, is no encoder of images of this grid, or has no such layer.
    """
    try:
        tower, prepare = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"tower {folder!r} cannot be loaded: {error}") from error
    side = getattr(tower.config, "patch_size", None)
    if not isinstance(side, int):
        raise ValueError(
            f"tower {folder!r} is a {type(tower).__name__}; expected an encoder of images alone, with square patches."
        )
    depth = tower.config.num_hidden_layers
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"layer {layer} is not one of {folder!r}; expected a number from {-depth - 1} to {depth}.")
    size = {"height": grid[0] * side, "width": grid[1] * side}
    try:
        with torch.no_grad():
            tower(torch.zeros(1, 3, size["height"], size["width"]), output_hidden_states=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"tower {folder!r} takes no images of {grid[0]} x {grid[1]} patches: {error}") from error
    prepare = partial(prepare, size=size, do_center_crop=False)

    def features(pixels: Tensor, return_dict: bool) -> Any:
        states = tower(pixels, output_hidden_states=True).hidden_states[layer]
        return SimpleNamespace(pooler_output=states[:, -grid[0] * grid[1] :])

    base = SimpleNamespace(vision_tower=tower, get_image_features=features)
    config = SimpleNamespace(vision_feature_layer=layer)
    return SimpleNamespace(base_model=base, config=config, device=tower.device), SimpleNamespace(
        image_processor=prepare
    )


@dataclass
class Looks:
    """What a tower makes of scenes.

    Args:
        features: (S, N, D) behind the projector.
        hidden: (S, L, 1 + N, D') float16, the hidden states before the first layer and after each; [CLS] or whatever
            else the tower puts before its patches is there as well.
        flow: (layers, 3, 3) share of attention from special tokens, background, objects to these; the last rows of
            towers without special tokens are not numbers.
    """

    features: Tensor
    hidden: Tensor
    flow: Tensor


class Watch:
    """The attention of a tower: cut where it is told, and summed by kind of token into `flow`, a matrix a layer.

    Args:
        cut: pairs (from, to) of kinds, see `CUTS`.
    """

    def __init__(self, cut: Sequence[tuple[int, int]]) -> None:
        self.cut, self.shown, self.flow = cut, torch.empty(0), list[Tensor]()

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        kinds = kinds_of(self.shown, query.shape[2])
        logits = torch.matmul(query, key.transpose(2, 3)) * options["scaling"]
        logits = logits.masked_fill(blocks_of(kinds, self.cut)[:, None], -torch.inf)
        weights = logits.softmax(-1)
        self.flow.append(torch.einsum("bqi,bqk,bkj->ij", kinds, weights.mean(1), kinds))
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


#: (from, to) of attention that is cut: 0 special tokens ([CLS]), 1 background, 2 objects.
CUTS: dict[str, tuple[tuple[int, int], ...]] = {
    "nothing": (),
    "background to objects": ((1, 2),),
    "patches to [CLS]": ((1, 0), (2, 0)),
    "background to objects and [CLS]": ((1, 2), (1, 0)),
    "objects to background and [CLS]": ((2, 1), (2, 0)),
}


@torch.no_grad()
def look(model: Any, processor: Any, scenes: Sequence[ObjectScene], cut: str = "nothing") -> Looks:
    """Encode scenes, with some of the tower's attention cut in every layer; a patch always sees itself."""
    features, hidden, flows = [], [], []
    base = model.base_model
    with watched(base.vision_tower, Watch(CUTS[cut])) as watch:
        for start in range(0, len(scenes), BATCH):
            batch = scenes[start : start + BATCH]
            images = [one.scene.image for one in batch]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
            watch.shown = torch.stack([torch.from_numpy(one.owner.ravel() >= 0) for one in batch]).to(model.device)
            watch.flow = []
            states = base.vision_tower(pixels, output_hidden_states=True).hidden_states
            flows.append(torch.stack(watch.flow).cpu())
            hidden.append(torch.stack(states, dim=1).half().cpu())
            features.append(torch.stack(list(base.get_image_features(pixels, return_dict=True).pooler_output)).cpu())
    flow = torch.stack(flows).sum(0)
    return Looks(torch.cat(features), torch.cat(hidden), flow / flow.sum(-1, keepdim=True))


@contextmanager
def watched(tower: Any, watch: Watch) -> Iterator[Watch]:
    """The tower with its attention watched, in a `with` block; it works by "sdpa" afterwards."""
    AttentionInterface.register(WATCHED, watch)
    tower.set_attn_implementation(WATCHED)
    try:
        yield watch
    finally:
        tower.set_attn_implementation("sdpa")


def kinds_of(shown: Tensor, length: int) -> Tensor:
    """(B, length, 3) one-hot float32: special tokens come first, then patches, objects where `shown` (B, N) is true."""
    special = torch.zeros(len(shown), length - shown.shape[1], dtype=torch.long, device=shown.device)
    return torch.nn.functional.one_hot(torch.cat([special, 1 + shown.long()], dim=1), 3).float()


def blocks_of(kinds: Tensor, cut: Sequence[tuple[int, int]]) -> Tensor:
    """(B, L, L) bool: which keys each query must not see, of kinds (B, L, 3); none is hidden from itself."""
    blocked = torch.zeros(kinds.shape[0], kinds.shape[1], kinds.shape[1], dtype=torch.bool, device=kinds.device)
    for a, b in cut:
        blocked |= (kinds[:, :, a, None] * kinds[:, None, :, b]) > 0
    return blocked & ~torch.eye(kinds.shape[1], dtype=torch.bool, device=kinds.device)
