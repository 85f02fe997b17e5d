"""Files of a config: one that says everything, and the weights of a generator that it names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_efficient.files import find, locked, make_folder, remove_file, repository, write_bytes, write_text
from hf_efficient.files.interrupted_save import configs_inside, finish_save
from hf_efficient.reading import naming, parse_object, read_json, shown

CONFIG_NAME, GENERATOR_NAME = "token_pruner_config.json", "generator.safetensors"
_WEIGHTS = re.compile(r"generator(-[0-9a-f]{16})?\.safetensors")


def files_of(values: dict[str, Any], weights: bytes | None, name: str = GENERATOR_NAME) -> dict[str, bytes]:
    """Names and contents, weights first.

    Args:
        values: the config as plain values, the generator's settings included.
        weights: of the generator, where there is one.
        name: of their file; the config says it, and their checksum.
    """
    if weights is not None:
        said = {"file": name, "sha256": hashlib.sha256(weights).hexdigest()}
        values = {**values, "generator": {**values["generator"], **said}}
    config = to_json(values).encode()
    return {CONFIG_NAME: config} if weights is None else {name: weights, CONFIG_NAME: config}


def to_json(values: dict[str, Any]) -> str:
    """A count and a share stay apart (`1` and `1.0`)."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def save(folder: Path, values: dict[str, Any], weights: bytes | None) -> None:
    """Write a config into a folder, which may hold other things, as a whole.

    The config is replaced last, in one step. The weights that an older one names are not touched before that: the new
    ones take another name.

    Raises:
        BlockingIOError: another process is writing it.
        OSError: no space is left, or no permission; what was there is kept.
    """
    make_folder(folder)
    finish_save(folder)
    with replaced(folder, values, weights) as files:
        for name, text in files.items():
            write_text(folder / name, text)


@contextmanager
def replaced(folder: Path, values: dict[str, Any], weights: bytes | None) -> Iterator[dict[str, str]]:
    """Name and content of a config whose weights are there already, for the block to write, as a whole or with others.

    What older ones need is there until the block has ended.

    Raises:
        BlockingIOError: another process is writing it.
        OSError: no space is left, or no permission.
    """
    with locked(folder / CONFIG_NAME):
        used = _weights_in_use(folder)
        name = GENERATOR_NAME
        if weights is not None and used == GENERATOR_NAME and not _is(folder / used, weights):
            name = f"generator-{hashlib.sha256(weights).hexdigest()[:16]}.safetensors"
        made = files_of(values, weights, name)
        if weights is not None and not _is(folder / name, weights):
            write_bytes(folder / name, weights)
        yield {CONFIG_NAME: made[CONFIG_NAME].decode()}
        for path in folder.iterdir():
            if path.name not in made and (path.name == used or _is_ours(path)):
                remove_file(path)


def _weights_in_use(folder: Path) -> str | None:
    """The weights that the config in a folder names."""
    try:
        generator = read_json(folder / CONFIG_NAME).get("generator")
        return _weights_name(generator) if isinstance(generator, dict) else None
    except (OSError, ValueError):
        return None


def _weights_name(generator: dict[str, Any]) -> str:
    name = generator.get("file", GENERATOR_NAME)
    if not isinstance(name, str) or not _WEIGHTS.fullmatch(name):
        raise ValueError(f"generator: file={shown(name)} is no name of a generator's weights, as {GENERATOR_NAME!r}.")
    return name


def _is(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _is_ours(path: Path) -> bool:
    """Whether a file is one that `save` wrote under the name of its content, and a kill left."""
    found = _WEIGHTS.fullmatch(path.name)
    return bool(found and found[1] and path.is_file() and not path.is_symlink() and _digest(path)[:16] == found[1][1:])


def _digest(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(folder_or_id: str | os.PathLike[str], hub_kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and values of a saved config, the generator loaded. One saved without a checksum is read as well.

    Raises:
        FileNotFoundError: the local folder has no such file.
        ValueError: the file is not JSON, or its generator cannot be loaded, or is another than it was saved with.
    """
    path = find(folder_or_id, CONFIG_NAME, "the folder was saved without a token pruner. Pass a TokenPrunerConfig, "
                "or save the folder with one attached.", **hub_kwargs)  # fmt: skip
    inside = configs_inside(Path(path).parent).get(CONFIG_NAME)
    values = read_json(path) if inside is None else parse_object(inside.encode(), path)
    if isinstance(values.get("generator"), dict):
        from .generator import TokenGenerator

        settings = dict(values["generator"])
        with naming(path):
            name, digest = _weights_name(settings), settings.pop("sha256", None)
        settings.pop("file", None)
        beside = find(folder_or_id, name, f"its {CONFIG_NAME} asks for these weights. Copy the whole folder, or set "
                      '"generator" to null in it.', **hub_kwargs)  # fmt: skip
        with naming(path):
            values["generator"] = TokenGenerator.from_file(beside, settings)
        if digest is not None and digest != _digest(beside):
            raise ValueError(f"{beside} is not the file that {CONFIG_NAME} was saved with: copy both again.")
    return path, values


def push(
    files: dict[str, bytes],
    repo_id: str,
    commit_message: str,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Upload files, by name, to a Hub repository (made if absent) in one commit; returns the commit's URL."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    repo_id = repository(api, repo_id, private, revision)
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit.commit_url)
