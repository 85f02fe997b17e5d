"""`hf-efficient report`: what a model costs, and what a token pruner leaves of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_efficient.files import find
from hf_efficient.files.interrupted_save import FILE_NAME
from hf_efficient.serving.choice import chosen_config
from hf_efficient.sparsity.storage.stored import stored_sparsely

from . import pruner_settings
from .model_options import check_place, of_the_hub, of_the_model
from .output import Content, check_plot

if TYPE_CHECKING:
    from hf_efficient import TokenPrunerConfig
    from hf_efficient.budget.report import BudgetReport


def run(arguments: argparse.Namespace) -> Content:
    """Measure a model on one prompt; with a token pruner, saved or by its options, without and with it.

    Raises:
        ValueError: a setting is invalid, or options of a pruner are given for a model without pictures.
        OSError: the model or the image cannot be read.
    """
    check_plot(arguments.plot)
    check_place(arguments)
    settings, model_id = pruner_settings(arguments), arguments.model
    if model_id is not None and not sees(model_id, **of_the_hub(arguments)):
        if settings or arguments.image:
            given = "image" if arguments.image else next(iter(settings))
            raise ValueError(
                f"{given}={str(getattr(arguments, given))!r} is for models that see; {model_id} reads text alone."
            )
        reports = [measured_text_model(arguments)]
    else:
        reports = measured_vlm(arguments, settings)
    if model_id is not None and stored_sparsely(model_id, **of_the_hub(arguments)):
        reports = [with_bytes(report, sparse_bytes(model_id, arguments.revision)) for report in reports]
    now, before = reports[-1], reports[0] if len(reports) > 1 else None
    print(now.to_markdown(before, modules=arguments.rows))
    if arguments.plot:
        now.plot(arguments.plot, before)
    return {"now": now.to_dict()} | ({} if before is None else {"before": before.to_dict()})


def sparse_bytes(model_id: str, revision: str | None) -> int:
    """Bytes of weights that are stored sparsely, without the header of their file, as they count everywhere."""
    path = Path(find(model_id, FILE_NAME, "", **({} if revision is None else {"revision": revision})))
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")  # its length comes first
    return path.stat().st_size - 8 - header


def with_bytes(report: BudgetReport, size: int) -> BudgetReport:
    """A report of a model whose file has another size than if it were saved as it is in memory."""
    return replace(report, parameters=replace(report.parameters, file_bytes=size))


def sees(model_id: str, **hub: Any) -> bool:
    """Whether a model takes pictures; `hub`: its revision, if one is given."""
    from transformers import AutoConfig

    find(model_id, "config.json", "expected a folder saved by save_pretrained.", **hub)  # names what is missing
    config = AutoConfig.from_pretrained(model_id, **hub)
    return any(hasattr(config, name) for name in ("vision_config", "image_token_id", "image_token_index"))


def measured_text_model(arguments: argparse.Namespace) -> BudgetReport:
    """On a text: the model that was saved, its head included; of an encoder and decoder, the first token as well.

    Raises:
        ValueError: the text has no tokens, or the model does not read text.
    """
    import torch
    import transformers

    from hf_efficient.budget.measure import measure
    from hf_efficient.sparsity.storage.stored import load_stored

    model_id, text, hub = arguments.model, arguments.text, of_the_hub(arguments)
    config = transformers.AutoConfig.from_pretrained(model_id, **hub)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_id, **hub)
    except (OSError, ValueError) as error:
        said = f"{model_id} has no tokenizer that can be read; expected a model of text, or of text and pictures"
        raise ValueError(f"{said}: {error}") from error
    inputs = tokenizer(text, return_tensors="pt")
    if not inputs["input_ids"].numel():
        raise ValueError(f"text={text!r} has no tokens; expected at least one.")
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.full((1, 1), config.decoder_start_token_id or 0)
    saved = (config.architectures or ["AutoModel"])[0]
    loader = getattr(transformers, saved, transformers.AutoModel)
    model = load_stored(loader, model_id, **of_the_model(arguments)).to(arguments.device)
    return measure(model, inputs.to(arguments.device))


def pruner(model_id: str | None, settings: dict[str, object], revision: str | None) -> TokenPrunerConfig | None:
    """The pruner that a model was saved with, with the settings given in the place of its own; None: there is none."""
    from hf_efficient import TokenPrunerConfig

    if model_id is None:
        return TokenPrunerConfig.from_dict(settings) if settings else None
    if settings:
        return chosen_config(model_id, settings, revision)
    try:
        return TokenPrunerConfig.from_pretrained(model_id, **({} if revision is None else {"revision": revision}))
    except OSError:  # none is saved
        return None


def measured_vlm(arguments: argparse.Namespace, settings: dict[str, object]) -> list[BudgetReport]:
    """On a picture and a question: stock, and with a pruner if one is saved with the model or settings are given."""
    from PIL import Image

    from hf_efficient import attach_token_pruner
    from hf_efficient.budget.measure import measure
    from hf_efficient.representation.evaluation import questions

    model_id, image = arguments.model, arguments.image
    config = pruner(model_id, settings, arguments.revision)
    which = questions.TINY_VLM if model_id is None else model_id
    model, processor = questions.load_vlm(which, **of_the_model(arguments))
    model.to(arguments.device)
    shown = Image.open(image).convert("RGB") if image else questions.load_evaluation_set(limit=1)[0].image
    reports = []
    for one in [None] if config is None else [None, config]:
        if one is not None:
            attach_token_pruner(model, processor, one)
        inputs = questions.on_device(model, questions.encode_prompts(processor, [shown], [arguments.text]))
        reports.append(measure(model, inputs))
    return reports
