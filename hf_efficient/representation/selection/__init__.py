"""Which tokens to keep, or what to make of them. One short file per method. A method that selects has

    select(features: (B, N, D) fp32, importance: (B, N) fp32, k, config, *, groups=None, valid=None) -> (B, k) long

which returns the tokens in the order taken, so that the first j of k are what the method takes for j. A method that
generates has `generate`, with the same arguments, and returns a `Mixture`. Importance is >= 0, 1 <= k <= N; `groups`
(B, N) long says which tile or frame a token is of, `valid` (B, N) bool which tokens may be taken. Docstrings below say
what a method adds to this.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hf_efficient.representation.maths.mixture import Mixture

from . import (
    cdpruner,
    cen_prune,
    dart,
    feature_pooling,
    holov,
    id_pruner,
    id_selection,
    idpruner_mmr,
    itg,
    prumerge,
    random,
    scope,
    spare,
    tome,
    top_importance,
    uniform,
    visionzip,
    vispruner,
)
from . import (
    divprune as divprune,
)

SELECTORS: dict[str, Callable[..., Tensor]] = {
    "id_pruner": id_pruner.select,  # importance and coverage in one submodular objective
    "random": random.select,  # the same fixed draw for every image
    "uniform": uniform.select,  # an even grid
    "top_importance": top_importance.select,  # the k most important
    "divprune": divprune.select,  # farthest point on 1 - cosine (DivPrune)
    "cen_prune": cen_prune.select,  # the same on centred tokens, times distinctiveness
    "cdpruner": cdpruner.select,  # determinantal point process
    "idpruner_mmr": idpruner_mmr.select,  # maximal marginal relevance (Tencent's IDPruner)
    "id_selection": id_selection.select,  # importance, suppressed around what is taken
    "vispruner": vispruner.select,  # half by importance, half without duplicates
    "holov": holov.select,  # a budget for every crop
    "scope": scope.select,  # saliency times gain of coverage
    "dart": dart.select,  # least like a few pivots
    "spare": spare.select,  # column subset selection
}
GENERATORS: dict[str, Callable[..., Mixture]] = {
    "itg": itg.generate,  # importance-weighted k-means from seeds far apart
    "feature_pooling": feature_pooling.generate,  # means over a coarser raster
    "visionzip": visionzip.generate,  # dominant tokens and merged contextual ones
    "prumerge": prumerge.generate,  # LLaVA-PruMerge+: attention, even samples, neighbours
    "tome": tome.generate,  # bipartite soft matching
}
METHODS: dict[str, Callable[..., Tensor | Mixture]] = {**SELECTORS, **GENERATORS}
