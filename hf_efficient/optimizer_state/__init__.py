"""What optimizers keep for each weight: read it, and keep it right when weights move.

`roles.py` is the table of what torch's optimizers and others keep; `moved_weights.py` resets and resizes it,
`momentum.py` and `step_size.py` read it, `quantized.py` does so in 8 bits.
"""

from .momentum import keeps_momentum, momenta
from .moved_weights import check, forget, resize
from .roles import declare
from .step_size import Pace, pace
from .structure import EXCHANGED, group_of, held_ids, innermost

__all__ = [
    "EXCHANGED",
    "Pace",
    "check",
    "declare",
    "forget",
    "group_of",
    "held_ids",
    "innermost",
    "keeps_momentum",
    "momenta",
    "pace",
    "resize",
]
