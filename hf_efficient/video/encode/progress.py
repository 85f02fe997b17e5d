"""Progress of a fit: bars on the terminal, and the caller's callback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows and counts what is done.

    Args:
        shown: whether there are bars.
        call: called with 1 for each frame and each training step, or None.
        frames: of the video; 0: not known.
    """

    def __init__(self, shown: bool, call: Callable[[int], object] | None, frames: int) -> None:
        self.shown, self.call, self.total = shown, call, frames

    @contextmanager
    def frames(self, frames: Iterator[Any], what: str) -> Iterator[Iterator[Any]]:
        """The same frames, counted as they are taken; `what` is the label of the bar."""
        # closed at once after an error too; else its lines would surround the message
        with tqdm(frames, desc=what, total=self.total or None, unit="frame", disable=not self.shown) as bar:
            yield self._counted(bar)

    def _counted(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if self.call is not None:
                self.call(1)
            yield frame

    @contextmanager
    def training(self, steps: int) -> Iterator[Callable[[str, int], None]]:
        """A bar of all training steps, as a function of a network's name and the number of its steps just done."""
        with tqdm(total=steps, desc="training", unit="step", disable=not self.shown) as bar:

            def count(name: str, more: int) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update(more)
                if self.call is not None:
                    self.call(more)

            yield count
