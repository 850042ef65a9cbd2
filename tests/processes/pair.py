"""Two processes that score together on one machine, as ``ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2`` starts them.

They are forked from a server that has imported everything once, so that a start costs a fraction of a second.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = [
    "torch",
    "trl",
    "transformers.trainer",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "hfdataopt.testing.tiny",
]
COUNT = 2
LIFETIME = 3600  # seconds after which a process ends, also where what started it was killed


def start(
    work: Callable[..., None],
    folder: Path,
    *arguments: Any,
    environment: dict[str, str] | None = None,
    keywords: dict[str, Any] | None = None,
) -> list[Any]:
    """Processes of rank 0 and 1, each of which calls ``work(folder, *arguments)``; what they print is in ``rank-N.txt``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(COUNT),
        "LOCAL_WORLD_SIZE": str(COUNT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        **(environment or {}),
    }
    processes = []
    for rank in range(COUNT):
        mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_enter, args=(mine, folder, work, arguments, keywords or {}), daemon=True)
        process.start()
        processes.append(process)
    return processes


def wait(processes: list[Any], seconds: float) -> list[int | None]:
    """The exit codes; those still there after ``seconds`` are killed and have None."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def run(work: Callable[..., None], folder: Path, *arguments: Any, seconds: float = 240, **options: Any) -> None:
    """Both processes, to their end; an error in one of them, or a hang, is a failure that shows what they printed."""
    codes = wait(start(work, folder, *arguments, **options), seconds)
    assert codes == [0] * COUNT, f"exit codes {codes} (None: past {seconds} s)\n{printed(folder)}"


def printed(folder: Path) -> str:
    """What both processes printed, the end of it."""
    return "\n".join(f"{file.name}:\n{file.read_text()[-3000:]}" for file in sorted(folder.glob("rank-*.txt")))


def _enter(
    environment: dict[str, str],
    folder: Path,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    os.environ.update(environment)
    signal.alarm(LIFETIME)
    stream = os.open(folder / f"rank-{environment['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        work(folder, *arguments, **keywords)
    except BaseException:
        traceback.print_exc()
        print(f"processor seconds: {time.process_time():.1f}", flush=True)
        sys.stderr.flush()
        os._exit(1)
    print(f"processor seconds: {time.process_time():.1f}", flush=True)
    sys.stderr.flush()
    os._exit(0)
