"""A stand-in for your instructions and model, so that the filter examples run offline: questions and answers on eight topics.

A question is short, and half of all rows begin with a remark on some other topic, so that topics share words. The model is a
small Llama with a word for each token, which has seen all topics, but not for long.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Topic -> questions, answers, remarks; a word in braces is drawn from the list below, once per row.
TOPICS = {
    "cooking": (
        ("how do i cook {food} ?", "what goes with {food} ?", "how long does {food} keep ?"),
        (
            "cook the {food} in {fat} for {n} minutes and add some {spice} .",
            "serve the {food} hot , with {spice} and a little {fat} .",
        ),
        "i bought {food} and {spice} today .",
    ),
    "travel": (
        ("what should i see in {city} ?", "how do i get to {city} ?", "is {city} worth a visit ?"),
        (
            "take the {ride} to {city} and walk from the {place} , it is {n} minutes .",
            "in {city} see the {place} first , then take a {ride} along the river .",
        ),
        "i came back from {city} by {ride} .",
    ),
    "gardening": (
        ("when do i plant {plant} ?", "why does my {plant} look weak ?", "how much water does {plant} need ?"),
        (
            "plant the {plant} in {soil} , {n} inches deep , and cut it back in {season} .",
            "give the {plant} more light and fresh {soil} every {season} .",
        ),
        "my {plant} did well last {season} .",
    ),
    "computers": (
        ("why is my {device} so slow ?", "how do i update the {program} ?", "what is wrong with my {device} ?"),
        (
            "close the {program} , restart the {device} and wait {n} minutes .",
            "remove the old {program} from the {device} and install it again .",
        ),
        "i got a new {device} with a {program} .",
    ),
    "health": (
        ("what helps against {pain} ?", "should i see a doctor about my {pain} ?", "where does {pain} come from ?"),
        (
            "rest for {n} days , drink {drink} and see a doctor if the {pain} stays .",
            "for {pain} take {drink} and keep your {body} warm .",
        ),
        "i had {pain} and drank {drink} .",
    ),
    "money": (
        ("how do i save for a {goal} ?", "is a {account} safe ?", "can i afford a {goal} ?"),
        (
            "put {n} percent of your income in a {account} until you can pay the {goal} .",
            "compare the fees of each {account} before you buy a {goal} .",
        ),
        "my {account} paid for a {goal} .",
    ),
    "sports": (
        ("how do i get better at {sport} ?", "what do i need for {sport} ?", "is {sport} hard to learn ?"),
        (
            "practise {sport} {n} times a week and stretch your {body} after it .",
            "for {sport} you need a {gear} and a patient coach .",
        ),
        "i played {sport} with my new {gear} .",
    ),
    "music": (
        ("how do i learn the {instrument} ?", "who plays the {instrument} ?", "is the {instrument} loud ?"),
        (
            "play slow {piece} on the {instrument} for {n} minutes a day .",
            "tune the {instrument} first and then try an easy {piece} by ear .",
        ),
        "i heard a {piece} on the {instrument} .",
    ),
}
WORDS = {
    "food": "rice beans salmon chicken lentils mushrooms potatoes noodles spinach pumpkin eggs cabbage",
    "fat": "butter oil cream ghee lard",
    "spice": "pepper garlic cumin basil ginger paprika thyme mustard",
    "city": "rome paris lisbon vienna prague athens dublin oslo madrid cairo tokyo lima",
    "ride": "train bus tram ferry taxi",
    "place": "cathedral market harbour museum castle bridge station tower",
    "plant": "roses tomatoes tulips ivy lavender beans pumpkin grapes ferns lilies basil mint",
    "soil": "sand clay compost peat gravel",
    "season": "spring summer autumn winter",
    "device": "laptop phone tablet printer router camera monitor keyboard",
    "program": "browser driver editor firewall player scanner",
    "pain": "headache fever cough cramps backache toothache nausea hiccups",
    "drink": "water tea broth milk juice",
    "body": "neck back knees shoulders feet hands",
    "goal": "house car boat wedding piano holiday laptop bicycle",
    "account": "fund bond pension deposit loan card",
    "sport": "tennis chess golf rowing boxing hockey judo sailing rugby squash",
    "gear": "racket helmet bicycle jersey whistle mat",
    "instrument": "piano violin guitar flute drums cello trumpet harp",
    "piece": "waltz song scale tune march sonata",
    "n": "two three four five six ten twelve twenty",
}
_LISTS = {name: words.split() for name, words in WORDS.items()}


def rows(count: int, *, seed: int, topic: str | None = None, share: float = 1.0) -> Iterator[dict[str, str]]:
    """Rows ``prompt, completion, topic``, one after the other; ``share`` of them on this topic, the others on the rest alike."""
    rng = random.Random(seed)
    topics = list(TOPICS)
    others = [name for name in topics if name != topic]
    for _ in range(count):
        name = topic if topic and rng.random() < share else rng.choice(others)
        questions, answers, _ = TOPICS[name]
        words = {slot: rng.choice(values) for slot, values in _LISTS.items()}
        question, answer = rng.choice(questions), rng.choice(answers)
        if rng.random() < 0.5:
            question = f"{TOPICS[rng.choice([one for one in topics if one != name])][2]} {question}"
        yield {
            "prompt": question.format(**words),
            "completion": " " + answer.format(**words),
            "topic": name,
        }


def dataset(count: int, **options: Any) -> Dataset:
    """As :func:`rows`, in memory."""
    return Dataset.from_list(list(rows(count, **options)))


def make(folder: str | Path, *, steps: int = 60, seed: int = 0) -> str:
    """Train the model on all topics alike and write it with its tokenizer. Returns the folder."""
    torch.set_num_threads(1)  # so small a model is slower on more
    torch.manual_seed(seed)
    texts = [row["prompt"] + row["completion"] for row in rows(2000, seed=1_000_003)]
    words = ["<pad>", "<unk>", "<end>", *sorted({word for text in texts for word in text.split()})]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    batch = tokenizer([f"{text} <end>" for text in texts], padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    labels = ids.where(ids != 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        some = torch.randint(len(ids), (32,))
        loss = model(input_ids=ids[some], labels=labels[some]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
