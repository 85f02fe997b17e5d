"""Files of a config: found in a folder or on the Hub, uploaded in one commit."""

from __future__ import annotations

import os
from typing import Any


def find(folder_or_id: str | os.PathLike[str], name: str, missing: str, **hub_kwargs: Any) -> str:
    """Path of a file in a local folder, or of its copy from the Hub.

    Args:
        folder_or_id: local folder, or id of a Hub repository.
        name: of the file.
        missing: what it means, and what to do, if the folder lacks it.
        hub_kwargs: passed to `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: the local folder has no such file.
    """
    if not os.path.isdir(folder_or_id):
        from huggingface_hub import hf_hub_download

        return hf_hub_download(str(folder_or_id), name, **hub_kwargs)
    path = os.path.join(folder_or_id, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No {name} in {str(folder_or_id)!r}: {missing}")
    return path


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
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit.commit_url)
