"""Resident memory of the process, measured."""

import ctypes
from pathlib import Path


def resident(reset_peak: bool = False) -> tuple[int, int] | None:
    """Resident bytes of this process, now and at their peak; None where Linux's /proc is absent.

    Args:
        reset_peak: give freed memory back, and count the peak from here.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    if reset_peak:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "kB" in line}
    return sizes["VmRSS:"], sizes["VmHWM:"]
