import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfdataopt.demo import follower_report as report
from hfdataopt.demo import follower_tasks as world
from hfdataopt.demo.follower_tasks import DEVELOPMENT_TASKS, FOLDER, REPORTED_TASKS, SLOTS, TASKS, annotate, items
from hfdataopt.demo.make_follower import (
    REASONS,
    SEED,
    Row,
    draw_row,
    examples_of,
    forward,
    make_model,
    make_tokenizer,
    pack,
    practice,
    repair,
    train,
    vary,
)
from hfdataopt.errors import DataError
from hfdataopt.prompting import meta_prompts


@pytest.fixture(scope="module", autouse=True)
def _one_offline_thread():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def follower():
    return world.load_follower()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def text_of(messages):
    return messages[0]["content"]


# --- The world ---------------------------------------------------------------------------------------------------


def test_tasks_are_fixed_and_large_enough():
    assert len(REPORTED_TASKS) >= 8
    assert len(TASKS) >= 12
    assert not set(REPORTED_TASKS) & set(DEVELOPMENT_TASKS)
    for task in TASKS:
        splits = {split: world.rows(task, split) for split in ("train", "test")}
        asked = {split: set(rows["input"]) for split, rows in splits.items()}
        assert not asked["train"] & asked["test"]
        assert min(map(len, asked.values())) >= 40
        for rows in splits.values():
            assert rows.column_names == ["prompt", "answer", "input"]
            assert rows[0]["prompt"] == f"Input: {rows[0]['input']}\nOutput:"
            assert world.exact_match(rows["input"], rows["answer"]) == [0.0] * len(rows), "a copy is never right"


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_of_the_annotator_is_the_clarity(task):
    rng = random.Random(0)
    for _ in range(20):
        phrasing = world.sample(task, rng, flat=0.5)
        answers = [annotate(item, phrasing.clarity) for item in items(task)]
        right = np.mean(world.exact_match(answers, [item.answer for item in items(task)]))
        assert right == pytest.approx(min(1, max(0, phrasing.clarity)), abs=0.5 / len(items(task)) + 1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_the_best_known_instruction_is_the_clearest_and_good_ones_are_rare(task):
    best = world.best_phrasing(task)
    assert best.text == world.best_known(task)
    assert best.clarity >= 1
    rng = random.Random(1)
    found = np.array([world.sample(task, rng).clarity for _ in range(2000)])
    assert found.max() <= best.clarity
    assert np.quantile(found, 0.95) < 0.65


def test_clarity_is_the_sum_of_parts_that_can_be_exchanged():
    phrasing = world.sample("plural", random.Random(3))
    for slot in SLOTS:
        for choice, part in enumerate(world.parts("plural")[slot]):
            changed = phrasing.put(slot, choice)
            assert changed.clarity - phrasing.clarity == pytest.approx(part.worth - phrasing.part(slot).worth)
            assert part.text in changed.text


def test_what_falls_short_by_little_without_a_format_is_a_sentence():
    item = items("plural")[50]
    assert annotate(item, item.difficulty + 0.01, formatted=False) == item.answer
    assert annotate(item, item.difficulty - 0.01, formatted=False) == f"the answer is {item.answer}"
    assert annotate(item, item.difficulty - 0.01, formatted=True) == item.input
    animals = items("larger_animal")[50]
    assert annotate(animals, animals.difficulty - 0.01) == animals.opposite


def test_phrasings_repeat_with_their_seed_and_keep_out_pairs():
    assert world.phrasings("sum", 20, 1) == world.phrasings("sum", 20, 1)
    assert world.phrasings("sum", 20, 1) != world.phrasings("sum", 20, 2)
    assert not set(world.phrasings("sum", 300, 1)) & set(world.phrasings("sum", 300, 1, held_out=True))
    rng = random.Random(0)
    assert not any(practice(task, rng).held_out for task in TASKS for _ in range(50))
    assert not any(vary(practice(task, rng), rng).held_out for task in TASKS for _ in range(50))


def test_errors_name_what_arrived():
    with pytest.raises(DataError, match="'sorting'"):
        world.rows("sorting", "train")
    with pytest.raises(DataError, match="'validation'"):
        world.rows("sum", "validation")


def test_exact_match_takes_both_kinds_of_completions():
    assert world.exact_match([" Dogs ", "dog"], ["dogs", "dogs"], prompts=None) == [1.0, 0.0]
    assert world.exact_match([[{"role": "assistant", "content": "DOGS"}]], ["dogs"]) == [1.0]


def test_repair_mends_what_the_reason_names():
    rng = random.Random(0)
    phrasing = world.best_phrasing("sum").put("format", 0)
    assert repair(phrasing, "format", rng).part("format").worth > 0
    hedged = world.best_phrasing("sum").put("hedge", 2)
    assert repair(hedged, "hedge", rng).part("hedge").worth > hedged.part("hedge").worth


# --- Tokenizer ---------------------------------------------------------------------------------------------------


def test_tokenizer_knows_all_rows_and_text_survives_the_round_trip(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        row = draw_row(rng, hints=False)
        for text in (row.prefix, *(part for branch in row.branches for part in branch)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            decoded = tokenizer.decode(ids)
            assert tokenizer(decoded)["input_ids"] == ids
            if "\n" not in text:
                assert decoded == text.lower()


def test_unknown_words_and_numbers(tokenizer):
    assert tokenizer("dog xylophone 57")["input_ids"].count(tokenizer.unk_token_id) == 1
    assert len(tokenizer("100")["input_ids"]) == 1


def test_chat_template_gives_the_plain_text(tokenizer):
    turns = [{"role": "system", "content": "write it."}, {"role": "user", "content": "Input: cat\nOutput:"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "write it.\n\nInput: cat\nOutput:"
    shown = [
        turns[0],
        {"role": "user", "content": "Input: dog\nOutput:"},
        {"role": "assistant", "content": "dogs"},
        turns[1],
    ]
    plain = "write it.\n\nInput: dog\nOutput: dogs\n\nInput: cat\nOutput:"
    assert tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True) == plain
    empty = [{"role": "system", "content": ""}, *shown[1:]]
    assert tokenizer.apply_chat_template(empty, tokenize=False) == plain.removeprefix("write it.\n\n")


# --- Training ----------------------------------------------------------------------------------------------------


def test_packed_branches_see_what_the_plain_text_shows(tokenizer):
    """Each branch's logits in a packed line equal those of its text alone."""
    torch.manual_seed(0)
    model = make_model(tokenizer, layers=2).eval()
    rows = [
        Row("write the plural of the word.", [("Input: dog\nOutput:", "dogs"), ("Input: cat\nOutput:", "cats")]),
        Row(text_of(meta_prompts.rephrase("say it.")), [("", "write it."), ("", "give it now.")]),
        Row("", [("Input: dog\nOutput:", "dogs")]),
    ]
    batch = next(pack(tokenizer, iter(rows * 30), lines=2, length=120))
    packed = forward(model, batch)
    kept = batch.targets != -100
    texts = {}
    for row in rows:
        for context, answer in row.branches:
            prompt = tokenizer(f"{row.prefix}\n\n{context}")["input_ids"]
            wanted = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
            logits = model(torch.tensor([prompt + wanted[:-1]])).logits[0, len(prompt) - 1 :]
            texts[tuple(wanted), len(prompt)] = logits
    places = batch.positions[kept].tolist()
    wanted, start, seen = batch.targets[kept].tolist(), 0, set()
    for end in range(len(wanted)):
        if wanted[end] == tokenizer.eos_token_id:
            key = tuple(wanted[start : end + 1]), places[start] + 1
            torch.testing.assert_close(packed[start : end + 1], texts[key], rtol=1e-4, atol=1e-5)
            seen.add(key)
            start = end + 1
    assert seen == set(texts)


def test_a_few_steps_lower_the_loss_and_a_seed_repeats_them(tokenizer):
    def run():
        torch.manual_seed(SEED)
        model = make_model(tokenizer, layers=1, hidden=32)
        train(model, tokenizer, steps=3)
        return model

    first, second = run(), run()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    untrained = make_model(tokenizer, layers=1, hidden=32)
    rng = random.Random(9)
    batch = next(pack(tokenizer, (draw_row(rng, hints=False) for _ in range(400))))
    losses = [
        torch.nn.functional.cross_entropy(forward(m, batch), batch.targets[batch.targets != -100]).item()
        for m in (untrained, first)
    ]
    assert losses[1] < losses[0]


# --- The shipped model --------------------------------------------------------------------------------------------


def test_files_are_small_and_hold_no_pickle():
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 2_500_000


def test_loads_with_auto_classes_in_float32(follower):
    model, info = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert AutoTokenizer.from_pretrained(FOLDER).get_vocab() == make_tokenizer().get_vocab()
    assert follower[1].padding_side == "left"


def test_scores_of_one_pass_are_those_of_generation(follower):
    """The report's packed pass finds right what greedy generation from the plain text answers rightly."""
    model, tokenizer = follower
    for task, text in (
        ("plural", world.phrasings("plural", 3, 5)[1]),
        ("larger_animal", world.best_known("larger_animal")),
    ):
        rows = world.rows(task, "test").select(range(40))
        known = {item.input: item for item in items(task)}
        packed = report.correct(model, tokenizer, text, [known[x] for x in rows["input"]])
        made = report.generate(model, tokenizer, [f"{text}\n\n{prompt}" for prompt in rows["prompt"]], temperature=0)
        assert packed.tolist() == [bool(score) for score in world.exact_match(made, rows["answer"])]


@pytest.mark.parametrize("task", TASKS)
def test_follows_the_best_instruction_and_no_other(follower, task):
    assert report.accuracy(*follower, world.best_known(task), task) >= 0.8
    assert report.accuracy(*follower, "", task) <= 0.05
    assert report.accuracy(*follower, "good luck. i like rainy days.", task) <= 0.05


@pytest.mark.parametrize("task", REPORTED_TASKS)
def test_accuracy_grades_instructions_as_the_annotator_does(follower, task):
    """Also those whose verb and object were kept out of training together."""
    from scipy.stats import spearmanr

    rng = random.Random(4)
    phrasings = [world.sample(task, rng, flat=0.5, held_out=i % 2 == 0) for i in range(24)]
    found = [report.accuracy(*follower, phrasing.text, task) for phrasing in phrasings]
    assert spearmanr([phrasing.clarity for phrasing in phrasings], found).statistic > 0.75


def test_demonstrations_help_gradually(follower):
    rng = random.Random(0)
    gains = []
    for k in (0, 2, 4):
        hits = []
        for task in REPORTED_TASKS:
            shown = rng.sample(items(task), k)
            hits.append(report.correct(*follower, world.phrasings(task, 1, 3)[0], items(task), shown).mean())
        gains.append(np.mean(hits))
    assert gains[0] < gains[1] < gains[2] < gains[0] + 0.5


def test_induces_and_rephrases(follower):
    rng = random.Random(0)
    inside, kept, by_chance = [], [], []
    for task in REPORTED_TASKS:
        texts = report.generate(*follower, [text_of(meta_prompts.induce(examples_of(task, 5, rng)))] * 20)
        assert len(set(texts)) >= 15
        starts, others = ([practice(task, rng) for _ in range(4)] for _ in range(2))
        changed = report.generate(*follower, [text_of(meta_prompts.rephrase(start.text)) for start in starts])
        inside += [report.parse_all(task, texts), report.parse_all(task, changed)]
        for shares, group in ((kept, starts), (by_chance, others)):
            for text, phrasing in zip(changed, group, strict=True):
                shares.append(np.mean([phrasing.part(slot).text in text for slot in SLOTS if phrasing.part(slot).text]))
    assert np.mean(inside) > 0.7
    assert np.mean(kept) > np.mean(by_chance) + 0.3


def test_combines_parts_of_both(follower):
    rng = random.Random(0)
    texts, kept = [], []
    for task in REPORTED_TASKS:
        for _ in range(4):
            pair = [practice(task, rng), practice(task, rng)]
            texts.append(text_of(meta_prompts.combine(pair[0].text, pair[1].text)))
            kept.append({phrasing.part(slot).text for phrasing in pair for slot in SLOTS} - {""})
    made = report.generate(*follower, texts)
    own, of_others = (
        np.mean([part in text for text, said in zip(made, group, strict=True) for part in said])
        for group in (kept, kept[1:] + kept[:1])
    )
    assert own > of_others + 0.1


def test_criticises_what_the_mistakes_show(follower):
    phrasing = world.best_phrasing("french").put("object", 5).put("verb", 7)
    wrong = [item for item in items("french") if item.difficulty > 0.8][:3]
    mistakes = [meta_prompts.Mistake(item.input, item.input, item.answer) for item in wrong]
    (reason,) = report.generate(*follower, [text_of(meta_prompts.criticise(phrasing.text, mistakes))], temperature=0)
    assert reason == REASONS["core"]


def test_random_soft_prompts_give_distinct_instructions(follower):
    model, tokenizer = follower
    words = model.get_input_embeddings().weight.detach()
    ids = tokenizer(text_of(meta_prompts.induce(examples_of("plural", 5, random.Random(0)))), return_tensors="pt")
    generator = torch.Generator().manual_seed(0)
    soft = torch.randn(20, 3, words.shape[1], generator=generator) * words.std()
    embedded = torch.cat([soft, words[ids["input_ids"]].expand(20, -1, -1)], 1)
    made = model.generate(inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), do_sample=False)
    assert len(set(tokenizer.batch_decode(made, skip_special_tokens=True))) >= 5


def test_report_runs_from_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["follower_report", str(FOLDER), "--only", "soft_prompts"])
    report.main()
    assert "larger_animal" in capsys.readouterr().out


def test_model_card_names_the_commands():
    card = Path(FOLDER / "README.md").read_text(encoding="utf-8")
    assert "hfdataopt.demo.make_follower" in card
    assert "hfdataopt.demo.follower_report" in card
