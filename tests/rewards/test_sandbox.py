"""Programs get what they need and nothing else; what they do cannot look like a pass; nothing of them is left."""

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from hfdataopt.errors import OptionError
from hfdataopt.rewards.sandbox import Program, Sandbox, Verdict

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)


def shut_off(**options: object) -> Sandbox:
    try:
        return Sandbox(**options)  # type: ignore[arg-type]
    except OptionError as error:
        pytest.skip(f"no namespaces here: {error}")


@pytest.fixture(scope="module")
def inside() -> Sandbox:
    return shut_off()


@pytest.fixture(scope="module", params=["namespaces", "limits"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Both kinds, whatever the machine allows; ``limits`` as where namespaces are refused."""
    if request.param == "namespaces":
        return shut_off()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Sandbox(allow_network=True)
    made.isolation = "limits"
    return made


def run(sandbox: Sandbox, code: str, test: str = "", entry_point: str | None = None) -> Verdict:
    return sandbox.run([Program(textwrap.dedent(code), textwrap.dedent(test), entry_point)])[0]


# --- honest programs ---


HONEST = [
    ("def f(x): return x + 1", "assert f(1) == 2"),
    ("from collections import Counter as f", "assert f('aab') == {'a': 2, 'b': 1}"),
    (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2)",
    ),
    ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert f(3) != 3"),
    ("def f(x): x.append(1)", "a = []\nf(a)\nassert a == [1]"),
    ("def f(): return float('nan')", "x = f()\nassert x != x"),
    ("def f(n): return 0 if n == 0 else 1 + f(n - 1)", "assert f(900) == 900"),
    ("def f(): raise ValueError", "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int", "assert P(1) == P(1) and P(1) != P(2)"),
    ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
    ("sum = 3\ndef f(): return [1, 2]", "assert sum(f()) == 3"),
    ("if __name__ == '__main__':\n    raise SystemExit(input())", "assert True"),
    ("class A:\n    def b(self): return self\n    def c(self): return 1", "assert A().b().c() == 1"),
    (
        "import sqlite3, ssl, decimal, zoneinfo, asyncio, unittest, statistics, csv\nasync def f(): return 1",
        "import asyncio\nassert asyncio.run(f()) == 1",
    ),
    (
        "from concurrent.futures import ThreadPoolExecutor as T\ndef f(): return list(T(4).map(str, range(9)))",
        "assert len(f()) == 9",
    ),
    (
        "import subprocess\ndef f(): return subprocess.run(['echo', 'a'], capture_output=True).stdout",
        "assert f() == b'a\\n'",
    ),
    ("open('a', 'w').write('b')", "assert open('a').read() == 'b'"),
    ("print('x' * 10**6)", "import sys\nassert not sys.stdin.read()"),
]


def test_honest_programs_pass(sandbox: Sandbox) -> None:
    programs = [Program(code, test) for code, test in HONEST]
    assert [p for p, verdict in zip(programs, sandbox.run(programs), strict=True) if verdict != "passed"] == []


def test_the_order_in_sets_is_the_same_each_time(sandbox: Sandbox) -> None:
    test = "assert list(f()) == " + repr(_order_with_seed_zero())
    assert run(sandbox, "def f(): return {str(i) for i in range(50)}", test) == "passed"


def _order_with_seed_zero() -> list[str]:
    command = [sys.executable, "-c", "print(list({str(i) for i in range(50)}))"]
    return eval(subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True).stdout)


# --- no pass ---

ASSERT_TWO = "assert f(1) == 2"
FORGERIES = {
    "wrong": ("def f(x): return 3", ASSERT_TWO),
    "no Python": ("def f(x: return 2", ASSERT_TWO),
    "null byte": ("def f(x): return 2\0", ASSERT_TWO),
    "nested too deep": ("(" * 5000, ASSERT_TWO),
    "printed": ("print('passed', 'verdict passed', flush=True)\ndef f(x): return 3", ASSERT_TWO),
    "SystemExit": ("def f(x): raise SystemExit(0)", ASSERT_TWO),
    "SystemExit at once": ("import sys\nsys.exit(0)", ASSERT_TWO),
    "_exit": ("import os\ndef f(x): os._exit(0)", ASSERT_TWO),
    "interrupt": ("def f(x): raise KeyboardInterrupt", ASSERT_TWO),
    "killed": ("import os\ndef f(x): os.kill(os.getpid(), 9); os.abort()", ASSERT_TWO),
    "crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", ASSERT_TWO),
    "atexit": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 3", ASSERT_TWO),
    "builtins": ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 3", "assert abs(f(1) - 2) == 0"),
    "builtins late": (
        "import builtins\ndef f(x):\n    builtins.abs = lambda x: 0\n    return 3",
        "assert abs(f(1) - 2) == 0",
    ),
    "own abs": ("def abs(x): return 0\ndef f(x): return 3", "assert abs(f(1) - 2) == 0"),
    "AssertionError": (
        "import builtins\nbuiltins.AssertionError = int\nAssertionError = int\ndef f(x): return 3",
        ASSERT_TWO,
    ),
    "equal to all": ("class A:\n    def __eq__(self, other): return True\ndef f(x): return A()", ASSERT_TWO),
    "int equal to all": ("class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A()", ASSERT_TWO),
    "equal inside": (
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return [(A(),)]",
        "assert f(1) == [(2,)]",
    ),
    "a class equal to all": (
        "class f:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True",
        ASSERT_TWO,
    ),
    "equal to all, unseen": (
        "import builtins\nbuiltins.bool = builtins.isinstance = lambda *a: False\n"
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
        ASSERT_TWO,
    ),
    "small": (
        "class A:\n    def __sub__(self, other): return self\n    __abs__ = __neg__ = lambda self: self\n"
        "    def __lt__(self, other): return True\ndef f(x): return A()",
        "assert abs(f(1) - 2) < 1e-6",
    ),
    "all descriptors": (
        "import os\nfor i in range(64):\n    try:\n        os.write(i, b'passed')\n    except OSError: pass\ndef f(x): return 2",
        ASSERT_TWO,
    ),
    "a fork guesses": (
        "import os\ndef f(x):\n    pid = os.fork()\n    if pid: os.wait()\n    return 3 if pid else 2",
        ASSERT_TWO,
    ),
    "reads the token": (
        "import os\ndef f(x):\n    os.set_blocking(3, False)\n    os.write(4, os.read(3, 32))\n    os._exit(0)",
        ASSERT_TWO,
    ),
    "looks for the token": (
        """
        import gc, os, sys
        def f(x):
            found, frame = set(), sys._getframe()
            waiting = list(gc.get_objects())
            while frame:
                waiting += [frame.f_locals, frame.f_globals, frame.f_builtins, *frame.f_code.co_consts]
                frame = frame.f_back
            for item in waiting:
                found |= {part for part in gc.get_referents(item) if type(part) is bytes and len(part) == 32}
            assert os.write(4, found.pop()) == 32
            os._exit(0)
        """,
        ASSERT_TWO,
    ),
}


def test_no_forgery_passes(sandbox: Sandbox) -> None:
    programs = [Program(textwrap.dedent(code), test) for code, test in FORGERIES.values()]
    verdicts = dict(zip(FORGERIES, sandbox.run(programs), strict=True))
    assert verdicts == dict.fromkeys(FORGERIES, "failed")


def test_only_the_tested_function_may_hide_a_builtin(sandbox: Sandbox) -> None:
    code = "def abs(x): return 2"
    assert run(sandbox, code, "assert abs(-3) == 2") == "passed"
    assert run(sandbox, code, "assert abs(-3) == 2", entry_point="abs") == "passed"
    assert run(sandbox, code, "assert abs(-3) == 2", entry_point="f") == "failed"


# --- limits ---


def test_time_is_limited(sandbox: Sandbox) -> None:
    brief = Sandbox(timeout=0.3, allow_network=sandbox.allow_network)
    brief.isolation = sandbox.isolation
    for loop in ("while True: pass", "import time\ntime.sleep(60)", "import signal\nsignal.pause()"):
        assert run(brief, loop) == "timeout"
    ignoring = "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile 1: pass"
    assert run(brief, ignoring) == "timeout"


def test_memory_of_a_process_is_limited(sandbox: Sandbox) -> None:
    code = "def f():\n    try: return bytearray(2**30)\n    except MemoryError: return 'too much'"
    assert run(sandbox, code, "assert f() == 'too much'") == "passed"
    assert run(sandbox, "x = 'a'\nwhile True: x += x") == "failed"


def test_memory_of_all_processes_is_limited(sandbox: Sandbox) -> None:
    code = "import os, time\nfor i in range(3): os.fork()\nx = b'a' * 200 * 2**20\ntime.sleep(60)"
    patient = Sandbox(timeout=30, memory_mb=512, allow_network=sandbox.allow_network)
    patient.isolation = sandbox.isolation
    assert run(patient, code) == "memory"


def test_files_are_limited(sandbox: Sandbox) -> None:
    code = """
    def f():
        with open('big', 'wb') as file:
            for i in range(64):
                try: file.write(b'a' * 2**20); file.flush()
                except OSError: return i
    """
    assert run(sandbox, code, "assert 16 <= f() <= 32") == "passed"


def test_all_files_together_are_limited(inside: Sandbox) -> None:
    code = """
    def f():
        for i in range(100):
            try: open(str(i), 'wb').write(b'a' * 2**20)
            except OSError: return i
    """
    assert run(inside, code, "assert 16 <= f() <= 32") == "passed"


def test_open_files_are_limited(sandbox: Sandbox) -> None:
    code = "def f():\n    files = []\n    try:\n        while True: files.append(open('/dev/null'))\n    except OSError: return len(files)"
    assert run(sandbox, code, "assert f() < 64") == "passed"


def test_a_fork_bomb_is_bounded(inside: Sandbox) -> None:
    code = """
    import os, time
    def f():
        children = 0
        try:
            while True:
                if os.fork() == 0: time.sleep(60)
                children += 1
        except BlockingIOError: return children
    """
    assert run(inside, code, "assert 4 < f() < 16") == "passed"
    assert run(inside, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass") != "passed"


# --- what a program sees and changes ---


def test_there_is_no_network(inside: Sandbox) -> None:
    code = "import socket\ndef f(): return socket.create_connection(('127.0.0.1', {port}), timeout=1).recv(2)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(2)
        here = code.format(port=server.getsockname()[1])
        failing = "try:\n    f()\nexcept OSError:\n    pass\nelse:\n    assert False"
        assert run(inside, here, failing) == "passed"
        with pytest.raises(TimeoutError):
            server.accept()
        opened = shut_off(allow_network=True)
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), timeout=2)"
        assert run(opened, reach) == "passed"
        server.accept()


@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_NETLINK"])
def test_there_are_no_sockets_but_unix_and_ip(inside: Sandbox, family: str) -> None:
    code = f"import socket\nfor kind in (1, 2, 3, 5):\n    try: socket.socket(socket.{family}, kind)\n    except OSError: pass\n"
    assert run(inside, code + "    else: raise SystemExit") == "passed"


def test_secrets_are_not_seen(inside: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "secret")
    (tmp_path / "secret").write_text("secret")
    code = f"""
    import os
    def f(): return os.path.exists({str(tmp_path / "secret")!r}), os.path.exists({str(Path(__file__))!r})
    def listed(): return sorted(os.listdir('/'))
    def home(): return os.path.expanduser('~'), os.listdir('.'), os.getcwd()
    """
    assert run(inside, code, "assert f() == (False, False)") == "passed"
    assert run(inside, code, "assert home() == ('/tmp', [], '/tmp')") == "passed"
    first = Path(sys.base_prefix).parts[1]
    allowed = {"bin", "dev", "etc", "lib", "lib32", "lib64", "tmp", "usr", first}
    assert run(inside, code, f"assert set(listed()) <= {allowed!r}") == "passed"
    assert run(inside, code, "assert os.listdir('/etc') == ['ld.so.cache']") == "passed"
    assert run(inside, "import os", "assert len(os.environ) == 4 and 'PLANTED_TOKEN' not in os.environ") == "passed"


def test_the_environment_is_not_passed_on(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "secret")
    code = """
    import os, subprocess
    seen = str(os.environ) + subprocess.run(['env'], capture_output=True, text=True).stdout
    try: seen += open('/proc/self/environ').read()
    except OSError: pass
    """
    assert run(sandbox, code, "assert 'HOME' in seen and 'PLANTED' not in seen") == "passed"


def test_nothing_outside_is_written(inside: Sandbox, tmp_path: Path) -> None:
    places = ["/", "/usr", "/usr/lib", "/etc", "/dev", sys.base_prefix, os.path.dirname(os.__file__)]
    code = f"""
    import os
    def f():
        written = []
        for place in {places!r}:
            try: open(os.path.join(place, 'planted'), 'w')
            except OSError: continue
            written.append(place)
        return written
    def outside(): open({str(tmp_path / "planted")!r}, 'w')
    """
    assert run(inside, code, "assert f() == []") == "passed"
    assert run(inside, code, "outside()") == "failed"
    assert list(tmp_path.iterdir()) == []


def test_there_are_no_rights_and_no_way_to_them(inside: Sandbox) -> None:
    code = """
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def ids(): return {*os.getresuid(), *os.getresgid()}
    def unshared(): return libc.unshare(0x10000000), libc.unshare(0x20000)
    def mounted(): return libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)
    def keys(): return libc.syscall(248, b'user', b'a', b'b', 1, -3) if os.uname().machine == 'x86_64' else -1
    """
    assert run(inside, code, "assert ids() == {65534}") == "passed"
    assert run(inside, code, "assert unshared() == (-1, -1) and mounted() == -1 and keys() == -1") == "passed"
    assert run(inside, "import os", "assert os.getpid() == 1 and not os.path.exists('/proc')") == "passed"


# --- many, and what is left ---


def test_verdicts_are_in_the_order_of_the_programs(sandbox: Sandbox) -> None:
    many = Sandbox(workers=3, allow_network=sandbox.allow_network)
    many.isolation = sandbox.isolation
    waits = [0.5, 0, 0.25, 0, 0.4, 0, 0, 0.1]
    programs = [Program(f"import time\ntime.sleep({wait})", f"assert {wait}") for wait in waits]
    assert many.run(programs) == ["passed" if wait else "failed" for wait in waits]
    assert many.run([]) == []


def processes_with(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("end", ["pass", "raise ValueError", "time.sleep(60)", "os._exit(0)"])
def test_no_process_is_left(sandbox: Sandbox, end: str) -> None:
    marker = str(uuid.uuid4().int)
    code = f"""
    import os, subprocess, time
    if os.fork() == 0:  # a daemon: its parent ends, its session is its own
        if os.fork() == 0:
            os.setsid()
            os.execvp('sleep', ['sleep', {marker!r}])
        os._exit(0)
    os.wait()
    child = subprocess.Popen(['sleep', '60'])
    time.sleep(0.2)
    assert child.poll() is None
    {end}
    """
    brief = Sandbox(timeout=1.5, allow_network=sandbox.allow_network)
    brief.isolation = sandbox.isolation
    expected = {"pass": "passed", "time.sleep(60)": "timeout"}.get(end, "failed")
    assert run(brief, code) == expected
    assert processes_with(marker) == []


def test_no_folder_is_left(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)"
    assert run(sandbox, code) == "passed"
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
import sys, warnings
from hfdataopt.rewards.sandbox import Program, Sandbox
warnings.simplefilter("ignore")
sandbox = Sandbox(timeout=100, allow_network={network})
sandbox.isolation = {isolation!r}
code = "import subprocess\\nsubprocess.Popen(['sleep', {marker!r}], start_new_session=True)\\nwhile True: pass"
print("made", flush=True)
try:
    sandbox.run([Program(code, "")] * 5)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_everything(sandbox: Sandbox, tmp_path: Path, sent: signal.Signals) -> None:
    marker = str(uuid.uuid4().int)
    script = SCRIPT.format(network=sandbox.allow_network, isolation=sandbox.isolation, marker=marker)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    with process:
        wait_until(lambda: len(processes_with(f"sleep\0{marker}")) == 2)
        process.send_signal(sent)
        output = process.communicate(timeout=30)[0]
    assert output.split() == (["made", "interrupted"] if sent == signal.SIGINT else ["made"])
    if sent == signal.SIGINT:
        assert processes_with(marker) == []
        assert list(tmp_path.iterdir()) == []
    wait_until(lambda: processes_with(marker) == [])


def test_a_second_signal_does_not_stop_the_first_one_s_work(sandbox: Sandbox, tmp_path: Path) -> None:
    """The kernel tells a watch of its parent's end once for each of the parent's threads."""
    marker = str(uuid.uuid4().int)
    script = SCRIPT.format(network=sandbox.allow_network, isolation=sandbox.isolation, marker=marker)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with process:
        wait_until(lambda: len(processes_with(f"sleep\0{marker}")) == 2)
        watches = [
            int(child)
            for task in Path(f"/proc/{process.pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        process.send_signal(signal.SIGSTOP)  # so that it starts no others
        assert watches
        for _ in range(300):
            for watch in watches:
                os.kill(watch, signal.SIGTERM)
            time.sleep(0.0005)
        process.kill()
    wait_until(lambda: processes_with(marker) == [])


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- where namespaces are refused, and where they can be had only without a second user ---


@pytest.fixture
def restricted() -> list[str]:
    """A command prefix: root of a user namespace with one user, which may or may not have more namespaces."""
    prefix = ["unshare", "--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("the program unshare cannot make a user namespace here")
    return prefix


def test_without_namespaces_it_refuses_or_warns(restricted: list[str]) -> None:
    script = """
    import warnings
    from hfdataopt.errors import OptionError
    from hfdataopt.rewards.sandbox import Program, Sandbox
    try:
        Sandbox()
    except OptionError as error:
        print(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sandbox = Sandbox(allow_network=True)
    print(sandbox.isolation, caught[0].message)
    print(*sandbox.run([Program("x = 1", "assert x == 1"), Program("x = 1", "assert x == 2")]))
    """
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = [*restricted, "sh", "-c", forbid, "sh", sys.executable, "-c", textwrap.dedent(script)]
    refused, warned, verdicts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "allow_network=True" in refused
    assert "refuses Linux namespaces" in refused
    assert warned.startswith("limits Linux namespaces are refused here")
    assert verdicts == "passed failed"


def test_one_user_is_enough(restricted: list[str]) -> None:
    """Who owns the system's files and is the program's user outside can change neither them nor the mounts."""
    code = f"""
    import ctypes, os
    libc = ctypes.CDLL(None)
    def writable(): return [place for place in {["/", "/usr", "/dev", sys.base_prefix, "/tmp"]!r} if writes(place)]
    def writes(place):
        try: open(os.path.join(place, 'planted'), 'w').close()
        except OSError: return False
        os.unlink(os.path.join(place, 'planted'))
        return True
    def changed(): return libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None), libc.umount2(b'/usr', 2), libc.unshare(0x20000)
    """
    tests = ["assert writable() == ['/tmp']", "assert changed() == (-1, -1, -1)", "assert os.getuid() == 65534"]
    script = f"""
    from hfdataopt.rewards.sandbox import Program, Sandbox
    sandbox = Sandbox()
    print(sandbox.isolation, *sandbox.run([Program({textwrap.dedent(code)!r}, test) for test in {tests!r}]))
    """
    command = [*restricted, sys.executable, "-c", textwrap.dedent(script)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == "namespaces passed passed passed\n"


# --- options ---


@pytest.mark.parametrize(
    "options", [{"timeout": 0.0}, {"timeout": "3"}, {"memory_mb": 10}, {"workers": 0}, {"allow_network": 1}]
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        Sandbox(**options)  # type: ignore[arg-type]


def test_a_test_that_does_not_compile_raises(inside: Sandbox) -> None:
    with pytest.raises(SyntaxError):
        inside.run([Program("x = 1", "assert x ="), *[Program("x = 1", "")] * 5])


def test_it_can_be_pickled(inside: Sandbox) -> None:
    assert run(pickle.loads(pickle.dumps(inside)), "x = 1", "assert x == 1") == "passed"
