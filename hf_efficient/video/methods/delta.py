"""The general network and what this video changes of it; the cheapest part that pays is sent. Ours, not the paper's."""

from __future__ import annotations

from .single import Single


class DeltaToGeneral(Single):
    """One network on all patches, sent as a difference to the general one (`encode/delta_fit.py`)."""

    starts_from_general = True
