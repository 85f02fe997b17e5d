"""What counts as seconds."""

import time

import pytest
import torch

from hf_efficient.budget.timing import seconds_of


def test_time_that_others_take_does_not_count_with_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert seconds_of(lambda: time.sleep(0.1), "cpu", 1) < 0.05
        torch.set_num_threads(2)
        assert seconds_of(lambda: time.sleep(0.1), "cpu", 1) >= 0.1
    finally:
        torch.set_num_threads(threads)


def test_work_counts_with_one_thread() -> None:
    if torch.get_num_threads() != 1:
        pytest.skip("counts the processor's time with one thread alone")

    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    assert seconds_of(work, "cpu", 1) == pytest.approx(0.05, rel=0.2)
