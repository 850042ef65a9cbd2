"""How many processes score together, and which one this is. Accelerate is the distributed engine.

Work is divided by shards of rows, written to a folder that every process reads; so results do not depend on the number
of processes, and no tensors of unequal shapes are gathered.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hfdataopt.errors import HfDataOptError


@dataclass(frozen=True)
class Processes:
    """This process's index and the number of processes."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """This process's place in the distributed run that is under way, or that a launcher asks for; else one process."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            # Without cpu= a machine that has no accelerator would be given one process per process.
            PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.count == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, function: Callable[[], None]) -> None:
        """Call ``function()`` on every process and wait for all; an error on one is raised on each, so that none hangs."""
        if self.count == 1:
            return function()
        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        errors: list[Exception | None] = [None] * self.count
        dist.all_gather_object(errors, _sendable(error))
        first = error or next((other for other in errors if other is not None), None)
        if first is not None:
            raise first

    def run_on_main(self, function: Callable[[], Any]) -> Any:
        """Call ``function()`` on the main process and give its result to all; an error there is raised on every process."""
        if self.count == 1:
            return function()
        result, error = None, None
        if self.is_main:
            try:
                result = function()
            except Exception as raised:
                error = raised
        result, sent = self.broadcast((result, _sendable(error)))
        if error is not None or sent is not None:
            raise error or sent
        return result

    def shared_folder(self) -> str:
        """A temporary folder that all processes of this machine see; the caller removes it."""
        return self.broadcast(tempfile.mkdtemp(prefix="hfdataopt-") if self.is_main else None)


def _sendable(error: Exception | None) -> Exception | None:
    """The error as it travels to the other processes: one of ours as it is, any other (which may not survive) as its text."""
    if error is None or type(error).__module__ == HfDataOptError.__module__:
        return error
    return HfDataOptError(f"{type(error).__name__}: {error}")
