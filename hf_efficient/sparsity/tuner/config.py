"""What sparse a model shall be, where, and how its topology is found: a `PeftConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_efficient.extras import extra
from hf_efficient.files import is_local
from hf_efficient.methods import SPARSITY, check_settings
from hf_efficient.reading import Stored, is_number, naming, shown
from hf_efficient.sparsity.topology import TOPOLOGIES, Topology

from .adapter_checks import WEIGHTS_NAME, check_values, read_config, read_header

with extra("sparsity"):
    from peft import PeftConfig
    from peft.utils import CONFIG_NAME, PeftType

TARGETS = ("weight", "delta")
DISTRIBUTIONS = ("erk", "uniform", "global", "nonzero")
INITS = ("auto", "random", "magnitude", "gradient", "snip")
KERNELS = ("auto", "dense", "compact")


def _peft_type(name: str) -> PeftType:
    """PEFT's closed enumeration of methods, with one more member."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        PeftType._member_names_.append(name)
        if not hasattr(PeftType, name):
            type.__setattr__(PeftType, name, member)  # Python >= 3.12 looks members up as attributes
    return PeftType(name)


BIDST = _peft_type("BIDST")


@dataclass
class BiDSTConfig(PeftConfig):
    """A sparse model, or a sparse adapter, whose topology is found while it trains.

    Args:
        sparsity: share of dead weights of the targeted layers, in [0, 1). An adapter of 0.5 % of the weights has 0.995.
        target: "weight": the layers' own weights become sparse (from scratch, or from a dense or pruned checkpoint),
            and merging writes a plain model with zeros. "delta": the weights stay as they are, and k values per layer
            are learned that add to them.
        topology: a key of `hf_efficient.sparsity.topology.TOPOLOGIES`: "bidst", "rigl", "set", "mest", "gmp", "static".
        distribution: how layers share the budget. "erk" (small layers denser), "uniform", "global" (starts uniform;
            layers exchange weights while they train), "nonzero" (target="weight": exactly the weights that are not zero
            now, so that a pruned model stays pruned; `sparsity` is not read).
        update_interval: optimizer steps between two changes of topology.
        drop_fraction: share of a layer's living weights exchanged at most at the first change, in [0, 1]; it falls to 0
            along a cosine.
        stop_fraction: share of training after which the topology rests, in [0, 1].
        init: which weights live first. "random"; "magnitude" (largest |w|); "gradient" and "snip" (largest |dL/dw| and
            |w dL/dw|, measured on the first `init_steps` batches); "auto": magnitude for "weight", snip for
            "delta".
        init_steps: optimizer steps whose gradients the last two add up, >= 1. Meanwhile the targeted layers are as they
            were and do not learn.
        seed: of chance.
        candidates: BiDST: dead places that have a score, as a multiple of the living ones, > 0.
        score_interval: BiDST: optimizer steps between two hyper-gradients, >= 1.
        score_lr: BiDST: step of the scores, beta of the upper level, >= 0.
        implicit_weight: BiDST: weight of the implicit term of the hyper-gradient (1/gamma), >= 0.
        kernel: how Linear layers are computed in training: "dense" (whole tensor), "compact" (CSR and SDDMM, CPU),
            "auto" (whichever a first timing finds faster, per layer).
        target_modules: names, or a regular expression, of the layers; or "all-linear". None takes, for "weight", all
            linear and convolutional layers and fused experts but embeddings, norms and heads; for "delta", what LoRA
            takes for this model type. A name matches every module whose name ends with it, as for LoRA; fused experts
            (parameters of three dimensions) are named by their module, e.g. "experts".
        exclude_modules: names, or a regular expression, of layers to leave out.
        layers_to_transform: numbers of the blocks to take, where target_modules is a list or None.
        layers_pattern: name of the list of blocks, if it is not found.
        train_others: whether everything else (norms, biases, embeddings, heads) trains too and is saved with the
            adapter. None: yes for "weight", no for "delta".
        modules_to_save: further modules to train and save whole.
        ensure_weight_tying: keep tied embeddings tied when they are trained; set by itself where needed.
        counts: layer -> living weights; written when saving, so that every loader knows the shapes.
        checksum: of the saved tensors; written when saving, compared when loading. None: not compared.

    Raises:
        ValueError: a field is outside of what is said above, or is set and not read by the topology; the message names
            field, value and fix.
    """

    sparsity: float = field(default=0.95, metadata={"help": "Share of dead weights in the targeted layers, [0, 1)."})
    target: str = field(default="weight", metadata={"help": f"What becomes sparse: {', '.join(TARGETS)}."})
    topology: str = field(default="bidst", metadata={"help": f"Who lives, who dies: {', '.join(TOPOLOGIES)}."})
    distribution: str = field(default="erk", metadata={"help": f"Budget per layer: {', '.join(DISTRIBUTIONS)}."})
    update_interval: int = field(default=100, metadata={"help": "Optimizer steps between changes of topology."})
    drop_fraction: float = field(default=0.3, metadata={"help": "Share exchanged at most at the first change."})
    stop_fraction: float = field(default=0.75, metadata={"help": "Share of training after which topology rests."})
    init: str = field(default="auto", metadata={"help": f"Which weights live first: {', '.join(INITS)}."})
    init_steps: int = field(default=1, metadata={"help": "Steps whose gradients init='gradient' or 'snip' adds up."})
    seed: int = field(default=0, metadata={"help": "Seed of chance."})
    candidates: float = field(default=5.0, metadata={"help": "BiDST: scored dead places per living weight."})
    score_interval: int = field(default=10, metadata={"help": "BiDST: steps between two hyper-gradients."})
    score_lr: float = field(default=0.005, metadata={"help": "BiDST: step of the scores (beta)."})
    implicit_weight: float = field(default=1e-4, metadata={"help": "BiDST: weight of the implicit term (1/gamma)."})
    kernel: str = field(default="auto", metadata={"help": f"Linear layers in training: {', '.join(KERNELS)}."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers, or 'all-linear'."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Layers to leave out."})
    layers_to_transform: list[int] | None = field(default=None, metadata={"help": "Blocks to take."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks."})
    train_others: bool | None = field(default=None, metadata={"help": "Train and save everything else too."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})
    ensure_weight_tying: bool = field(default=False, metadata={"help": "Keep tied embeddings tied."})
    counts: dict[str, int] = field(default_factory=dict, metadata={"help": "Living weights per layer (written)."})
    checksum: int | None = field(default=None, metadata={"help": "Of the saved tensors (written)."})

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """PEFT's, which trusts the file; called by `from_pretrained`."""
        return read_config(path_json_file)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> BiDSTConfig:
        """PEFT's; where the adapter is a folder, its file of weights is compared with the config.

        Raises:
            ValueError: there is none, it is damaged or hostile, or the weights do not belong to it.
        """
        is_local(pretrained_model_name_or_path)  # raises if it is neither here nor on the Hub
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        with naming(folder / CONFIG_NAME):
            config: BiDSTConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        config.stored = read_header(folder / WEIGHTS_NAME, config)
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        check_values(self)
        self.stored: dict[str, Stored] = {}  # the header of the weights, where they lie beside the config
        self.peft_type = BIDST
        self.modules_to_tie: list[str] | None = None  # PEFT reads it; found anew for each model
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # PEFT wants sets
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        _check_choice("target", self.target, TARGETS)
        _check_choice("topology", self.topology, tuple(TOPOLOGIES))
        _check_choice("distribution", self.distribution, DISTRIBUTIONS)
        _check_choice("init", self.init, INITS)
        _check_choice("kernel", self.kernel, KERNELS)
        _check_number("sparsity", self.sparsity, 0, 1, "a share of dead weights in [0, 1), e.g. 0.95", below=True)
        for name in ("drop_fraction", "stop_fraction"):
            _check_number(name, getattr(self, name), 0, 1, "a share in [0, 1]")
        for name in ("update_interval", "score_interval", "init_steps"):
            _check_count(name, getattr(self, name))
        for name in ("score_lr", "implicit_weight"):
            _check_number(name, getattr(self, name), 0, float("inf"), "a number >= 0")
        _check_number("candidates", self.candidates, 1e-9, float("inf"), "a number > 0, e.g. 5.0")
        if not self.counts:  # a saved adapter is no choice any more
            check_settings(self, SPARSITY)
        if self.distribution == "nonzero" and (self.target != "weight" or self.topology == "gmp"):
            raise ValueError(
                f"distribution='nonzero' keeps the zeros a model has; with target={self.target!r} and topology="
                f"{self.topology!r} it makes no sense. Take target='weight' and another topology, or another "
                "distribution."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern is set but layers_to_transform is not; set both, or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform!r} is not read where target_modules is a string "
                f"({self.target_modules!r}). Give target_modules as a list of names, or write the blocks into the "
                "regular expression."
            )

    @property
    def trains_others(self) -> bool:
        """`train_others`, None resolved."""
        return self.target == "weight" if self.train_others is None else self.train_others

    @property
    def first_living(self) -> str:
        """`init`, "auto" resolved."""
        if self.init != "auto":
            return self.init
        return "magnitude" if self.target == "weight" else "snip"

    @property
    def needs_engine(self) -> bool:
        """Whether somebody must choose or move weights while they train."""
        return self.topology != "static" or self.first_living in ("gradient", "snip")

    def make_topology(self, total_steps: int) -> Topology:
        """The topology this config names, for a training of `total_steps` optimizer steps."""
        schedule = (total_steps, self.update_interval, self.drop_fraction, self.stop_fraction)
        cls = TOPOLOGIES[self.topology]
        if self.topology == "bidst":
            scores = (self.candidates, self.score_interval, self.score_lr, self.implicit_weight)
            fairness = 1.0 if self.target == "delta" else 0.5  # pretrained inputs differ most; both by measurement
            return cls(*schedule, *scores, fairness)  # type: ignore[call-arg]
        return cls(*schedule)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={shown(value)} is not known; expected one of {', '.join(map(repr, choices))}.")


def _check_number(name: str, value: object, low: float, high: float, expected: str, below: bool = False) -> None:
    if not is_number(value) or not low <= value <= high or (below and value == high):  # type: ignore[operator]
        raise ValueError(f"{name}={shown(value)} is out of range; expected {expected}.")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={shown(value)} is not a count; expected an int >= 1.")
