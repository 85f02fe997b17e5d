"""Files of a config, uploaded to the Hub in one commit."""

from __future__ import annotations


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
