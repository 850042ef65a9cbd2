"""The loop with a judge: duels are answered, shown in a random order, judged and told."""

import math
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.generation import as_messages
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Vote
from hfdataopt.prompting.judges import Decision, Judge, Question
from hfdataopt.prompting.ledger import key_of
from hfdataopt.prompting.optimizer import PreferenceOptimizer
from hfdataopt.prompting.search import Ended, Search
from hfdataopt.rewards.texts import is_messages, text_of, transcript
from hfdataopt.statistics import reward_interval

WHO = "PromptTrainer"
Pair = tuple[Any, Any]
LOOKS = 5


class VotesLoop:
    """Runs an optimizer that learns from comparisons."""

    def __init__(self, search: Search, judge: Judge, optimizer: PreferenceOptimizer) -> None:
        self.search, self.judge, self.optimizer = search, judge, optimizer
        self._turn = 0
        self._images: Any = None
        judge.begin(search.services.judge, self.state)

    def run(self) -> Ended:
        """The search; how it ended."""
        return _People(self).run() if self.judge.interactive else self.search.rounds(self._round)

    def state(self) -> dict[str, Any]:
        """The search as a person may see it."""
        best = self.optimizer.best if self.search.votes else None
        return {
            "votes": len(self.search.votes),
            "of": self.search.config.max_judge_calls,
            "best_prompt": None if best is None else (best.completion or best.instruction),
        }

    def told(self, votes: Sequence[Vote]) -> None:
        """Votes were told to the optimizer: everybody else hears of it."""
        from hfdataopt.plugins import host

        for vote in votes:
            host().hook.after_trial(trial=vote)
        best = self.optimizer.best
        rows = [] if best is None else [{"instruction": best.instruction, "key": best.key}]
        self.search.step(
            None if best is None else (best, math.nan), rows, {"votes": votes}, votes=len(self.search.votes)
        )

    # -- judges that answer at once

    def _round(self) -> bool:
        search = self.search
        allowed = search.budget.left("judge") // self.judge.calls_per_question
        if allowed < 1:
            raise BudgetSpent(f"max_judge_calls={search.config.max_judge_calls}")
        asked = self.optimizer.ask(int(min(search.config.parallel, allowed)), (), search.services)
        if not asked:
            return False
        duels, pairs, unread, spent = self.telling(asked)
        votes, late = self._vote(duels, pairs, [str(len(search.votes) + place) for place in range(len(duels))])
        votes += unread
        if votes:
            self.optimizer.tell(votes)
            search.votes.extend(votes)
            self.told(votes)
        if spent or late:
            raise spent or late  # type: ignore[misc]
        return True

    def _vote(
        self, duels: Sequence[Duel], pairs: Sequence[Pair], names: Sequence[str]
    ) -> tuple[list[Vote], BudgetSpent | None]:
        """Votes on the first duels, as far as the budget goes, and what it ran out of; kept ones are not asked for again."""
        questions = [self.question(*one) for one in zip(duels, pairs, names, strict=True)]
        known = {event["question"]: event for event in self.search.ledger.events}
        budget = self.search.budget
        before, ran_out = budget.spent.judge_calls, None
        try:
            self._decide(questions, known)
        except BudgetSpent as spent:  # what was paid for in full counts all the same
            ran_out = spent
            for place, one in enumerate(questions):
                try:
                    self._decide([one], known)
                except BudgetSpent:
                    questions = questions[:place]
                    break
        votes = [
            _vote(duel, pair, known[question.id])
            for duel, pair, (question, _) in zip(duels, pairs, questions, strict=False)
        ]
        # Requests of a model were counted as they were made.
        made = budget.spent.judge_calls - before
        budget.book("judge", 0, 0, max(self.judge.calls_per_question * len(votes) - made, 0))
        return votes, ran_out

    def _decide(self, questions: Sequence[tuple[Question, bool]], known: dict[str, dict[str, Any]]) -> None:
        """Have the judge decide on questions that are not ``known``, and on all where its requests are kept and must be counted."""
        flips = {question.id: flip for question, flip in questions}
        open_ = [question for question, _ in questions if question.id not in known]
        asked = [question for question, _ in questions] if self.judge.recorded else open_
        if open_ and (out := self.search.budget.out_of()):
            raise BudgetSpent(out)
        if asked:
            self.judge.submit(asked)
        waiting = {question.id for question in asked}
        while waiting:
            arrived = self.judge.collect()
            if not arrived:
                raise DataError(
                    f"{WHO}: {type(self.judge).__name__} left {len(waiting)} of {len(asked)} questions open"
                )
            for decision in arrived:
                waiting.discard(decision.question)
                if decision.question not in known:
                    known[decision.question] = self.keep(decision, flips[decision.question])

    # -- parts of both loops

    def keep(self, decision: Decision, flip: bool) -> dict[str, Any]:
        """Write a decision down, in the duel's own order, before anything is made of it."""
        word = decision.comparison.flipped() if flip else decision.comparison
        event = {
            "question": decision.question,
            "winner": word.winner,
            "outcome": word.outcome,
            "by": decision.by,
            "undo": decision.undo,
        }
        self.search.ledger.event(**event)
        self.judge.kept(decision)
        return event

    def placed(self, duel: Duel) -> Duel:
        """The duel on an item: its own, or the next in turn."""
        if duel.item is not None:
            return duel
        items = self.search.split.items
        self._turn += 1
        return Duel(duel.first, duel.second, items[(self._turn - 1) % len(items)].id)

    def telling(self, asked: Sequence[Duel]) -> tuple[list[Duel], list[Pair], list[Vote], BudgetSpent | None]:
        """The duels on their items, as :meth:`answers` gives them, and votes on those that the model cannot read.

        One without an item of its own moves on while both answers are the same, up to ``LOOKS`` items: a vote on these would
        tell nothing. Where calls are counted it stays, since they were planned for. Votes on what is too long for the model are
        invalid, and nobody is asked.
        """
        placed = [self.placed(duel) for duel in asked]
        read = [place for place, duel in enumerate(placed) if self._fits(duel)]
        unread = [
            Vote(duel, Comparison(None, "invalid"), ("", "")) for place, duel in enumerate(placed) if place not in read
        ]
        asked = [asked[place] for place in read]
        duels, pairs, spent = self.answers([placed[place] for place in read])
        for _ in range(LOOKS - 1 if self.search.config.max_calls is None and spent is None else 0):
            same = [place for place, pair in enumerate(pairs) if asked[place].item is None and _same(pair)]
            moved = {place: duel for place in same if self._fits(duel := self.placed(asked[place]))}
            found, others, spent = self.answers(list(moved.values()))
            for place, duel, pair in zip(moved, found, others, strict=False):
                duels[place], pairs[place] = duel, pair
            if not same or spent is not None:
                return duels, pairs, unread, None
        return duels, pairs, unread, spent

    def _fits(self, duel: Duel) -> bool:
        item = self.search.items[duel.item]  # type: ignore[index]
        return all(one.completion is not None or self.search.fits(one, [item]) for one in (duel.first, duel.second))

    def question(self, duel: Duel, pair: Pair, name: str) -> tuple[Question, bool]:
        """The question with its answers in the order in which they are shown, and whether that is the other one."""
        id_ = key_of("question", self.search.config.seed, name, duel.first.key, duel.second.key, duel.item)
        item = self.search.items[duel.item]  # type: ignore[index]
        flip = int(id_, 16) % 2 == 1
        return Question(id_, item.prompt, pair[::-1] if flip else pair, item.id, dict(item.columns)), flip

    def answers(self, duels: Sequence[Duel]) -> tuple[list[Duel], list[Pair], BudgetSpent | None]:
        """The first duels whose answers the budget allows, the answers, and what it ran out of."""
        try:
            return list(duels), self._answers(duels), None
        except BudgetSpent:
            pairs: list[Pair] = []
            for duel in duels:
                try:
                    pairs += self._answers([duel])
                except BudgetSpent as spent:
                    return list(duels[: len(pairs)]), pairs, spent
            return list(duels), pairs, None

    def _answers(self, duels: Sequence[Duel]) -> list[Pair]:
        search = self.search
        sides = [(candidate, search.items[duel.item]) for duel in duels for candidate in (duel.first, duel.second)]  # type: ignore[index]
        found: list[Any] = [candidate.completion for candidate, _ in sides]
        places = [place for place, answer in enumerate(found) if answer is None]
        prompts = [ApplyPrompt.of(sides[place][0]).render(sides[place][1].prompt) for place in places]
        for place, (_, item) in enumerate(sides):
            if found[place] is not None:
                found[place] = as_messages(found[place], item.prompt)
        if prompts and callable(getattr(search.model, "draw", None)):
            made = self._draw(prompts)
        elif prompts:
            completions = search.requests.complete("model", search.model, prompts, [""] * len(prompts))
            made = [as_messages(one, prompt) for one, prompt in zip(completions, prompts, strict=True)]
        else:
            made = []
        for place, answer in zip(places, made, strict=True):
            found[place] = answer
        return list(zip(found[::2], found[1::2], strict=True))

    def _draw(self, prompts: Sequence[Any]) -> list[Any]:
        """Images of texts, each drawn once and kept as PNG."""
        from hfdataopt.prompting.drawings import draw

        if self.search.config.output_dir is None and self._images is None:
            self._images = tempfile.TemporaryDirectory()
        folder = Path(self.search.config.output_dir or self._images.name) / "images"
        return draw(self.search.model, [transcript(one).strip() for one in prompts], self.search.requests, folder)

    # -- the end

    def finish(self, best: Candidate) -> tuple[float, float, float, int] | None:
        """How often the best wins against the prompt of before on fresh items; None where nothing was kept for it."""
        search = self.search
        before = Candidate(search.config.start[0]) if search.config.start else Candidate()
        count = search.reserve.items
        rate = None
        if count and best.completion is None and best.key != before.key:
            duels = [Duel(best, before, item.id) for item in search.split.fresh[:count]]
            duels = [duel for duel in duels if self._fits(duel)]
            duels, pairs, spent = self.answers(duels)
            same = [_same(pair) for pair in pairs]  # a tie that nobody has to be asked about
            told = [place for place, one in enumerate(same) if not one]
            votes, late = self._vote(
                [duels[place] for place in told], [pairs[place] for place in told], [f"final {place}" for place in told]
            )
            if spent or late:
                seen = len(votes) + sum(same)
                say(
                    f"{WHO}: the best was compared with the prompt of before on {seen} of {count} items: {spent or late}"
                )
            targets = [target for vote in votes if (target := vote.comparison.target) is not None] + [0.5] * sum(same)
            if targets:
                mean, low, high = reward_interval(targets)
                rate = mean, max(low, 0.0), min(high, 1.0), len(targets)
        self.judge.end(self.state())
        return rate


class _People:
    """The loop with a judge that answers in an order of its own. On a restart the kept decisions are played again first."""

    def __init__(self, loop: VotesLoop) -> None:
        self.loop, self.search = loop, loop.search
        self.open: dict[str, tuple[Duel, Pair]] = {}
        self.standing: dict[str, Vote] = {}
        self.flips: dict[str, bool] = {}
        self.asked = 0

    def run(self) -> Ended:
        loop, search = self.loop, self.search
        before = deque(search.ledger.events)
        events: deque[dict[str, Any]] = deque()  # one decision at a time, so that a restart asks the same
        while True:
            ended = search.ended() or self._ask()
            if ended is not None:
                return ended
            if before:
                event = before.popleft()
                if event["question"] not in (self.standing if event["undo"] else self.open):
                    say(f"{WHO}: a vote on a pair that this search does not ask for is left out")
                    continue
                loop.judge.kept(self._decision(event))
            else:
                if not events:
                    if out := search.budget.out_of():
                        return "budget", out
                    arrived = loop.judge.collect()
                    if not arrived:
                        return "finished", "the judge stopped"
                    events.extend(self._keep(arrived))
                if not events:
                    continue
                event = events.popleft()
            self._tell(event)

    def _ask(self) -> Ended | None:
        """Ask for as many duels as may be open; how the search ended where none is open then."""
        loop, search = self.loop, self.search
        each, steps = loop.judge.calls_per_question, search.config.max_steps
        most: list[float] = [search.config.parallel]
        if search.config.max_judge_calls is not None:
            most.append(search.budget.left("judge") // each)
        if steps is not None:
            most.append(steps - search.state.global_step)
        wanted = int(min(most)) - len(self.open)
        spent: BudgetSpent | None = None
        unread: list[Vote] = []
        if wanted > 0:
            pending = [duel for duel, _ in self.open.values()]
            try:
                duels, pairs, unread, spent = loop.telling(loop.optimizer.ask(wanted, pending, search.services))
            except BudgetSpent as out:  # of proposals, say; what is open is still worth an answer
                duels, pairs, unread, spent = [], [], [], out
            if unread:
                loop.optimizer.tell(unread)
                search.votes.extend(unread)
                loop.told(unread)
            for duel, pair in zip(duels, pairs, strict=True):
                question, flip = loop.question(duel, pair, str(self.asked))
                self.asked += 1
                self.open[question.id], self.flips[question.id] = (duel, pair), flip
                loop.judge.submit([question])
        if self.open:
            return None
        if spent is not None:
            return "budget", str(spent)
        if wanted > 0 and unread:
            return search.ended() or self._ask()
        if wanted > 0:
            return "finished", "the optimizer has nothing more to ask"
        return "budget", f"max_judge_calls={search.config.max_judge_calls}"

    def _keep(self, decisions: Sequence[Decision]) -> list[dict[str, Any]]:
        """Write down what is new: words on open questions, and undone ones on those that have a word."""
        open_, kept = set(self.open), []
        for decision in decisions:
            name = decision.question
            if name in self.flips and decision.undo == (name not in open_):
                open_ ^= {name}
                kept.append(self.loop.keep(decision, self.flips[name]))
        return kept

    def _tell(self, event: dict[str, Any]) -> None:
        loop, search, name = self.loop, self.search, event["question"]
        each = loop.judge.calls_per_question
        if event["undo"]:
            vote = self.standing.pop(name)
            loop.optimizer.forget(vote)
            search.votes.remove(vote)
            search.budget.spent.judge_calls -= each
            self.open[name] = vote.duel, loop._answers([vote.duel])[0]
            return
        duel, pair = self.open.pop(name)
        vote = _vote(duel, pair, event)
        self.standing[name] = vote
        search.votes.append(vote)
        search.budget.book("judge", 0, 0, each)
        loop.optimizer.tell([vote])
        loop.told([vote])

    def _decision(self, event: dict[str, Any]) -> Decision:
        """What was kept, as it was shown."""
        word = Comparison(event["winner"], event["outcome"])
        shown = word.flipped() if self.flips[event["question"]] else word
        return Decision(event["question"], shown, event["by"], event["undo"])


def _vote(duel: Duel, pair: Pair, event: dict[str, Any]) -> Vote:
    return Vote(duel, Comparison(event["winner"], event["outcome"]), (_text(pair[0]), _text(pair[1])), event["by"])


def _same(pair: Pair) -> bool:
    """Whether two answers are the same text, or the same picture."""
    first, second = pair
    if isinstance(first, str) or is_messages(first):
        return text_of(first) == text_of(second)
    return first.size == second.size and first.tobytes() == second.tobytes()


def _text(answer: Any) -> str:
    """An answer as text: of messages the text of the last one, of an image where it is kept."""
    if isinstance(answer, str) or is_messages(answer):
        return text_of(answer)
    return str(getattr(answer, "filename", "") or answer)
