"""What a model is to be under a budget: tokens, sparse weights, training, precision, in one file beside the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hf_efficient.optimization.arguments import SAMArguments
from hf_efficient.reading import naming, shown
from hf_efficient.representation.config import TokenPrunerConfig

from . import file as plan_file
from .parts import PARTS, check_together, part_of, values_of
from .pruning import PruningConfig

if TYPE_CHECKING:
    from hf_efficient.sparsity.tuner.config import BiDSTConfig


@dataclass
class EfficiencyPlan:
    """How a model saves tokens, weights and bits, and how it is trained to.

    Each part may be given as its configuration or as a dict of its settings, and each is optional.

    Args:
        token_pruner: which visual tokens are kept, a `TokenPrunerConfig`.
        sparsity: which weights are, a `BiDSTConfig`: a sparse model, or a sparse adapter.
        sam: how training finds a flat minimum, `SAMArguments`; read by `EfficientTrainer`.
        precision: how weights are quantized when they are loaded, a `BitsAndBytesConfig` or `TorchAoConfig` of
            transformers; kept as its plain dict.
        pruning: zeros put into the weights in one shot, a `PruningConfig`.

    Raises:
        ValueError: a setting is not known or out of range, or parts cannot go together; the message names part, value
            and fix.
    """

    token_pruner: TokenPrunerConfig | None = None
    sparsity: BiDSTConfig | None = None
    sam: SAMArguments | None = None
    precision: dict[str, Any] | None = None
    pruning: PruningConfig | None = None

    def __post_init__(self) -> None:
        for name in PARTS:
            setattr(self, name, part_of(name, getattr(self, name)))
        check_together(self)

    def to_dict(self) -> dict[str, Any]:
        """All parts as plain JSON values."""
        return {name: values_of(name, getattr(self, name)) for name in PARTS}

    def to_json_string(self) -> str:
        """The parts as JSON, which `from_dict(json.loads(...))` reads back."""
        return plan_file.to_json(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EfficiencyPlan:
        """Build from plain values; absent parts are None.

        Raises:
            ValueError: a key is not a part of a plan, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(
                f"Unknown parts {shown(unknown)} of a plan; expected only {', '.join(known)}. Remove them, or upgrade "
                "hf_efficient."
            )
        return cls(**values)

    @classmethod
    def of(cls, plan: EfficiencyPlan | dict[str, Any] | str | os.PathLike[str], **hub_kwargs: Any) -> EfficiencyPlan:
        """The plan that is given as itself, as its values, or by where it was saved.

        Args:
            plan: a plan, its values as a dict, or a folder or Hub id it was saved to.
            hub_kwargs: as of `from_pretrained`, read where a Hub id is given.

        Raises:
            TypeError: it is none of these.
            ValueError, FileNotFoundError: as `from_dict` and `from_pretrained`.
        """
        if isinstance(plan, cls):
            return plan
        if isinstance(plan, dict):
            return cls.from_dict(plan)
        if isinstance(plan, (str, os.PathLike)):
            return cls.from_pretrained(plan, **hub_kwargs)
        raise TypeError(f"plan={shown(plan)} is not a plan; expected an EfficiencyPlan, a dict of its parts, or a "
                        "folder or Hub id.")  # fmt: skip

    def apply(self, model: Any, processor: Any = None, batches: Iterable[Any] | None = None) -> tuple[Any, Any]:
        """Put the plan on a model: prune its weights, attach the pruner of tokens, make the sparse model.

        In place; what is there already stays.

        Args:
            model: a model of transformers, loaded with the plan's precision if it has one.
            processor: its processor, which a pruner of tokens needs; None for a text model.
            batches: inputs that the model is called with, which a plan with `pruning` looks at.

        Returns:
            The model, inside a `PeftModel` where the plan has sparsity, and the processor.

        Raises:
            TypeError: `model` is no torch module.
            ValueError: the model was loaded otherwise than the plan says, has something that it does not, or cannot
                have what it says.
        """
        from .applying import apply

        return apply(self, model, processor, batches)

    def save_pretrained(
        self, folder: str | os.PathLike[str], model: Any = None, processor: Any = None, report: Any = None
    ) -> None:
        """Write the plan, alone or with the model that was made by it, into one folder that every loader reads.

        Plain transformers reads the stock weights, PEFT the adapter (`subfolder="adapter"`), `EfficiencyPlan.load` all.
        All files appear together or not at all. What others have put into the folder stays, a card above all.

        Args:
            folder: made if absent.
            model: as `apply` returned it, trained or not; None: the plan alone.
            processor: its processor or tokenizer.
            report: what it costs, a `BudgetReport`, for the card.

        Raises:
            ValueError: the model is not what was planned.
            FileExistsError: a file of another origin is in the way; nothing was touched.
            BlockingIOError: another process is writing the folder.
            OSError: no space is left, or no permission; what was there is kept.
        """
        from .folder import save

        save(self, folder, model, processor, report)

    @classmethod
    def from_pretrained(cls, folder_or_id: str | os.PathLike[str], **hub_kwargs: Any) -> EfficiencyPlan:
        """Read the plan in a folder or a repository of the Hub, without its model.

        Args:
            folder_or_id: local folder, or id of a Hub repository.
            hub_kwargs: passed to `huggingface_hub.hf_hub_download` (`revision`, `subfolder`, `token`, ...).

        Raises:
            FileNotFoundError: the local folder has no plan.
            ValueError: the file is not JSON, was written by another version, or has unknown or invalid settings.
        """
        from .folder import check_pruner

        path, values = plan_file.read(folder_or_id, **hub_kwargs)
        with naming(path):
            values["token_pruner"] = check_pruner(values.get("token_pruner"), folder_or_id, **hub_kwargs)
            return cls.from_dict(values)

    @classmethod
    def load(
        cls,
        folder_or_id: str | os.PathLike[str],
        plan: EfficiencyPlan | dict[str, Any] | str | os.PathLike[str] | None = None,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Load a model and its processor with all of a plan.

        Args:
            folder_or_id: what `save_pretrained` or an `EfficientTrainer` wrote, or any stock model with `plan`.
            plan: a plan, its values, or a folder or Hub id it was saved to; None reads the one beside the weights.
            is_trainable: whether a saved adapter is to be trained on.
            kwargs: for the model's `from_pretrained`; those about the Hub (`revision`, `token`, `cache_dir`,
                `local_files_only`, `force_download`) and `subfolder` hold for processor, adapter and plan too.

        Returns:
            Model and processor; the processor is None where none was saved.

        Raises:
            FileNotFoundError: there is no such folder, or no plan is given and none was saved.
            ModuleNotFoundError: the library of the plan's precision is not installed.
            ValueError: as `from_pretrained` and `apply`.
        """
        from .loading import ACCESS_ARGUMENTS, HUB_ARGUMENTS, load

        hub = {k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS and v is not None}
        if plan is None:
            chosen = cls.from_pretrained(folder_or_id, **hub)  # first: it fails before the weights are read
        else:
            chosen = cls.of(plan, **{k: hub[k] for k in ACCESS_ARGUMENTS if k in hub})
        model, processor = load(chosen, folder_or_id, is_trainable, kwargs)
        return model, processor

    def push_to_hub(
        self,
        repo_id: str,
        model: Any = None,
        processor: Any = None,
        report: Any = None,
        *,
        commit_message: str = "Upload efficiency plan",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the files of `save_pretrained` to a Hub repository (made if absent), in one commit.

        Args:
            repo_id: of the repository.
            model: as of `save_pretrained`; so are the next two.
            processor: its processor or tokenizer.
            report: what it costs.
            commit_message: of the commit.
            private: whether a new repository is.
            token: of the Hub.
            revision: branch to commit to.
            create_pr: propose the commit instead.

        Returns:
            The URL of the commit.
        """
        from .hub import push

        return push(
            self, repo_id, model, processor, report, commit_message=commit_message, private=private, token=token,
            revision=revision, create_pr=create_pr,
        )  # fmt: skip
