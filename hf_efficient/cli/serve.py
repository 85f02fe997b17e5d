"""`hf-efficient serve`: a pruned model behind an OpenAI-compatible server."""

from __future__ import annotations

import argparse
from dataclasses import fields

from hf_efficient.serving.limits import Limits

from . import pruner_settings


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; with vLLM, become `vllm serve`.

    Raises:
        ValueError: a setting is invalid, no pruner is given or saved, or the engine cannot do what is asked.
        OSError: the model cannot be loaded, or the address cannot be had.
        ImportError: the engine is not installed; the message says what to install.
    """
    if arguments.continuous_batching:
        raise ValueError(
            "continuous_batching=True is refused: transformers' continuous batching takes token ids alone, and answers "
            "prompts with pictures wrongly, without an error. Use --engine vllm for batches."
        )
    settings = pruner_settings(arguments)
    if arguments.engine == "vllm":
        from hf_efficient.serving.vllm_command import become_vllm

        become_vllm(arguments, settings)
        return
    if arguments.vllm_arguments is not None:
        raise ValueError(f"vllm_arguments={arguments.vllm_arguments!r} are for `vllm serve`: add --engine vllm.")
    limits = Limits(**{one.name: getattr(arguments, one.name) for one in fields(Limits)})
    from hf_efficient.serving.choice import chosen_config
    from hf_efficient.serving.engine import Source
    from hf_efficient.serving.serve import serve

    source = Source(
        model=arguments.model,
        config=chosen_config(arguments.model, settings, arguments.revision),
        name=arguments.name or arguments.model,
        revision=arguments.revision,
        device=arguments.device,
        dtype=arguments.dtype,
        attention=arguments.attention,
    )
    serve(source, limits, arguments.host, arguments.port, arguments.stop_seconds)
