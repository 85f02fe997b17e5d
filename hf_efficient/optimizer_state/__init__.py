"""What optimizers remember of each weight: read and changed in one place."""

from .entries import check, forget, group_of, innermost, keeps_momentum, momenta, momentum, pace, resize
from .roles import declare

__all__ = [
    "check",
    "declare",
    "forget",
    "group_of",
    "innermost",
    "keeps_momentum",
    "momenta",
    "momentum",
    "pace",
    "resize",
]
