"""The configuration of BiDST: how sparse, which layers, which topology; a `PeftConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_efficient.checks import check_choice, check_number, check_whole, plain_numbers
from hf_efficient.compat.peft import peft_type
from hf_efficient.extras import extra
from hf_efficient.files import is_local
from hf_efficient.methods import SPARSITY, check_settings
from hf_efficient.reading import Stored, naming, shown
from hf_efficient.sparsity.pattern import NMPattern

from . import card
from .adapter_checks import WEIGHTS_NAME, check_values, read_config, read_header

with extra("sparsity"):
    from peft import PeftConfig
    from peft.utils import CONFIG_NAME

TARGETS = ("weight", "delta")
DISTRIBUTIONS = ("erk", "uniform", "global", "as_pruned")
GROW_FROM = ("zero", "start")
INITS = ("auto", "random", "magnitude", "gradient", "snip")
BACKENDS = ("auto", "dense", "csr")


BIDST = peft_type("BIDST")


@dataclass
class BiDSTConfig(PeftConfig):
    """A sparse model or a sparse adapter, whose mask is found in training.

    Args:
        sparsity: share of inactive weights in the targeted layers, in [0, 1). 0.995 makes an adapter of 0.5 %. With a
            pattern it is what the pattern says, 0.5 for "2:4".
        target: "weight": the layers' own weights become sparse (from scratch, or from a dense or pruned checkpoint),
            and merging writes a plain model with zeros. "delta": the weights stay unchanged, and k values per layer are
            learned that add to them.
        topology: which weights are dropped and grown: "bidst", "rigl", "set", "mest", "gmp" or "static".
        distribution: how layers share the budget. "erk" (small layers are denser), "uniform", "global" (starts uniform;
            layers exchange weights in training), "as_pruned" (target="weight": exactly the weights that are not zero
            now, so that a pruned model stays pruned; `sparsity` is not read).
        pattern: target="weight": "N:M", e.g. "2:4" or "4:8": of every M neighbours along the inputs of a layer N are
            active, at every step ("gmp": N or more, until it is done). Every layer is equally sparse; with
            distribution="as_pruned" the model must have the pattern already. None: no pattern.
        update_interval: optimizer steps between two exchanges.
        drop_fraction: the largest share of a layer's active weights in the first exchange, in [0, 1]; falls to 0
            along a cosine.
        stop_fraction: share of training after which no weight is exchanged, in [0, 1].
        init: the initial mask. "random"; "magnitude" (largest |w|); "gradient" and "snip" (largest |dL/dw| and
            |w dL/dw|, measured on the first `init_steps` batches); "auto": magnitude for "weight", snip for "delta".
        init_steps: optimizer steps whose gradients "gradient" and "snip" add up, >= 1. Meanwhile the targeted layers
            keep their weights and do not learn.
        seed: of randomness.
        candidates: BiDST: inactive weights with a score, as a multiple of the active ones, > 0.
        score_interval: BiDST: optimizer steps between two reads of the candidates' gradients, >= 1.
        levelling: BiDST, RigL: gradients that choose new weights are divided by the level of their input to this power,
            from 0 (none) to 1. None: 0 for RigL, as published; for BiDST 0.5, and 1 for deltas.
        grow_from: RigL, SET, MEST: first values of grown weights: "zero", as published, or "start", what they were
            before training (target="weight", another `init` than "random").
        initial_sparsity: share of inactive weights at the start, in [0, 1); it rises along GMP's cubic curve to the
            sparsity, at the last exchange. None: sparse from the first step; "gmp": 0.
        backend: how Linear layers are computed in training: "dense" (whole tensor), "csr" (sparse products, CPU only),
            "auto" (the faster one of the two, timed once per layer size).
        target_modules: names, or a regular expression, of the layers; or "all-linear". None takes, for "weight", all
            linear and convolutional layers and fused experts except embeddings, norms and heads; for "delta", what LoRA
            targets in this model type. A name matches every module whose name ends with it, as for LoRA; fused experts
            (parameters of three dimensions) are named by their module, e.g. "experts".
        exclude_modules: names, or a regular expression, of layers to leave out.
        layers_to_transform: numbers of the blocks to adapt, where target_modules is a list or None.
        layers_pattern: name of the list of blocks, if PEFT does not find it.
        train_others: whether all other modules (norms, embeddings, heads) train too and are saved with the adapter.
            None: yes for "weight", no for "delta".
        modules_to_save: further modules to train and save in full.
        ensure_weight_tying: keep tied embeddings tied when they are trained; set automatically where needed.
        counts: layer -> number of active weights; written when saving, so that every loader knows the shapes.
        checksum: of the saved tensors; written when saving, compared when loading. None: not compared.

    Raises:
        ValueError: a field is not as described above, or is set and not read by the topology; the message names field,
            value and fix.
    """

    sparsity: float = field(
        default=0.95, metadata={"help": "Share of inactive weights in the targeted layers, in [0, 1)."}
    )
    target: str = field(default="weight", metadata={"help": f"What becomes sparse: {', '.join(TARGETS)}."})
    topology: str = field(default="bidst", metadata={"help": f"Which weights to drop and grow: {SPARSITY.listed}."})
    distribution: str = field(default="erk", metadata={"help": f"Budget per layer: {', '.join(DISTRIBUTIONS)}."})
    pattern: str | None = field(default=None, metadata={"help": "N:M, N active of M neighbouring inputs, e.g. 2:4."})
    update_interval: int = field(default=100, metadata={"help": "Optimizer steps between two exchanges of weights."})
    drop_fraction: float = field(default=0.3, metadata={"help": "Share of the weights exchanged at first; falls to 0."})
    stop_fraction: float = field(default=0.75, metadata={"help": "Share of training after which the mask is fixed."})
    init: str = field(default="auto", metadata={"help": f"Initial mask: {', '.join(INITS)}."})
    init_steps: int = field(default=1, metadata={"help": "Steps whose gradients init='gradient' or 'snip' adds up."})
    seed: int = field(default=0, metadata={"help": "Seed of randomness."})
    candidates: float = field(default=5.0, metadata={"help": "BiDST: inactive weights with a score, per active one."})
    score_interval: int = field(
        default=5, metadata={"help": "BiDST: steps between two reads of candidates' gradients."}
    )
    levelling: float | None = field(
        default=None, metadata={"help": "Power of input levels that gradients are divided by."}
    )
    grow_from: str = field(default="zero", metadata={"help": f"First values of grown weights: {', '.join(GROW_FROM)}."})
    initial_sparsity: float | None = field(
        default=None, metadata={"help": "Sparsity at the start; rises along a cubic."}
    )
    backend: str = field(
        default="auto", metadata={"help": f"Computes Linear layers in training: {', '.join(BACKENDS)}."}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers, or 'all-linear'."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    layers_to_transform: list[int] | None = field(default=None, metadata={"help": "Numbers of the blocks to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    train_others: bool | None = field(default=None, metadata={"help": "Train and save all other modules too."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})
    ensure_weight_tying: bool = field(default=False, metadata={"help": "Keep tied embeddings tied."})
    counts: dict[str, int] = field(
        default_factory=dict, metadata={"help": "Active weights per layer (written by saving)."}
    )
    checksum: int | None = field(default=None, metadata={"help": "Checksum of the saved tensors (written by saving)."})

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """As in PEFT, with the file checked; called by `from_pretrained`."""
        return read_config(path_json_file)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> BiDSTConfig:
        """As in PEFT; if the adapter is a folder, its file of weights is compared with the config.

        Raises:
            ValueError: there is no config, it is damaged or hostile, or the weights do not belong to it.
        """
        is_local(pretrained_model_name_or_path)  # raises if it is neither here nor on the Hub
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        with naming(folder / CONFIG_NAME):
            config: BiDSTConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.stored = read_header(folder / WEIGHTS_NAME, config)
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in PEFT; what the model card has to say of the adapter is added to it."""
        super().save_pretrained(save_directory, **kwargs)
        card.write(Path(save_directory), self)

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_numbers(self)
        check_values(self)
        self.stored: dict[str, Stored] = {}  # the header of the weights file beside the config
        self.peft_type = BIDST
        self.modules_to_tie: list[str] | None = None  # read by PEFT; set for each model
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT wants sets
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        check_choice("target", self.target, TARGETS)
        topology = SPARSITY.row(self.topology).implementation
        self._check_distribution()
        check_choice("init", self.init, INITS)
        check_choice("backend", self.backend, BACKENDS)
        check_number("sparsity", self.sparsity, 0, 1, "a share of inactive weights in [0, 1), e.g. 0.95", below=True)
        self._check_pattern()
        for name in ("drop_fraction", "stop_fraction"):
            check_number(name, getattr(self, name), 0, 1, "a share in [0, 1]")
        for name in ("update_interval", "score_interval", "init_steps"):
            check_whole(name, getattr(self, name), 1)
        check_choice("grow_from", self.grow_from, GROW_FROM)
        if self.levelling is not None:
            check_number("levelling", self.levelling, 0, 1, "a number from 0 (none) to 1, or None")
        if self.initial_sparsity is not None:
            check_number("initial_sparsity", self.initial_sparsity, 0, 1, "a share in [0, 1), or None", below=True)
            if self.initial_sparsity >= self.sparsity and not self.counts:
                raise ValueError(
                    f"initial_sparsity={self.initial_sparsity} is not below sparsity={self.sparsity}, to which it "
                    "rises. Lower it, or leave it out to train with a fixed number of active weights."
                )
        check_number("candidates", self.candidates, 1e-9, float("inf"), "a number > 0, e.g. 5.0")
        if not self.counts:  # a saved adapter was checked when it was made
            check_settings(self, SPARSITY)
        falls = topology.of(self, 1).resizes
        if self.distribution == "as_pruned" and (self.target != "weight" or falls):
            raise ValueError(
                f"distribution='as_pruned' keeps the zeros of a model, which target={self.target!r} with topology="
                f"{self.topology!r} and initial_sparsity={self.initial_sparsity!r} does not. Use target='weight' and "
                "another topology without initial_sparsity, or another distribution."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is set but layers_to_transform is not; set both, or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform!r} is not read where target_modules is a string "
                f"({self.target_modules!r}). Give target_modules as a list of names, or write the blocks into the "
                "regular expression."
            )

    def _check_pattern(self) -> None:
        """Take the sparsity from the pattern, unless it was given and is another."""
        if self.pattern is None:
            return
        pattern = NMPattern.parse(self.pattern)
        given = self.sparsity != BiDSTConfig.sparsity  # its default
        if given and not math.isclose(self.sparsity, pattern.sparsity):
            raise ValueError(
                f"sparsity={shown(self.sparsity)} contradicts pattern='{pattern}', which makes it "
                f"{pattern.sparsity:g}: leave sparsity out, or choose another pattern."
            )
        self.pattern, self.sparsity = str(pattern), pattern.sparsity

    def _check_distribution(self) -> None:
        if self.distribution == "nonzero":
            if not self.counts:
                raise ValueError(
                    "distribution='nonzero' is called 'as_pruned': layers keep the active weights that they have."
                )
            self.distribution = "as_pruned"  # an adapter that was saved before
        check_choice("distribution", self.distribution, DISTRIBUTIONS)

    @property
    def trains_others(self) -> bool:
        """`train_others` with None resolved."""
        return self.target == "weight" if self.train_others is None else self.train_others

    @property
    def resolved_init(self) -> str:
        """`init` with "auto" resolved."""
        if self.init != "auto":
            return self.init
        return "magnitude" if self.target == "weight" else "snip"

    @property
    def needs_engine(self) -> bool:
        """Whether weights are chosen or exchanged in training."""
        exchanges: bool = SPARSITY.row(self.topology).implementation.exchanges
        return exchanges or self.resolved_init in ("gradient", "snip")
