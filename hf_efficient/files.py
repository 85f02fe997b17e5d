"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
