"""What a token pruner does, as a small JSON file that validates itself."""

from __future__ import annotations

import copy
import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_efficient.checks import check_bool, check_choice, check_number, check_whole, plain_numbers
from hf_efficient.methods import REPRESENTATION, check_settings, with_method
from hf_efficient.reading import naming

from .config_checks import check_budget, check_generator, check_layers, kept_of
from .config_files import CONFIG_NAME as CONFIG_NAME
from .config_files import files_of, push, read, replaced, save, to_json
from .left_open import LeftOpen

IMPORTANCES = ("auto", "cls", "received", "distinct", "norm")
FEATURES = ("projected", "encoder")
KERNELS = ("rbf", "cosine")
POSITIONS = ("auto", "compact", "original")
INITIAL_CENTERS = ("auto", "coverage", "farthest_first")
LLM_CHOICES = ("attention", "random", "ivc")
KEPT_BY = ("holov", "divprune", "vispruner")

if TYPE_CHECKING:
    from .generator import TokenGenerator

    Budget: TypeAlias = int | float
    Difference: TypeAlias = float
else:
    TokenGenerator = Any  # the module imports torch
    from .config_checks import Budget, Difference  # types that argument parsers call


@dataclass
class TokenPrunerConfig(LeftOpen):
    """How many visual tokens to keep, and how they are chosen.

    Args:
        method: the selection method, a name of `hf_efficient.methods.REPRESENTATION`, which also says what it reads.
        budget: an int >= 1 is a number of tokens, a float in (0, 1] a share of the tokens, both per unit (image, tile
            or frame). `1` keeps one token, `1.0` keeps all.
        importance: where token importance comes from. "cls": attention of the [CLS] token in the layer the features
            come from; "received": attention received from all tokens of the unit; "distinct": attention-free, distance
            from the unit's mean direction; "norm": length of the feature; "auto": "distinct" with ID-Pruner and ITG,
            and with other methods the best attention that the model offers.
        features: what tokens are compared by: "projected", as the language model gets them, or "encoder", as the
            projector does, in LLaVA and PaliGemma. Tokens that are made are made of projected features either way.
        importance_weight: lambda of F(S), in [0, 1]: 0 is pure coverage, 1 is plain top-importance.
        coverage_mix: a, how far important tokens weigh more in coverage, in [0, 1]: 0 weighs all tokens alike. None:
            as `coverage_weights_of` says.
        coverage_power: gamma, the power of importance in coverage, >= 0. None: 3 of distinctiveness, with which the
            most distinct count nearly alone, and 1 of attention, which is uneven by itself.
        exchange_passes: passes, 0 to 100, in which every kept token may give way to one that covers more.
        kernel: similarity of two tokens in coverage, "rbf" or "cosine" (of centred features).
        question_weight: share of relevance to the question in importance, in [0, 1]; 0 is question-agnostic.
        min_group_share: rho of the quotas of tiles or frames inside one unit, in [0, 1]; 0 is no quota.
        merge_static: cosine from which a token of a video counts as unchanged since the frame before, in [0, 1]; such
            tokens are merged before the choice. 0 is off. Only for units that hold several frames.
        merge_copies: difference of pixel values, in [0, 1), up to which patches of an image count as copies of those
            beside them (PixelPrune) and are not encoded; 0.0: exact copies alone. None is off. Only Qwen families.
        adaptive: share the budget of all units of a prompt (tiles, frames) by what there is to see in each; their sum
            stays what it is. Only with `prune_inputs`, since a processor writes placeholders before it is known.
        positions: position ids of the kept tokens: "compact" (renumbered), "original" (gaps kept), "auto" (what suits
            the model family and `proportional_attention`).
        proportional_attention: whether a token that stands for n tokens counts as n in the language model's attention
            (ToMe), which must then be sdpa or eager. None: with ITG where the model's attention can, with no other
            method.
        llm_layers: layers of the language model after which visual tokens are dropped once more, counted from 1.
        llm_choice: by what: "attention" that the prompt's last token pays them in that layer (FastV, PyramidDrop),
            "random", or "ivc": likeness of values to the question's, and landmarks of the positions (IVC-Prune).
        llm_budget: visual tokens of a prompt kept at each of these layers, an int or a share as `budget`.
        lloyd_steps: steps of ITG's clustering, 0 to 1000; 0 merges every token into its nearest initial center.
        centroid_share: beta of ITG, in [0, 1]: 1 makes each token the mean of its cluster, 0 the real token nearest to
            that mean.
        initial_centers: the tokens that ITG's clusters start from. "farthest_first": important tokens far apart (as
            k-means++, but always the largest); "coverage": what ID-Pruner keeps; "auto": far apart where sizes count,
            else coverage, since a center that stands alone then weighs as much as any other.
        kept_by: the method that chooses the half of the tokens that RESTORE keeps as they are.
        importance_power: eta of ITG's weights w = (p / mean p)^eta, >= 0.
        generator: a trained `TokenGenerator` that refines ITG's tokens, or None. Saved beside the config.

    Raises:
        ValueError: a field is outside of what is said above, or is set where its method does not read it; the message
            names field, value and fix.
    """

    method: str = field(
        default="id_pruner",
        metadata={"help": "What is kept or made; `hf-efficient methods` lists all.", "choices": REPRESENTATION.names},
    )
    budget: Budget = field(
        default=0.25,
        metadata={"help": "Tokens to keep per image, tile or frame: a count (64) or a share (0.25; 1.0 keeps all)."},
    )
    importance: str = field(default="auto", metadata={"help": "Source of token importance.", "choices": IMPORTANCES})
    features: str = field(default="projected", metadata={"help": "What tokens are compared by.", "choices": FEATURES})
    importance_weight: float = field(default=0.0, metadata={"help": "Weight of importance against coverage, 0 to 1."})
    coverage_mix: float | None = field(
        default=None, metadata={"help": "How far importance weighs in coverage, 0 to 1."}
    )
    coverage_power: float | None = field(default=None, metadata={"help": "Power of importance in coverage."})
    exchange_passes: int = field(default=0, metadata={"help": "Passes of exchanges that raise the coverage kept."})
    kernel: str = field(default="cosine", metadata={"help": "Similarity of two tokens.", "choices": KERNELS})
    question_weight: float = field(default=0.0, metadata={"help": "Share of question relevance in importance, 0 to 1."})
    min_group_share: float = field(default=0.0, metadata={"help": "Share of the budget guaranteed to tiles or frames."})
    merge_static: float = field(default=0.0, metadata={"help": "Cosine of tokens of a video that count as unchanged."})
    merge_copies: Difference | None = field(default=None, metadata={"help": "Pixel difference of copies (0.0: exact)."})
    adaptive: bool = field(default=False, metadata={"help": "Share the budget among tiles and frames by content."})
    positions: str = field(default="auto", metadata={"help": "Position ids of kept tokens.", "choices": POSITIONS})
    proportional_attention: bool | None = field(
        default=None, metadata={"help": "Let attention count each token by how many it stands for."}
    )
    llm_layers: list[int] = field(
        default_factory=list, metadata={"help": "Layers of the language model to drop visual tokens after, if any."}
    )
    llm_budget: Budget = field(default=0.5, metadata={"help": "Visual tokens of a prompt to keep at each such layer."})
    llm_choice: str = field(default="attention", metadata={"help": "How to choose there.", "choices": LLM_CHOICES})
    lloyd_steps: int = field(default=3, metadata={"help": "Steps of ITG's clustering."})
    centroid_share: float = field(default=0.75, metadata={"help": "Share of the mean in ITG's tokens, 0 to 1."})
    initial_centers: str = field(
        default="auto",
        metadata={"help": "Tokens that ITG's clusters start from.", "choices": INITIAL_CENTERS},
    )
    kept_by: str = field(default="holov", metadata={"help": "Who chooses what RESTORE keeps.", "choices": KEPT_BY})
    importance_power: float = field(default=1.0, metadata={"help": "Power of importance in ITG's weights."})
    generator: TokenGenerator | None = field(
        default=None, repr=False, compare=False, metadata={"help": "Trained refinement of ITG's tokens."}
    )

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_choice("method", self.method, REPRESENTATION.names)
        for one in fields(self):
            if "choices" in one.metadata and one.name != "method":  # of which a program may have added some
                check_choice(one.name, getattr(self, one.name), one.metadata["choices"])
        for name in ("importance_weight", "question_weight", "min_group_share", "merge_static",
                     "centroid_share"):  # fmt: skip
            check_number(name, getattr(self, name), 0, 1, "a number in [0, 1]")
        if self.merge_copies is not None:
            check_number("merge_copies", self.merge_copies, 0, 1, "None or a number in [0, 1)", below=True)
        check_bool("proportional_attention", self.proportional_attention, "by method")
        check_bool("adaptive", self.adaptive)
        check_whole("lloyd_steps", self.lloyd_steps, 0, 1000)  # it ends long before, but a file may ask for any number
        check_whole("exchange_passes", self.exchange_passes, 0, 100)
        check_number("importance_power", self.importance_power, 0, math.inf, "a finite number >= 0")
        if self.coverage_mix is not None:
            check_number("coverage_mix", self.coverage_mix, 0, 1, "None or a number in [0, 1]")
        if self.coverage_power is not None:
            check_number("coverage_power", self.coverage_power, 0, math.inf, "None or a finite number >= 0")
        check_budget("budget", self.budget)
        check_budget("llm_budget", self.llm_budget)
        check_layers("llm_layers", self.llm_layers)
        if self.generator is not None:
            check_generator(self.generator, self.method)
        check_settings(self, REPRESENTATION)

    def with_method(self, method: str, **changes: Any) -> TokenPrunerConfig:
        """This config with another method; settings that the method does not read go back to their default.

        Args:
            method: the selection method.
            changes: other fields to change.

        Raises:
            ValueError: the method is not known, or does not read what is changed.
        """
        changed: TokenPrunerConfig = with_method(self, REPRESENTATION, method, **changes)
        return changed

    def tokens_to_keep(self, n: int) -> int:
        """Number of tokens K kept of a unit of `n`: the one place where it is computed.

        Args:
            n: tokens of the unit, >= 1.

        Returns:
            min(n, budget) for a count; max(1, round(budget * n)) for a share (halves round up).
        """
        return kept_of(n, self.budget)

    def tokens_to_keep_in_llm(self, n: int) -> int:
        """Number of visual tokens of a prompt kept of `n` at a layer of `llm_layers`: as `tokens_to_keep`."""
        return kept_of(n, self.llm_budget)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; of the generator its settings, without weights."""
        values = {f.name: copy.copy(getattr(self, f.name)) for f in fields(self) if f.name != "generator"}
        return {**values, "generator": None if self.generator is None else dict(self.generator.settings)}

    def to_json_string(self) -> str:
        """As in the saved file (which also names a generator's weights); a count and a share stay apart (1 and 1.0)."""
        return to_json(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenPrunerConfig:
        """Build from plain values; absent fields take their defaults.

        Raises:
            ValueError: a key is not a field of the config, or a value is invalid.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"Unknown token pruner settings {unknown}; expected only {known}. Remove them, or upgrade hf_efficient "
                "if a newer version wrote them."
            )
        return cls(**values)

    @classmethod
    def of(
        cls, config: TokenPrunerConfig | dict[str, Any] | str | os.PathLike[str], **hub_kwargs: Any
    ) -> TokenPrunerConfig:
        """The config that is given as itself, as its values, or by where it was saved.

        Args:
            config: a config, its values as a dict, or a folder or Hub id it was saved to.
            hub_kwargs: as of `from_pretrained`, read where a Hub id is given.

        Raises:
            TypeError: it is none of these.
            ValueError, FileNotFoundError: as `from_dict` and `from_pretrained`.
        """
        if isinstance(config, cls):
            return config
        if isinstance(config, dict):
            return cls.from_dict(config)
        if isinstance(config, (str, os.PathLike)):
            return cls.from_pretrained(config, **hub_kwargs)
        raise TypeError(f"config={config!r}; expected a TokenPrunerConfig, its dict, or a folder or Hub id.")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `token_pruner_config.json`, and the weights of a generator where there is one, into `folder`.

        The folder is made if absent, and may hold other things. The config is replaced last and as a whole, and names
        its weights: whatever happens in between, the folder holds the old pair or the new one.

        Raises:
            ValueError: `folder` is a file.
            BlockingIOError: another process is saving into it.
            OSError: no space is left, or no permission; what was there is kept.
        """
        target = Path(folder)
        if target.is_file():
            raise ValueError(f"save_pretrained needs a folder, got the file {str(target)!r}.")
        save(target, self.to_dict(), self._weights())

    def replaced(self, folder: Path) -> AbstractContextManager[dict[str, str]]:
        """For who replaces it together with other files: name and content of the config, to be written in the block."""
        return replaced(folder, self.to_dict(), self._weights())

    def _weights(self) -> bytes | None:
        return None if self.generator is None else self.generator.to_bytes()

    @classmethod
    def from_pretrained(cls, folder_or_id: str | os.PathLike[str], **hub_kwargs: Any) -> TokenPrunerConfig:
        """Read what `save_pretrained` wrote, from a folder or from a model on the Hub.

        Args:
            folder_or_id: local folder, or id of a Hub repository.
            hub_kwargs: passed to `huggingface_hub.hf_hub_download` (`revision`, `token`, `cache_dir`, ...).

        Raises:
            FileNotFoundError: the local folder has no such file.
            ValueError: the file is not JSON, has unknown keys or invalid values, or its generator cannot be loaded.
        """
        path, values = read(folder_or_id, hub_kwargs)
        with naming(path):
            return cls.from_dict(values)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload token pruner config",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the files of `save_pretrained` to a Hub repository (made if absent), in one commit.

        Returns:
            The URL of the commit.
        """
        return push(
            files_of(self.to_dict(), self._weights()), repo_id, commit_message, private, token, revision, create_pr
        )
