"""Sparse training under the HF Trainer: what moves, what is logged, and that a killed run goes on as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_efficient import BiDSTConfig, BiDSTTrainer, S2SAMTrainer, SAMArguments, SparsityCallback, train_sparsely
from hf_efficient.methods import SPARSITY, settings_of
from hf_efficient.sparsity.tuner.layer import BiDSTLayer
from tests.sparsity.models import bert, llama, logits
from tests.sparsity.ranks import on_two_ranks


class Sentences(Dataset[dict[str, torch.Tensor]]):
    """Token ids and labels that can be learned; `language` for a language model, else three classes."""

    def __init__(self, size: int = 64, language: bool = True) -> None:
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(0, 60, (size, 8), generator=generator)
        self.language = language

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = self.ids[i]
        return {"input_ids": ids, "labels": ids if self.language else ids[0] % 3}


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 5,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **more})


def config(**more: Any) -> BiDSTConfig:
    often = settings_of(SPARSITY, more.get("topology", "bidst"), update_interval=3, score_interval=1)
    return BiDSTConfig(**{"sparsity": 0.8, "task_type": "CAUSAL_LM", **often, **more})


def indices_of(model: nn.Module) -> list[list[int]]:
    return [m.sparse_weight("default").indices.tolist() for m in model.modules() if isinstance(m, BiDSTLayer)]


@pytest.mark.parametrize("target", ["weight", "delta"])
def test_the_callback_moves_weights_and_logs_it(target: str, tmp_path: Path) -> None:
    model = get_peft_model(llama(), config(target=target, target_modules="all-linear"))
    before = indices_of(model)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Sentences())
    trainer.train()
    assert indices_of(model) != before
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ["sparsity", "mask_updates", "share_changed", "mask_iou", "itop_rate", "mask_time_share"]
    assert all(name in entry for entry in logged for name in names)
    assert all(entry["sparsity"] == pytest.approx(0.8, abs=1e-3) for entry in logged)
    assert logged[-1]["mask_updates"] >= 2
    assert logged[-1]["itop_rate"] > 0.2
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_the_model_brings_its_callback_along_and_gives_way_to_any_other(tmp_path: Path) -> None:
    def trained(callbacks: list[Any] | None = None, by_hand: bool = False) -> nn.Module:
        model = get_peft_model(llama(), config(target_modules="all-linear", backend="dense"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        if by_hand:
            train_sparsely(model, optimizer, 20)
        trainer = Trainer(
            model, arguments(tmp_path), train_dataset=Sentences(), callbacks=callbacks, optimizers=(optimizer, None)
        )
        trainer.train()
        return model

    alone = trained()
    for other in (trained([SparsityCallback("default")]), trained(by_hand=True)):
        assert indices_of(alone) == indices_of(other)
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), other.parameters(), strict=True))


def test_the_callback_leaves_alone_what_does_not_train(tmp_path: Path) -> None:
    get_peft_model(llama(), config())  # from here on every Trainer has the callback
    Trainer(llama(), arguments(tmp_path, max_steps=2), train_dataset=Sentences()).train()
    model = get_peft_model(llama(), config(target="delta", target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    before = indices_of(model)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Sentences())
    trainer.train()
    assert indices_of(model) == before
    assert not any("sparsity" in entry for entry in trainer.state.log_history)


def test_bidst_trainer_takes_a_plain_model_and_gives_a_sparse_one(tmp_path: Path) -> None:
    settings = config(task_type="SEQ_CLS", sparsity=0.9)
    trainer = BiDSTTrainer(
        bert(), arguments(tmp_path), sparsity_config=settings, train_dataset=Sentences(language=False)
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    expected = logits(trainer.model)
    assert torch.equal(logits(PeftModel.from_pretrained(bert(), tmp_path / "adapter")), expected)
    plain = trainer.model.merge_and_unload()
    assert torch.equal(logits(plain), expected)
    sparse = [m.weight for n, m in plain.bert.encoder.named_modules() if isinstance(m, nn.Linear)]
    assert sum(int((w == 0).sum()) for w in sparse) == pytest.approx(0.9 * sum(w.numel() for w in sparse), abs=1)


def test_bidst_trainer_wants_a_config_or_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no BiDST adapter.*sparsity_config"):
        BiDSTTrainer(llama(), arguments(tmp_path))
    with pytest.raises(ValueError, match="already has a BiDST adapter"):
        BiDSTTrainer(get_peft_model(llama(), config()), arguments(tmp_path), sparsity_config=config())
    with pytest.raises(ValueError, match="needs a model"):
        BiDSTTrainer(args=arguments(tmp_path), sparsity_config=config())
    trainer = BiDSTTrainer(get_peft_model(llama(), config()), arguments(tmp_path))
    assert sum(isinstance(c, SparsityCallback) for c in trainer.callback_handler.callbacks) == 1


@pytest.mark.parametrize(
    ("topology", "target", "distribution"),
    [
        ("bidst", "weight", "erk"),
        ("rigl", "weight", "erk"),
        ("bidst", "delta", "erk"),
        ("bidst", "delta", "global"),
        ("gmp", "weight", "uniform"),
    ],
)
def test_a_resumed_run_equals_one_that_was_never_stopped_bit_for_bit(
    topology: str, target: str, distribution: str, tmp_path: Path
) -> None:
    settings = {"topology": topology, "target": target, "distribution": distribution}

    def trainer_of() -> Trainer:
        model = get_peft_model(llama(), config(target_modules="all-linear", **settings))
        args = arguments(tmp_path, save_strategy="steps", save_steps=10)
        return Trainer(model, args, train_dataset=Sentences())

    whole = trainer_of()
    whole.train()
    expected = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    resumed = trainer_of()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert resumed.state.global_step == 20
    result = resumed.model.state_dict()
    assert [name for name, tensor in expected.items() if not torch.equal(result[name], tensor)] == []


def test_the_callback_and_the_optimizer_hook_do_the_same(tmp_path: Path) -> None:
    data = Sentences(size=80)
    model = get_peft_model(llama(), config(target_modules="all-linear"))
    args = arguments(
        tmp_path,
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    Trainer(model, args, train_dataset=data).train()

    other = get_peft_model(llama(), config(target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    train_sparsely(other, optimizer, total_steps=20)
    for ids in data.ids.split(4):
        other(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert indices_of(model) == indices_of(other)
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_accumulation_and_bf16_train(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config(target_modules="all-linear"))
    args = arguments(tmp_path, gradient_accumulation_steps=2, bf16=True, activation_checkpointing=True)
    trainer = Trainer(model, args, train_dataset=Sentences())
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert logged[-1]["mask_updates"] >= 2


def test_it_composes_with_the_sharpness_aware_trainer(tmp_path: Path) -> None:
    model = get_peft_model(llama(), config(target_modules="all-linear"))
    trainer = S2SAMTrainer(
        model, arguments(tmp_path), sam_args=SAMArguments(method="s2sam", rho=0.05), train_dataset=Sentences(),
    )  # fmt: skip
    trainer.train()
    plain = model.merge_and_unload()
    weights = [m.weight for m in plain.model.layers.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w == 0).sum()) for w in weights) == pytest.approx(0.8 * sum(w.numel() for w in weights), abs=1)


@pytest.mark.parametrize("field", ["fsdp", "deepspeed"])
def test_sharded_training_is_refused(field: str, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    setattr(args, field, "full_shard" if field == "fsdp" else {"zero_optimization": {"stage": 3}})
    with pytest.raises(ValueError, match="Train with DDP"):
        SparsityCallback().on_train_begin(args, None, None, model=None, optimizer=None)  # type: ignore[arg-type]


RANK_PROGRAM = """
import torch, torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel
from hf_efficient import train_sparsely
from tests.sparsity.models import llama
from tests.sparsity.tuner.test_trainer import Sentences, config

def train(**settings):
    inner = get_peft_model(llama(), config(target_modules="all-linear", **settings))
    model = DistributedDataParallel(inner.train())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    training = train_sparsely(inner, optimizer, total_steps=20)
    for ids in Sentences(size=80).ids.split(4):
        ids = ids.chunk(2)[rank]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"state": inner.state_dict(), "updates": training.report()["mask_updates"]}

def error_of(**settings):
    try:
        train(**settings)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"

dist.init_process_group("gloo")
rank = dist.get_rank()
result = train()
result["global"] = error_of(distribution="global")
# indices are buffers, which DDP sends around; after it has, rank 1 loses one of them
original = DistributedDataParallel.__init__
def spoil(self, module, *a, **k):
    original(self, module, *a, **k)
    if rank == 1:
        next(b for n, b in module.named_buffers() if n.endswith("indices"))[0] += 1
DistributedDataParallel.__init__ = spoil
result["spoilt"] = error_of()
if rank == 0:
    torch.save(result, "result.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What rank 0 of two processes saw: a training, and two that must not be."""
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(RANK_PROGRAM, folder)
    result: dict[str, Any] = torch.load(folder / "result.pt", weights_only=True)
    return result


def test_two_ranks_train_what_one_process_does(two_ranks: dict[str, Any]) -> None:
    """The same masks as one process with the whole batch: dense gradients are averaged over the ranks."""
    model = get_peft_model(llama(), config(target_modules="all-linear")).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    train_sparsely(model, optimizer, total_steps=20)
    for ids in Sentences(size=80).ids.split(4):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert two_ranks["updates"] >= 2
    same = total = 0
    for name, tensor in model.state_dict().items():
        if name.endswith("indices"):
            same += len(set(tensor.tolist()) & set(two_ranks["state"][name].tolist()))
            total += len(tensor)
    assert same / total > 0.995  # sums in another order may decide a tie otherwise


def test_ranks_that_cannot_agree_stop(two_ranks: dict[str, Any]) -> None:
    assert two_ranks["global"].startswith("ValueError: distribution='global'")
    assert two_ranks["spoilt"].startswith("RuntimeError: Masks differ between ranks after step 0")
