"""What the host runs for an optimizer: every request goes through the ledger and the budget, here and nowhere else."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np

from hfdataopt.errors import DataError, GenerationError, OptionError, Refused
from hfdataopt.generation import Completion
from hfdataopt.generation.generator import TwoCalls
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import Budget, BudgetSpent, calls_of
from hfdataopt.prompting.candidate import Candidate, RowId
from hfdataopt.prompting.ledger import Ledger, key_of
from hfdataopt.prompting.meta_prompts import Messages, text_of_messages
from hfdataopt.prompting.optimizer import Item
from hfdataopt.rewards.texts import is_messages

WHO = "PromptTrainer"


class Requests:
    """Sends what is not in the ledger, within the budget, and counts what a search uses whether it was kept or sent."""

    def __init__(self, ledger: Ledger, budget: Budget, seed: int) -> None:
        self.ledger, self.budget, self.seed = ledger, budget, seed
        budget.spent.uncertain = ledger.uncertain
        self.used: set[str] = set()

    def keys(self, role: str, generator: Any, prompts: Sequence[Any], draws: Sequence[str]) -> list[str]:
        """Names under which the answers are kept."""
        about = generator.describe()
        return [key_of(role, about, prompt, draw) for prompt, draw in zip(prompts, draws, strict=True)]

    def cost(self, generator: Any, keys: Sequence[str]) -> int:
        """Calls that completions under these keys take beyond those that this search has used already."""
        if isinstance(generator, TwoCalls):
            return len({part for key in keys for part in _parts(key)} - self.used)
        return calls_of(generator) * len(set(keys) - self.used)

    def complete(
        self,
        role: str,
        generator: Any,
        prompts: Sequence[Any],
        draws: Sequence[str],
    ) -> list[Completion]:
        """One completion per prompt; the same prompt and draw are asked once.

        Raises:
            BudgetSpent: not all of them are within the budget; those that had been sent are kept.
            GenerationError: the provider failed; what arrived is kept.
        """
        keys = self.keys(role, generator, prompts, draws)
        cost, left = self.cost(generator, keys), self.budget.left(role)
        if cost > left:
            raise BudgetSpent(f"{cost} {role} call(s) are needed, and {left:g} are left")
        if not isinstance(generator, TwoCalls):
            return self._answers(role, generator, prompts, keys)
        inner, parts = generator.generator, [_parts(key) for key in keys]
        first = self._answers(role, inner, prompts, [one for one, _ in parts])
        seconds = [generator.second(*pair) for pair in zip(prompts, first, strict=True)]
        last = self._answers(role, inner, seconds, [two for _, two in parts])
        return [generator.joined(*three) for three in zip(prompts, first, last, strict=True)]

    def missing(self, role: str, keys: Sequence[str], each: int = 1) -> list[str]:
        """Those of the keys that have no answer yet, once each; kept answers that this search meets first are counted."""
        fresh = [key for key in dict.fromkeys(keys) if key not in self.used]
        for key in fresh:
            if key in self.ledger.answers:
                self.count(role, key, each)
        return [key for key in fresh if key not in self.ledger.answers]

    def _answers(self, role: str, generator: Any, prompts: Sequence[Any], keys: Sequence[str]) -> list[Completion]:
        """The kept answers, and those to the requests that are sent for the others."""
        each = calls_of(generator)
        place = {key: number for number, key in reversed(list(enumerate(keys)))}
        missing = self.missing(role, keys, each)
        if missing:
            self._send(role, generator, [prompts[place[key]] for key in missing], missing, each)
        return [_completion(self.ledger.answers[key]) for key in keys]

    def _send(self, role: str, generator: Any, prompts: Sequence[Any], keys: Sequence[str], each: int) -> None:
        bounds: dict[int, tuple[int, int]] = {}
        most = generator.max_new_tokens
        limited = self.budget.tokens is not None or self.budget.cost is not None
        if limited and most is None:
            raise OptionError(
                f"{WHO}: max_tokens and max_cost need to know the most tokens of an answer; {type(generator).__name__} has no "
                "max_new_tokens"
            )

        def admit(index: int, sample: int) -> bool:
            bound = (generator.count_tokens(prompts[index]), most) if limited else (0, 0)
            if not self.budget.reserve(role, *bound):
                return False
            bounds[index] = bound
            self.ledger.request(keys[index], role, prompts[index])
            self.budget.spent.uncertain = self.ledger.uncertain
            return True

        def arrived(index: int, sample: int, completion: Completion) -> None:
            into, out = completion.prompt_tokens, completion.completion_tokens
            if into is None:
                into = generator.count_tokens(prompts[index])
            if out is None:
                out = len(completion.text.encode()) if completion.token_ids is None else len(completion.token_ids)
                out = min(out, most) if most is not None else out
            seconds = round(self.budget.elapsed(), 3)
            self.ledger.answer(keys[index], role, completion=completion.to_json(), tokens=[into, out], seconds=seconds)
            self.budget.release(role, *bounds.pop(index))
            self.count(role, keys[index], each)

        left, tried = list(range(len(keys))), getattr(generator, "unanswered", 0)
        while left:
            before = len(left)
            try:
                generator.generate(
                    [prompts[place] for place in left],
                    1,
                    keys=[keys[place] for place in left],
                    seed=self.seed,
                    on_done=lambda index, sample, one, left=left: arrived(left[index], sample, one),
                    admit=lambda index, sample, left=left: admit(left[index], sample),
                    allowed=self.budget.in_time,
                )
            except Refused as refused:
                # What was under way may have left more than it had set aside.
                left = [place for place in left if keys[place] not in self.ledger.answers]
                if len(left) == before:
                    raise BudgetSpent(
                        self.budget.out_of() or "the next request could go over max_tokens or max_cost"
                    ) from refused
            else:
                break
            finally:
                for bound in bounds.values():
                    self.budget.release(role, *bound)
                bounds.clear()
                again = getattr(generator, "unanswered", 0) - tried
                if again:
                    tried += again
                    self.ledger.unanswered(again)
                    self.budget.spent.uncertain = self.ledger.uncertain
        lost = [key for key in keys if key not in self.ledger.answers]
        if lost:
            raise GenerationError(
                f"{WHO}: {type(generator).__name__} returned without {len(lost)} of {len(keys)} answers"
            )

    def count(self, role: str, key: str, requests: int = 1) -> None:
        """Count an answer that is in the ledger."""
        self.used.add(key)
        into, out = self.ledger.answers[key]["tokens"]
        self.budget.book(role, into, out, requests)


def _parts(key: str) -> tuple[str, str]:
    """Names of the two answers of a :class:`~hfdataopt.generation.generator.TwoCalls`."""
    return f"{key}/1", f"{key}/2"


def _completion(line: dict[str, Any]) -> Completion:
    return Completion.from_json(line["completion"])


class HostServices:
    """:class:`~hfdataopt.prompting.optimizer.Services` on real models.

    Args:
        model: the scored model's generator; with temperature 1 for ``sample``.
        proposer: a generator or None. encoder: id, model of sentence-transformers, ``(model, tokenizer)``, or a callable.
        white_box: a :class:`~hfdataopt.prompting.white_box.WhiteBox` or None.
    """

    def __init__(
        self, requests: Requests, model: Any, proposer: Any, encoder: Any, white_box: Any, items: Mapping[RowId, Item]
    ) -> None:
        self._requests, self._model, self._proposer = requests, model, proposer
        self._encoder, self._white_box, self._items = encoder, white_box, items
        # One for all items, since it says once that answers do not end.
        self._sampler = changed(model, temperature=getattr(model, "temperature", 1.0) or 1.0)
        self._asked: dict[str, int] = {}

    def propose(self, messages: Messages, n: int = 1, temperature: float | None = None) -> list[str]:
        return self.propose_each([messages] * n, temperature)

    def propose_each(self, messages: Sequence[Messages], temperature: float | None = None) -> list[str]:
        proposer = self._need(self._proposer, "proposer")
        if temperature is not None:
            proposer = changed(proposer, temperature=float(temperature))
        left = self._requests.budget.left("proposer") / calls_of(proposer)
        if left < 1:
            raise BudgetSpent("max_proposer_calls are used up")
        prompts = [as_prompt(proposer, one) for one in messages[: int(min(len(messages), left))]]
        about, draws = proposer.describe(), []
        for prompt in prompts:
            name = key_of(about, prompt)
            draws.append(str(self._asked.get(name, 0)))
            self._asked[name] = self._asked.get(name, 0) + 1
        return [x.text for x in self._requests.complete("proposer", proposer, prompts, draws)]

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        encoder, ledger = self._need(self._encoder, "encoder"), self._requests.ledger
        about = self._encoder_name
        keys = [key_of("encoder", about, _content_of(text)) for text in texts]
        self._requests.budget.spent.embedded += len(set(keys) - self._requests.used)
        self._requests.used.update(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in ledger.answers}
        if missing:
            for key, vector in zip(missing, _encode(encoder, list(missing.values())), strict=True):
                if not np.isfinite(vector).all():
                    raise DataError(f"{WHO}: the encoder's features of {str(missing[key])[:80]!r} are not finite")
                ledger.note_vector(key, "encoder", vector)
        vectors = ledger.vectors(keys)
        return np.stack([vectors[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    @functools.cached_property
    def _encoder_name(self) -> Any:
        return describe_encoder(self._encoder)  # of a live model it reads all weights

    @property
    def soft_prompt_width(self) -> int:
        return self._need(self._white_box, "white_box").width

    @property
    def soft_prompt_scale(self) -> float:
        """Root mean square of the entries of the white-box model's token embeddings."""
        return self._need(self._white_box, "white_box").scale

    def decode(self, soft_prompts: np.ndarray, messages: Messages) -> list[str]:
        white_box, ledger = self._need(self._white_box, "white_box"), self._requests.ledger
        about = white_box.describe()
        keys = [key_of("white_box", about, _content_of(one), messages) for one in soft_prompts]
        missing = [place for place, key in enumerate(keys) if key not in ledger.answers]
        if missing:
            if self._requests.budget.out_of():
                raise BudgetSpent(self._requests.budget.out_of())
            for place, text in zip(missing, white_box.decode(soft_prompts[missing], messages), strict=True):
                ledger.answer(keys[place], "white_box", text=text)
        self._requests.budget.spent.decoded += len(keys)
        return [ledger.answers[key]["text"] for key in keys]

    def hidden(self, soft_prompts: np.ndarray, messages: Messages) -> np.ndarray:
        return self._need(self._white_box, "white_box").hidden(soft_prompts, messages)

    def sample(self, item: RowId, n: int) -> list[str]:
        name = f"sample {item!r}"
        first = self._asked.get(name, 0)
        self._asked[name] = first + n
        prompt = self._items[item].prompt
        draws = [f"{name} {first + k}" for k in range(n)]
        return [x.text for x in self._requests.complete("model", self._sampler, [prompt] * n, draws)]

    def log_likelihood(
        self, candidates: Sequence[Candidate], items: Sequence[Item], outputs: Sequence[str]
    ) -> np.ndarray:
        from hfdataopt.generation import LocalGenerator
        from hfdataopt.prompting.likelihood import log_likelihoods

        if not isinstance(self._model, LocalGenerator):
            raise OptionError(
                f"{WHO}: likelihoods need a local model of transformers as model=; got {type(self._model).__name__}"
            )
        ledger, budget = self._requests.ledger, self._requests.budget
        pairs = [
            (ApplyPrompt.of(candidate).render(item.prompt), output)
            for candidate in candidates
            for item, output in zip(items, outputs, strict=True)
        ]
        about = self._model.describe()
        keys = [key_of("likelihood", about, *pair) for pair in pairs]
        new = len(set(keys) - self._requests.used)
        if new > budget.left("model"):
            raise BudgetSpent(f"{new} model calls are needed, and {budget.left('model'):g} are left")
        pair_of = dict(zip(keys, pairs, strict=True))
        missing = {key: pair_of[key] for key in self._requests.missing("model", keys)}
        if missing:
            prompts, completions = map(list, zip(*missing.values(), strict=True))
            sizes = [tuple(map(self._model.count_tokens, pair)) for pair in missing.values()]
            bound = sum(into for into, _ in sizes), sum(out for _, out in sizes)
            if not budget.reserve("model", *bound):
                raise BudgetSpent(budget.out_of() or "the next likelihoods would go over max_tokens or max_cost")
            try:
                values = log_likelihoods(
                    self._model.model, self._model.processing_class, prompts, completions, self._model.batch_size
                )
            finally:
                budget.release("model", *bound)
            for key, size, value in zip(missing, sizes, values, strict=True):
                ledger.answer(key, "likelihood", value=float(value), tokens=list(size))
                self._requests.count("model", key)
        return np.array([ledger.answers[key]["value"] for key in keys]).reshape(len(candidates), len(items))

    def judge(self, generator: Any, messages: Sequence[Messages], keys: Sequence[str]) -> list[str]:
        """Texts of a judge model's answers."""
        prompts = [as_prompt(generator, one) for one in messages]
        return [x.text for x in self._requests.complete("judge", generator, prompts, list(keys))]

    def _need(self, thing: Any, role: str) -> Any:
        if thing is None:
            raise OptionError(f"{WHO}: the optimizer asks for the {role}, but none was given; pass {role}=")
        return thing


def as_prompt(generator: Any, messages: Messages) -> Any:
    """Messages for a chat model; one text for a model that only continues text."""
    tokenizer = getattr(generator, "tokenizer", None)
    if tokenizer is None and getattr(generator, "processing_class", None) is not None:
        tokenizer = getattr(generator.processing_class, "tokenizer", generator.processing_class)
    plain = getattr(generator, "chat", True) is False
    if plain or (tokenizer is not None and not getattr(tokenizer, "chat_template", None)):
        return text_of_messages(messages)
    return messages


def changed(generator: Any, **options: Any) -> Any:
    """The generator with other options; one that has no such option, such as a function, stays as it is."""
    if not is_dataclass(generator) or isinstance(generator, type):
        return generator
    names = {field.name for field in fields(generator) if field.init}
    if "temperature" not in names:  # max_new_tokens then only says what a function does by itself
        return generator
    options = {name: value for name, value in options.items() if name in names}
    return replace(generator, **options) if options else generator


def describe_encoder(encoder: Any) -> Any:
    """What tells an encoder from others: a name, or weights."""
    from hfdataopt.attribution.identity import fingerprint

    if isinstance(encoder, str):
        return encoder
    return fingerprint(encoder[0] if isinstance(encoder, tuple) else encoder)


def _encode(encoder: Any, contents: list[Any]) -> np.ndarray:
    import torch

    if callable(encoder) and not isinstance(encoder, torch.nn.Module):
        found = np.asarray(encoder(contents), np.float32)
        if found.ndim != 2 or len(found) != len(contents):
            raise DataError(
                f"{WHO}: the encoder returned shape {list(found.shape)} for {len(contents)} inputs; it must be [n, d]"
            )
        return found
    from hfdataopt.selection.encoders import encode

    if not all(isinstance(text, str) for text in contents):
        raise OptionError(
            f"{WHO}: an encoder of texts got a {type(contents[0]).__name__}; give a callable, such as "
            "hfdataopt.prompting.tasks.text_to_image.ImageEncoder"
        )
    model, tokenizer = encoder if isinstance(encoder, tuple) else (encoder, None)
    return encode(contents, model, processing_class=tokenizer, who=WHO)


def _content_of(value: Any) -> Any:
    if isinstance(value, str) or is_messages(value):
        return value
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of Pillow
        return hashlib.sha256(repr((value.mode, value.size)).encode() + value.tobytes()).hexdigest()
    return repr(value)
