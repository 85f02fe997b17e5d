"""Each lever by itself, from a stock model to a folder: planned, applied, trained, and read by every loader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, TrainingArguments

from hf_efficient import EfficiencyPlan, load_sparse, load_token_pruned, train_plan
from hf_efficient.budget.plan.pruning import layers_of, zeros_of, zeros_planned
from hf_efficient.budget.planner.weights import loaded_again
from hf_efficient.wrapped import unwrapped
from tests.budget.plans import logits
from tests.tiny import prompts, stock

LAYERS = r".*language_model.*(up|down)_proj"
SPARSE = {"sparsity": 0.8, "target_modules": LAYERS, "update_interval": 1}
#: Lever -> the parts of a plan.
LEVERS: dict[str, dict[str, Any]] = {
    "tokens": {"token_pruner": {"method": "divprune", "budget": 4}},
    "flat minima": {"sam": {"method": "s2sam", "rho": 0.1}},
    "sparse adapter": {"sparsity": {**SPARSE, "target": "delta"}},
    "sparse weights": {"sparsity": {**SPARSE, "target": "weight"}},
    "sparsegpt": {"pruning": {"method": "sparsegpt", "sparsity": 0.5}},
    "wanda": {"pruning": {"method": "wanda", "sparsity": 0.5}},
    "8 bits": {"precision": {"quant_method": "bitsandbytes", "load_in_8bit": True},
               "sparsity": {**SPARSE, "target": "delta"}},  # quantized weights do not train
}  # fmt: skip


def carried_out(lever: str, folder: Path) -> tuple[Any, Any, EfficiencyPlan]:
    """The trained model, its processor and the plan, which lie in the folder."""
    chosen = EfficiencyPlan.from_dict(LEVERS[lever])
    model, processor = stock("llava")
    if chosen.precision is not None:
        pytest.importorskip("bitsandbytes")
        model = loaded_again(model, chosen.precision)

    def collate(rows: list[int]) -> dict[str, Any]:
        batch = dict(processor(**prompts("llava", [[row] for row in rows])))
        return {**batch, "labels": batch["input_ids"].clone()}

    args = TrainingArguments(
        str(folder / "out"), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, save_steps=2,
        logging_strategy="no", disable_tqdm=True, report_to="none", use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = train_plan(chosen, model, args, folder / "plan", processor, [collate([0, 1]), collate([2, 0])],
                         train_dataset=[0, 1, 2, 1], data_collator=collate)  # fmt: skip
    return trainer.model.eval(), processor, chosen


@pytest.mark.slow
@pytest.mark.parametrize("lever", LEVERS)
def test_from_a_stock_model_to_a_folder_that_all_read(lever: str, tmp_path: Path) -> None:
    trained, processor, chosen = carried_out(lever, tmp_path)
    folder, before = tmp_path / "plan", stock("llava")[0]
    expected = logits(trained, processor)
    ours, own_processor = EfficiencyPlan.load(folder)
    assert torch.equal(logits(ours.eval(), own_processor), expected)
    assert EfficiencyPlan.from_pretrained(folder) == chosen
    if chosen.pruning is not None:  # stored sparsely, which plain transformers does not read
        sparse: Any = load_sparse(folder)
        assert torch.equal(logits(sparse.eval(), own_processor), expected)
        for layer in layers_of(sparse).values():
            assert zeros_of(layer) >= zeros_planned(layer, 0.5)
        assert not torch.equal(sparse.lm_head.weight, before.lm_head.weight)  # what is left has trained
        return
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    if chosen.sparsity is None:
        assert torch.equal(plain.lm_head.weight, unwrapped(trained).lm_head.weight)
        assert not torch.equal(plain.lm_head.weight, before.lm_head.weight)
    else:
        assert torch.equal(plain.lm_head.weight, before.lm_head.weight)
        stock_logits = logits(plain, own_processor)
        adapted = PeftModel.from_pretrained(plain, folder, subfolder="adapter").eval()
        assert torch.equal(logits(adapted, own_processor), expected)
        assert not torch.equal(stock_logits, expected)  # the adapter has learned
    if chosen.token_pruner is not None:
        pruned, pruned_processor = load_token_pruned(folder)
        assert torch.equal(logits(pruned.eval(), pruned_processor), expected)
        assert logits(plain, stock("llava")[1]).shape[1] > expected.shape[1]  # all tokens
