"""Build the wheel, install it into an empty environment, and run the demo's smoke mode from it. ``make test-install``.

Nothing is taken from the checkout but the wheel and constraints.txt: commands run in a folder elsewhere, without
PYTHONPATH. ``TORCH_INDEX`` names a package index for torch, for example one with CPU-only builds. All folders are
temporary and are removed.

    python tests/install/wheel_smoke.py [--wheel-only]    --wheel-only stops after ``hfdataopt plugins``
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO_SECONDS = 300


def main(argv: list[str]) -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hfdataopt-install-") as temporary:
        work = Path(temporary)
        wheel = build(work / "dist")
        binaries = install(wheel, work / "env")
        elsewhere = work / "elsewhere"
        elsewhere.mkdir()
        check_import(binaries, elsewhere, work / "env")
        check_plugins(binaries, elsewhere)
        check_select(binaries, elsewhere)
        check_optimize(binaries, elsewhere)
        check_third_party(binaries, elsewhere, work)
        if "--wheel-only" not in argv:
            check_demo(binaries, elsewhere)
    step(f"done in {time.monotonic() - started:.0f} s")
    return 0


def step(message: str) -> None:
    print(f"install: {message}", flush=True)


def build(folder: Path) -> Path:
    step("building the sdist, and the wheel from it")
    run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    )  # by way of the sdist: no stale build folder
    wheels = list(folder.glob("*.whl"))
    expect(len(wheels) == 1, f"one wheel was expected; got {wheels}")
    step(f"built {wheels[0].name}, {wheels[0].stat().st_size / 1e6:.2f} MB")
    return wheels[0]


def install(wheel: Path, environment: Path) -> Path:
    """The folder of executables of a new environment with the wheel in it, torch first and alone."""
    venv.create(environment, with_pip=True)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", str(ROOT / "constraints.txt")]
    index = os.environ.get("TORCH_INDEX", "")
    step(f"installing torch{f' from {index}' if index else ''}")
    run([*pip, *(["--index-url", index] if index else []), "torch"])
    step(f"installing {wheel.name}, without extras")
    run([*pip, str(wheel)])
    run([str(binaries / "python"), "-m", "pip", "check"])
    return binaries


def check_import(binaries: Path, folder: Path, environment: Path) -> None:
    code = "import hfdataopt, hfdataopt_plugins; print(hfdataopt.__file__); print(hfdataopt_plugins.__file__)"
    for line in output([str(binaries / "python"), "-c", code], folder).splitlines():
        expect(Path(line).resolve().is_relative_to(environment.resolve()), f"{line} is not in the new environment")
    step("the package is imported from the new environment")


def check_plugins(binaries: Path, folder: Path) -> None:
    printed = output([str(binaries / "hfdataopt"), "plugins"], folder)
    listed = {line.split()[0] for line in printed.splitlines() if "/" in line.split()[0]}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["hfdataopt"]
    missing = sorted(name for name in declared if f"{name!r} (hfdataopt " not in printed)
    expect(not missing, f"'hfdataopt plugins' does not list the plugins {missing}")
    expect("FAILED" not in printed, f"a plugin failed to load:\n{printed}")
    step(f"hfdataopt plugins lists {len(listed)} components")


def check_select(binaries: Path, folder: Path) -> None:
    """A filter that needs no extra, on a stream, from the shell."""
    rows, target, kept = (folder / f"{name}.jsonl" for name in ("rows", "target", "kept"))
    for file, count in ((rows, 50), (target, 5)):
        file.write_text("".join(f'{{"text": "{"word " * (i % 7)}{i}"}}\n' for i in range(count)))
    options = ["--filter", "dsir", "--reduction", "per-token", "--quantile", "0.9", "--streaming"]
    files = ["--dataset", str(rows), "--target", str(target), "--output", str(kept)]
    output([str(binaries / "hfdataopt"), "select", *options, *files], folder)
    count = len(kept.read_text().splitlines())
    expect(0 < count < 25, f"hfdataopt select kept {count} of 50 rows at the 0.9 quantile")
    for file in (rows, target, kept):
        file.unlink()
    step(f"hfdataopt select kept {count} of 50 rows of a stream")


def check_optimize(binaries: Path, folder: Path) -> None:
    """A prompt for the follower in the wheel, from the shell."""
    code = (
        "from hfdataopt.demo import follower_tasks as world\n"
        "world.rows('plural', 'train').to_json('rows.jsonl')\nprint(world.FOLDER)"
    )
    model = output([str(binaries / "python"), "-c", code], folder).strip().splitlines()[-1]
    reward = "hfdataopt.demo.follower_tasks:exact_match"
    options = [
        "--optimizer",
        "racing",
        "--max_calls",
        "60",
        "--items",
        "10",
        "--max_new_tokens",
        "12",
        "--logging_steps",
        "0",
    ]
    files = ["--model", model, "--dataset", "rows.jsonl", "--reward_funcs", reward, "--output_dir", "search"]
    printed = output([str(binaries / "hfdataopt"), "optimize", *options, *files], folder)
    expect((folder / "search" / "prompt.json").is_file(), f"hfdataopt optimize wrote no prompt:\n{printed}")
    shutil.rmtree(folder / "search")
    (folder / "rows.jsonl").unlink()
    step("hfdataopt optimize found a prompt")


BROKEN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "broken-plugin"
version = "0.0.1"

[project.entry-points.hfdataopt]
broken = "broken_plugin"

[tool.setuptools]
py-modules = ["broken_plugin"]
""",
    "broken_plugin.py": "import a_package_that_is_not_there\n",
}


def check_third_party(binaries: Path, folder: Path, work: Path) -> None:
    """A plugin of somebody else, one made by new-plugin, and a broken one, beside the wheel."""
    hfdataopt = str(binaries / "hfdataopt")
    shutil.copytree(ROOT / "examples" / "write_a_plugin", work / "theirs")
    output([hfdataopt, "new-plugin", "my-filter", "--kind", "filter", "--directory", str(work)], folder)
    (work / "broken").mkdir()
    for name, text in BROKEN.items():
        (work / "broken" / name).write_text(text)
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["-c", str(ROOT / "constraints.txt")]
    run([*pip, str(work / "theirs"), str(work / "my-filter")])

    printed = output([hfdataopt, "plugins", "--options", "--hooks"], folder)
    for line in ("filter/repetition", "filter/my-filter", "hooks of 'repetition' (hfdataopt-repetition 1.0.0)"):
        expect(line in printed, f"'hfdataopt plugins' does not list {line}:\n{printed}")
    report = output([hfdataopt, "check-plugin", "repetition"], folder)
    expect("FAILED" not in report, f"the example plugin does not keep the promises of a filter:\n{report}")
    output([hfdataopt, "check-plugin", "my-filter"], folder)
    step("two third-party plugins are listed, and keep the promises of a filter")

    run([*pip, "--no-deps", str(work / "broken")])
    printed = output([hfdataopt, "plugins"], folder, status=1)
    cause = "FAILED 'broken' (broken-plugin 0.0.1): ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    expect(cause in printed, f"'hfdataopt plugins' does not say why a plugin failed:\n{printed}")
    rows, kept = folder / "rows.jsonl", folder / "kept.jsonl"
    rows.write_text(
        "".join(f'{{"text": "{text}"}}\n' for text in ("buy now " * 9, "the cat sat on the mat", "one more"))
    )
    options = ["--filter", "repetition", "--ngram", "2", "--threshold", "-0.15"]
    output([hfdataopt, "select", *options, "--dataset", str(rows), "--output", str(kept)], folder)
    count = len(kept.read_text().splitlines())
    expect(count == 2, f"the filter repetition kept {count} of 3 rows, not the 2 that repeat nothing")
    for file in (rows, kept):
        file.unlink()
    step("with a broken plugin beside it the third-party filter still works, and the cause is shown")


def check_demo(binaries: Path, folder: Path) -> None:
    started = time.monotonic()
    printed = output([str(binaries / "hfdataopt"), "demo", "--smoke", "--output_dir", "report"], folder)
    files = [path for path in (folder / "report").rglob("*") if path.is_file()]
    expect(bool(files), "the demo wrote nothing to its output_dir")
    expect("freeshap" in printed, f"the demo does not mention freeshap:\n{printed}")
    left = sorted(path.name for path in folder.iterdir() if path.name != "report")
    expect(not left, f"the demo wrote outside its output_dir: {left}")
    step(f"hfdataopt demo --smoke wrote {len(files)} files in {time.monotonic() - started:.0f} s")


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"install: FAILED: {message}")


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    expect(done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")


def output(command: list[str], folder: Path, status: int = 0) -> str:
    """What a command that ends with this status prints, run in ``folder`` with nothing of this checkout or this environment in its way."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HFDATAOPT_", "VIRTUAL"))
    }
    variables |= {"HF_HUB_OFFLINE": "1", "PATH": os.pathsep.join([str(Path(command[0]).parent), os.defpath])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, timeout=DEMO_SECONDS)
    expect(
        done.returncode == status,
        f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}",
    )
    expect("Traceback" not in done.stderr, f"{' '.join(command)} printed a traceback:\n{done.stderr[-4000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
