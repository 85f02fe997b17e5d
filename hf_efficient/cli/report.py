"""`hf-efficient report`: what a model costs, and what a token pruner leaves of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hf_efficient.files import is_local
from hf_efficient.files.outputs import check_output
from hf_efficient.serving.choice import chosen_config

from . import pruner_settings
from .output import write_json

if TYPE_CHECKING:
    from hf_efficient import TokenPrunerConfig
    from hf_efficient.budget.report import BudgetReport


def run(arguments: argparse.Namespace) -> None:
    """Measure a model on one prompt; with a token pruner, saved or by its options, without and with it.

    Raises:
        ValueError: a setting is invalid, or options of a pruner are given for a model without pictures.
        OSError: the model or the image cannot be read.
    """
    to_stdout = str(arguments.json) == "-"
    for output in (None if to_stdout else arguments.json, arguments.plot):
        if output is not None:
            check_output(output, "file")
    settings, model_id = pruner_settings(arguments), arguments.model
    if model_id is not None and not sees(model_id):
        if settings or arguments.image:
            given = "image" if arguments.image else next(iter(settings))
            raise ValueError(
                f"{given}={str(getattr(arguments, given))!r} is for models that see; {model_id} reads text alone."
            )
        reports = [measured_text_model(model_id, arguments.text)]
    else:
        reports = measured_vlm(model_id, arguments.image, arguments.text, settings)
    now, before = reports[-1], reports[0] if len(reports) > 1 else None
    if not to_stdout:
        print(now.to_markdown(before, modules=arguments.rows))
    if arguments.plot:
        now.plot(arguments.plot, before)
    if arguments.json:
        content = {"now": now.to_dict()} | ({} if before is None else {"before": before.to_dict()})
        write_json(arguments.json, content)


def sees(model_id: str) -> bool:
    """Whether a model takes pictures."""
    from transformers import AutoConfig

    is_local(model_id)  # raises if it is neither here nor on the Hub
    config = AutoConfig.from_pretrained(model_id)
    return any(hasattr(config, name) for name in ("vision_config", "image_token_id", "image_token_index"))


def measured_text_model(model_id: str, text: str) -> BudgetReport:
    """On a text: the model that was saved, its head included; of an encoder and decoder, the first token as well.

    Raises:
        ValueError: the text has no tokens, or the model does not read text.
    """
    import torch
    import transformers

    from hf_efficient.budget.measure import measure

    config = transformers.AutoConfig.from_pretrained(model_id)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_id)
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
    return measure(loader.from_pretrained(model_id).eval(), inputs)


def pruner(model_id: str | None, settings: dict[str, object]) -> TokenPrunerConfig | None:
    """The pruner that a model was saved with, with the settings given in the place of its own; None: there is none."""
    from hf_efficient import TokenPrunerConfig

    if model_id is None:
        return TokenPrunerConfig.from_dict(settings) if settings else None
    if settings:
        return chosen_config(model_id, settings)
    try:
        return TokenPrunerConfig.from_pretrained(model_id)
    except OSError:  # none is saved
        return None


def measured_vlm(
    model_id: str | None, image: Path | None, text: str, settings: dict[str, object]
) -> list[BudgetReport]:
    """On a picture and a question: stock, and with a pruner if one is saved with the model or settings are given."""
    from PIL import Image

    from hf_efficient import attach_token_pruner
    from hf_efficient.budget.measure import measure
    from hf_efficient.representation.evaluation import questions

    config = pruner(model_id, settings)
    model, processor = questions.load_vlm(questions.TINY_VLM if model_id is None else model_id)
    shown = Image.open(image).convert("RGB") if image else questions.load_evaluation_set(limit=1)[0].image
    reports = []
    for one in [None] if config is None else [None, config]:
        if one is not None:
            attach_token_pruner(model, processor, one)
        inputs = questions.on_device(model, questions.encode_prompts(processor, [shown], [text]))
        reports.append(measure(model, inputs))
    return reports
