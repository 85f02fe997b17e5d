"""`hf-efficient prune`: a model that comes back with its token pruner."""

import argparse

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.files import folder_written_whole
from hf_efficient.representation.evaluation.questions import load_vlm

from . import pruner_settings
from .push import push


def run(arguments: argparse.Namespace) -> None:
    """Attach a token pruner to a local or Hub model and save both to a new folder.

    Raises:
        ValueError: a setting is invalid, or the model's family is not supported.
        OSError: the model cannot be loaded, or the output folder is in use or cannot be written.
    """
    config = TokenPrunerConfig.from_dict(pruner_settings(arguments))
    output = arguments.output
    with folder_written_whole(output) as draft:
        model, processor = load_vlm(arguments.model)
        attach_token_pruner(model, processor, config)
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    print(f"Saved to {output}: {config.method}, budget {config.budget}.")
    push(output, arguments)
    print(f"    from hf_efficient import load_token_pruned\n    model, processor = load_token_pruned({str(output)!r})")
