"""Work in a process of its own that dies, or whose disk fails, at a chosen point; and what it told before."""

import contextlib
import ctypes
import json
import os
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.std import TqdmDefaultWriteLock, tqdm

# Progress bars take turns by a lock that forks share: one that is killed under it would stop all others, and the harness.
TqdmDefaultWriteLock.mp_lock = None
tqdm.monitor_interval = 0

Tell = Callable[..., None]
Work = Callable[[Path, Tell], None]
PATIENCE = 120.0  # seconds after which a process counts as hung
WRITING = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


@dataclass(frozen=True)
class Fault:
    """What happens to a process.

    Attributes:
        kind: ``time``: SIGKILL after ``at`` seconds; ``event``: SIGKILL just before the ``at``-th change of a file (open for
            writing, fsync, rename, remove, mkdir); ``byte``: death in the middle of a write, after ``at`` bytes of a file;
            ``full``: no file can grow over ``at`` bytes (EFBIG); ``read-only``: the rights to write are gone; ``none``.
    """

    kind: str = "none"
    at: float = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.at:g}" if self.at else self.kind


@dataclass
class Told:
    """What became of a process.

    Attributes:
        lines: what it told, in order.
        killed: whether a signal ended it. error: the traceback of what it raised, and its classes.
        events: changes of files that it made; where: the last one before which it was killed.
    """

    lines: list[list[Any]] = field(default_factory=list)
    killed: bool = False
    error: str = ""
    kinds: tuple[str, ...] = ()
    events: int = 0
    where: str = ""
    seconds: float = 0.0
    modules: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return not self.killed and not self.error

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """The told lines of one name."""
        return [tuple(_hashable(part) for part in line[1:]) for line in self.lines if line[0] == name]


def _hashable(part: Any) -> Any:
    return json.dumps(part) if isinstance(part, list | dict) else part


def run(work: Work, folder: Path, fault: Fault = Fault()) -> Told:
    """``work(folder, tell)`` in a fork of this process that meets a fault.

    What it tells goes through a pipe, so it arrives whatever becomes of the process and of its disk.
    """
    hear, say = os.pipe()
    out, put = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(hear)
        os.close(out)
        _child(work, folder, fault, say, put)
    os.close(say)
    os.close(put)
    told, text, printed, alive = Told(), b"", b"", {hear, out}
    deadline = started + (fault.at if fault.kind == "time" else PATIENCE)
    try:
        while alive:
            ready = select.select(list(alive), [], [], max(deadline - time.monotonic(), 0))[0]
            if not ready and time.monotonic() >= deadline:
                os.kill(process, signal.SIGKILL)
                if fault.kind != "time":
                    told.error = f"it hung for {PATIENCE:g} s"
                deadline = time.monotonic() + PATIENCE
            for pipe in ready:
                part = os.read(pipe, 1 << 16)
                if not part:
                    alive.discard(pipe)
                text, printed = (text + part, printed) if pipe == hear else (text, printed + part)
    finally:
        os.close(hear)
        os.close(out)
        _, status = os.waitpid(process, 0)
    told.seconds = time.monotonic() - started
    for line in text.splitlines():
        document = json.loads(line)
        if document[0] == "events":
            told.events, told.where = document[1:]
        elif document[0] == "module":
            told.modules.append(document[1])
        elif document[0] == "error":
            shown = printed.decode(errors="replace")[-1000:]
            told.error, told.kinds = f"{document[1]}it printed: {shown}", tuple(document[2])
        else:
            told.lines.append(document)
    told.killed = os.WIFSIGNALED(status)
    if told.killed and os.WTERMSIG(status) not in (signal.SIGKILL, signal.SIGXFSZ):
        told.error = f"signal {os.WTERMSIG(status)}; it printed:\n{printed.decode(errors='replace')[-3000:]}"
    if not told.killed and status and not told.error:
        told.error = f"exit status {status}; it printed:\n{printed.decode(errors='replace')[-3000:]}"
    return told


def _child(work: Work, folder: Path, fault: Fault, say: int, put: int) -> None:
    code, count = 1, 0
    with contextlib.suppress(BaseException):
        signal.alarm(int(2 * PATIENCE))  # where nobody is left to kill it
        os.dup2(put, 1)
        os.dup2(put, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115

        def tell(*parts: Any) -> None:
            os.write(say, json.dumps(parts).encode() + b"\n")

        def changed(what: str, path: Any) -> None:
            nonlocal count
            count += 1
            if fault.kind == "event" and count == fault.at:
                tell("events", count, f"{what} {os.path.basename(os.fsdecode(path))}")
                os.kill(os.getpid(), signal.SIGKILL)

        before = set(sys.modules)
        _watch(str(folder), changed)
        try:
            with _failing(fault):
                work(folder, tell)
            tell("events", count, "")
            for name in sys.modules.keys() - before if fault.kind == "none" else ():
                tell("module", name)
            code = 0
        except BaseException as error:
            tell(
                "error",
                "".join(traceback.format_exception(error))[-3000:],
                [one.__name__ for one in type(error).__mro__],
            )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(folder: str, changed: Callable[[str, Any], None]) -> None:
    """Call ``changed`` before every change of a file under ``folder`` that Python makes."""

    def inside(path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITING
            if writes and inside(path):
                changed("open", path)
        elif event in CHANGES and inside(arguments[0]):
            changed(event, arguments[0])

    fsync = os.fsync

    def watched(stream: Any) -> None:
        changed("fsync", os.readlink(f"/proc/self/fd/{stream if isinstance(stream, int) else stream.fileno()}"))
        fsync(stream)

    sys.addaudithook(hook)
    if os.path.isdir("/proc/self/fd"):
        os.fsync = watched  # which has no audit event


@contextlib.contextmanager
def _failing(fault: Fault) -> Any:
    if fault.kind in ("byte", "full"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.kind == "byte" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(fault.at), resource.RLIM_INFINITY))
    if fault.kind == "read-only":
        obey_modes()
    yield


def obey_modes() -> None:
    """Give up root's right to write where the mode of a file or folder does not let its owner."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Sets(ctypes.Structure):
        _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(0x20080522, 0), (Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) == 0:
        sets[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.capset(ctypes.byref(header), sets)


def files_of(folder: Path) -> list[Path]:
    """The files under a folder, in order, without those that hold nothing."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def draw(rng: random.Random, whole: Told, sizes: list[int], kinds: tuple[str, ...]) -> Fault:
    """A random kill point within what an undisturbed run did."""
    kind = rng.choice(kinds)
    if kind == "time":
        return Fault(kind, round(rng.uniform(0.02, 1.0) * whole.seconds, 4))
    if kind == "event":
        return Fault(kind, rng.randint(1, whole.events))
    return Fault(kind, rng.randrange(max(rng.choice(sizes), 2)))


def damage(rng: random.Random, file: Path) -> str:
    """Damage a file at random; what was done, in words."""
    content = bytearray(file.read_bytes())
    at, kind = rng.randrange(len(content)), rng.choice(("cut", "bit", "zeros", "noise"))
    if kind == "cut":
        del content[at:]
    elif kind == "bit":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        content[at:] = bytes(len(content) - at)
    else:
        content[at : at + 16] = rng.randbytes(len(content[at : at + 16]))
    file.write_bytes(content)
    return f"{kind} at {at} of {file.name}"
