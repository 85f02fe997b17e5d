"""What an attached model knows: its config and what follows from it. What is known of a call is in `calls`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_efficient.compat.transformers import cache_of
from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.representation.vlm.decoder.calls import Call, Latest, current, under_way
from hf_efficient.representation.vlm.decoder.layer_pruning import Drops, LayerPruning
from hf_efficient.representation.vlm.decoder.proportional_attention import language_model, log_masses, set_attention
from hf_efficient.representation.vlm.families.counting import encoding_once
from hf_efficient.representation.vlm.families.family import Family, Unit, VisualInputs, check_apart, drop_masks

from .attached import whole_features
from .copies import units_of
from .features import encode
from .inputs import keeps_positions
from .kept import KeptUnit
from .prompt import Prompt, check_placeholders, images_of


class TokenPruner:
    """What an attached model does with images, its `model.base_model.token_pruner`. Calls change nothing of it.

    Attributes:
        config: the `TokenPrunerConfig` in force.
        proportional_attention: whether the language model's attention counts tokens by what they stand for.
        layers: the stage inside the language model, None without `config.llm_layers`.
    """

    def __init__(self, config: TokenPrunerConfig, family: Family, proportional_attention: bool) -> None:
        self.config = config
        self.family = family
        self.proportional_attention = proportional_attention
        self._choosing = replace(config, proportional_attention=proportional_attention)  # what suits it is chosen
        self.keeps_positions = keeps_positions(family, config, proportional_attention)
        self.latest = Latest()
        stages, keeps = config.llm_layers, config.tokens_to_keep_in_llm
        self.layers = LayerPruning(stages, keeps, self.latest, config.llm_choice) if stages else None

    def __repr__(self) -> str:
        c = self.config
        return f"{type(self).__name__}({c.method}, budget={c.budget!r}, importance={c.importance_source!r})"

    @property
    def last(self) -> list[KeptUnit]:
        """A `KeptUnit` for every unit of the latest call with images or videos, in the order of their features.

        The latest that ended well in this thread; in a thread that has made no such call, the latest of any.
        """
        units: list[KeptUnit] = self.latest.ask("units", [])
        return units

    @property
    def keeps_text_positions(self) -> bool:
        """Whether one-axis positions have gaps where tokens were dropped."""
        return self.keeps_positions and not self.family.mrope

    @property
    def reads_prompts(self) -> bool:
        """Whether the language model works otherwise than the stock one on prompts with images."""
        return self.proportional_attention or self.layers is not None

    def enter(self, base: Any) -> None:
        """Let the language model of a (base) model count sizes and drop tokens in its layers, as far as wanted.

        Raises:
            ValueError: it cannot.
        """
        set_attention(base, self.reads_prompts)
        if self.layers is not None:
            self.layers.install(language_model(base))

    def leave(self, base: Any) -> None:
        """Undo `enter`."""
        if self.layers is not None:
            self.layers.remove(language_model(base))
        set_attention(base, False)

    def read(self, base: Any, call: Call, ids: Tensor, mask: Any, kept: dict[str, list[KeptUnit]], past: int) -> None:
        """Note of a prompt's ids, with `past` tokens in the cache before, what the language model has to know.

        `call` knows already of what is in the cache.
        """
        prompt = Prompt.of(base, self.family, ids, mask)
        if self.proportional_attention:
            call.log_mass = log_masses(prompt, kept, past, call.log_mass)
        if self.layers is None or (past and not (kept and bool(prompt.visual().any()))):
            return  # or images of what is in the cache already, as a helper of assisted decoding is given them
        if past:
            raise ValueError("New images after a cache cannot be pruned in llm_layers. Pass the whole conversation.")
        call.drops = Drops(prompt.visual() if kept else None, prompt.mask, self.config.llm_choice)

    def encode(self, stock: Callable[..., Any], images: VisualInputs, call: Call) -> Any:
        """A stock feature function's output, pruned."""
        prompt = call.prompt
        question = None
        if self.config.question_weight:
            if prompt is None:
                raise ValueError(
                    f"question_weight={self.config.question_weight} needs the prompt: call model(...) or generate(...) "
                    "with input_ids, not the feature function alone, or set question_weight=0."
                )

            def question(units: list[Unit]) -> Tensor:
                counts = [unit.budget(self.config) for unit in units]
                return prompt.question(images, counts)

        with under_way(images.base, call), whole_features(images.base):
            output = encode(stock, self.family, self._choosing, images, question)
        call.units = [*(call.units or []), *output.kept]
        return output

    @encoding_once()
    def features(self, stock: Callable[..., Any], images: VisualInputs) -> Any:
        """As `encode`, as a part of the call that is under way in this thread, or as a call of its own."""
        call = current(images.base)
        if call is not None and not call.read:  # else its images are known: a callback of generate() asks
            return self.encode(stock, images, call)
        call = Call()
        output = self.encode(stock, images, call)
        # asked for alone, of one kind: what is known of the other kind stands
        others = [unit for unit in self.last if unit.modality != images.modality]
        call.units = others + output.kept
        self.latest.tell(call)
        return output

    def check(self, base: Any, prompt: Prompt, inputs: dict[str, Any]) -> None:
        """Raise, before anything is encoded, unless prompt and pixels fit; masks that are none leave `inputs`."""
        drop_masks(self.family, inputs)
        calls = images_of(base, inputs)
        check_apart(self.family, calls)
        for images in calls:
            check_placeholders(prompt, images.modality, units_of(self.family, images, self.config), self.config)


def cached_length(call: dict[str, Any]) -> int:
    """Tokens that the call's cache holds."""
    cache = cache_of(call)
    return 0 if cache is None else int(cache.get_seq_length())


def kept_units(outputs: Any) -> dict[str, list[KeptUnit]]:
    """What was kept of encoder outputs {modality: output}, of those that a pruner made."""
    if not isinstance(outputs, dict):
        return {}
    kept = {m: getattr(output, "kept", None) for m, output in outputs.items()}
    return {m: units for m, units in kept.items() if units}
