"""What an attached model knows: its config, what was kept of the latest pictures, and of the prompt under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .config import TokenPrunerConfig
from .families.family import Family, Pictures, Unit
from .features import encode
from .inputs import Prompt, check_placeholders, keeps_positions, pictures_of
from .kept import KeptUnit
from .layer_pruning import LayerPruning
from .sized_attention import language_model, note_sizes, set_attention


class TokenPruner:
    """State of an attached model, its `model.base_model.token_pruner`.

    Attributes:
        config: the `TokenPrunerConfig` in force.
        size_aware: whether the language model's attention counts tokens by what they stand for.
        last: a `KeptUnit` for every unit of the latest call with pictures or videos, in the order of their features.
    """

    def __init__(self, config: TokenPrunerConfig, family: Family, size_aware: bool) -> None:
        self.config = config
        self.family = family
        self.size_aware = size_aware
        self.keeps_positions = keeps_positions(family, config, size_aware)
        self.last: list[KeptUnit] = []
        self.prompt: Prompt | None = None  # of the call that is under way
        self.kept: dict[str, list[KeptUnit]] = {}  # of the call that is under way
        self.shift: Tensor | None = None  # (B, 1) how far positions run ahead of the cache, as rope_deltas of M-RoPE
        self.encoding = False
        self.layers = LayerPruning(config.llm_layers, config.tokens_to_keep_in_llm) if config.llm_layers else None
        self.generating = False  # generate() notes sizes of whole prompts, which its calls of forward take apart

    @property
    def keeps_text_positions(self) -> bool:
        """Whether one-axis positions have gaps where tokens were dropped."""
        return self.keeps_positions and not self.family.mrope

    def enter(self, base: Any) -> None:
        """Let the language model of a (base) model count sizes and drop tokens in its layers, as far as wanted.

        Raises:
            ValueError: it cannot.
        """
        set_attention(base, self.size_aware or self.layers is not None)
        if self.layers is not None:
            self.layers.install(language_model(base))

    def leave(self, base: Any) -> None:
        """Undo `enter`."""
        if self.layers is not None:
            self.layers.remove(language_model(base))
        set_attention(base, False)

    def note(self, base: Any, ids: Tensor, mask: Any, kept: dict[str, list[KeptUnit]], past: int) -> None:
        """Tell the language model of the ids of a prompt that is to be read, with `past` tokens in the cache before."""
        prompt = Prompt.of(base, ids, mask)
        if self.size_aware:
            note_sizes(base, prompt, kept, past)
        if self.layers is None or (past and not kept):
            return
        if past:
            raise ValueError("New pictures after a cache cannot be pruned in llm_layers. Pass the whole conversation.")
        self.layers.note(prompt.visual() if kept else None, prompt.mask)

    def encode(self, stock: Callable[..., Any], pictures: Pictures) -> Any:
        """A stock feature function's output, pruned."""
        prompt = self.prompt
        question = None
        if self.config.question_weight:
            if prompt is None:
                raise ValueError(
                    f"question_weight={self.config.question_weight} needs the prompt: call model(...) or generate(...) "
                    "with input_ids, not the feature function alone, or set question_weight=0."
                )

            def question(units: list[Unit]) -> Tensor:
                counts = [self.config.tokens_to_keep(unit.n) for unit in units]
                return prompt.question(pictures, counts)

        output = encode(stock, self.family, self.config, pictures, question)
        self.last = [unit for unit in self.last if unit.modality != pictures.modality] + output.kept
        return output

    def check(self, base: Any, prompt: Prompt, inputs: dict[str, Any]) -> None:
        """Raise, before anything is encoded, unless prompt and pixels fit."""
        for pictures in pictures_of(base, inputs):
            check_placeholders(prompt, pictures.modality, self.family.units(pictures), self.config)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "last": [],
            "prompt": None,
            "kept": {},
            "shift": None,
            "encoding": False,
            "generating": False,
        }


def cached_length(call: dict[str, Any]) -> int:
    """Tokens that the call's cache holds."""
    cache = call.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def kept_units(outputs: Any) -> dict[str, list[KeptUnit]]:
    """What was kept of encoder outputs {modality: output}, of those that a pruner made."""
    if not isinstance(outputs, dict):
        return {}
    kept = {m: getattr(output, "kept", None) for m, output in outputs.items()}
    return {m: units for m, units in kept.items() if units}
