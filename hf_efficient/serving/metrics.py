"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

import threading

PREFIX = "hf_efficient"
#: name -> type, help. Histograms are left to the scraper: a sum and a count give the mean.
KNOWN = {
    "requests_total": ("counter", "Chat completions by status code; 499: the client left."),
    "requests_running": ("gauge", "Chat completions that wait or run."),
    "failures_total": ("counter", "Chat completions that failed inside the server."),
    "visual_tokens_in_total": ("counter", "Visual tokens that the pictures and videos of all prompts had."),
    "visual_tokens_kept_total": ("counter", "Visual tokens of these that the language model was given."),
    "prompt_tokens_total": ("counter", "Tokens of all prompts, kept visual tokens among them."),
    "generated_tokens_total": ("counter", "Tokens of all answers."),
    "prefill_seconds_sum": ("counter", "Seconds from the start of generation to the first logits, encoder included."),
    "prefill_seconds_count": ("counter", "Prompts that were prefilled."),
    "kv_bytes_saved_total": ("counter", "Bytes of keys and values that prompts would have taken more, unpruned."),
}


class Metrics:
    """Counters that threads may share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], float] = {(name, ""): 0.0 for name in KNOWN if name != "requests_total"}

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        """Add to a counter of `KNOWN`, or with a negative amount take from a gauge."""
        key = (name, ",".join(f'{label}="{value}"' for label, value in labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def value(self, name: str) -> float:
        """The sum over all labels."""
        with self._lock:
            return sum(value for (known, _), value in self._values.items() if known == name)

    def text(self) -> str:
        """All counters as Prometheus reads them."""
        with self._lock:
            values = dict(self._values)
        lines = []
        for name, (kind, told) in KNOWN.items():
            lines += [f"# HELP {PREFIX}_{name} {told}", f"# TYPE {PREFIX}_{name} {kind}"]
            for (known, labels), value in sorted(values.items()):
                if known == name:
                    lines.append(f"{PREFIX}_{name}{f'{{{labels}}}' if labels else ''} {value:.16g}")
        return "\n".join(lines) + "\n"
