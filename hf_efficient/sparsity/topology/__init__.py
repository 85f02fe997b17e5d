"""Topologies: who lives, who dies. One short file each; `TOPOLOGIES` is the list of what there is."""

from .bidst import BiDST
from .gmp import GMP
from .mest import MEST
from .rigl import RigL
from .set import SET
from .static import Static
from .topology import Topology

TOPOLOGIES: dict[str, type[Topology]] = {
    "bidst": BiDST,
    "rigl": RigL,
    "set": SET,
    "mest": MEST,
    "gmp": GMP,
    "static": Static,
}

__all__ = ["GMP", "MEST", "SET", "TOPOLOGIES", "BiDST", "RigL", "Static", "Topology"]
