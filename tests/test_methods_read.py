"""The settings that a method is said to read change what it does."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_efficient import BiDSTConfig, SAMArguments, TokenPrunerConfig, reduce_tokens
from hf_efficient.methods import BACKBONES, OPTIMIZATION, REPRESENTATION, SPARSITY, VIDEO
from hf_efficient.optimization.engine.variant import new_variant
from hf_efficient.representation.generator import TokenGenerator
from hf_efficient.video.networks.spec import NetworkSpec

TOKENS, WIDTH, K = 48, 16, 12
# setting -> another value than its default, and what has to be set for it to be read
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "importance_weight": (0.9, {"initial_centers": "coverage"}),
    "kernel": ("rbf", {"initial_centers": "coverage"}),
    "coverage_power": (3.0, {"initial_centers": "coverage"}),
    "exchange_passes": (1, {"initial_centers": "coverage"}),
    "question_weight": (1.0, {}),
    "min_group_share": (1.0, {}),
    "coverage_mix": (0.0, {"initial_centers": "coverage", "min_group_share": 1.0}),
    "lloyd_steps": (0, {}),
    "centroid_share": (0.0, {}),
    "initial_centers": ("coverage", {}),
    "importance_power": (0.0, {}),
    "kept_by": ("divprune", {}),
}


def pairs(kind: Any) -> list[tuple[str, str]]:
    return [(method.name, setting) for method in kind.methods for setting in method.reads]


def reduced(config: TokenPrunerConfig, seed: int) -> torch.Tensor:
    """Tokens of clustered features, whose groups differ in importance."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.randn(6, WIDTH, generator=rng)[torch.randint(0, 6, (TOKENS,), generator=rng)]
    features = (kinds + 0.4 * torch.randn(TOKENS, WIDTH, generator=rng))[None]
    groups = torch.arange(TOKENS) * 4 // TOKENS
    importance = torch.rand(1, TOKENS, generator=rng) * (1 + 9 * (groups == 0))
    query = torch.randn(1, 3, WIDTH, generator=rng)
    return reduce_tokens(features, config, importance, query, groups).tokens


@pytest.mark.parametrize(("method", "setting"), [pair for pair in pairs(REPRESENTATION) if pair[1] != "generator"])
def test_a_setting_of_token_reduction_changes_the_tokens(method: str, setting: str) -> None:
    value, needed = OTHER[setting]
    read = {name for name in REPRESENTATION.row(method).reads if name != setting}
    base = TokenPrunerConfig(method, budget=K, **{name: needed[name] for name in needed if name in read})
    changed = base.with_method(method, **{setting: value})
    assert any(not torch.equal(reduced(base, seed), reduced(changed, seed)) for seed in range(8))


def test_a_generator_changes_the_tokens() -> None:
    generator = TokenGenerator(WIDTH, hidden=8, layers=1, heads=2)
    torch.nn.init.normal_(generator.up.weight)
    for method in REPRESENTATION.readers("generator"):
        base, changed = (TokenPrunerConfig(method, budget=K, generator=one) for one in (None, generator))
        assert not torch.equal(reduced(base, 0), reduced(changed, 0))


#: What the Trainer hands to its passes, or to the weights that a method moves; their own tests look at them.
OF_PASSES = ("batch_norm_pass", "probe_dropout", "perturb")


@pytest.mark.parametrize(("method", "setting"), [pair for pair in pairs(OPTIMIZATION) if pair[1] not in OF_PASSES])
def test_a_setting_of_a_variant_reaches_it(method: str, setting: str) -> None:
    value: Any = {"num_queries": 3, "delta": 0.1, "probe_fraction": 0.5, "guided": True, "direction_seed": 7,
             "reuse_interval": 3, "reuse_weight": 0.2}[setting]  # fmt: skip
    changes: tuple[dict[str, Any], ...] = ({}, {setting: value})
    made = [new_variant(SAMArguments(method, **settings), lambda: None) for settings in changes]
    assert repr(made[0]) != repr(made[1])


@pytest.mark.parametrize(("method", "setting"), [pair for pair in pairs(SPARSITY) if pair[1] != "init"])
def test_a_setting_of_a_topology_reaches_it(method: str, setting: str) -> None:
    value: Any = {"update_interval": 7, "drop_fraction": 0.1, "stop_fraction": 0.5, "candidates": 2.0,
                  "score_interval": 3, "levelling": 0.1, "grow_from": "start",
                  "initial_sparsity": 0.3}[setting]  # fmt: skip
    changes: tuple[dict[str, Any], ...] = ({}, {setting: value})
    topology = SPARSITY.row(method).implementation
    made = [topology.of(BiDSTConfig(topology=method, **settings), 100) for settings in changes]
    assert vars(made[0]) != vars(made[1])


@pytest.mark.parametrize(("method", "setting"), [pair for pair in pairs(VIDEO) if pair[1] != "warm_start"])
def test_a_setting_of_a_video_method_changes_what_is_trained_on(method: str, setting: str) -> None:
    errors = np.random.default_rng(0).random((8, 6)) ** 4
    changed = {"num_chunks": (2, "count"), "edges": (4, "error")}[setting]
    assignment = VIDEO.row(method).implementation()
    trained = [
        assignment.training_patches(assignment.labels(errors, k, edges), k, np.random.default_rng(1))
        for k, edges in ((4, "count"), changed)
    ]
    assert [part.tolist() for part in trained[0]] != [part.tolist() for part in trained[1]]


@pytest.mark.parametrize(("backbone", "setting"), pairs(BACKBONES))
def test_a_setting_of_a_backbone_changes_the_network(backbone: str, setting: str) -> None:
    networks = [NetworkSpec(backbone, **settings).build() for settings in ({}, {setting: 2})]
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes[0] != sizes[1]
