"""Programs that a model wrote, each run against one test in a process of its own that is shut off from the machine.

What holds where Linux namespaces are allowed (``Sandbox.isolation == "namespaces"``):

- no network, not even the machine's own (``allow_network=True`` opens it), and no kernel keyrings; no process, shared memory
  or host name of the machine is seen;
- the file system is Python's installation (with what packages lie in it) and the system's libraries and programs, read-only,
  and an empty folder that takes 32 MiB and vanishes with the process; nothing else exists, no home, no /proc;
- no rights: nobody, without capabilities or a way to new ones; where root starts it and can map nobody, nobody outside too.

Where they are refused, nothing runs unless ``allow_network=True``. Then (``"limits"``) a program can use the network, read and
change every file that the account can, signal its processes, and write any number of files of 32 MiB in a folder that is
removed. If root starts it, it becomes nobody where nobody can read Python's library; where it stays root, the number of
processes is not limited, so that a program that forks without end may outlive its time.

Both ways: no environment variable or open file is passed on; wall-clock and CPU time, address space of a process, resident
memory of all its processes together (looked at ten times a second), 16 processes and threads and 64 open files at most, no
core dump; afterwards no process of the program is left.

A test has passed if it ran to its end: then a token leaves the process that was in no Python object while the program ran.
Printing, exiting, changing ``builtins``, forking, or returning an object that claims to be equal to everything is no pass.
Program and test share an interpreter, though, as they must to exchange objects, so code that is written against this very
sandbox can cheat: it can search memory by ctypes, trace or jump in the test's frames, read the expected values there, change
modules that the test imports, or return objects whose comparisons know the types they meet. The kernel is shared, too, and
sockets of rarer kinds are closed only on x86-64 and ARM64: for the code of an adversary use a virtual machine.
"""

import ast
import contextlib
import functools
import marshal
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast

from hfdataopt.errors import HfDataOptError, OptionError
from hfdataopt.options import check_options, check_range

Verdict = Literal["passed", "failed", "timeout", "memory"]

_INSIDE = Path(__file__).with_name("sandbox_inside.py")
_JUDGE = Path(__file__).with_name("sandbox_judge.py")
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl")
_START = "import marshal, sys; exec(marshal.load(sys.stdin.buffer))"
_GRACE_SECONDS = 60.0


class Program(NamedTuple):
    """Source of a program, of the test that runs after it, and the name the test is about (None: not known)."""

    code: str
    test: str
    entry_point: str | None = None


@dataclass(kw_only=True)
class Sandbox:
    """Runs programs against tests, several at a time.

    Attributes:
        timeout: seconds of wall-clock time per program, its interpreter's start not counted.
        memory_mb: MiB of address space per process, and of resident memory over all its processes.
        workers: programs at a time.
        allow_network: leave the network open, and run also where namespaces are not allowed.
        isolation: what this machine allows, found when the sandbox is made.

    Raises:
        OptionError: an option out of range, not Linux, or namespaces refused without ``allow_network``.
    """

    name: ClassVar[str] = "sandbox"

    timeout: float = 3.0
    memory_mb: int = 512
    workers: int = 2
    allow_network: bool = False
    isolation: Literal["namespaces", "limits"] = field(init=False, default="namespaces")

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, "timeout", above=0)
        check_range(self, "memory_mb", at_least=64)
        check_range(self, "workers", at_least=1)
        if sys.platform != "linux":
            raise OptionError(f"programs that a model wrote can be shut off on Linux only, not on {sys.platform}")
        plain = Program("from fractions import Fraction", "assert Fraction(1, 2) + Fraction(1, 2) == 1")
        kind, answer = self._answer(plain, _Running())
        if kind == "refused":
            if not self.allow_network:
                raise OptionError(
                    "programs that a model wrote cannot be shut off from the network and from your files here: the system "
                    f"refuses Linux namespaces ({answer}); allow user namespaces (in a container, its seccomp "
                    "and AppArmor profiles decide), or pass allow_network=True if such a program may use the network and "
                    "read and change whatever this account can"
                )
            warnings.warn(
                f"Linux namespaces are refused here ({answer}): the tested programs are limited in time, memory "
                "and processes, but can use the network and read and change whatever this account can",
                stacklevel=4,
            )
            self.isolation = "limits"
            kind, answer = self._answer(plain, _Running())
        if answer != "passed":
            raise OptionError(
                f"a program that only adds fractions does not pass in the sandbox ({answer}) with "
                f"timeout={self.timeout!r}, memory_mb={self.memory_mb!r}; raise them"
            )

    def run(self, programs: Iterable[Program]) -> list[Verdict]:
        """How each program ended, in their order. An interrupt ends them all.

        Raises:
            HfDataOptError: the sandbox itself broke.
        """
        running = _Running()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="hfdataopt-sandbox") as pool:
            try:
                return list(pool.map(lambda program: cast(Verdict, self._answer(program, running)[1]), programs))
            except BaseException:
                running.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, program: Program, running: "_Running") -> tuple[str, str]:
        """``verdict`` or ``refused``, and which, or why."""
        namespaces = self.isolation == "namespaces"
        with contextlib.nullcontext("") if namespaces else _temporary_folder() as folder:
            job = {
                "judge": _code(_JUDGE),
                "code": program.code,
                "entry_point": program.entry_point,
                **_prepared(program.test),
                "timeout": self.timeout,
                "memory_mb": self.memory_mb,
                "namespaces": namespaces,
                "network": self.allow_network,
                "readable": _readable(_NETWORK if self.allow_network else ()),
                "staging": tempfile.gettempdir(),
                "folder": folder,
                "parent": os.getpid(),
            }
            output, errors = running.communicate(
                marshal.dumps(_code(_INSIDE)) + marshal.dumps(job), self.timeout + _GRACE_SECONDS
            )
        kind, _, answer = output.decode(errors="replace").strip().partition(" ")
        if kind not in ("verdict", "refused"):
            raise HfDataOptError(f"the sandbox broke: {errors.decode(errors='replace').strip()[-500:] or 'no answer'}")
        return kind, answer


def _prepared(test: str) -> dict[str, Any]:
    """The test compiled, with the result of every call handed to a function of the sandbox, and the names it calls."""
    tree, check = ast.parse(test), f"_{secrets.token_hex(8)}"
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}

    class Check(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.Call:
            self.generic_visit(node)
            return ast.Call(ast.Name(check, ast.Load()), [node], [])

    checked = ast.fix_missing_locations(Check().visit(tree))
    return {"test": compile(checked, "<test>", "exec", dont_inherit=True, optimize=0), "called": called, "check": check}


@functools.cache
def _code(path: Path) -> types.CodeType:
    return compile(path.read_bytes(), path.name, "exec", dont_inherit=True, optimize=0)


class _Running:
    """The sandboxes that run now, so that all can be ended at once."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def communicate(self, job: bytes, seconds: float) -> tuple[bytes, bytes]:
        """Output and errors of a sandbox that was given the job; it is ended whatever happens here."""
        with self._lock:
            if self._stopped:
                return b"", b"interrupted"
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                cwd="/",
                start_new_session=True,  # an interrupt from the keyboard reaches us alone, and we end it
            )
            self._processes.add(process)
        try:
            return process.communicate(job, timeout=seconds)
        except subprocess.TimeoutExpired:
            return b"", f"no answer within {seconds:g} s".encode()
        finally:
            _end(process)
            self._processes.discard(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes.copy():
                process.terminate()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()  # it then ends what it runs
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """For the interpreter's own start; the tested code does not see it. One hash seed: the order in sets is part of results."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", **kept}


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="hfdataopt-sandbox-", ignore_cleanup_errors=True)


def _readable(more: Sequence[str]) -> list[tuple[str, str]]:
    """What a program can read, with where it really lies: the system, Python's installation, and ``more``."""
    found: list[tuple[str, str]] = []
    for path in (*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__), *more):
        inside = any(path == other or path.startswith(f"{other}/") for other, _ in found)
        if path != "/" and os.path.exists(path) and not inside:
            found.append((path, os.path.realpath(path)))
    return found
