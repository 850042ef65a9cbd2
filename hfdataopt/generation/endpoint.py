"""Completions from any OpenAI-compatible URL, or from Hugging Face's inference API."""

import asyncio
import contextlib
import email.utils
import hashlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from hfdataopt.console import say
from hfdataopt.errors import DataError, GenerationError, OptionError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.generator import (
    Admit,
    Allowed,
    Generator,
    Have,
    Job,
    OnDone,
    RowId,
    check_refused,
    open_jobs,
    table,
)
from hfdataopt.generation.prompts import check_prompt
from hfdataopt.options import check_options, check_range

WHO = "endpoint"
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, doubled from one try to the next
LONGEST_RETRY_AFTER = 600.0
FIRST_ALONE = 1.0  # seconds for which the first request of a generator goes alone
NEVER_MINE = (401, 402, 403, 404, 405)  # answers that every request would get
OFTEN_ALL = (400, 413, 422)  # and those that every request would get, unless one was answered already
OWN_SYSTEM_PROMPT = 64  # tokens that a server's chat template is taken to put in front where there is no system message
HUGGING_FACE = (".huggingface.co", ".huggingface.cloud")
ENDED = ("stop", "eos_token", "stop_sequence")  # the last two are text-generation-inference's


class _FinalError(Exception):
    """A request that is not tried again; ``for_all``: nor would another one be answered."""

    def __init__(self, cause: str, for_all: bool = False):
        super().__init__(cause)
        self.for_all = for_all


class _NotAllowed(Exception):
    """The caller lets a request not be tried again."""


@dataclass
class EndpointGenerator(Generator):
    """Asks a server for completions: one request per sample, several at a time, tried again when the server is busy.

    Answers 429, 408 and 5xx, timeouts and broken connections are tried again after a wait that doubles, with jitter, and is
    at least what ``Retry-After`` asks for. Any other error is final for its request. No more are sent after an answer that
    every request would get (a wrong key, an unknown model; a bad request before any other was answered), nor when
    ``concurrency`` requests in a row have failed for good. The very first request goes alone for up to a second, so that
    a wrong key is found with one.

    Attributes:
        model: its name at the server.
        base_url: such as ``"http://localhost:8000/v1"``; None = Hugging Face's inference API.
        api_key: None = for Hugging Face ``HF_TOKEN`` or the login on this machine, for other URLs ``OPENAI_API_KEY``.
        max_new_tokens: the most tokens of a completion. temperature, top_p, stop: as the server defines them.
        concurrency: requests under way at a time.
        timeout: seconds for one request. retries: how often a request is tried again.
        extra: more fields of the request; None leaves one out, for example ``{"seed": None}``.
        chat: a text prompt is sent as one message of the user. False = it is continued as it is (``/completions``).
        attempts: requests sent so far, those that were tried again among them.
        unanswered: those tried again after no whole answer had come (a timeout, a connection that broke): the server may have
            worked on them, and may charge for them.
    """

    name: ClassVar[str] = "endpoint"

    model: str
    base_url: str | None = field(default=None, kw_only=True)
    api_key: str | None = field(default=None, kw_only=True, repr=False)
    max_new_tokens: int = field(default=256, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    top_p: float = field(default=1.0, kw_only=True)
    stop: list[str] | None = field(default=None, kw_only=True)
    concurrency: int = field(default=8, kw_only=True)
    timeout: float = field(default=60.0, kw_only=True)
    retries: int = field(default=4, kw_only=True)
    extra: dict[str, Any] | None = field(default=None, kw_only=True)
    chat: bool = field(default=True, kw_only=True)
    attempts: int = field(default=0, init=False, repr=False, compare=False)
    unanswered: int = field(default=0, init=False, repr=False, compare=False)
    _waited: bool = field(default=False, init=False, repr=False, compare=False)  # whether that was said
    _answered: bool = field(default=False, init=False, repr=False, compare=False)  # whether a request ever was

    def __post_init__(self) -> None:
        check_options(self)
        for option, least in (("max_new_tokens", 1), ("concurrency", 1), ("retries", 0), ("temperature", 0)):
            check_range(self, option, at_least=least)
        check_range(self, "timeout", above=0)
        check_range(self, "top_p", above=0, at_most=1)
        if self.base_url is None:
            if not self.chat:
                raise OptionError(f"{WHO}: chat=False needs base_url=, the URL of a server with /completions")
            return
        check_url(self.base_url, f"{WHO}: base_url")

    def describe(self) -> dict[str, Any]:
        """A JSON object of everything that changes the output; no key."""
        return {
            "kind": "endpoint",
            "model": self.model,
            "base_url": self.base_url,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "stop": list(self.stop or []),
            "extra": dict(self.extra or {}),
        }

    def generate(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        keys: Sequence[RowId],
        seed: int = 0,
        have: Have | None = None,
        on_done: OnDone | None = None,
        admit: Admit | None = None,
        allowed: Allowed | None = None,
    ) -> list[list[Completion]]:
        """``[prompts][n]`` completions; see :class:`~hfdataopt.generation.generator.Generator`.

        Also inside a running event loop; ``on_done``, ``admit`` and ``allowed`` are then called from another thread, one call at a time.

        Raises:
            GenerationError: some did not arrive; the others were handed to ``on_done``.
            Refused: ``admit`` or ``allowed`` left some out.
            DataError: a prompt that is missing, or messages with ``chat=False``; the row is named.
        """
        jobs = open_jobs(WHO, prompts, n, keys, self.temperature, have)
        for index in sorted({index for index, _ in jobs}):
            check_prompt(prompts[index], WHO, keys[index])
            if not self.chat and not isinstance(prompts[index], str):
                raise DataError(f"{WHO}: chat=False takes text prompts; row {keys[index]!r} is a list of messages")
        made: dict[Job, Completion] = {}
        failures: list[tuple[Job, _FinalError]] = []
        refused: list[Job] = []

        def arrived(job: Job, completion: Completion) -> None:
            made[job] = completion
            if on_done is not None:
                on_done(*job, completion)

        def admitted(job: Job) -> bool:
            if admit is None or admit(*job):
                return True
            refused.append(job)
            return False

        if jobs:
            run_async(self._all(jobs, prompts, keys, seed, admitted, allowed, arrived, failures, refused))
        if failures:
            last = next((failure for failure in failures if failure[1].for_all), failures[-1])
            (index, _), cause = last
            before = f" besides {len(have)} from before" if have else ""
            raise GenerationError(
                f"{WHO} {self.model!r}: {len(made)} of {len(jobs)} completions arrived{before}; {len(failures)} requests "
                f"failed, {'that' if cause.for_all else 'the last one'} for row {keys[index]!r}: {cause}"
                + (
                    ". What arrived is not lost where completions are stored as they arrive: run again to go on from there"
                    if made or have
                    else ""
                )
            )
        check_refused(f"{WHO} {self.model!r}", len(refused), len(made))
        return table(prompts, n, have, made)

    def count_tokens(self, prompt: Any) -> int:
        own = isinstance(prompt, str) or prompt[0]["role"] not in ("system", "developer")
        return super().count_tokens(prompt) + (OWN_SYSTEM_PROMPT if self.chat and own else 0)

    async def _all(
        self,
        jobs: list[Job],
        prompts: Sequence[Any],
        keys: Sequence[RowId],
        seed: int,
        admitted: Callable[[Job], bool],
        allowed: Allowed | None,
        arrived: Callable[[Job, Completion], None],
        failures: list[tuple[Job, _FinalError]],
        refused: list[Job],
    ) -> None:
        from huggingface_hub import AsyncInferenceClient

        queue: Iterator[Job] = iter(jobs)
        in_a_row = 0
        stop, first = asyncio.Event(), asyncio.Event()  # no more are sent; the first one was answered
        key = self._key()
        async with AsyncInferenceClient(
            provider=None if self.base_url else "auto",
            base_url=self.base_url,
            api_key=key,
            # without a key the client would send the user's Hugging Face token to any URL
            headers={"authorization": f"Bearer {key or 'none'}"} if self.base_url else None,
            timeout=self.timeout,
        ) as client:
            session = await client._get_async_client()
            if not self._at_hugging_face():
                session.event_hooks = {}  # they refuse every URL where HF_HUB_OFFLINE is set, a local server's too

            async def work() -> None:
                nonlocal in_a_row
                for job in queue:
                    if stop.is_set():
                        return
                    if not admitted(job):
                        continue
                    index, sample = job
                    number = request_seed(seed, keys[index], sample)
                    try:
                        completion = await self._one(client, session, prompts[index], number, stop, allowed)
                    except _FinalError as error:
                        failures.append((job, error))
                        in_a_row += 1
                        if error.for_all or in_a_row >= self.concurrency:
                            stop.set()
                        continue
                    except _NotAllowed:
                        refused.append(job)
                        continue
                    finally:
                        first.set()
                    in_a_row, self._answered = 0, True
                    arrived(job, completion)

            async def later() -> None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(first.wait(), 0 if self._answered else FIRST_ALONE)
                await work()

            count = min(self.concurrency, len(jobs))
            workers = [asyncio.ensure_future(worker) for worker in (work(), *(later() for _ in range(count - 1)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _one(
        self, client: Any, session: Any, prompt: Any, number: int, stop: asyncio.Event, allowed: Allowed | None
    ) -> Completion:
        """One completion; ``_FinalError`` after the last try, with the cause in words; ``_NotAllowed``."""
        for attempt in range(self.retries + 1):
            self.attempts += 1
            try:
                return await asyncio.wait_for(self._ask(client, session, prompt, number), self.timeout)
            except Exception as error:
                again, asked = _again(error)
                reached = _status(error) is None and not _not_connected(error)
                cause = self._in_words(error)
                if attempt == self.retries or not again or stop.is_set():
                    tries = f" (tried {attempt + 1} times)" if attempt else ""
                    status = _status(error)
                    for_all = status in NEVER_MINE or (status in OFTEN_ALL and not self._answered)
                    raise _FinalError(f"{cause}{tries}", for_all) from None
                if asked > LONGEST_RETRY_AFTER:
                    raise _FinalError(f"{cause}; it asks to come back after {asked:.0f} s") from None
                if attempt and not self._waited:
                    self._waited = True
                    say(f"{WHO} {self.model!r}: still waiting after {attempt + 1} tries: {cause}")
            wait = max(asked, backoff(number, attempt))
            if allowed is not None and not allowed(wait):
                raise _NotAllowed
            with contextlib.suppress(TimeoutError):  # a stop ends the wait
                await asyncio.wait_for(stop.wait(), wait)
                raise _FinalError(f"{cause} (tried {attempt + 1} times)")
            if allowed is not None and not allowed(0.0):  # the wait may have taken longer
                raise _NotAllowed
            self.unanswered += reached
        raise AssertionError("unreachable")

    async def _ask(self, client: Any, session: Any, prompt: Any, number: int) -> Completion:
        fields = {
            "max_tokens": self.max_new_tokens,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "stop": self.stop,
            "seed": number,
            **(self.extra or {}),
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        if self.chat:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            answer = await client.chat_completion(messages, model=self.model, extra_body=fields)
        else:
            answer = await self._complete(session, {"model": self.model, "prompt": prompt, **fields})
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            finished = choice["finish_reason"] in ENDED
        except (KeyError, IndexError, TypeError):
            raise ValueError("the answer holds no completion") from None
        if text is not None and not isinstance(text, str):
            raise ValueError("the answer holds no text")
        usage = answer.get("usage")
        counts = [usage.get(name) if usage else None for name in ("prompt_tokens", "completion_tokens")]
        return Completion(text or "", None, finished, *[x if isinstance(x, int) else None for x in counts])

    async def _complete(self, session: Any, fields: dict[str, Any]) -> Any:
        """What ``AsyncInferenceClient`` has no method for: OpenAI's ``/completions``."""
        from huggingface_hub.utils import hf_raise_for_status

        url = str(self.base_url).rstrip("/")
        url = url if urlsplit(url).path else f"{url}/v1"
        headers = {"authorization": f"Bearer {self._key() or 'none'}"}
        response = await session.post(f"{url}/completions", json=fields, headers=headers, timeout=self.timeout)
        hf_raise_for_status(response)
        return response.json()

    def _at_hugging_face(self) -> bool:
        return self.base_url is None or f".{urlsplit(self.base_url).hostname}".endswith(HUGGING_FACE)

    def _key(self) -> str | None:
        if self.api_key is not None:
            return self.api_key
        from huggingface_hub import get_token

        return get_token() if self._at_hugging_face() else os.environ.get("OPENAI_API_KEY")

    def _in_words(self, error: BaseException) -> str:
        """The error in one line of at most 300 characters, without the key."""
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"no answer within {self.timeout:g} s"
        status = _status(error)
        text = f"{f'status {status}: ' if status else ''}{type(error).__name__}: {error}"
        key = self._key()
        text = text.replace(key, "***") if key else text
        text = " ".join(text.split())[:300]
        return f"{text} ({self._about_key()})" if status in (401, 403) else text

    def _about_key(self) -> str:
        where = "HF_TOKEN, `hf auth login`" if self._at_hugging_face() else "OPENAI_API_KEY"
        return f"{'a' if self._key() else 'no'} key was sent; it is taken from api_key= or {where}"


def check_url(text: str, who: str) -> None:
    """``OptionError``, which does not repeat it, for no URL of a server, or one with a secret in it: URLs are recorded."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise OptionError(f"{who} must be a URL such as 'http://localhost:8000/v1'")
    if url.username or url.password or url.query:
        raise OptionError(f"{who} holds a user, a password or a query; pass the secret as api_key=")


def backoff(number: int, attempt: int) -> float:
    """Seconds to wait after a request's attempt (from 0) failed; its jitter follows from the request's seed ``number``."""
    digest = hashlib.sha256(f"{number}/{attempt}".encode()).digest()
    jitter = int.from_bytes(digest[:4], "little") / 2**32
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (0.5 + 0.5 * jitter)


def request_seed(seed: int, key: RowId, sample: int) -> int:
    """The seed that a request carries, below 2**31."""
    digest = hashlib.sha256(f"{seed}/{type(key).__name__}/{key}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _not_connected(error: BaseException) -> bool:
    """Whether the request was never sent, since there was no connection."""
    return any(kind.__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout") for kind in type(error).__mro__)


def _again(error: BaseException) -> tuple[bool, float]:
    """Whether the same request may succeed later, and how many seconds the server asks to wait."""
    status = _status(error)
    if status is not None:
        response: Any = getattr(error, "response", None)
        asked = _retry_after(response.headers.get("Retry-After"))
        spent = status == 429 and "insufficient_quota" in str(getattr(response, "text", ""))
        return (status in (408, 429) or status >= 500) and not spent, asked
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False, 0.0
    # the HTTP library of huggingface_hub is another one in another version
    transport = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    return transport or isinstance(error, TimeoutError | ConnectionError), 0.0


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After`` header, which holds a number or a date; 0 for anything else."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(value)).timestamp() - time.time())
    except ValueError:
        return 0.0


def run_async(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, in a thread of its own where a loop is running here already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    problem: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def target() -> None:
        try:
            loop.run_until_complete(task)
        except BaseException as error:
            problem.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=target, name="hfdataopt-endpoint", daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # interrupted from the keyboard: stop asking
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if problem:
        raise problem[0]
