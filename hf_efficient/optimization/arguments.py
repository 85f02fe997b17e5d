"""What a sharpness-aware run does, as a dataclass that parses beside `TrainingArguments`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

from hf_efficient.checks import check_bool, check_choice, check_number, check_whole, plain_numbers
from hf_efficient.methods import OPTIMIZATION, check_settings
from hf_efficient.plain_settings import PlainSettings

SCHEDULES = ("constant", "inverse_sqrt", "linear", "cosine")
PASSES = ("first", "second", "both")
SPACES = ("weights", "merged")


@dataclass
class SAMArguments(PlainSettings):
    """Which method perturbs the weights, and how far.

    No field has the name of one of `TrainingArguments`, so that `HfArgumentParser((TrainingArguments, SAMArguments))`
    and `TrlParser` read both from one command line or yaml file.

    Args:
        method: "sam" or "asam" (two passes), "s2sam" (one pass), "zosam" (2 `num_queries` forward passes more),
            "looksam" (1 + 1/`reuse_interval` passes), "msam" (one pass, along the momentum). None is the trainer's own:
            "sam" for `SAMTrainer` and `SAMTrainerMixin`, "s2sam" for `S2SAMTrainer`, "zosam" for `ZOSAMTrainer`.
        rho: distance of the perturbation, L2 over all active weights together; 0 is the plain Trainer. "asam" measures
            in units of the weights and wants about ten times more.
        rho_schedule: rho_t over steps t = 1, 2, ..., T: "constant", "inverse_sqrt" (rho / sqrt(t); S2-SAM, Remark 1),
            "linear" or "cosine" (down to 0 at T).
        adaptive: measure the distance in units of each weight's size, for any method ("asam" is "sam" with it).
        perturb_pruned: also perturb entries that a sparsity mask makes inactive, as the published code of S2-SAM does.
        perturb: what moves in a model with adapters: their trainable "weights", as in any model, or the "merged" weight
            W + s B A of LoRA layers, of which rho is then the distance ("sam" and "s2sam"; see docs/sam.md).
        num_queries: directions m of "zosam".
        delta: step of the finite difference of "zosam", per weight. None probes at the distance of the step, `rho`, as
            guided directions always do; with m = 1 the step then ends at one of the two probed points, which saves a
            forward pass.
        probe_fraction: share of each batch that "zosam" takes its losses on; 0.5 makes m = 1 cost a third more than
            plain training.
        probe_dropout: the losses of "zosam" are taken with the dropout masks of the step; False takes them without
            dropout: cheaper on a CPU, but of a slightly different network. BatchNorm normalizes as in training.
        guided: "zosam" probes along the last gradients instead of random directions.
        direction_seed: of the random directions of "zosam".
        reuse_interval: k of "looksam".
        reuse_weight: alpha of "looksam".
        batch_norm_pass: which pass of "sam", "asam" and "looksam" updates running statistics of BatchNorm: "first" (at
            the weights themselves), "second" or "both". Probes of "zosam" never do.
        upcast: hold trainable 16-bit weights in float32; 16 bits are too few to hold a small perturbation.
        diagnostics_steps: log rho, norms, and the cosine of perturbation and gradient every n steps; 0 is never.

    Raises:
        ValueError: a field is out of range, or is set although the method does not read it; the message names field,
            value and fix.
    """

    method: str | None = field(
        default=None,
        metadata={"help": f"Method: {', '.join(OPTIMIZATION.names)}. Default: the trainer's, or sam."},
    )
    rho: float = field(default=0.05, metadata={"help": "Distance of the perturbation (L2); 0 is plain training."})
    rho_schedule: str = field(default="constant", metadata={"help": f"rho over steps: {', '.join(SCHEDULES)}."})
    adaptive: bool = field(default=False, metadata={"help": "Distance in units of each weight's size (ASAM)."})
    perturb_pruned: bool = field(
        default=False, metadata={"help": "Also perturb weights that a sparsity mask makes inactive."}
    )
    perturb: str = field(
        default="weights", metadata={"help": "What moves: trainable weights, or merged ones of LoRA (sam, s2sam)."}
    )
    num_queries: int = field(default=1, metadata={"help": "Directions of zosam; each costs two forward passes."})
    delta: float | None = field(default=None, metadata={"help": "Step of zosam's finite difference; None is rho."})
    probe_fraction: float = field(default=1.0, metadata={"help": "Share of the batch for zosam's losses, (0, 1]."})
    probe_dropout: bool = field(default=True, metadata={"help": "zosam's losses use the dropout masks of the step."})
    guided: bool = field(default=False, metadata={"help": "zosam probes along the last gradients."})
    direction_seed: int = field(default=0, metadata={"help": "Seed of zosam's directions."})
    reuse_interval: int = field(default=5, metadata={"help": "k of looksam."})
    reuse_weight: float = field(default=0.7, metadata={"help": "alpha of looksam."})
    batch_norm_pass: str = field(
        default="first", metadata={"help": f"Pass that updates BatchNorm statistics: {', '.join(PASSES)}."}
    )
    upcast: bool = field(default=False, metadata={"help": "Hold trainable 16-bit weights in float32."})
    diagnostics_steps: int = field(default=0, metadata={"help": "Log rho and cosine every n steps; 0 is never."})

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.method is not None:
            check_choice("method", self.method, OPTIMIZATION.names)
        check_number("rho", self.rho, 0, math.inf, "a finite number >= 0")
        check_choice("rho_schedule", self.rho_schedule, SCHEDULES)
        check_choice("perturb", self.perturb, SPACES)
        check_whole("num_queries", self.num_queries, 1)
        if self.delta is not None:
            check_number("delta", self.delta, 0, math.inf, "a number > 0, or None", above=True)
        check_number("probe_fraction", self.probe_fraction, 0, 1, "a number in (0, 1]", above=True)
        check_whole("direction_seed", self.direction_seed, 0)
        check_whole("reuse_interval", self.reuse_interval, 1)
        check_number("reuse_weight", self.reuse_weight, 0, math.inf, "a finite number >= 0")
        check_choice("batch_norm_pass", self.batch_norm_pass, PASSES)
        check_whole("diagnostics_steps", self.diagnostics_steps, 0)
        for name in ("adaptive", "perturb_pruned", "probe_dropout", "guided", "upcast"):
            check_bool(name, getattr(self, name))
        check_settings(self, OPTIMIZATION)

    def rho_at(self, step: int, total: int) -> float:
        """The distance in step `step` = 0, 1, ... of `total`."""
        match self.rho_schedule:
            case "inverse_sqrt":
                return self.rho / math.sqrt(step + 1)
            case "linear":
                return self.rho * max(0.0, 1 - step / max(total, 1))
            case "cosine":
                return self.rho * (1 + math.cos(math.pi * min(1.0, step / max(total, 1)))) / 2
        return self.rho

    def for_trainer(self, own: str, fixed: bool, trainer: str) -> SAMArguments:
        """The arguments with the method filled in.

        Args:
            own: the trainer's method, used if none is named here.
            fixed: whether the trainer allows no other method.
            trainer: its name, for the message.

        Raises:
            ValueError: another method is named than the fixed one; or the method does not read a setting.
        """
        if fixed and self.method not in (None, own):
            raise ValueError(f"method={self.method!r} does not fit {trainer}, which is {own!r}; leave it out, or use "
                             "SAMTrainer.")  # fmt: skip
        decided = copy.copy(self)
        decided.method = self.method or own
        check_settings(decided, OPTIMIZATION)
        return decided
