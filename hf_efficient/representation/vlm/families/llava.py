"""LLaVA (1.5): a picture is a unit, one token per patch."""

from __future__ import annotations

from .family import Family

FAMILY = Family()
