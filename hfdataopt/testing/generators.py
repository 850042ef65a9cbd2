"""The promises of a text generator, checked by asking it for completions of a few prompts."""

import copy
import functools
import json
from typing import Any

from hfdataopt.errors import MissingDependencyError, OptionError, Refused
from hfdataopt.generation.completion import Completion
from hfdataopt.testing import tiny
from hfdataopt.testing.common import global_random_states, other_random_states
from hfdataopt.testing.kit import Case, NotChecked, promise

PROMPTS = 5
SAMPLES = 2


class GeneratorCase(Case):
    """A generator and prompts, text unless others are given.

    It is no copy that is asked: a generator may hold a large model, or a connection.
    """

    kind = "generator"
    data = ("prompts",)

    def __init__(self, component: Any, prompts: Any = None) -> None:
        super().__init__(component)
        self.prompts = list(tiny.prompts(PROMPTS)["prompt"] if prompts is None else prompts)
        self.keys: list[str | int] = [f"row {place}" for place in range(len(self.prompts))]

    def fresh(self) -> Any:
        return self.component

    def ask(self, places: list[int] | None = None, n: int | None = None, **options: Any) -> list[list[Completion]]:
        """Completions of the prompts at these places, ``[places][n]``."""
        where = list(range(len(self.prompts))) if places is None else places
        prompts, keys = [self.prompts[place] for place in where], [self.keys[place] for place in where]
        return self.component.generate(prompts, n or self.samples, keys=keys, **options)

    @functools.cached_property
    def samples(self) -> int:
        """Two of each prompt; one where the generator always gives the same completion, and says so."""
        try:
            self.component.generate(self.prompts[:1], SAMPLES, keys=self.keys[:1])
        except OptionError:
            return 1
        return SAMPLES

    @functools.cached_property
    def baseline(self) -> list[list[Completion]]:
        return self.ask()

    @functools.cached_property
    def _state(self) -> str:
        try:
            fault = self.fault(self.baseline)
        except Exception:
            fault = "it raises"
        if fault:
            return "it makes no completions, see one-completion-per-prompt"
        return "" if texts(self.ask()) == texts(self.baseline) else "two equal calls differ, see deterministic"

    def needs_baseline(self, check: str = "") -> None:
        if self._state and self._state.rpartition(" ")[2] != check:
            raise NotChecked(self._state)

    def fault(self, made: Any) -> str:
        """What is wrong with the form of what ``generate`` returned; empty where it is as agreed."""
        if not isinstance(made, list | tuple) or len(made) != len(self.prompts):
            count = len(made) if isinstance(made, list | tuple) else type(made).__name__
            return f"returned {count} lists for {len(self.prompts)} prompts"
        for key, completions in zip(self.keys, made, strict=True):
            if not isinstance(completions, list | tuple) or len(completions) != self.samples:
                count = len(completions) if isinstance(completions, list | tuple) else type(completions).__name__
                return f"returned {count} completions of {key!r}, of which {self.samples} were asked for"
            wrong = [one for one in completions if not isinstance(one, Completion) or not isinstance(one.text, str)]
            if wrong:
                return f"returned {type(wrong[0]).__name__} for {key!r}, which is no Completion with a text"
        return ""

    def same(self, made: list[list[Completion]], places: list[int], found: str, change: str) -> None:
        """Fail unless these are the completions that the prompts at these places have in the baseline."""
        for place, completions in zip(places, texts(made), strict=True):
            known = texts(self.baseline)[place][: len(completions)]
            if completions[: len(known)] != known:
                self.fail(
                    f"{found}: {self.keys[place]!r} has {completions[: len(known)]!r:.100}, and {known!r:.100}", change
                )


def texts(made: list[list[Completion]]) -> list[list[str]]:
    return [[one.text for one in completions] for completions in made]


@promise("one-completion-per-prompt", "generator")
def one_completion_per_prompt(case: GeneratorCase) -> None:
    """It makes n completions of each prompt, in the order of the prompts."""
    try:
        made = case.baseline
    except MissingDependencyError:
        raise
    except Exception as error:
        case.fail(
            f"cannot complete {len(case.prompts)} prompts: {case.told(error)}",
            case.mend(
                error,
                "Let generate(prompts, n, keys=...) take prompts as text; where it needs messages, hand over prompts=",
            ),
        )
    if fault := case.fault(made):
        case.fail(fault, "Return [prompts][n] hfdataopt.generation.Completion from generate")


@promise("deterministic", "generator")
def deterministic(case: GeneratorCase) -> None:
    """The same seed and keys give the same completions, whatever the global random state is."""
    case.needs_baseline("deterministic")
    with other_random_states():
        made = case.ask()
    everywhere = list(range(len(case.prompts)))
    case.same(
        made, everywhere, "two equal calls gave other completions", "Draw as a function of (seed, key, sample) alone"
    )


@promise("seed", "generator")
def seed(case: GeneratorCase) -> None:
    """Another seed, and another sample, gives other draws."""
    case.needs_baseline()
    other = texts(case.ask(seed=1))
    samples_differ = any(len(set(row)) > 1 for row in texts(case.baseline))
    if other != texts(case.baseline) and (samples_differ or case.samples == 1):
        return
    if other == texts(case.baseline) and not samples_differ:
        raise NotChecked("it does not draw: a prompt has one completion")
    what = (
        "two samples of a prompt are always the same"
        if not samples_differ
        else "another seed gives the very same completions"
    )
    case.fail(what, "Draw as a function of the seed, the key and the number of the sample, all three")


@promise("batch-size", "generator")
def batch_size(case: GeneratorCase) -> None:
    """A prompt's completions do not depend on the prompts beside it, nor on how many samples are drawn after them."""
    case.needs_baseline()
    for place in range(len(case.prompts)):
        case.same(
            case.ask([place]),
            [place],
            "a prompt alone has other completions than among others",
            "Draw as a function of (seed, key, sample), not of a position or of a generator that all prompts share",
        )
    if case.samples > 1:
        case.same(
            case.ask(n=case.samples + 1),
            list(range(len(case.prompts))),
            "with one more sample of each prompt the others change",
            "Draw as a function of (seed, key, sample), not of n",
        )


@promise("row-order", "generator")
def row_order(case: GeneratorCase) -> None:
    """Prompts in another order have the same completions."""
    case.needs_baseline()
    places = list(range(len(case.prompts)))[::-1]
    case.same(
        case.ask(places),
        places,
        "with the prompts in another order, completions differ",
        "Return them in the order of the prompts, and draw by key, never by position",
    )


@promise("untouched", "generator")
def untouched(case: GeneratorCase) -> None:
    """The prompts and the global random states stay as they were."""
    case.needs_baseline()
    before = copy.deepcopy(case.prompts)
    with global_random_states(case):
        case.ask()
    if case.prompts != before:
        case.prompts = before
        case.fail("changed a prompt that it was given", "Work on copies of prompts, which may be lists of messages")


@promise("resumable", "generator")
def resumable(case: GeneratorCase) -> None:
    """Completions of an earlier run are returned and not made again; of each new one it is told, once."""
    case.needs_baseline()
    kept = Completion("kept from an earlier run")
    told: dict[tuple[int, int], Completion] = {}
    twice = []

    def done(index: int, sample: int, completion: Completion) -> None:
        twice.extend([(index, sample)] if (index, sample) in told else [])
        told[index, sample] = completion

    made = case.ask(have={(1, 0): kept}, on_done=done)
    if made[1][0] != kept:
        case.fail(
            "made a completion again that was handed over in have", "Return have[index, sample] where it is there"
        )
    expected = {(i, k): one for i, row in enumerate(made) for k, one in enumerate(row) if (i, k) != (1, 0)}
    if twice or told != expected:
        missing = sorted(set(expected) - set(told)) or twice or sorted(set(told) - set(expected)) or sorted(expected)
        case.fail(
            f"told on_done of {len(told)} of {len(expected)} new completions, as they are returned; (index, sample) = {missing[0]}",
            "Call on_done(index, sample, completion) once for each new completion, and for no other, as soon as it is there",
        )


@promise("budget", "generator")
def budget(case: GeneratorCase) -> None:
    """What admit refuses is not made, and Refused is raised after the others are done."""
    case.needs_baseline()
    asked: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []

    def admit(index: int, sample: int) -> bool:
        asked.append((index, sample))
        return index == 0

    try:
        case.ask(admit=admit, on_done=lambda index, sample, _: told.append((index, sample)))
    except Refused:
        pass
    else:
        case.fail(
            "returned though completions were refused",
            "Raise hfdataopt.generation.Refused after the others are done, as generator.check_refused does",
        )
    everything = [(index, sample) for index in range(len(case.prompts)) for sample in range(case.samples)]
    if sorted(asked) != everything:
        case.fail(
            f"asked admit {len(asked)} times about {len(everything)} completions",
            "Ask admit(index, sample) once for each completion that have does not hold, right before it is made",
        )
    if sorted(told) != [job for job in everything if job[0] == 0]:
        case.fail(
            f"was allowed {case.samples} completions, and told on_done of {len(told)}", "Make those that were admitted"
        )


@promise("usage", "generator")
def usage(case: GeneratorCase) -> None:
    """Counts of tokens are whole numbers, or None where nobody says; count_tokens is no less than what a prompt took."""
    case.needs_baseline()
    limit = case.component.max_new_tokens
    for prompt, key, completions in zip(case.prompts, case.keys, case.baseline, strict=True):
        bound = case.component.count_tokens(prompt)
        for one in completions:
            for name in ("prompt_tokens", "completion_tokens"):
                count = getattr(one, name)
                if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
                    case.fail(f"says {name}={count!r} of {key!r}", "Give a whole number, or None where it is not known")
            if one.prompt_tokens is not None and one.prompt_tokens > bound:
                case.fail(
                    f"counted {bound} tokens of the prompt {key!r}, which then took {one.prompt_tokens}",
                    "Let count_tokens(prompt) give what the prompt takes, or more: budgets of tokens are kept by it",
                )
            if limit is not None and one.completion_tokens is not None and one.completion_tokens > limit:
                case.fail(
                    f"made {one.completion_tokens} tokens of {key!r}, with max_new_tokens={limit}",
                    "Hold completions to max_new_tokens, or leave it None",
                )


@promise("describes-itself", "generator")
def describes_itself(case: GeneratorCase) -> None:
    """describe() is a JSON object, the same each time, that every option which changes completions is in."""
    found = case.component.describe()
    try:
        same = json.dumps(found, sort_keys=True) == json.dumps(case.component.describe(), sort_keys=True)
    except (TypeError, ValueError) as error:
        case.fail(
            f"describe() is no JSON: {case.told(error)}", "Return a dict of texts, numbers, lists, dicts, and None"
        )
    if not isinstance(found, dict) or not found:
        case.fail(f"describe() returned {found!r:.100}", "Return a dict of all that changes the output")
    if not same:
        case.fail(
            "describe() differs from call to call, so that no completion that is kept would be found again",
            "Leave out addresses, times, and whatever is drawn",
        )
