"""Model cards beside what is saved. A card that was written here is replaced by the next, until somebody edits it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .whole import write_text

NAME = "README.md"
PLACE = "THIS_FOLDER_OR_HUB_ID"
_SEAL = re.compile(r"\n<!-- Written by hf_efficient, which replaces it until it is edited: ([0-9a-f]{64}) -->\n\Z")

TEXT = """---
{data}
---

# {title}

{text}

## Load it

```python
{load}
```

{more}
"""


def sealed(text: str) -> str:
    """A card that says it was written here, and shows when it was edited since."""
    return text + f"\n<!-- Written by hf_efficient, which replaces it until it is edited: {_digest(text)} -->\n"


def is_ours(text: str) -> bool:
    """Whether a card was written here and not edited since."""
    found = _SEAL.search(text)
    return found is not None and _digest(text[: found.start()]) == found[1]


def is_free(path: Path) -> bool:
    """Whether there is no card yet, or one that was written here and not edited since."""
    return not path.is_file() or is_ours(path.read_text(encoding="utf-8", errors="replace"))


def base_of(model: Any) -> str | None:
    """The Hub id of what a model was made of; None where it has none, or that is a folder here."""
    name = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def write_card(
    folder: Path,
    title: str,
    text: str,
    load: str,
    *,
    library: str,
    tags: Sequence[str],
    base: str | None = None,
    pipeline: str | None = None,
    more: str = "",
) -> None:
    """Write the card of a folder, unless somebody's stands there.

    Args:
        folder: that was saved to.
        title: of the card.
        text: what was done.
        load: lines of Python that load it from `PLACE`.
        library: `library_name`, by which the Hub finds it.
        tags: besides "hf_efficient".
        base: Hub id of the model it was made of.
        pipeline: the task.
        more: what else there is to say.

    Raises:
        OSError: no space is left, or no permission.
    """
    from huggingface_hub import ModelCardData

    if not is_free(folder / NAME):
        return
    data = ModelCardData(
        base_model=base, library_name=library, pipeline_tag=pipeline, tags=list(dict.fromkeys(["hf_efficient", *tags]))
    )
    made = f"Made of [{base}](https://huggingface.co/{base}). " if base else ""
    body = TEXT.format(data=data.to_yaml().strip(), title=title, text=made + text, load=load, more=more)
    write_text(folder / NAME, sealed(body.rstrip() + "\n"))


def add_section(path: Path, heading: str, section: str, tags: Sequence[str]) -> None:
    """Add a section and tags to a card of another library, once; a card is made where there is none."""
    from huggingface_hub import ModelCard, ModelCardData

    card: Any = ModelCard.load(path) if path.is_file() else ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n")
    if heading not in card.text:
        card.text = f"{card.text.rstrip()}\n\n{heading}\n\n{section}\n"
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), "hf_efficient", *tags]))
    write_text(path, str(card))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
