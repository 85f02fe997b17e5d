"""What the model card of a sparse adapter says: PEFT writes the card, this the section on how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_efficient.files.card import NAME, PLACE, add_section
from hf_efficient.methods import SPARSITY

if TYPE_CHECKING:
    from .config import BiDSTConfig

HEADING = "### Sparse adapter"
TEXT = """{sparsity:.4g} of {what} are inactive; `{name}` chose which ({source}). Its type is one that \
`hf_efficient` adds to PEFT, by being imported:

```python
import hf_efficient
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{place}")
```"""


def write(folder: Path, config: BiDSTConfig) -> None:
    """Add the section and tags to the card in a folder, once; a card is made where there is none."""
    row = SPARSITY.row(config.topology)
    what = "the layers' own weights" if config.target == "weight" else "the entries of its deltas"
    text = TEXT.format(sparsity=config.sparsity, what=what, name=row.name, source=row.source, place=PLACE)
    add_section(folder / NAME, HEADING, text, ["sparse-adapter", row.name])
