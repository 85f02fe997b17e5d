"""A plan's folder on the Hub, in one commit."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_efficient.files import repository
from hf_efficient.files.card import is_free

from . import file as plan_file
from .card import CARD
from .folder import save


def push(
    plan: Any,
    repo_id: str,
    model: Any,
    processor: Any,
    report: Any,
    *,
    commit_message: str,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Upload what `folder.save` writes to a repository (made if absent); returns the URL of the commit.

    Files of an earlier plan that are not written again are deleted there. A card that somebody wrote or edited stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = repository(api, repo_id, private, revision)
    with TemporaryDirectory() as place:
        before = Path(place, "before")
        for name in (plan_file.NAME, CARD):
            if api.file_exists(repo_id, name, revision=revision):
                api.hf_hub_download(repo_id, name, revision=revision, local_dir=before)
        stale = plan_file.files_of(before)
        card = before / CARD
        theirs = not is_free(card)
        folder = Path(place, "plan")
        save(plan, folder, model, processor, report, repo_id)
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=os.fspath(folder),
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=[CARD] if theirs else None,
                delete_patterns=[name for name in stale if name != CARD] or None,
            ).commit_url
        )
