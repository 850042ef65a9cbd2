"""One program against one test, shut off from the machine. A script that :mod:`~hfdataopt.rewards.sandbox` starts; never imported.

It reads a job (marshal) from stdin and prints ``verdict <word>``, or ``refused <why>`` where namespaces are not allowed. The
script itself is trusted and runs no tested code: it enters namespaces, forks, and watches the child, which takes the limits,
drops its rights and runs program and test. Few imports, all of the standard library: they are most of what a program costs.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import math
import os
import resource
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing would cost a sixth of a program
if TYPE_CHECKING:
    from typing import Any, NoReturn

PROCESSES = 16
"""Processes and threads a program may have at a time."""
DISK_BYTES = 32 * 2**20
"""Bytes in its folder, with namespaces; bytes per file without."""
FILES = 4096
OPEN_FILES = 64
NOBODY = 65534

_TOKEN, _VERDICT = 3, 4  # file descriptors of the child
_TOKEN_BYTES = 32
_READY = b"r"
_LOOK_SECONDS = 0.1

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_RELATIME = 1 << 21
_PDEATHSIG, _DUMPABLE, _SECCOMP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 36, 38
_SYSTEM_CALLS = {  # of an architecture: its number, socket; io_uring_setup, which makes sockets too, and the keyrings
    "x86_64": (0xC000003E, 41, (425, 248, 249, 250)),
    "aarch64": (0xC00000B7, 198, (425, 217, 218, 219)),
}
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    job = marshal.load(sys.stdin.buffer)
    signal.signal(signal.SIGTERM, _leave)
    _call("prctl", _PDEATHSIG, signal.SIGTERM)
    if os.getppid() != job["parent"]:
        sys.exit(1)
    _call("prctl", _SUBREAPER, 1)
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    if job["namespaces"]:
        try:
            _enter_namespaces(job["network"])
            _build_root(job["staging"], job["readable"])
        except OSError as error:
            print("refused", error)
            return
    _call("prctl", _DUMPABLE, 0)  # no process of the same user can look inside
    _call("prctl", _PDEATHSIG, signal.SIGTERM)
    print("verdict", _watch(job, processes))


def _leave(*_: Any) -> NoReturn:
    """End once: the signal comes for each thread of the parent that ends, and a second one would cut the sweep short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _call(name: str, *arguments: Any) -> None:
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(_libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


# --- before the fork: namespaces and a root of their own ---


def _enter_namespaces(network: bool) -> None:
    """New user, mount, process, ipc, host name and (unless ``network``) network namespaces.

    Root maps itself and nobody, so that the tested code is nobody outside too; anyone else is nobody inside only.
    """
    pid, user, group = os.getpid(), os.getuid(), os.getgid()
    entered, enter = os.pipe()
    helper = os.fork() if user == 0 else None
    if helper == 0:  # stays outside, where it has the right to map two users
        os.close(enter)
        os.read(entered, 1)
        try:
            for kind in ("uid", "gid"):
                _write(f"/proc/{pid}/{kind}_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(entered)
    try:
        _call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWIPC | _NEWUTS | (0 if network else _NEWNET))
    finally:
        os.close(enter)
        mapped = helper is not None and os.waitpid(helper, 0)[1] == 0
    if not mapped:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1\n")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1\n")


def _build_root(staging: str, readable: list[tuple[str, str]]) -> None:
    """Change to a root with the ``readable`` (path, what is there) and an empty /tmp of ``DISK_BYTES``; all else is gone."""
    _call("mount", None, b"/", None, _REC | _PRIVATE, None)
    _mount_memory(staging, "size=64k,mode=755")
    for name in ("old", "new"):
        os.mkdir(f"{staging}/{name}")
    _call("pivot_root", os.fsencode(staging), os.fsencode(f"{staging}/old"))
    os.chdir("/")
    _mount_memory("/new", "size=1m,mode=755")
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    for path, source in [*readable, *((device, device) for device in devices)]:
        if os.path.isdir(f"/old{source}"):
            os.makedirs(f"/new{path}", exist_ok=True)
        else:
            os.makedirs(os.path.dirname(f"/new{path}"), exist_ok=True)
            _write(f"/new{path}", "")
        _call("mount", os.fsencode(f"/old{source}"), os.fsencode(f"/new{path}"), None, _BIND | _REC, None)
    os.mkdir("/new/tmp")
    os.symlink("/tmp", "/new/dev/shm")
    with open("/old/proc/self/mountinfo") as lines:
        points = [line.split()[4].replace("\\040", " ").replace("\\134", "\\") for line in lines]
    for point in points:
        if point == "/new" or point.startswith("/new/"):
            kept = os.statvfs(point).f_flag  # what the machine has locked must be asked for again
            flags = kept & (_NOSUID | _NODEV | 8 | 1024 | 2048) | (_RELATIME if kept & 4096 else 0)
            _call("mount", None, os.fsencode(point), None, flags | _REMOUNT | _BIND | _RDONLY | _NOSUID, None)
    _mount_memory("/new/tmp", f"size={DISK_BYTES},nr_inodes={FILES},mode=1777")
    most = "/old/proc/sys/user/max_user_namespaces"
    if os.access(
        most, os.W_OK
    ):  # hardening: in namespaces of its own a program would see no more, but reach more kernel code
        _write(most, "0")
    os.chdir("/new")
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/tmp")


def _mount_memory(path: str, options: str) -> None:
    _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", _NOSUID | _NODEV, options.encode())


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# --- around the fork: the watch ---


def _watch(job: dict[str, Any], processes: int) -> str:
    """Fork the child, wait within the limits of time and memory, leave no process behind, and say how it ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    token_out, token_in = os.pipe()
    verdict_out, verdict_in = os.pipe()
    child, ended, status = os.fork(), 0, 0
    if child == 0:
        _be_child(job, processes, token_out, verdict_in)
    try:
        os.close(verdict_in)
        token = os.urandom(_TOKEN_BYTES)  # made after the fork: the child has it only from the pipe
        os.write(token_in, token)
        now = time.monotonic()
        end, look = now + job["timeout"], now + _LOOK_SECONDS
        while not ended:
            if now >= end:
                return "timeout"
            if now >= look:
                if sum(_descendants(processes).values()) * resource.getpagesize() > job["memory_mb"] * 2**20:
                    return "memory"
                look = time.monotonic() + _LOOK_SECONDS
            signal.sigtimedwait([signal.SIGCHLD], max(0.0, min(end, look) - time.monotonic()))
            ended, status = os.waitpid(child, os.WNOHANG)
            now = time.monotonic()
        os.set_blocking(verdict_out, False)
        try:
            said = os.read(verdict_out, 2 * _TOKEN_BYTES)
        except BlockingIOError:  # a process that it left holds the pipe
            said = b""
        if not said.startswith(_READY):
            raise RuntimeError(f"the child ended before the program, with status {status}")
        return "passed" if said == _READY + token and status == 0 else "failed"
    finally:
        if not ended:
            _kill(child)
        _sweep(processes)


def _sweep(processes: int) -> None:
    """Kill and reap every descendant; orphans are this process's own, or end with the first of their namespace."""
    while True:
        try:
            reaped = os.waitpid(-1, os.WNOHANG)[0]
        except ChildProcessError:
            return
        if not reaped:
            for pid in _descendants(processes):
                _kill(pid)
            time.sleep(0.001)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _fields(pid: str, processes: int) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` after the name: state, parent, ...; none when the process has gone."""
    try:
        descriptor = os.open(f"{pid}/stat", os.O_RDONLY, dir_fd=processes)
    except OSError:
        return []
    try:
        return os.read(descriptor, 4096).decode(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def _table(processes: int) -> dict[int, list[str]]:
    found = {int(pid): _fields(pid, processes) for pid in os.listdir(processes) if pid.isdigit()}
    return {pid: fields for pid, fields in found.items() if fields}


def _descendants(processes: int) -> dict[int, int]:
    """Resident pages of every descendant of this process that is not a zombie."""
    table, family = _table(processes), {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, fields in table.items() if int(fields[1]) in family} - family
        family |= more
        grown = bool(more)
    family.discard(os.getpid())
    return {pid: int(table[pid][21]) for pid in family if table[pid][0] not in "ZX"}


def _tasks_of(user: int, processes: int) -> int:
    """Processes and threads the user has now, which a limit on them counts too."""
    tasks = 0
    for pid, fields in _table(processes).items():
        try:
            if os.stat(str(pid), dir_fd=processes).st_uid == user:
                tasks += int(fields[17])
        except OSError:
            pass
    return tasks


# --- after the fork: the child ---


def _be_child(job: dict[str, Any], processes: int, token: int, verdict: int) -> NoReturn:
    try:
        _call("prctl", _PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.setsid()
        if not job["namespaces"]:
            os.chdir(job["folder"])
        _drop_rights(job)
        _call("prctl", _PDEATHSIG, signal.SIGKILL)  # a change of user has cleared it
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
        if job["namespaces"]:
            _deny_calls(job["network"])
        folder = os.getcwd()
        os.environ.clear()
        os.environ.update(HOME=folder, TMPDIR=folder, PATH="/usr/bin:/bin", LANG="C.UTF-8")
        null = os.open(os.devnull, os.O_RDWR)
        _limit(job, PROCESSES + (0 if job["namespaces"] else _tasks_of(os.getuid(), processes)))
        os.dup2(null, 0)
        os.dup2(null, 1)
        for kept, descriptor in enumerate((token, verdict), 50):  # first out of the way of each other
            os.dup2(descriptor, kept)
        os.dup2(50, _TOKEN, inheritable=False)
        os.dup2(51, _VERDICT, inheritable=False)
        os.register_at_fork(after_in_child=lambda close=os.close: close(_VERDICT))
        os.write(_VERDICT, _READY)
        os.dup2(null, 2)
        os.closerange(_VERDICT + 1, 4096)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    try:
        judge: dict[str, Any] = {}
        exec(job["judge"], judge)
        # The token lives on the interpreter's stack while the program runs, where no Python object leads to it.
        os.write(_VERDICT, os.read(_TOKEN, _TOKEN_BYTES) * judge["passes"](job))
    finally:
        os._exit(0)  # the same whatever happened: a fork of the program learns nothing from how another one ended


def _drop_rights(job: dict[str, Any]) -> None:
    """Become nobody where root can, and give up every capability."""
    if os.getuid() == 0 and (job["namespaces"] or _readable_by_all(os.__file__)):
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            if not job["namespaces"]:
                os.chown(job["folder"], NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            if job["namespaces"]:
                raise
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _deny_calls(network: bool) -> None:
    """A seccomp filter for what namespaces leave open: keyrings, and sockets other than unix and ip (to a VM's host)."""
    if os.uname().machine not in _SYSTEM_CALLS:
        return
    architecture, socket, denied = _SYSTEM_CALLS[os.uname().machine]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x50000, 0x80000000
    filter_ = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill)]
    filter_ += [(load, 0, 0, 0), (at_least, 0, 1, 1 << 30), (answer, 0, 0, kill)]
    for number in denied:
        filter_ += [(equal, 0, 1, number), (answer, 0, 0, refuse | errno.EPERM)]
    if not network:
        filter_ += [(equal, 1, 0, socket), (answer, 0, 0, allow), (load, 0, 0, 16)]
        for family in (1, 2, 10):
            filter_ += [(equal, 0, 1, family), (answer, 0, 0, allow)]
        filter_ += [(answer, 0, 0, refuse | errno.EAFNOSUPPORT)]
    filter_ += [(answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in filter_))
    program = struct.pack("HP", len(filter_), ctypes.addressof(code))
    _call("prctl", _SECCOMP, 2, program, 0, 0)


def _readable_by_all(path: str) -> bool:
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def _limit(job: dict[str, Any], tasks: int) -> None:
    seconds, memory = math.ceil(job["timeout"]) + 1, job["memory_mb"] * 2**20
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, DISK_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, tasks),
        (resource.RLIMIT_AS, memory),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
