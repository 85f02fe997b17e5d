"""Files found in a folder or on the Hub."""

import os
from typing import Any

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
ACCESS_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
ADAPTER_FOLDER = "adapter"  # below the weights that it belongs to, in the folder of an EfficiencyPlan


def find(folder_or_id: str | os.PathLike[str], name: str, missing: str, **hub_kwargs: Any) -> str:
    """Path of a file in a local folder, or of its copy from the Hub.

    Args:
        folder_or_id: local folder, or id of a Hub repository.
        name: of the file.
        missing: what it means, and what to do, if the folder lacks it.
        hub_kwargs: passed to `huggingface_hub.hf_hub_download`; `subfolder` holds for a local folder too.

    Raises:
        FileNotFoundError: the local folder has no such file, or there is no such folder.
    """
    if not is_local(folder_or_id):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return hf_hub_download(str(folder_or_id), name, **hub_kwargs)
        except LocalEntryNotFoundError as error:  # which names neither the folder nor the file
            raise LocalEntryNotFoundError(
                f"{str(folder_or_id)!r} is missing: there is no such folder, and {name} of that id of the Hub is not "
                f"in the cache and cannot be fetched now ({error})"
            ) from error
    folder_or_id = os.path.join(folder_or_id, hub_kwargs.get("subfolder") or "")
    path = os.path.join(folder_or_id, name)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No {name} in {str(folder_or_id)!r}: {missing}")
    return path


def is_local(folder_or_id: str | os.PathLike[str]) -> bool:
    """Whether it names a local folder; otherwise it is an id of the Hub.

    Raises:
        FileNotFoundError: it can be neither.
    """
    named = os.fspath(folder_or_id)
    if os.path.isdir(named):
        return True
    if os.path.lexists(named):
        raise FileNotFoundError(f"{named!r} is not a folder: give the folder that holds it, or an id of the Hub.")
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(named)
    except HFValidationError:  # as of every path that begins with . / or ~, or has several folders
        home = " (~ is a shortcut of the shell alone: write the whole path)" if named.startswith("~") else ""
        raise FileNotFoundError(f"{named!r} is missing: there is no such folder{home}.") from None
    return False


def repository(api: Any, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Make what an upload goes to, where it is absent: a repository of the Hub, and the branch `revision`.

    Args:
        api: an `HfApi`.
        repo_id: of the repository.
        private: whether a new one is.
        revision: a branch, a pull request's reference, or None for the main branch.

    Returns:
        The repository's id, with its owner.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id
