"""The judging page over plain HTTP: who is let in, whose pair is whose, and that every word counts once."""

import http.client
import io
import itertools
import json
import re
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets import Dataset

from hfdataopt.errors import DataError, OptionError, StoreError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges import Decision, Question

pytest.importorskip("starlette", reason="the page needs the extra ui")
pytest.importorskip("uvicorn", reason="the page needs the extra ui")

from hfdataopt.prompting.page import WebJudge, serve_judge
from hfdataopt.prompting.page.desk import Desk

TOKEN = "0123456789abcdef-_"
HOSTILE = (
    "<script>alert(1)</script><img src=//elsewhere.example/x onerror=alert(2)> \u202e </textarea> ${'x'} {{script}}"
)


def question(number: int, first="yes", second="no", prompt="Say yes.") -> Question:
    return Question(f"q{number}", prompt, (first, second), number)


class Search:
    """A loop as ``PromptTrainer`` runs it: ``parallel`` questions are outstanding, every decision is kept before it goes on."""

    def __init__(self, judge: WebJudge, questions: list[Question], parallel: int = 2) -> None:
        self.judge, self.events = judge, []
        self.standing: dict[str, Decision] = {}
        self._questions, self._parallel = questions, parallel
        self.slow = threading.Event()
        self.slow.set()
        judge.begin(None, lambda: {"votes": len(self.standing), "of": len(questions), "best_prompt": "Be kind."})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        left = list(self._questions)
        outstanding: set[str] = set()
        while left or outstanding:
            while left and len(outstanding) < self._parallel:
                outstanding.add(left[0].id)
                self.judge.submit([left.pop(0)])
            decisions = self.judge.collect()
            if not decisions:
                break
            self.slow.wait(10)
            for decision in decisions:
                self.events.append(decision)
                self.judge.kept(decision)
                if decision.undo:
                    del self.standing[decision.question]
                    outstanding.add(decision.question)
                else:
                    assert decision.question in outstanding
                    outstanding.remove(decision.question)
                    self.standing[decision.question] = decision
        self.judge.end({"votes": len(self.standing), "of": len(self._questions), "best_prompt": "Be kind."})

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


class Person:
    """What a browser does, without one."""

    def __init__(self, judge: WebJudge, session: str = "ann", token: str = TOKEN, **headers: str) -> None:
        self.port = judge._server.port
        self.headers = {"Authorization": f"Bearer {token}", "X-Session": session, **headers}

    def ask(self, path: str, body=None, method: str | None = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, sent, {**self.headers, **headers})
        answer = connection.getresponse()
        answer.content = answer.read()
        connection.close()
        return answer

    def look(self) -> dict:
        answer = self.ask("/look")
        assert answer.status == 200, answer.content
        return json.loads(answer.content)

    def pair(self) -> dict:
        for _ in range(200):
            if pair := self.look()["pair"]:
                return pair
            time.sleep(0.02)
        raise AssertionError("no pair came")

    def vote(self, word: str, key: str | None = None) -> dict:
        answer = self.ask("/vote", {"pair": key or self.pair()["key"], "word": word})
        assert answer.status == 200, answer.content
        return json.loads(answer.content)

    def undo(self, key: str) -> dict:
        return json.loads(self.ask("/undo", {"pair": key}).content)


def look(person: Person) -> dict:
    """What they see; a server that has stopped in between has told its end to who asked last."""
    try:
        return person.look()
    except ConnectionError:
        return {"over": True}


@pytest.fixture
def begin():
    """``begin(questions, **options)``: a running search and its judge."""
    judges = []

    def start(questions: list[Question], parallel: int = 2, **options) -> Search:
        judges.append(WebJudge(token=TOKEN, **options))
        return Search(judges[-1], questions, parallel)

    yield start
    for judge in judges:
        judge._desk.finish()
        judge.close()


# -- who is let in


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "é" * 18])
def test_nothing_is_to_be_had_without_the_token(begin, token):
    search = begin([question(0)])
    person = Person(search.judge)
    headers = {"Authorization": f"Bearer {token}"}
    paths = ["/", "/look", "/vote", "/undo", "/finish", "/image/x/0", "/favicon.ico", "/nothing"]
    requests = [("GET", None), ("POST", b"{}"), ("OPTIONS", None)]
    for path, (method, body) in itertools.product(paths, requests):
        asked = f"{path}?token={urllib.parse.quote(token)}"
        answer = person.ask(asked, body, method, **headers)
        assert answer.status == 403
        assert answer.getheader("Access-Control-Allow-Origin") is None
        assert b"yes" not in answer.content
        assert TOKEN.encode() not in answer.content


def test_the_link_opens_the_page_and_only_the_page(begin):
    search = begin([question(0)])
    stranger = Person(search.judge, token="none")
    assert search.judge.url == f"http://127.0.0.1:{search.judge._server.port}/?token={TOKEN}"
    assert stranger.ask(f"/?token={TOKEN}").status == 200
    for path in ("/look", "/finish", "/image/x/0"):
        assert stranger.ask(f"{path}?token={TOKEN}").status == 403  # so that no link of another page can act


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9000", 200),
        ("[::1]:80", 200),
        ("my-page.hf.space", 200),
        ("elsewhere.example", 403),
        ("127.0.0.1.elsewhere.example:80", 403),
        ("localhost.elsewhere.example", 403),
        ("elsewhere.example@localhost", 200),  # names localhost
        ("localhost@elsewhere.example", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(begin, host, status):
    search = begin([question(0)], hosts=["My-Page.hf.space"])
    assert Person(search.judge).ask("/look", Host=host).status == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:{port}", 200),
        ("https://my-page.hf.space", 200),
        ("http://127.0.0.1:1", 403),
        ("http://localhost:{port}", 403),
        ("https://elsewhere.example", 403),
        ("https://my-page.hf.space.elsewhere.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_a_page_of_another_origin_is_refused_even_with_the_token(begin, origin, status):
    search = begin([question(0)], hosts=["My-Page.hf.space"])
    headers = {} if origin is None else {"Origin": origin.format(port=search.judge._server.port)}
    assert Person(search.judge).ask("/look", **headers).status == status
    assert Person(search.judge).ask("/vote", b"{}", "POST", **headers).status == (400 if status == 200 else 403)


def test_the_page_may_load_nothing_and_run_nothing_but_itself(begin):
    search = begin([question(0)], criterion=HOSTILE)
    page = Person(search.judge).ask(f"/?token={TOKEN}")
    text = page.content.decode()
    policy = page.getheader("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "*" not in policy
    assert page.getheader("Referrer-Policy") == "no-referrer"
    assert page.getheader("Cache-Control") == "no-store"
    assert "<script>alert" not in text
    assert "<img src=//elsewhere" not in text
    assert json.loads(re.search(r'id="settings">(.*?)</script>', text).group(1))["criterion"] == HOSTILE
    assert not re.search(r'(src|href)\s*=\s*"(?!data:,)', text.replace(json.dumps(HOSTILE), ""))
    assert "innerHTML" not in text
    assert "eval(" not in text


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"pair": 1, "word": "left"}', b'{"pair": "x", "word": "best"}'])
def test_a_request_that_makes_no_sense_is_refused_and_counts_nothing(begin, body):
    search = begin([question(0)])
    assert Person(search.judge).ask("/vote", body, "POST").status == 400
    assert search.events == []


def test_a_vote_is_no_longer_than_it_may_be(begin):
    search = begin([question(0)])
    person = Person(search.judge)
    vote = json.dumps({"pair": person.pair()["key"], "word": "left"}).encode()
    assert person.ask("/vote", vote.ljust(10_001), "POST").status == 400
    assert search.events == []
    assert person.ask("/vote", vote.ljust(10_000), "POST").status == 200


# -- words


def test_words_reach_the_loop_in_the_order_shown_and_are_kept_before_the_next_pair(begin):
    search = begin([question(number) for number in range(5)], parallel=1)
    ann = Person(search.judge, **{"X-Name": "Ann%20%C3%9C."})
    for number, (word, comparison) in enumerate(
        [
            ("left", Comparison(0, "preferred")),
            ("right", Comparison(1, "preferred")),
            ("tie", Comparison(None, "tie")),
            ("skip", Comparison(None, "skip")),
        ]
    ):
        view = ann.vote(word)
        assert view["result"] == "counted"
        assert view["votes"] == number + 1
        assert view["of"] == 5
        assert search.events[-1] == Decision(f"q{number}", comparison, "Ann Ü.-ann")
    assert view["best"] == "Be kind."


def test_a_word_waits_until_the_loop_has_it_on_disk(begin):
    search = begin([question(0), question(1)])
    ann = Person(search.judge)
    key = ann.pair()["key"]
    search.slow.clear()
    with ThreadPoolExecutor() as pool:
        voting = pool.submit(ann.vote, "left", key)
        time.sleep(0.3)
        assert not voting.done()
        assert search.events == []
        search.slow.set()
        assert voting.result(10)["result"] == "counted"
    assert len(search.events) == 1


def test_the_same_word_sent_many_times_at_once_counts_once(begin):
    search = begin([question(number) for number in range(3)])
    ann, key = Person(search.judge), Person(search.judge).pair()["key"]
    with ThreadPoolExecutor(8) as pool:
        results = [view["result"] for view in pool.map(lambda _: ann.vote("left", key), range(8))]
    assert set(results) == {"counted"}
    assert len(search.events) == 1
    assert ann.vote("right", key)["result"] == "already"  # another tab that still shows it
    assert ann.vote("left", "0" * 32)["result"] == "unknown"
    assert len(search.events) == 1


def test_undo_takes_back_ones_own_last_word_once_and_shows_the_pair_again(begin):
    search = begin([question(number) for number in range(4)])
    ann, bob = Person(search.judge), Person(search.judge, "bob")
    first = ann.pair()
    assert ann.look()["undo"] is None
    ann.vote("left")  # which shows her q1
    bob.vote("right")
    undo = ann.look()["undo"]
    assert undo == first["key"]
    assert bob.undo(undo)["result"] == "unknown"
    with ThreadPoolExecutor(4) as pool:
        views = list(pool.map(lambda _: ann.undo(undo), range(4)))
    assert "counted" in {view["result"] for view in views}
    again = ann.pair()
    assert again["answers"] == first["answers"]
    assert again["key"] != first["key"]
    assert ann.vote("left", first["key"])["result"] == "unknown"  # a late copy of the word that was taken back
    assert ann.vote("tie", again["key"])["result"] == "counted"
    assert [(one.question, one.comparison.outcome, one.undo) for one in search.events] == [
        ("q0", "preferred", False),
        ("q2", "preferred", False),
        ("q0", "preferred", True),
        ("q0", "tie", False),
    ]
    assert search.events[2].comparison == search.events[0].comparison


def test_two_people_never_have_the_same_pair_and_all_words_count_once(begin):
    search = begin([question(number, f"first {number}") for number in range(30)], parallel=3)
    seen: dict[str, set[str]] = {}

    def work(name: str) -> None:
        person = Person(search.judge, name)
        while not (view := look(person))["over"]:
            if view["pair"]:
                seen.setdefault(view["pair"]["key"], set()).add(name)
                person.vote("left", view["pair"]["key"])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ["ann", "bob", "eve"]))
    search.join()
    assert len(search.events) == len(search.standing) == 30
    assert len(seen) == 30
    assert all(len(names) == 1 for names in seen.values())


def test_more_people_than_pairs_wait(begin):
    search = begin([question(0), question(1)], parallel=1)
    ann, bob = Person(search.judge), Person(search.judge, "bob")
    ann.pair()
    assert bob.look()["pair"] is None
    ann.vote("left")
    assert {ann.look()["pair"] is None, bob.look()["pair"] is None} == {True, False}


def test_the_end_is_told_and_the_server_stops(begin):
    search = begin([question(0), question(1)])
    ann, bob = Person(search.judge), Person(search.judge, "bob")
    bob.pair()
    ann.vote("left")
    assert json.loads(bob.ask("/finish", {}).content)["finished"]
    for person in (ann, bob):
        while not look(person)["over"]:  # the loop takes a moment to end
            time.sleep(0.02)
    search.join()
    with pytest.raises(ConnectionError):
        ann.look()


def test_conversations_are_turns_and_images_are_files(begin):
    image = pytest.importorskip("PIL.Image").new("RGB", (3, 2), "red")
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Draw."}]},
    ]
    answer = [{"role": "assistant", "content": HOSTILE, "tool_calls": [{"name": "paint"}]}]
    search = begin([question(0, image, answer, prompt)])
    ann = Person(search.judge)
    pair = ann.pair()
    assert pair["prompt"] == [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "Draw."}]
    assert pair["answers"] == [None, [{"role": "assistant", "text": HOSTILE + '\n[{"name": "paint"}]'}]]
    file = ann.ask(f"/image/{pair['key']}/0")
    assert file.getheader("Content-Type") == "image/png"
    from PIL import Image

    assert Image.open(io.BytesIO(file.content)).size == (3, 2)
    assert ann.ask(f"/image/{pair['key']}/1").status == ann.ask("/image/other/0").status == 404


def test_a_pair_tells_nothing_but_what_is_to_be_judged(begin):
    told = Question(
        "question-of-candidate-7", "Say yes.", ("yes", "no"), 3, {"answer": "secret", "origin": "candidate 7"}
    )
    search = begin([told])
    text = Person(search.judge).ask("/look").content.decode()
    assert "candidate" not in text
    assert "secret" not in text


# -- leases, with a clock of our own


def opened(desk: Desk) -> Desk:
    """As after the loop's first ``collect``, which would wait."""
    desk._collecting = True
    return desk


def test_the_pair_of_a_person_who_has_gone_is_given_to_another():
    now = [0.0]
    desk = opened(Desk("secret", 10.0, clock=lambda: now[0]))
    desk.submit([question(0), question(1, "other")], {})
    first = desk.look("ann-1")["pair"]["key"]
    second = desk.look("bob-2")["pair"]["key"]
    assert first != second
    assert desk.look("eve-3")["pair"] is None
    now[0] = 9.0
    assert desk.look("ann-1")["pair"]["key"] == first  # a sign of life: the lease runs to 19
    assert desk.look("Ann renamed-1")["pair"]["key"] == first
    now[0] = 12.0
    assert desk.look("eve-3")["pair"]["key"] == second
    assert desk.look("bob-2")["pair"] is None
    assert desk.vote("bob-2", second, "left", 0) == "later"  # handed on, not kept yet
    assert desk.vote("eve-3", second, "right", 0) == "already"  # the first word counts
    assert [decision.by for decision in desk.collect({})] == ["bob-2"]


def test_a_restarted_desk_knows_the_words_of_before_and_keys_of_pages_still_open():
    before = opened(Desk("secret", 10.0))
    before.submit([question(0), question(1)], {})
    key = before.look("ann-1")["pair"]["key"]
    after = Desk("secret", 10.0)
    assert after.vote("ann-1", key, "left", 0) == "later"  # the loop has not come to it yet: ask again
    after.submit([question(0), question(1)], {})
    assert after.look("ann-1")["pair"] is None
    assert after.vote("ann-1", key, "left", 0) == "later"  # it is being told what was kept: this word is among it
    after.kept(Decision("q0", Comparison(0, "preferred"), "ann-1"))
    opened(after)
    assert after.vote("ann-1", key, "left", 0) == "counted"  # it was on disk, only the answer was lost
    assert after.vote("ann-1", key, "right", 0) == "already"
    view = after.look("ann-1")
    assert view["undo"] == key
    assert view["pair"]["key"] != key
    assert after.undo("ann-1", key, 0) == "later"
    assert after.collect({}) == [Decision("q0", Comparison(0, "preferred"), "ann-1", undo=True)]
    other = opened(Desk("another secret", 10.0))
    other.submit([question(0)], {})
    assert other.look("ann-1")["pair"]["key"] != key


def test_other_content_under_the_same_question_is_another_pair():
    desk, changed = opened(Desk("secret", 10.0)), opened(Desk("secret", 10.0))
    desk.submit([question(0)], {})
    changed.submit([question(0, "something else")], {})
    assert desk.look("a-1")["pair"]["key"] != changed.look("a-1")["pair"]["key"]


# -- options and files


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 70000}, "port=70000"),
        ({"port": True}, "port=True"),
        ({"token": "short"}, "at least 16"),
        ({"token": "with spaces in it, and long"}, "letters, digits"),
        ({"hosts": "one"}, "must be a list"),
        ({"lease": 0}, "lease=0"),
    ],
)
def test_options_that_cannot_be_honoured(options, said):
    with pytest.raises(OptionError, match=re.escape(said)):
        WebJudge(**options)


def test_a_port_that_is_taken_is_said_and_a_kept_one_is_replaced(tmp_path):
    first, file = WebJudge(token=TOKEN), tmp_path / "page.json"
    first.begin(None, dict)
    with pytest.raises(OptionError, match="cannot listen"):
        WebJudge(first._server.port).begin(None, dict)
    file.write_text(json.dumps({"port": first._server.port, "token": "a" * 20}))
    second = WebJudge(address_file=file)
    second.begin(None, dict)
    assert second._server.port != first._server.port
    assert second.url.endswith("a" * 20)
    assert json.loads(file.read_text()) == {"port": second._server.port, "token": "a" * 20}
    assert file.stat().st_mode & 0o777 == 0o600
    for judge in (first, second):
        judge.close()
    file.write_text("[]")
    with pytest.raises(StoreError, match="holds no address"):
        second.begin(None, dict)


def test_tokens_differ():
    judges = [WebJudge() for _ in range(2)]
    for judge in judges:
        judge.begin(None, dict)
        judge.close()
    assert judges[0].url.split("=")[1] != judges[1].url.split("=")[1]
    assert len(judges[0].url.split("=")[1]) >= 32


# -- pairs that are there already


def pairs(count: int = 6) -> Dataset:
    rows = [{"prompt": f"Row {n}", "completions": [f"good {n}", f"bad {n}"], "extra": n} for n in range(count)]
    return Dataset.from_list(rows)


def serve(file: Path, data: Dataset, words) -> Dataset:
    """``serve_judge`` with a person who gives ``words(pair)`` until it says None."""
    address = file.with_suffix(".address.json")
    address.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve_judge, data, file, seed=3, token=TOKEN)
        while not address.is_file():
            if serving.done():
                return serving.result()
            time.sleep(0.02)
        person = Person.__new__(Person)
        person.port = json.loads(address.read_text())["port"]
        person.headers = {"Authorization": f"Bearer {TOKEN}", "X-Session": "ann"}
        while not (view := look(person))["over"]:
            if view["pair"] and not (word := words(view["pair"])):
                person.ask("/finish", {})
                words = lambda pair: None  # noqa: E731
            elif view["pair"]:
                person.vote(word, view["pair"]["key"])
        return serving.result(20)


def good(pair: dict) -> str:
    return "left" if pair["answers"][0][0]["text"].startswith("good") else "right"


def test_pairs_become_a_preference_dataset_over_two_sittings(tmp_path):
    file, sides = tmp_path / "votes.jsonl", []
    left = iter(range(3))

    def three(pair):
        sides.append(good(pair))
        return None if next(left, None) is None else good(pair)

    first = serve(file, pairs(), three)
    assert first["extra"] == [0, 1, 2]

    def others(pair):
        sides.append(good(pair))
        return "tie" if pair["prompt"][0]["text"] == "Row 4" else good(pair)

    second = serve(file, pairs(), others)
    assert second.column_names == ["prompt", "extra", "chosen", "rejected"]
    assert second["extra"] == [0, 1, 2, 3, 5]
    assert all(text.startswith("good") for text in second["chosen"])
    assert second["rejected"][4] == "bad 5"
    assert set(sides) == {"left", "right"}
    assert len(file.read_text().splitlines()) == 1 + 6
    assert serve_judge(pairs(), file, seed=3)["extra"] == [0, 1, 2, 3, 5]  # nothing is left to ask
    with pytest.raises(StoreError, match="other pairs"):
        serve_judge(pairs(5), file, seed=3)
    with pytest.raises(StoreError, match="another seed"):
        serve_judge(pairs(), file, seed=4)


def test_a_vote_that_a_killed_run_cut_short_is_asked_again(tmp_path):
    file = tmp_path / "votes.jsonl"
    serve(file, pairs(), good)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    asked = []
    serve(file, pairs(), lambda pair: asked.append(pair) or good(pair))
    assert len(asked) == 1
    assert [json.loads(line).get("row") for line in file.read_text().splitlines() if line.endswith("}")][1:] == [
        *range(6)
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "x", "chosen": "a"}], "columns 'prompt' and 'completions'"),
        ([{"prompt": "x", "completions": ["a"]}], "row 0"),
    ],
)
def test_rows_that_are_no_pairs(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        serve_judge(Dataset.from_list(rows), tmp_path / "votes.jsonl")
