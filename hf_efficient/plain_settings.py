"""Settings of a run as a dict and as JSON, for dataclasses that validate themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any, Self


class PlainSettings:
    """A mix-in for dataclasses whose fields are plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def to_json_string(self) -> str:
        """The fields as JSON, which `from_dict(json.loads(...))` reads back."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; absent fields take their defaults.

        Args:
            values: field -> value.

        Raises:
            ValueError: a key is not a field, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"Unknown {unknown}; expected only {known}. Remove them, or upgrade hf_efficient.")
        return cls(**values)
