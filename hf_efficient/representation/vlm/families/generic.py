"""Any model that keeps the common rules of transformers, as it proves when a pruner is attached (`.proof`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_efficient.compat.transformers import processing_settings
from hf_efficient.representation.vlm.attached import stock_class_of

from . import towers
from .counting import counted
from .encoder import Encoder
from .family import MODALITIES, Family, Unit, VisualInputs, check_modality
from .patch_map import Failed, PatchMap, Unclear, map_of, unit_of
from .watch import SOURCES, Watch

logger = logging.get_logger(__name__)

REMEMBERED = 256  # shapes of calls


@dataclass(frozen=True)
class Layout:
    """What divides both the features of a call and the placeholders of an image.

    Args:
        tile: tokens of every unit, where all have the same number; None where a unit is a piece of the features.
        one_run: whether a unit's placeholders stand side by side in the prompt. Else other tokens of the prompt stand
            among them, at the ends of rows, and an image is one unit.
        frames: name and column of the argument that says into how many units, of one size, each piece divides; None
            where it is a unit.
    """

    tile: int | None
    one_run: bool = True
    frames: tuple[str, int] | None = None

    def of_features(self, pieces: list[int], arguments: dict[str, Any] | None = None) -> list[int]:
        """Sizes of the units of a call, with these arguments, whose features come in these pieces."""
        if self.tile is not None:
            return self.tiles(sum(pieces), "features")
        if self.frames is None:
            return pieces
        assert arguments is not None
        name, column = self.frames
        counts = columns_of(arguments.get(name))[column]
        return [n // count for n, count in zip(pieces, counts, strict=True) for _ in range(count)]

    def of_run(self, run: int) -> list[int]:
        """Sizes of the units that an unbroken run of placeholders stands for."""
        return [run] if self.tile is None else self.tiles(run, "placeholders")

    def tiles(self, tokens: int, what: str) -> list[int]:
        """Sizes of the tiles that so many features or placeholders make.

        Raises:
            ValueError: tiles of the proven size do not make them up, as after another `size` in the processor's call.
        """
        assert self.tile is not None
        if tokens % self.tile:
            raise ValueError(
                f"{tokens} {what} cannot be divided into tiles of {self.tile} tokens, which this pair was proven with. "
                "Call the processor with the sizes it had when the pruner was attached, or attach the pruner again."
            )
        return [self.tile] * (tokens // self.tile)


def columns_of(value: Any) -> list[list[int]]:
    """The columns of whole numbers (videos,) or (videos, columns); none of anything else."""
    if not isinstance(value, Tensor) or value.dtype != torch.long or value.dim() not in (1, 2):
        return []
    columns: list[list[int]] = value.reshape(len(value), -1).T.tolist()
    return columns


class Generic(Family):
    """A unit is a piece of the features, a frame of one, or a tile; the encoder is asked what pieces a call has."""

    def __init__(
        self,
        processor: str,
        image_token_id: int,
        layout: Layout,
        first_position: int | None,
        encoder: Encoder | str,
    ) -> None:
        """A family as it was proven.

        Args:
            processor: name of its class.
            image_token_id: of the placeholders.
            layout: how features and placeholders divide.
            first_position: of a prompt's first token; None where positions have axes (M-RoPE).
            encoder: where importance is taken from, or why it cannot be.
        """
        self.processor = processor
        self.ids = {"image": image_token_id}
        self.layouts = {"image": layout}
        self.one_run = layout.one_run
        self.mrope = first_position is None
        self.first_position = first_position or 0
        self.encoder = encoder
        self.grouped = ("min_group_share",) if isinstance(encoder, Encoder) and encoder.tiles else ()
        self.known: dict[Any, list[int]] = {}
        self.maps: dict[Any, PatchMap | Unclear] = {}
        self.modalities = ("image",)
        self.whole = ""
        #: False where an error kept something from being looked at: attaching again looks again
        self.final = True

    def take_videos(self, token: int, layout: Layout, apart: str, masks: tuple[str, ...]) -> None:
        """Videos are proven, too: the id of their placeholders, their layout, and what else belongs to a `Family`."""
        self.ids["video"], self.layouts["video"], self.apart, self.masks = token, layout, apart, masks
        self.modalities = MODALITIES

    def tokens(self, config: Any) -> dict[str, int]:
        return super().tokens(config) | self.ids

    @property
    def proven(self) -> tuple[Any, ...]:
        """What a proof has found out, to be compared."""
        return self.ids, self.layouts, self.mrope, self.first_position

    def units(self, images: VisualInputs) -> list[Unit]:
        check_modality(self, images.modality, type(images.base).__name__)
        key = geometry(images)
        sizes = self.known.get(key)
        if sizes is None:
            pieces = pieces_of(counted(images).pooler_output)
            sizes = self.layouts[images.modality].of_features(pieces, images.arguments)
            remember(self.known, key, sizes)
        if images.modality == "video":
            return [Unit(n) for n in sizes]
        if isinstance(self.encoder, Encoder) and (self.encoder.tiles or self.encoder.breaks):
            try:
                parts = self.map(images).images.split(sizes)
            except Unclear as error:
                logger.warning_once(f"Line breaks and tiles of {type(images.base).__name__} are unknown: {error}.")
            else:
                return [unit_of(part, self.one_run) for part in parts]
        raster = self.encoder.raster if isinstance(self.encoder, Encoder) else None
        grids = [None] * len(sizes) if raster is None else raster.grids(images.arguments, sizes)
        return [Unit(n, grid, one_run=self.one_run) for n, grid in zip(sizes, grids, strict=True)]

    def map(self, images: VisualInputs) -> PatchMap:
        """Which tokens of the encoder make the features of a call; learnt once for calls of its shapes.

        Raises:
            Unclear: it cannot be told.
        """
        if isinstance(self.encoder, str):
            raise Unclear(self.encoder)
        key = geometry(images)
        found = self.maps.get(key)
        if found is None:
            try:
                found = map_of(images, self.encoder.layer, self.encoder.behind)
            except Failed:
                raise
            except Unclear as error:
                found = error.with_traceback(None)
            remember(self.maps, key, found)
        if isinstance(found, Unclear):
            raise found
        return found

    def source(self, base: Any, modality: str, wanted: str) -> str | None:
        if modality == "video":
            why = "which tokens make a feature is found out for pictures alone"
            return towers.choose_source(wanted, (), why, f"{type(base).__name__} (videos)")
        if isinstance(self.encoder, str):
            return towers.choose_source(wanted, (), self.encoder, type(base).__name__)
        if wanted not in ("auto", *SOURCES):
            return None
        return towers.choose_source(wanted, *self.encoder.offers(base), type(base).__name__)

    def attention(self, images: VisualInputs, source: str) -> Watch:
        assert isinstance(self.encoder, Encoder)
        return Watch(images.base.get_submodule(self.encoder.layer), source)

    def scores(self, images: VisualInputs, attention: Tensor, units: list[Unit]) -> list[Tensor]:
        assert isinstance(self.encoder, Encoder)
        for name, value in images.settings().items():
            if value != self.encoder.settings.get(name):
                raise Unclear(f"{name} is {value}, and was {self.encoder.settings.get(name)} when the pair was proven")
        return list(self.map(images).sums(attention).split([unit.n for unit in units]))

    def placeholder(self, processor: Any, modality: str) -> str:
        token: str = processor.tokenizer.convert_ids_to_tokens(self.ids[modality])
        return token

    def run_units(self, processor: Any, run: int, modality: str, inputs: Any, index: int) -> list[int]:
        return self.layouts[modality].of_run(run)

    def counted_units(self, processor: Any, modality: str, tokens: int, patches: int, size: Any) -> list[int]:
        layout, token = self.layouts[modality], self.placeholder(processor, modality)
        text = stock_text(processor, modality, size)
        if not layout.one_run:
            return [text.count(token)]
        runs = re.findall(f"(?:{re.escape(token)})+", text)
        return [n for run in runs for n in layout.of_run(len(run) // len(token))]

    def row_ends(self, processor: Any, modality: str, size: Any) -> int:
        if self.layouts[modality].one_run:
            return 0
        token, text = self.placeholder(processor, modality), stock_text(processor, modality, size)
        ends = text[text.index(token) : text.rindex(token)].replace(token, "")
        return len(processor.tokenizer(ends, add_special_tokens=False)["input_ids"])


def stock_text(processor: Any, modality: str, size: Any) -> str:
    """What the stock processor writes in a prompt for one image or video.

    `size` is height and width in pixels, of a video the number of its frames before them.
    """
    stock: Any = stock_class_of(processor)
    *frames, height, width = size
    text: str
    settings = {**processing_settings(processor, modality), "return_tensors": "pt"}
    if modality == "image":
        made = processor.image_processor([Image.new("RGB", (width, height))], **settings)
        text = stock.replace_image_token(processor, made, image_idx=0)
    else:
        # of frames that stay as they were Video-LLaMA 3 leaves tokens out
        source = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (*frames, 3, height, width), dtype=torch.uint8, generator=source)
        settings |= {"do_sample_frames": False, "return_metadata": True}
        made = processor.video_processor([noise], **settings)
        text = stock.replace_video_token(processor, made, video_idx=0, load_audio_from_video=False)
    return text


def remember(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Put something into a table, whose oldest entry goes when it is full."""
    for oldest in list(table)[: max(0, len(table) - REMEMBERED + 1)]:
        table.pop(oldest, None)  # another thread may have been here
    table[key] = value


def pieces_of(container: Any) -> list[int]:
    """Tokens of every piece of a `pooler_output`: along its first axis, or as one where it has two.

    Raises:
        ValueError: it is no container of features.
    """
    if isinstance(container, Tensor):
        container = container if container.dim() > 2 else [container]
    if not isinstance(container, (Tensor, list, tuple)) or not all(isinstance(x, Tensor) for x in container):
        raise ValueError(f"pooler_output holds {type(container).__name__}, expected tensors.")
    return [piece.shape[:-1].numel() for piece in container]


def geometry(images: VisualInputs) -> tuple[Any, ...]:
    """What numbers of tokens can depend on: shapes, whole numbers, which pictures are black, what configs say."""
    named = images.arguments | images.settings()
    return images.modality, *((name, *_described(value)) for name, value in sorted(named.items()))


def _described(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if not isinstance(value, Tensor):
        return (repr(value),)
    if value.is_floating_point():
        black = (value != 0).flatten(-3).any(-1) if value.dim() > 4 else torch.zeros(0, dtype=torch.bool)
        return (tuple(value.shape), black.cpu().numpy().tobytes())
    return (tuple(value.shape), value.cpu().numpy().tobytes())
