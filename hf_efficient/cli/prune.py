"""`hf-efficient prune`: a model that comes back with its token pruner."""

import argparse
import sys

from hf_efficient import TokenPrunerConfig, attach_token_pruner
from hf_efficient.compat.transformers_processors import tokens_of_picture
from hf_efficient.files import folder_written_whole
from hf_efficient.representation.evaluation.questions import load_vlm

from . import pruner_settings
from .model_options import check_place, of_the_model
from .output import Content
from .push import push

PICTURE = (1024, 768)  # whose visual tokens are told; of many models they depend on the size


def run(arguments: argparse.Namespace) -> Content:
    """Attach a token pruner to a local or Hub model and save both to a new folder.

    Raises:
        ValueError: a setting is invalid, or the model's family is not supported.
        OSError: the model cannot be loaded, or the output folder is in use or cannot be written.
    """
    check_place(arguments)
    config = TokenPrunerConfig.from_dict(pruner_settings(arguments))
    output = arguments.output
    with folder_written_whole(output) as draft:
        model, processor = load_vlm(arguments.model, **of_the_model(arguments))
        before = tokens_of_picture(processor, *PICTURE)
        attach_token_pruner(model, processor, config)
        after = tokens_of_picture(processor, *PICTURE)
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    print(f"Saved to {output}: {config.method}, budget {config.budget}.{told(before, after)}")
    if before is not None and before == after and config.budget != 1.0:
        print(f"warning: budget {config.budget} keeps all {before} visual tokens of a picture of {PICTURE[0]} x "
              f"{PICTURE[1]}: nothing is saved. Give a smaller one.", file=sys.stderr)  # fmt: skip
    uploaded = push(output, arguments)
    print(f"    from hf_efficient import load_token_pruned\n    model, processor = load_token_pruned({str(output)!r})")
    tokens = {"of_picture": PICTURE, "before": before, "after": after}
    return {"output": output, "token_pruner": config.to_dict(), "visual_tokens": tokens, "uploaded": uploaded}


def told(before: int | None, after: int | None) -> str:
    """What becomes of a picture's tokens, where its size tells."""
    if before is None or after is None:
        return ""
    size = f"{PICTURE[0]} x {PICTURE[1]}"
    if before == after:
        return f" A picture of {size} keeps its {before} visual tokens."
    return f" A picture of {size} has {after} visual tokens instead of {before}."
