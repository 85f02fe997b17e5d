"""The methods that reduce visual tokens, chosen by `TokenPrunerConfig.method`.

A method that chooses tokens is a function `select`, one that makes new ones is called `generate`:
`hf_efficient.representation.selection` says what they are called with.
"""

from .row import Kind, Method, Only, Paper, Setting

_FOLDER = "hf_efficient.representation.selection"
_GROUPS = ("min_group_share", "coverage_mix")  # of methods that choose one token after the other: quotas of groups
_COVERAGE = ("kernel", "coverage_power", "exchange_passes")  # of ID-Pruner, and of ITG from its tokens
_IN_LLM = ("llm_budget", "llm_choice")
_ASKED = ("question_weight",)  # of methods in whose choice importance has a part
_QUOTA_ONLY = (
    Only(
        "coverage_mix",
        lambda c: c.min_group_share > 0,
        "min_group_share above 0, method='id_pruner', or method='itg' with initial_centers='coverage'",
    ),
)

REPRESENTATION = Kind(
    budget="representation",
    choice="method",
    call="TokenPrunerConfig({})",
    runs="all model families by attach_token_pruner and prune_inputs, any features by reduce_tokens; CPU and CUDA",
    page="baselines.md",
    config="hf_efficient.representation.config:TokenPrunerConfig",
    formerly={"coverage_mix": 0.5, "coverage_power": 1.0, "initial_centers": "farthest_first"},
    methods=(
        Method(
            "id_pruner",
            "importance and coverage in one submodular objective",
            f"{_FOLDER}.id_pruner:choose",
            reads=("importance_weight", *_COVERAGE, *_ASKED, *_GROUPS),
            needs=("importance",),
            # distinctiveness cubed did better than attention on both VLMs (docs/id_pruner.md, measured)
            defaults={"importance": "distinct"},
            page="id_pruner.md",
        ),
        Method("random", "the same fixed draw for every image", f"{_FOLDER}.random:select"),
        Method("uniform", "an even grid", f"{_FOLDER}.uniform:select"),
        Method(
            "top_importance",
            "the most important tokens",
            f"{_FOLDER}.top_importance:select",
            reads=(*_ASKED, *_GROUPS),
            needs=("importance",),
            only=_QUOTA_ONLY,
        ),
        Method(
            "divprune",
            "the farthest from all taken (DivPrune)",
            f"{_FOLDER}.divprune:select",
            Paper(
                "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
                2025, "2503.02175", "CVPR",
            ),
            reads=_GROUPS,
            only=_QUOTA_ONLY,
            published={"budget": 64},
        ),
        Method(
            "cen_prune",
            "as divprune on centred tokens, times distinctiveness",
            f"{_FOLDER}.cen_prune:select",
            Paper(
                "Centering before Pruning: Lightweight Geometry Correction for Diversity-Based Visual Token Pruning in "
                "LVLMs", 2026, "2608.30263",
            ),
            reads=_GROUPS,
            only=_QUOTA_ONLY,
            published={"budget": 64},
        ),
        Method(
            "cdpruner",
            "a determinantal point process",
            f"{_FOLDER}.cdpruner:select",
            Paper(
                "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
                2025, "2506.10967", "NeurIPS",
            ),
            reads=(*_ASKED, *_GROUPS),
            needs=("importance",),
            only=_QUOTA_ONLY,
            published={"budget": 64, "question_weight": 1.0},
        ),
        Method(
            "idpruner_mmr",
            "maximal marginal relevance (IDPruner of Tencent)",
            f"{_FOLDER}.idpruner_mmr:select",
            Paper(
                "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs",
                2026, "2602.13315",
            ),
            reads=(*_ASKED, *_GROUPS),
            needs=("importance",),
            only=_QUOTA_ONLY,
            published={"budget": 0.25},
        ),
        Method(
            "id_selection",
            "importance, suppressed around what is taken",
            f"{_FOLDER}.id_selection:select",
            Paper(
                "ID-Selection: Importance-Diversity Based Visual Token Selection for Efficient LVLM Inference",
                2026, "2604.05601",
            ),
            reads=(*_ASKED, *_GROUPS),
            needs=("importance",),
            only=_QUOTA_ONLY,
            published={"budget": 64},
        ),
        Method(
            "vispruner",
            "half by importance, half without duplicates",
            f"{_FOLDER}.vispruner:select",
            Paper(
                "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
                2025, "2412.01818", "ICCV",
            ),
            reads=_ASKED,
            needs=("importance",),
            published={"budget": 64, "importance": "cls", "features": "encoder"},
        ),
        Method(
            "holov",
            "a budget for every crop",
            f"{_FOLDER}.holov:select",
            Paper(
                "Don't Just Chase \"Highlighted Tokens\" in MLLMs: Revisiting Visual Holistic Context Retention",
                2025, "2510.02912", "NeurIPS",
            ),
            reads=_ASKED,
            needs=("importance",),
            published={"budget": 64, "importance": "cls"},
        ),
        Method(
            "scope",
            "saliency times gain of coverage",
            f"{_FOLDER}.scope:select",
            Paper(
                "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs",
                2025, "2510.24214", "NeurIPS",
            ),
            reads=(*_ASKED, *_GROUPS),
            needs=("importance",),
            only=_QUOTA_ONLY,
            published={"budget": 64, "importance": "cls", "features": "encoder"},
        ),
        Method(
            "dart",
            "the least like a few pivots",
            f"{_FOLDER}.dart:select",
            Paper(
                "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
                2025, "2502.11494", "EMNLP",
            ),
            published={"budget": 64},
        ),
        Method(
            "spare",
            "column subset selection",
            f"{_FOLDER}.spare:select",
            Paper(
                "Moving Beyond Diversity: Visual Token Pruning as Subspace Reconstruction for Efficient VLMs",
                2026, "2606.18681",
            ),
            reads=_GROUPS,
            only=_QUOTA_ONLY,
            published={"budget": 64},
        ),
        Method(
            "v_cast",
            "frames share the budget by how sharply a video turns",
            f"{_FOLDER}.v_cast:select",
            Paper(
                "V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models",
                2026, "2603.27650",
            ),
            published={"budget": 0.25},
        ),
        Method(
            "itg",
            "importance-weighted k-means from centers far apart",
            f"{_FOLDER}.itg:generate",
            reads=("lloyd_steps", "centroid_share", "initial_centers", "importance_power", "generator",
                   "importance_weight", *_COVERAGE, *_ASKED, *_GROUPS),
            needs=("importance",),
            # with these initial centers distinctiveness did better than attention (docs/itg.md, measured)
            defaults={"importance": "distinct", "proportional_attention": True},
            only=(
                Only("importance_weight", lambda c: c.centers_source == "coverage", "initial_centers='coverage'"),
                *(Only(name, lambda c: c.centers_source == "coverage", "initial_centers='coverage'")
                  for name in _COVERAGE),
                Only("coverage_mix", lambda c: c.centers_source == "coverage" or c.min_group_share > 0,
                     "initial_centers='coverage' or min_group_share above 0"),
            ),
            page="itg.md",
        ),
        Method("feature_pooling", "means over a coarser raster", f"{_FOLDER}.feature_pooling:generate"),
        Method(
            "visionzip",
            "dominant tokens and merged contextual ones",
            f"{_FOLDER}.visionzip:generate",
            Paper(
                "VisionZip: Longer is Better but Not Necessary in Vision Language Models", 2025, "2412.04467", "CVPR"
            ),
            reads=_ASKED,
            needs=("importance",),
            published={"budget": 64, "importance": "cls", "features": "encoder"},
        ),
        Method(
            "prumerge",
            "attention, even samples and their neighbours",
            f"{_FOLDER}.prumerge:generate",
            Paper(
                "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models",
                2025, "2403.15388", "ICCV",
            ),
            reads=_ASKED,
            needs=("importance",),
            only=(
                Only("merge_static", lambda c: False,
                     "other methods than 'prumerge', which takes tokens in more than once"),
            ),
            published={"budget": 0.25, "importance": "cls", "features": "encoder"},
        ),
        Method(
            "tome",
            "bipartite soft matching",
            f"{_FOLDER}.tome:generate",
            Paper("Token Merging: Your ViT But Faster", 2023, "2210.09461", "ICLR"),
            published={"proportional_attention": True},
        ),
        Method(
            "restore",
            "half kept by another method, the rest merged into distinct anchors",
            f"{_FOLDER}.restore:generate",
            Paper(
                "Improving Visual Token Reduction via Rectifying Distortions for Efficient Multimodal LLM Inference",
                2026, "2606.01711", "ICML",
            ),
            reads=("kept_by",),
            needs=("importance",),
            defaults={"proportional_attention": True},
            published={"budget": 64, "importance": "cls"},
        ),
    ),
    only=(
        *(Only(name, lambda c: bool(c.llm_layers), "llm_layers that are named") for name in _IN_LLM),
        # words of the question are compared with projected features
        Only("features", lambda c: c.question_weight == 0, "question_weight=0"),
    ),
    settings=(
        Setting(
            Paper(
                "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large "
                "Vision-Language Models", 2024, "2403.06764", "ECCV",
            ),
            "FastV: after layer 2 of the language model, by the attention of the last token",
            {"budget": 1.0, "llm_layers": [2], "llm_budget": 0.5},
            "baselines.md",
        ),
        Setting(
            Paper(
                "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
                2025, "2410.17247", "CVPR",
            ),
            "PyramidDrop: a share of the tokens at each of several layers of the language model",
            {"budget": 1.0, "llm_layers": [8, 16, 24], "llm_budget": 0.5},
            "baselines.md",
        ),
        Setting(
            Paper("When Token Pruning is Worse than Random: Understanding Visual Token Information in VLLMs",
                  2025, "2512.07580"),
            "Random tail: DivPrune before the language model, a random draw in its late layers",
            {"method": "divprune", "llm_layers": [20], "llm_choice": "random", "llm_budget": 0.5},
            "baselines.md",
        ),
        Setting(
            Paper("IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning",
                  2026, "2602.03060", "ICLR"),
            "IVC-Prune: after layer 16, tokens like the question by their values, and landmarks of the positions",
            {"budget": 1.0, "llm_layers": [16], "llm_choice": "ivc", "llm_budget": 0.3},
            "baselines.md",
        ),
        Setting(
            Paper("PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding", 2026, "2604.00886"),
            "PixelPrune: patches that are copies of those beside them are not encoded",
            {"budget": 1.0, "merge_copies": 0.0},
            "families.md",
        ),
    ),
)  # fmt: skip
