"""The questions a family answers, with the answers of LLaVA as defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.maths.copies import Copies
from hf_efficient.representation.vlm.attached import stock_class_of, whole_features

from . import towers, trial
from .watch import SOURCES, Watch

MODALITIES = ("image", "video")
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass
class Unit:
    """One image, tile, frame or video: the tokens among which a budget is spent. Known before anything is encoded.

    Args:
        n: its tokens, line breaks included.
        grid: rows and columns of the raster its tokens form, None where they form none.
        groups: (n,) long or None: tile or frame of every token, for quotas.
        row: (n,) long or None: for families that end rows of the raster with a line-break token, the row of every
            token, -1 for tokens outside of such rows.
        newline: (n,) bool or None: which tokens are line breaks.
        copies: the tokens that are not encoded, since their patches are copies; None where there are none.
        one_run: whether its placeholders stand side by side in the stock prompt, with no token of the text among them.
    """

    n: int
    grid: tuple[int, int] | None = None
    groups: Tensor | None = None
    row: Tensor | None = None
    newline: Tensor | None = None
    copies: Copies | None = None
    one_run: bool = True

    @property
    def encoded(self) -> int:
        """How many of its tokens the encoder makes."""
        return self.n if self.copies is None else len(self.copies.cells)

    def budget(self, config: TokenPrunerConfig) -> int:
        """How many of its tokens are kept: as many as of all of them, or all that are encoded, if these are fewer."""
        return min(config.tokens_to_keep(self.n), self.encoded)


@dataclass
class VisualInputs:
    """A call of a model's `get_image_features` or `get_video_features`.

    Args:
        base: the model without its head (`model.base_model`).
        modality: "image" or "video".
        arguments: named arguments of the call.
    """

    base: Any
    modality: str
    arguments: dict[str, Any]

    @property
    def pixels(self) -> Tensor:
        """Pixel values, of the shape the family's processor gives them."""
        found: Tensor = next(p for name in PIXELS[self.modality] if (p := self.arguments.get(name)) is not None)
        return found

    def function(self) -> Any:
        """The function that is called, bound to the model."""
        return getattr(self.base, f"get_{self.modality}_features")

    def setting(self, name: str) -> Any:
        """An argument of the call, or what the model's config says where it is not given."""
        given = self.arguments.get(name)
        return getattr(self.base.config, name, None) if given is None else given

    def settings(self) -> dict[str, Any]:
        """The `setting` of every argument of the function that the model's config names."""
        names = inspect.signature(self.function()).parameters
        return {name: self.setting(name) for name in names if hasattr(self.base.config, name)}


def flat(container: Any) -> Tensor:
    """(N, D): the features of a tensor (..., D) or of a list of such."""
    return torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in container])


def encoded(images: VisualInputs) -> Any:
    """What the stock feature function returns, of a model with or without a pruner."""
    function = getattr(stock_class_of(images.base), f"get_{images.modality}_features")
    with whole_features(images.base):
        return function(images.base, **{**images.arguments, "return_dict": True})


class Family:
    """How one family cuts images into units, and where their importance is found."""

    #: name of the stock processor
    processor = "LlavaProcessor"
    #: what of it can be pruned
    modalities: tuple[str, ...] = MODALITIES
    #: why videos cannot be pruned, if they cannot
    whole = ""
    #: why a prompt cannot have both, if it cannot
    apart = ""
    #: arguments of the model that mask features of videos, which are fewer once they are pruned
    masks: tuple[str, ...] = ()
    #: positions have axes (time, height, width): they are always kept
    mrope = False
    #: position id that the stock forward gives to the first token
    first_position = 0
    #: whether a unit's placeholders stand side by side in the stock prompt; else they do once it is pruned
    one_run = True
    #: settings about tiles or frames inside a unit that can act: those of `GROUPED`, where units hold several
    grouped: tuple[str, ...] = ()
    #: whether copies of patches can be dropped before the encoder
    merges_copies = False
    #: what a choice can be made by: "encoder" too, where the projector keeps tokens and their order
    features: tuple[str, ...] = ("projected",)

    # the model

    def tower(self, base: Any, modality: str) -> Any:
        """The vision encoder."""
        return base.vision_tower

    def units(self, images: VisualInputs) -> list[Unit]:
        """The units of a call, in the order of their features."""
        rows, columns = self.patch_grid(images)
        prefix = towers.prefix_tokens(self.tower(images.base, images.modality))
        n = rows * columns + prefix - self.dropped(images)
        return [Unit(n, (rows, columns) if n == rows * columns else None) for _ in range(len(images.pixels))]

    def source(self, base: Any, modality: str, wanted: str) -> str | None:
        """Where importance comes from: "cls" or "received" attention, or None where the features must tell.

        `wanted` is `TokenPrunerConfig.importance`; raises a ValueError if the encoder cannot give it.
        """
        if wanted not in ("auto", *SOURCES):
            return None
        tower = self.tower(base, modality)
        run = functools.partial(self.try_encoder, base)
        return towers.choose_source(wanted, *trial.offers(tower, self.layer(base), run), type(tower).__name__)

    def layer(self, base: Any, asked: Any = None) -> int:
        """Which of `towers.attention_layers` importance comes from: the one that features come from.

        `asked` is the call's `vision_feature_layer`, None for that of the model's config.
        """
        return towers.layer_of(getattr(base.config, "vision_feature_layer", None) if asked is None else asked)

    def try_encoder(self, base: Any, encoder: Any) -> None:
        """Run `encoder`, the vision encoder or its twin, on two pictures of noise as small as it takes them."""
        config = base.config.vision_config
        patch, full = (
            (side, side) if isinstance(side, int) else side for side in (config.patch_size, config.image_size)
        )
        any_size = "interpolate_pos_encoding" in inspect.signature(type(encoder).forward).parameters
        high, wide = (4 * side for side in patch) if any_size else full
        pixels = trial.noise(encoder, 2, getattr(config, "num_channels", 3), high, wide)
        encoder(pixels, **({"interpolate_pos_encoding": True} if any_size else {}))

    def attention(self, images: VisualInputs, source: str) -> Watch:
        """A context that learns the attention of what the encoder runs inside it."""
        layers = towers.attention_layers(self.tower(images.base, images.modality))
        return Watch(layers[self.layer(images.base, images.arguments.get("vision_feature_layer"))], source)

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        """Importance (N_u,) of the tokens of every unit, from `attention` (images, tokens of the encoder)."""
        return list(attention[:, self.dropped(images) :])

    def with_copies(self, images: VisualInputs, units: list[Unit]) -> list[Unit]:
        """These units of a call, with the copies that `mark_copies` has marked in its pixels."""
        raise NotImplementedError

    def without_copies(self, images: VisualInputs, units: list[Unit]) -> VisualInputs:
        """The call without the pixels of the copies of its units, everything else of it where it was."""
        raise NotImplementedError

    def encoded(self, images: VisualInputs, output: Any) -> Tensor:
        """Features (U, N, D) as the projector was given them, of the output of the stock feature function.

        Asked only of families that list "encoder" in `features`.
        """
        layer = images.setting("vision_feature_layer")
        states = [output.hidden_states[i] for i in ([layer] if isinstance(layer, int) else layer)]
        return torch.cat(states, dim=-1)[:, self.dropped(images) :]

    def patch_grid(self, images: VisualInputs) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        patch = images.base.config.vision_config.patch_size
        high, wide = (patch, patch) if isinstance(patch, int) else patch
        return images.pixels.shape[-2] // high, images.pixels.shape[-1] // wide

    def dropped(self, images: VisualInputs) -> int:
        """How many tokens of the encoder are cut off its front before the projector."""
        return int(images.setting("vision_feature_select_strategy") == "default")

    # the processor

    def tokens(self, config: Any) -> dict[str, int]:
        """Modality -> id of its placeholder, by a model's config."""
        found = {m: getattr(config, f"{m}_token_id", None) for m in MODALITIES}
        return {m: token for m, token in found.items() if token is not None}

    def placeholder(self, processor: Any, modality: str) -> str:
        """The token that stands in the prompt as often as an image has tokens."""
        token: str = getattr(processor, f"{modality}_token")
        return token

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        """Sizes of the units that an unbroken run of `run` placeholders stands for.

        `inputs` is what the processor made of all images or videos, `index` says which of them the run belongs to.
        """
        return [run]

    def mark_copies(self, pixels: Tensor, grid: list[int], side: int, tolerance: float, std: Sequence[float]) -> int:
        """Mark the copies among the cells of one image, in place; how many cells are no copies.

        Args:
            pixels: (patches, values) of the image, the patches of a cell one after the other.
            grid: its frames, rows and columns of patches.
            side: rows and columns of patches of a cell, which makes one token.
            tolerance: `TokenPrunerConfig.merge_copies`.
            std: what pixel values were divided by, of every channel, or one number for all.
        """
        raise NotImplementedError

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        """Sizes of the units behind one entry of the processor's `_get_num_multimodal_tokens`.

        `tokens` counts placeholders and what frames them, `patches` is the processor's count of patches (for some
        families of tiles), `size` what was asked about.
        """
        return [tokens]

    def row_ends(self, processor: Any, modality: str, size: Any) -> int:
        """How many tokens of the text stand among the placeholders of an image of a size; they go where tokens go."""
        return 0


def frames(n: int, count: int) -> Tensor | None:
    """(n,) long: frame of every token of a video of `count` equal frames, None for a single one."""
    return torch.arange(n) // (n // count) if count > 1 else None


def check_modality(family: Family, modality: str, name: str) -> None:
    """Raise where images or videos of a class `name`, of a model or a processor, cannot be pruned."""
    if modality not in family.modalities:
        raise ValueError(
            f"Every {modality} of {name} would have to stay whole. {family.whole} Show frames as images, or detach the "
            f"pruner for {modality}s."
        )


def drop_masks(family: Family, inputs: dict[str, Any]) -> None:
    """Take masks of features that leave none out from the arguments of a model, in place.

    Raises:
        ValueError: one leaves features out.
    """
    for name in family.masks:
        mask = inputs.pop(name, None)
        if mask is not None and not bool(mask.all()):
            raise ValueError(
                f"{name} leaves out {int((~mask).sum())} of {mask.numel()} tokens of the videos before they can be "
                "chosen from. Let the processor leave out none (Video-LLaMA 3: use_token_compression=False), or detach "
                "the pruner for such videos."
            )


def check_apart(family: Family, calls: list[VisualInputs]) -> None:
    """Raise where a call of a model has images and videos that it cannot have together."""
    if len(calls) > 1 and family.apart:
        raise ValueError(
            f"Images and videos in one call of {type(calls[0].base).__name__} cannot be pruned. {family.apart} Show "
            "frames as images, or detach the pruner for such prompts and batches."
        )
