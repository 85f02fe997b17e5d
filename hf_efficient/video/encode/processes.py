"""The processes that a launcher started (`torchrun`, `accelerate launch`)."""

from __future__ import annotations

import os
from datetime import timedelta

import torch


class Processes:
    """This process, among those that fit one video and share its work folder.

    Attributes:
        rank: of this process, from 0.
        count: of processes; 1 without a launcher.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1 and not torch.distributed.is_initialized():
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            # the others wait while the first reads the video, however long it is
            torch.distributed.init_process_group(backend, timeout=timedelta(days=7))

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, count), for `overfit`."""
        return self.rank, self.count

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()
