"""`--push-to-hub` of the commands that save a folder."""

import argparse
import os
from pathlib import Path

from hf_efficient.files import repository


def add_push(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push-to-hub", metavar="ID", help="repository to upload the folder to, made if absent")
    group.add_argument("--private", action="store_true", help="make a new repository private")
    group.add_argument("--create-pr", action="store_true", help="propose the upload as a pull request")


def push(folder: Path, arguments: argparse.Namespace) -> str | None:
    """Upload a folder in one commit, where that was asked for; the token is that of `hf auth login`.

    Returns:
        Address of the commit or the proposal; None where nothing was asked for.

    Raises:
        OSError: the Hub cannot be reached, or refuses.
    """
    if arguments.push_to_hub is None:
        return None
    from huggingface_hub import HfApi

    api = HfApi()
    repo_id = repository(api, arguments.push_to_hub, arguments.private or None, None)
    done = api.upload_folder(
        repo_id=repo_id,
        folder_path=os.fspath(folder),
        commit_message="Upload with hf-efficient",
        create_pr=arguments.create_pr,
    )
    address = str(done.pr_url or done.commit_url)
    print(f"Uploaded to {address}")
    return address
