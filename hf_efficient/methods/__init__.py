"""The one table of methods: what there is, what each is, needs and reads, and where it is implemented. Without torch.

A method is one file and one row here: `representation.py`, `optimization.py`, `sparsity.py`, `video.py` (methods and
networks) and `families.py` hold the rows, `row.py` says what a row is. From the rows come the checks of settings
(`settings.py`), `hf-efficient methods`, and the page docs/paper_index.md (`pages.py`). docs/adding.md adds a method of
each kind.
"""

from .families import FAMILIES
from .optimization import OPTIMIZATION
from .representation import REPRESENTATION
from .row import Kind, Method, Only, Paper, Setting
from .settings import check_settings, settings_of, unread, with_method
from .sparsity import SPARSITY
from .video import BACKBONES, VIDEO

#: All kinds of methods, in the order in which they are listed.
KINDS = (REPRESENTATION, OPTIMIZATION, SPARSITY, VIDEO, BACKBONES, FAMILIES)

__all__ = [
    "BACKBONES",
    "FAMILIES",
    "KINDS",
    "OPTIMIZATION",
    "REPRESENTATION",
    "SPARSITY",
    "VIDEO",
    "Kind",
    "Method",
    "Only",
    "Paper",
    "Setting",
    "check_settings",
    "settings_of",
    "unread",
    "with_method",
]
