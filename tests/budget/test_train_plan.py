"""A plan is carried out to the same bits, at whatever moment it is killed."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from hf_efficient import EfficiencyPlan, SAMArguments, TokenPrunerConfig, prune_wanda, train_plan
from hf_efficient.budget.plan.pruning import layers_of, zeros_of, zeros_planned
from tests.budget.plans import logits
from tests.sparsity.models import llama
from tests.tiny import prompts, stock

DATA = [{"input_ids": (torch.arange(8) * (i + 3)) % 50, "labels": (torch.arange(8) * (i + 3)) % 50} for i in range(8)]
PLAN = EfficiencyPlan.from_dict(
    {
        "sparsity": {"sparsity": 0.9, "target": "delta", "target_modules": ["up_proj"], "update_interval": 1},
        "sam": SAMArguments("s2sam", rho=0.1),
    }
)


def carry_out(folder: Path, plan: EfficiencyPlan = PLAN, **more: Any) -> Any:
    args = TrainingArguments(
        str(folder / "out"), max_steps=4, per_device_train_batch_size=1, learning_rate=1e-2, save_steps=1,
        save_total_limit=2, logging_strategy="no", disable_tqdm=True, report_to="none", use_cpu=True, seed=3, **more,
    )  # fmt: skip
    batches = [{"input_ids": torch.stack([row["input_ids"] for row in DATA])}]
    return train_plan(plan, llama(), args, folder / "plan", batches=batches, train_dataset=DATA)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder / "plan").as_posix(): path.read_bytes()
        for path in sorted((folder / "plan").rglob("*.safetensors"))
    }


def carry_out_until(folder: Path, change: int) -> None:
    """Carry it out, and be killed at the n-th change of a file."""
    seen = [0]

    def hook(event: str, args: Any) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree") or (
            event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        )
        if writes and str(folder) in str(args[0]):
            seen[0] += 1
            if seen[0] == change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    carry_out(folder)


def killed_at(folder: Path, change: int) -> bool:
    """Whether a process of its own came so far; not a fork of this one, whose autograd may have threads."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    child = processes.Process(target=carry_out_until, args=(folder, change))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    carry_out(folder)
    return weights(folder)


def check(folder: Path, moments: list[int], wanted: dict[str, bytes]) -> None:
    for moment in moments:
        place = folder / str(moment)
        place.mkdir()
        assert killed_at(place, moment), moment
        carry_out(place)
        assert weights(place) == wanted, moment


def test_two_kills(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    check(tmp_path, [2, 15], wanted)


@pytest.mark.slow
def test_ten_kills(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    check(tmp_path, [1, 3, 5, 8, 11, 14, 18, 22, 26, 30], wanted)


def test_again_and_again_in_one_folder(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    assert killed_at(tmp_path, 9)
    killed_at(tmp_path, 4)
    carry_out(tmp_path)
    assert weights(tmp_path) == wanted
    carry_out(tmp_path)  # it is done: nothing changes
    assert weights(tmp_path) == wanted


def test_what_is_done_makes_no_further_step(tmp_path: Path) -> None:
    plan = EfficiencyPlan(sam=SAMArguments("s2sam", rho=0.1))
    carry_out(tmp_path, plan, lr_scheduler_type="constant")
    before = weights(tmp_path)
    carry_out(tmp_path, plan, lr_scheduler_type="constant")
    assert weights(tmp_path) == before
    assert not (tmp_path / "out" / "checkpoint-5").exists()


@pytest.mark.parametrize("parts", [{}, {"sparsity": {"distribution": "as_pruned", "topology": "static"}}])
def test_zeros_of_a_pruned_model_stay_zeros(parts: dict[str, Any], tmp_path: Path) -> None:
    carry_out(tmp_path, EfficiencyPlan.from_dict({"pruning": {"method": "wanda", "sparsity": 0.5}, **parts}))
    model, _ = EfficiencyPlan.load(tmp_path / "plan")
    layer = model.model.layers[0].mlp.up_proj.weight
    assert int(layer.count_nonzero()) == layer.numel() // 2
    assert not torch.equal(layer[layer != 0], llama().model.layers[0].mlp.up_proj.weight[layer != 0])


def test_checkpoints_and_plan_have_folders_of_their_own(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="holds the checkpoints"):
        train_plan(PLAN, llama(), args, tmp_path)


def test_quantized_weights_alone_do_not_train(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    plan = EfficiencyPlan(precision={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ValueError, match="nothing that trains"):
        train_plan(plan, llama(), args, tmp_path / "plan")


def test_what_is_pruned_after_its_training_was_trained_whole(tmp_path: Path) -> None:
    flat = SAMArguments("s2sam", rho=0.1)
    late = EfficiencyPlan.from_dict({"pruning": {"method": "wanda", "sparsity": 0.5, "when": "after"}, "sam": flat})
    carry_out(tmp_path / "late", late)
    whole = carry_out(tmp_path / "whole", EfficiencyPlan(sam=flat)).model
    prune_wanda(whole, [{"input_ids": torch.stack([row["input_ids"] for row in DATA])}], 0.5)
    loaded, _ = EfficiencyPlan.load(tmp_path / "late" / "plan")
    assert EfficiencyPlan.from_pretrained(tmp_path / "late" / "plan") == late
    for name, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    carry_out(tmp_path / "late", late)  # it is done: nothing changes
    again, _ = EfficiencyPlan.load(tmp_path / "late" / "plan")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not (tmp_path / "late" / "out" / "checkpoint-5").exists()


def test_what_was_trained_fills_its_cache_as_before(tmp_path: Path) -> None:
    carry_out(tmp_path)
    assert llama().config.use_cache
    assert EfficiencyPlan.load(tmp_path / "plan")[0].config.use_cache


def test_pruning_after_a_training_goes_with_fewer_tokens_and_not_with_adapters(tmp_path: Path) -> None:
    model, processor = stock("llava")
    batch = dict(processor(**prompts("llava", [[0], [1]])))
    plan = EfficiencyPlan.from_dict({"pruning": {"method": "wanda", "sparsity": 0.5, "when": "after"},
                                     "token_pruner": TokenPrunerConfig("divprune", budget=4)})  # fmt: skip
    args = TrainingArguments(str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=1, report_to="none",
                             save_strategy="no", use_cpu=True, disable_tqdm=True, logging_strategy="no")  # fmt: skip

    def collate(rows: list[int]) -> dict[str, Any]:
        made = dict(processor(**prompts("llava", [rows])))
        return {**made, "labels": made["input_ids"].clone()}

    trainer = train_plan(plan, model, args, tmp_path / "plan", processor, [batch], train_dataset=[0, 1],
                         data_collator=collate)  # fmt: skip
    loaded, own = EfficiencyPlan.load(tmp_path / "plan")
    assert torch.equal(logits(loaded.eval(), own), logits(trainer.model.eval(), processor))
    assert all(zeros_of(layer) >= zeros_planned(layer, 0.5) for layer in layers_of(loaded).values())
    assert len(loaded.token_pruner.last[0].indices) == 4
    with pytest.raises(ValueError, match="when='after' cannot go together with sparsity"):
        EfficiencyPlan.from_dict({**plan.to_dict(), "sparsity": {"target": "delta", "sparsity": 0.9}})
