"""vLLM with fewer visual tokens: an out-of-tree plug-in that serves exactly K of them, with transformers' answers.

vLLM finds it by the entry point `vllm.general_plugins`, which calls `register` in each of its processes. Nothing has to
be imported by the user: a folder saved with a token pruner is served with it.
"""


def register() -> None:
    """Put subclasses in the place of vLLM's classes of the served architectures; stock where no pruner is configured.

    May be called any number of times in a process. vLLM imports the classes when a model asks for one of them, so that
    no CUDA is initialized before it forks its workers.
    """
    from vllm import ModelRegistry

    from hf_efficient.compat.vllm import check_processors

    from .families import ARCHITECTURES
    from .refusal import refuse_other_models

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(architecture, f"{__name__}.classes:{architecture}")
    check_processors(refuse_other_models)
