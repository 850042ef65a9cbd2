"""One event loop per process, on a daemon thread: coroutines run there while the caller waits.

So async functions can be called from plain code, also where a loop is already running (a notebook), and clients that they
keep between calls stay on the loop they were made on. A forked child gets a loop of its own.
"""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hfdataopt.errors import OptionError

Call = Callable[[], Coroutine[Any, Any, Any]]

_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process id: a thread does not survive a fork
_lock = threading.Lock()


def run(call: Call) -> Any:
    """What the coroutine that ``call()`` makes returns or raises; it is cancelled when the caller is interrupted."""
    loop = _loop()
    try:
        here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        raise OptionError(
            "an async reward function called another one without await and would wait for itself for ever; "
            "await it, or give both to reward_funcs"
        )
    future = asyncio.run_coroutine_threadsafe(call(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def together(calls: Sequence[Call]) -> list[Any]:
    """Results in order, with exceptions in their places; after the first exception the others are cancelled."""
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a callable is awaited: an async function, a partial of one, or an object with an async ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        if os.getpid() not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="hfdataopt-rewards", daemon=True).start()
            _loops[os.getpid()] = loop
        return _loops[os.getpid()]
