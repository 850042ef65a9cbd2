"""The conformance kit: which checks there are, how they are run, and what is said of each."""

import copy
import dataclasses
import functools
import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NoReturn

from hfdataopt.console import quiet
from hfdataopt.errors import (
    HfDataOptError,
    MissingDependencyError,
    OptionError,
    advice_on,
    first_line,
    frame_of,
    place_of,
)
from hfdataopt.plugins import BASES, KINDS, host

Status = Literal["passed", "FAILED", "expected", "UNEXPECTED", "not checked"]


class CheckFailure(AssertionError):
    """A component does not keep a promise; the message says what to change."""


class NotChecked(Exception):
    """A check has nothing to say of this component; the message says why."""


class Check(NamedTuple):
    """One promise of one kind of component.

    Attributes:
        promise: what is checked, in a line.
        function: takes the :class:`Case`; raises :class:`CheckFailure` or :class:`NotChecked`.
    """

    kind: str
    name: str
    promise: str
    function: Callable[[Any], None]


CHECKS: dict[str, dict[str, Check]] = {"scorer": {}, "filter": {}, "optimizer": {}, "generator": {}}


def promise(name: str, *kinds: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the check of that name; the first line of its docstring is the promise."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        line = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        for kind in kinds:
            CHECKS[kind][name] = Check(kind, name, line, function)
        return function

    return register


class Case:
    """A component and what it is checked on. Every run is of a copy, so that no check spoils another.

    Attributes:
        who: how messages call it.
        component: an instance.
    """

    kind = ""

    def __init__(self, component: Any) -> None:
        self.component = component
        self.who = f"{self.kind} {getattr(type(component), 'name', type(component).__name__)!r}"

    def fresh(self) -> Any:
        """A copy of the component as it was given."""
        return copy.deepcopy(self.component)

    def fail(self, found: str, change: str) -> NoReturn:
        """What was found, and what to change in the plugin."""
        raise CheckFailure(f"{self.who}: {found}. {change}")

    def is_own(self, module: str) -> bool:
        """Whether a module belongs to the component's package rather than to hfdataopt or to what either calls."""
        own = type(self.component).__module__
        package = own.partition(".")[0]
        return module == own if package == "hfdataopt" else module.partition(".")[0] == package

    def told(self, error: BaseException) -> str:
        """What an error says, and where in the component's own code it came from."""
        place = place_of(frame_of(error, self.is_own))
        return f"{type(error).__name__}: {first_line(error)}" + (f" ({place})" if place else "")

    def mend(self, error: BaseException, otherwise: str) -> str:
        """What to change: what the error itself says, the line of the component's own code that raised it, or ``otherwise``."""
        if isinstance(error, HfDataOptError):
            return otherwise
        own = "Mend that line" if frame_of(error, self.is_own) else otherwise
        return advice_on(error) or own

    @property
    def place(self) -> str:
        """``FILE:LINE`` of the component's class; empty where it has no source."""
        try:
            return f"{inspect.getsourcefile(type(self.component))}:{inspect.getsourcelines(type(self.component))[1]}"
        except (OSError, TypeError):
            return ""

    @functools.cached_property
    def baseline(self) -> Any:
        """The result that the others are compared with."""
        raise NotImplementedError

    def needs_baseline(self, check: str) -> None:
        """Raise :class:`NotChecked` where there is nothing to compare with; the check of the cause says so itself."""
        raise NotImplementedError


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
        status: ``expected`` is a failure that was declared; ``UNEXPECTED`` one that was declared but passed.
        message: the failure, or why it was not checked.
        error: the failure as it was raised, with what caused it.
    """

    check: Check
    status: Status
    message: str
    seconds: float
    error: BaseException | None = field(default=None, repr=False, compare=False)

    @property
    def good(self) -> bool:
        return self.status not in ("FAILED", "UNEXPECTED")


@dataclass(frozen=True)
class Report:
    """All checks of a component; printed, a table."""

    who: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every promise was kept, or declared not to be."""
        return all(outcome.good for outcome in self.outcomes)

    def __str__(self) -> str:
        width = max((len(outcome.check.name) for outcome in self.outcomes), default=0)
        lines = [
            f"  {outcome.status:<12}{outcome.check.name:<{width}}  {outcome.message or outcome.check.promise}"
            for outcome in self.outcomes
        ]
        counts = {status: sum(one.status == status for one in self.outcomes) for status in Status.__args__}  # type: ignore[attr-defined]
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return "\n".join([self.who, *lines, f"  {said}"])

    def tracebacks(self) -> str:
        """What the component raised in each check that failed, with the whole traceback."""
        return "\n".join(
            f"{outcome.check.name}:\n{''.join(traceback.format_exception(cause)).rstrip()}"
            for outcome in self.outcomes
            if outcome.status == "FAILED"
            and outcome.error is not None
            and (cause := outcome.error.__cause__ or outcome.error.__context__) is not None
        )


def run_check(check: Check, case: Case) -> None:
    """One check; whatever a component raises inside becomes a :class:`CheckFailure` that names the check."""
    with quiet():
        try:
            check.function(case)
        except MissingDependencyError as error:
            raise NotChecked(first_line(error)) from error
        except (CheckFailure, NotChecked):
            raise
        except Exception as error:
            raise CheckFailure(
                f"{case.who}: raised {case.told(error)}. The promise is: {check.promise}. "
                + case.mend(error, "Mend what raises, which the traceback shows")
            ) from error


def run_checks(case: Case, expected_failures: Mapping[str, str] | None = None, only: Iterable[str] = ()) -> Report:
    """All checks of a case, or ``only`` those, with the failures that are expected."""
    checks, expected = checks_of(case.kind), known_failures(case.kind, expected_failures)
    report = Report(case.who)
    for name in only or checks:
        started, status, message, error = time.monotonic(), "passed", "", None
        try:
            run_check(checks[name], case)
            if name in expected:
                status = "UNEXPECTED"
                message = f"passes, but was expected to fail ({expected[name]}); take it out of expected_failures"
        except CheckFailure as failure:
            status, message = ("expected", expected[name]) if name in expected else ("FAILED", str(failure))
            error = failure
        except NotChecked as reason:
            status, message = "not checked", str(reason)
        report.outcomes.append(Outcome(checks[name], status, message, time.monotonic() - started, error))  # type: ignore[arg-type]
    return report


def checks_of(kind: str) -> dict[str, Check]:
    """The checks of a kind by name."""
    from hfdataopt.testing import common, filters, generators, optimizers, scorers  # noqa: F401 - they register

    if kind not in CHECKS:
        raise OptionError(f"there are no checks for {kind!r}; there are: {', '.join(CHECKS)}")
    return CHECKS[kind]


def known_failures(kind: str, expected: Mapping[str, str] | None) -> dict[str, str]:
    """The declared failures; ``OptionError`` for a check that does not exist, or without a reason."""
    checks = checks_of(kind)
    for name, reason in (expected or {}).items():
        if name not in checks:
            raise OptionError(
                f"expected_failures: no check of a {kind} is called {name!r}; there are: {', '.join(checks)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise OptionError(f"expected_failures: say why {name!r} is expected to fail; got {reason!r}")
    return dict(expected or {})


# -- the front doors


def make_case(component: Any, kind: str | None = None, **given: Any) -> Case:
    """The case of a component: an instance, a class, or a name; ``given`` are its options, and data to check it on."""
    from hfdataopt.testing.filters import FilterCase
    from hfdataopt.testing.generators import GeneratorCase
    from hfdataopt.testing.optimizers import OptimizerCase
    from hfdataopt.testing.scorers import ScorerCase

    cases: dict[str, Any] = {
        "scorer": ScorerCase,
        "filter": FilterCase,
        "optimizer": OptimizerCase,
        "generator": GeneratorCase,
    }
    if isinstance(component, str):
        kinds = [one for one in cases if component in host().components[one]] if kind is None else [kind]
        if len(kinds) > 1:
            raise OptionError(f"{component!r} is the name of a {' and of a '.join(kinds)}; say which with kind=")
        kind = kinds[0] if kinds else "filter"
    else:
        found = kind_of(component)
        if kind not in (None, found):
            raise OptionError(f"{component!r:.100} is a {found}, not a {kind}")
        kind = found
    if kind not in cases:
        raise OptionError(f"there are no checks for a {kind}; there are for: {', '.join(cases)}")
    data = {name: given.pop(name) for name in cases[kind].data if name in given}
    if isinstance(component, str):
        component = host().create(kind, component, **given)
    elif isinstance(component, type):
        component = component(**given)
    elif given:
        raise OptionError(
            f"{component!r:.100} has its options already; {', '.join(given)} belong to a component that is given by name"
        )
    return cases[kind](component, **data)


def kind_of(component: Any) -> str:
    """``scorer``, ``filter``, ``optimizer`` or ``generator``, by the base class."""
    cls = component if isinstance(component, type) else type(component)
    for kind in KINDS:
        module, _, base = BASES[kind].partition(":")
        if any(one.__name__ == base and one.__module__ == module for one in cls.__mro__):
            return kind
    bases = ", ".join(BASES[kind].replace(":", ".") for kind in KINDS)
    raise OptionError(f"{component!r:.100} is no component; it must inherit from one of: {bases}")


def _check(kind: str, component: Any, expected_failures: Mapping[str, str] | None, given: dict[str, Any]) -> Report:
    report = run_checks(make_case(component, kind, **given), expected_failures)
    if not report.passed:
        raise CheckFailure(str(report))
    return report


def check_scorer(component: Any, *, expected_failures: Mapping[str, str] | None = None, **given: Any) -> Report:
    """Check a scorer.

    Args:
        component: an instance, a class or the name of an installed scorer.
        expected_failures: check name -> reason.
        given: options, for a class or a name; and ``model=``, ``pool=``, ``queries=``, ``processing_class=`` to check it on (as
            :func:`hfdataopt.attribute` takes them) in the place of a tiny classifier, or a tiny Llama for a scorer of prompts.

    Raises:
        CheckFailure: a promise is not kept, or one is that was expected to fail; the message is the whole report.
    """
    return _check("scorer", component, expected_failures, given)


def check_filter(component: Any, *, expected_failures: Mapping[str, str] | None = None, **given: Any) -> Report:
    """Check a filter; as :func:`check_scorer`, with ``dataset=`` and ``target=`` in the place of :func:`tiny.rows`."""
    return _check("filter", component, expected_failures, given)


def check_optimizer(component: Any, *, expected_failures: Mapping[str, str] | None = None, **given: Any) -> Report:
    """Check a prompt optimizer; as :func:`check_scorer`, with ``task=`` in the place of :func:`search.scripted_task`."""
    return _check("optimizer", component, expected_failures, given)


def check_generator(component: Any, *, expected_failures: Mapping[str, str] | None = None, **given: Any) -> Report:
    """Check a text generator; as :func:`check_scorer`, with ``prompts=`` in the place of those of :func:`tiny.prompts`."""
    return _check("generator", component, expected_failures, given)


def conformance(
    component: Any,
    *,
    kind: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    **given: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: the test runs once per check, under its name, and calls ``check()``.

    A declared failure is an ``xfail`` with its reason; if it passes, the test fails. Arguments as :func:`check_scorer`.

    Example:
        >>> @conformance(MyFilter(), expected_failures={"same-on-a-stream": "ranks rows among each other"})
        ... def test_contract(check):
        ...     check()
    """
    import pytest

    case = make_case(component, kind, **given)
    expected = known_failures(case.kind, expected_failures)

    def run(check: Check) -> None:
        try:
            run_check(check, case)
        except NotChecked as reason:
            pytest.skip(str(reason))

    def parameter(check: Check) -> Any:
        reason = expected.get(check.name)
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, raises=CheckFailure, strict=True)]
        return pytest.param(functools.partial(run, check), id=check.name, marks=marks)

    return pytest.mark.parametrize("check", [parameter(check) for check in checks_of(case.kind).values()])


def fields_of(component: Any) -> list[dataclasses.Field[Any]]:
    """The options of a component."""
    return [one for one in dataclasses.fields(component) if one.init]
