"""How many processes score together, and which one this is. Accelerate is the distributed engine.

Work is divided by shards of rows, written to a folder that every process reads; so results do not depend on the number
of processes, and no tensors of unequal shapes are gathered.

They wait for each other in a group of their own: a training's group gives up after ten minutes or half an hour, and what one
process does for all (a search, permutations) may take longer. A process that dies is noticed without a timeout, by its connection.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hfdataopt.errors import HfDataOptError, StoreError, first_line
from hfdataopt.files import write_whole

PATIENCE = timedelta(days=3)  # a machine that vanishes without closing its connections, where no launcher watches
_GROUPS: dict[Any, Any] = {}  # by the training's group; a training after another one may have a new one


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
            with _partners():
                dist.barrier(group=_group())

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.count == 1:
            return value
        box = [value if self.is_main else None]
        with _partners():
            dist.broadcast_object_list(box, src=0, group=_group())
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, on every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _partners():
            dist.all_gather_object(values, value, group=_group())
        return values

    def together(self, function: Callable[[], None]) -> None:
        """Call ``function()`` on every process and wait for all; an error on one is raised on each, so that none hangs."""
        if self.count == 1:
            return function()
        _meet()
        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        errors = self.gather(_sendable(error))
        first = error or next((other for other in errors if other is not None), None)
        if first is not None:
            raise first

    def run_on_main(self, function: Callable[[], Any]) -> Any:
        """Call ``function()`` on the main process and give its result to all; an error there is raised on every process."""
        if self.count == 1:
            return function()
        _meet()
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
        """A temporary folder that all processes see; the caller removes it.

        Raises:
            StoreError: they run on machines that share no temporary folder.
        """
        folder = self.broadcast(tempfile.mkdtemp(prefix="hfdataopt-") if self.is_main else None)
        self.check_shared(Path(folder), "scoring without output_dir")
        return folder

    def check_shared(self, folder: Path, who: str) -> None:
        """Raise, before anything is computed, where the processes do not see each other's files in ``folder``.

        Raises:
            StoreError: on every process; it names those that see another folder. Or the folder cannot be written.
        """
        if self.count == 1:
            return
        file = folder / f".shared-{self.broadcast(uuid.uuid4().hex)}"

        def write() -> None:
            try:
                write_whole(file, b"")
            except OSError as error:
                raise StoreError(f"{who}: {str(folder)!r} cannot be written: {error}") from error

        try:
            self.run_on_main(write)
            blind = [index for index, sees in enumerate(self.gather(file.is_file())) if not sees]
        finally:
            if self.is_main:
                file.unlink(missing_ok=True)
        if blind:
            raise StoreError(
                f"{who}: process {', '.join(map(str, blind))} of {self.count} does not see what process 0 writes in {str(folder)!r}; "
                "give an output_dir= on a file system that all machines share, the same for every process"
            )


def _sendable(error: Exception | None) -> Exception | None:
    """The error as it travels to the other processes: one of ours as it is, any other (which may not survive) as its text."""
    if error is None or type(error).__module__ == HfDataOptError.__module__:
        return error
    return HfDataOptError(f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _partners() -> Iterator[None]:
    """An exchange that fails because a process is gone is told as that."""
    try:
        yield
    except RuntimeError as error:  # of every backend; the text names addresses only
        raise HfDataOptError(
            f"another process of this run ended ({first_line(error)}); start all again with the same output_dir: what was "
            "finished there is kept"
        ) from error


def _meet() -> None:
    """Make the group in which processes wait, before the first long work."""
    with _partners():
        _group()


def _group() -> Any:
    """The group in which processes wait for each other; all of them come here together, at the first exchange."""
    training = dist.group.WORLD
    if training not in _GROUPS:
        dist.barrier()  # one that is dead already is noticed here, in the time of the training's group
        _GROUPS.clear()
        _GROUPS[training] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _GROUPS[training]
