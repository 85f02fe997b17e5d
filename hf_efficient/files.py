"""Files: found in a folder or on the Hub; written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block ends; after an exception nothing is left of it.

    The name stands beside `path` (a rename never crosses file systems), ends as `path` does (libraries go by that) and
    carries the process's number (processes that write the same file do not meet).
    """
    target = Path(path)
    draft = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


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
