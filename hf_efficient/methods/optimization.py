"""The variants of sharpness-aware minimization, chosen by `SAMArguments.method`."""

from .row import Kind, Method, Only, Paper

_VARIANTS = "hf_efficient.optimization.variants"
_PROBES = ("num_queries", "delta", "probe_fraction", "probe_dropout", "guided", "direction_seed")

OPTIMIZATION = Kind(
    budget="optimization",
    choice="method",
    call="SAMArguments({})",
    runs="SAMTrainer, SAMTrainerMixin before any other Trainer, and torch optimizers; CPU and CUDA, DDP and FSDP2",
    page="sam.md",
    config="hf_efficient.optimization.arguments:SAMArguments",
    only=(
        Only("perturb", lambda c: not c.adaptive,
             "adaptive=False: distances in units of each merged weight would need that weight"),
    ),
    methods=(
        Method(
            "sam",
            "along the batch's own gradient, two passes",
            f"{_VARIANTS}.sam:SAMVariant",
            Paper(
                "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021, "2010.01412", "ICLR"
            ),
            reads=("batch_norm_pass", "perturb"),
            needs=("first pass",),
            published={"rho": 0.05},
        ),
        Method(
            "asam",
            "SAM in units of each weight's size",
            f"{_VARIANTS}.asam:ASAMVariant",
            Paper(
                "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks",
                2021, "2102.11600", "ICML",
            ),
            reads=("batch_norm_pass",),
            needs=("first pass",),
            published={"rho": 0.5},
        ),
        Method(
            "s2sam",
            "along the last step's gradient, one pass",
            f"{_VARIANTS}.s2sam:S2SAMVariant",
            Paper(
                "A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate Sparse "
                "Training", 2024, venue="NeurIPS",
            ),
            reads=("perturb",),
            published={"rho": 0.05},
            page="s2_sam.md",
        ),
        Method(
            "zosam",
            "along a direction estimated from losses alone",
            f"{_VARIANTS}.zosam:ZOSAMVariant",
            Paper(
                "ZO-SAM: Zero-Order Sharpness-Aware Minimization for Efficient Sparse Training",
                2026, "2603.13115", "CVPR",
            ),
            reads=_PROBES,
            needs=("losses",),
            only=(
                Only("delta", lambda c: not c.guided,
                     "guided=False: guided directions are probed at the distance of the step"),
            ),
            published={"rho": 0.05},
            page="zo_sam.md",
        ),
        Method(
            "looksam",
            "SAM every k steps, reused in between",
            f"{_VARIANTS}.looksam:LookSAMVariant",
            Paper("Towards Efficient and Scalable Sharpness-Aware Minimization", 2022, "2203.02714", "CVPR"),
            reads=("reuse_interval", "reuse_weight", "batch_norm_pass"),
            needs=("first pass",),
            only=(
                Only("reuse_weight", lambda c: c.reuse_interval > 1,
                     "reuse_interval above 1: every step is SAM's otherwise"),
            ),
            published={"reuse_interval": 5, "reuse_weight": 0.7},
        ),
        Method(
            "msam",
            "along the optimizer's momentum, one pass",
            f"{_VARIANTS}.msam:MSAMVariant",
            Paper("Momentum-SAM: Sharpness Aware Minimization without Computational Overhead", 2024, "2401.12033"),
            needs=("momentum",),
            published={"rho": 0.3},
        ),
    ),
)  # fmt: skip
