"""Which weights a topology drops and which it grows: one short file each, listed in hf_efficient.methods.SPARSITY."""

from .base import Topology
from .bidst import BiDST
from .gmp import GMP
from .mest import MEST
from .rigl import RigL
from .set import SET
from .static import Static

__all__ = ["GMP", "MEST", "SET", "BiDST", "RigL", "Static", "Topology"]
