"""What an encoder does to the scheduling of its threads does not last."""

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hf_efficient.video.files.reader import probe
from hf_efficient.video.files.threads import same_scheduling
from hf_efficient.video.files.writer import VideoWriter
from tests.video.bundles import source_clip

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have no such policies")


def policies() -> set[int]:
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.parametrize("codec", ["libsvtav1", "libx265", "libx264"])
def test_an_encoder_leaves_no_thread_in_real_time(tmp_path: Path, codec: str) -> None:
    """As root SVT-AV1 gives itself, and who calls it, the highest real-time priority there is."""
    info = probe(source_clip(tmp_path))
    assert policies() == {os.SCHED_OTHER}
    with VideoWriter(tmp_path / "coded.mkv", info, (96, 80), codec) as writer:
        for number in range(3):
            writer.write(np.full((80, 96, 3), 40 * number, np.uint8), number * 512)
            assert policies() == {os.SCHED_OTHER}
    assert policies() == {os.SCHED_OTHER}


def test_what_a_library_changes_is_put_back() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    try:
        with same_scheduling():
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            thread.start()  # it inherits what its maker has
            assert policies() >= {os.SCHED_BATCH}
        assert policies() == {os.SCHED_OTHER}
    finally:
        ended.set()
        thread.join()
