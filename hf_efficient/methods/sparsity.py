"""The topologies of sparse training, chosen by `BiDSTConfig.topology`."""

from .row import Kind, Method, Only, Paper, Setting

_TOPOLOGY = "hf_efficient.sparsity.topology"
_EXCHANGES = ("update_interval", "drop_fraction", "stop_fraction", "init", "initial_sparsity")
_NO_PATTERN = Only(  # of those that exchange weights inside groups, which cannot shrink on the way
    "initial_sparsity",
    lambda c: c.pattern is None,
    "pattern=None: a pattern says how many weights are active, at every step, for all topologies but 'gmp'",
)
_RIGL = Paper("Rigging the Lottery: Making All Tickets Winners", 2020, "1911.11134", "ICML")

SPARSITY = Kind(
    budget="sparsity",
    choice="topology",
    call="BiDSTConfig({})",
    runs="PEFT models, in any Trainer (BiDSTTrainer, SparsityCallback) or torch loop (train_sparsely); CPU and CUDA",
    page="bidst.md",
    config="hf_efficient.sparsity.tuner.config:BiDSTConfig",
    methods=(
        Method(
            "bidst",
            "the mask is learned beside the values: candidates' dormant values follow their own gradients",
            f"{_TOPOLOGY}.bidst:BiDST",
            Paper("Advancing Dynamic Sparse Training by Exploring Optimization Opportunities", 2024, venue="ICML"),
            reads=(*_EXCHANGES, "candidates", "score_interval", "levelling"),
            only=(_NO_PATTERN,),
            needs=("gradient",),
        ),
        Method(
            "rigl",
            "drops the smallest weights, grows those with the largest gradient",
            f"{_TOPOLOGY}.rigl:RigL",
            _RIGL,
            reads=(*_EXCHANGES, "levelling", "grow_from"),
            only=(_NO_PATTERN,),
            needs=("gradient",),
            published={"distribution": "erk", "init": "random", "update_interval": 100, "drop_fraction": 0.3,
                       "stop_fraction": 0.75},
        ),
        Method(
            "set",
            "drops the smallest weights, grows random ones",
            f"{_TOPOLOGY}.set:SET",
            Paper(
                "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired by Network "
                "Science", 2018, "1707.04780", "Nature Communications",
            ),
            reads=(*_EXCHANGES, "grow_from"),
            only=(_NO_PATTERN,),
            published={"distribution": "erk", "init": "random", "drop_fraction": 0.3},
        ),
        Method(
            "mest",
            "drops by weight and gradient together, grows random weights",
            f"{_TOPOLOGY}.mest:MEST",
            Paper(
                "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge",
                2021, "2110.14032", "NeurIPS",
            ),
            reads=(*_EXCHANGES, "grow_from"),
            only=(_NO_PATTERN,),
            needs=("gradient",),
            published={"distribution": "erk", "init": "random"},
        ),
        Method(
            "gmp",
            "dense at first, drops the smallest weights along a cubic curve",
            f"{_TOPOLOGY}.gmp:GMP",
            Paper(
                "To prune, or not to prune: exploring the efficacy of pruning for model compression",
                2017, "1710.01878",
            ),
            reads=("update_interval", "stop_fraction", "initial_sparsity"),
            published={"distribution": "uniform", "update_interval": 100},
        ),
        Method(
            "static",
            "the topology of the first step is the last",
            f"{_TOPOLOGY}.static:Static",
            reads=("init",),
            only=(
                Only("distribution", lambda c: c.distribution != "global" or c.resolved_init != "random",
                     "a topology or an init that compares layers: a random static one is 'uniform'"),
            ),
        ),
    ),
    only=(
        Only("init_steps", lambda c: c.resolved_init in ("gradient", "snip"), "init='gradient' or 'snip'"),
        Only("sparsity", lambda c: c.distribution != "as_pruned" or c.pattern is not None, "another distribution than "
             "'as_pruned', which keeps the zeros there are"),
        Only("distribution", lambda c: c.pattern is None or c.distribution == "as_pruned", "pattern=None: a pattern "
             "says itself how many weights each layer has"),
        Only("grow_from", lambda c: c.target == "weight" and c.resolved_init != "random", "target='weight' and another "
             "init than 'random': else inactive weights are zero at the start"),
        Only("pattern", lambda c: c.target == "weight", "target='weight': a delta adds to weights that have no "
             "pattern"),
        Only("init", lambda c: c.distribution != "as_pruned", "another distribution than 'as_pruned', which says "
             "itself which weights are active"),
    ),
    formerly={"score_interval": 10},
    settings=(
        Setting(
            Paper("SNIP: Single-shot Network Pruning based on Connection Sensitivity", 2019, "1810.02340", "ICLR"),
            "keeps the weights with the largest |w dL/dw| on the first batch, and never exchanges any",
            {"topology": "static", "distribution": "global", "init": "snip"},
            "bidst.md",
        ),
        Setting(
            _RIGL,
            "the Erdős-Rényi-Kernel: layers share the budget so that small ones stay denser",
            {"distribution": "erk"},
            "bidst.md",
        ),
    ),
)  # fmt: skip
