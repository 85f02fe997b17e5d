"""Two gloo processes: tensor parallelism keeps the tokens and gives the answers of one process, and so does DDP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from tests.sparsity.ranks import on_two_ranks
from tests.tiny import FAMILIES, ROWS, generate, prompts, stock

LAYERS = {"method": "id_pruner", "budget": 8, "llm_layers": [1], "llm_budget": 3}  # by heads that processes share
CASES: dict[str, dict[str, Any]] = {
    "id_pruner": {"method": "id_pruner", "budget": 4},
    "itg": {"method": "itg", "budget": 4},
    "attention in a layer": LAYERS,
    "values in a layer": {**LAYERS, "llm_choice": "ivc"},
    "drawn in a layer": {**LAYERS, "llm_choice": "random"},
    "cls": {"method": "top_importance", "budget": 4, "importance": "cls"},
    "received": {"method": "top_importance", "budget": 4, "importance": "received"},
}
TOWER = "model.vision_tower.encoder.layers.*.self_attn."
#: Name -> family, and what is shared among the processes: by transformers' own plan, or the encoder's heads.
PLANS: dict[str, tuple[str, Any]] = {
    "llava": ("llava", "auto"),
    "qwen": ("qwen2_5_vl", "auto"),
    "encoder": ("llava", {**{f"{TOWER}{x}_proj": "colwise" for x in "qkv"}, f"{TOWER}out_proj": "rowwise"}),
}


def cases_of(family: str) -> dict[str, dict[str, Any]]:
    """Qwen's encoder has no [CLS]."""
    return {name: case for name, case in CASES.items() if name != "cls" or family == "llava"}


def ask(model: Any, family: str, case: dict[str, Any]) -> dict[str, Any]:
    """Last logits, kept tokens and an answer of a stock model with a pruner."""
    model, processor = attach_token_pruner(model, stock(family)[1], TokenPrunerConfig(**case))
    inputs = processor(**prompts(family, ROWS))
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    kept = [unit.indices.tolist() for unit in model.token_pruner.last]
    return {"logits": logits, "kept": kept, "answer": generate(model, inputs)}


PROGRAM = """
import torch, torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig
from hf_efficient import TokenPrunerConfig, attach_token_pruner
from tests.representation.vlm.test_ranks import CASES, PLANS, ROWS, ask, cases_of, prompts, stock

dist.init_process_group("gloo")
rank = dist.get_rank()
result = {}
for name, (family, plan) in PLANS.items():
    cls = type(stock(family)[0])
    model = cls.from_pretrained(family, distributed_config=DistributedConfig(tp_plan=plan)).eval()
    assert any(isinstance(p, DTensor) for p in model.parameters())
    for case, settings in cases_of(family).items():
        result[f"{name} {case}"] = ask(model, family, settings)
model, processor = attach_token_pruner(*stock("llava"), TokenPrunerConfig(**CASES["id_pruner"]))
inputs = processor(**prompts("llava", [ROWS[rank]]))
result["ddp"] = DistributedDataParallel(model)(**inputs).logits[:, -1].detach()
torch.save(result, f"rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    for family in {family for family, _ in PLANS.values()}:
        stock(family)[0].save_pretrained(folder / family)
    on_two_ranks(PROGRAM, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_tensor_parallelism_keeps_and_answers_as_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    family = PLANS[name][0]
    assert family in FAMILIES
    for case, settings in cases_of(family).items():
        alone = ask(stock(family)[0], family, settings)
        for rank in ranks:
            found = rank[f"{name} {case}"]
            assert found["kept"] == alone["kept"], case
            assert torch.equal(found["answer"], alone["answer"]), case
            torch.testing.assert_close(
                found["logits"], alone["logits"], atol=1e-4, rtol=1e-4, msg=lambda m: f"{case} {m}"
            )


@pytest.mark.slow
def test_data_parallelism_gives_each_process_its_rows(ranks: list[dict[str, Any]]) -> None:
    for row, rank in zip(ROWS, ranks, strict=True):
        model, processor = attach_token_pruner(*stock("llava"), TokenPrunerConfig(**CASES["id_pruner"]))
        with torch.no_grad():
            alone = model(**processor(**prompts("llava", [row]))).logits[:, -1]
        torch.testing.assert_close(rank["ddp"], alone)
