"""The world of the demo's small instruction follower: its words, its tasks, and the annotator that grades instructions.

An instruction is a phrasing: one part for each of eight slots (role, politeness, hedge, verb, object, manner, format,
closing). Its clarity is the sum of what its parts are worth. Every input has a difficulty between 0 and 1. The annotator
answers rightly where clarity exceeds difficulty, so that an instruction's accuracy is its clarity. Where it does not,
the annotator copies the input (or answers the opposite question), and an instruction that asks for no format gets a
sentence instead of the bare answer where it falls short by little. Each demonstration adds ``EXEMPLAR_WORTH``.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hfdataopt.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

REPORTED_TASKS = ("plural", "french", "german", "first_letter", "category", "antonym", "sum", "larger_animal")
DEVELOPMENT_TASKS = ("spanish", "second_letter", "difference", "number_words")
TASKS = REPORTED_TASKS + DEVELOPMENT_TASKS
FOLDER = Path(__file__).parent / "follower"
EXEMPLAR_WORTH = 0.06
FORMAT_WORTH = 0.12  # by how much clarity may fall short for a right answer in a whole sentence

# English, plural, French, Spanish, German. No translation equals the English word: a copy is never right.
_NOUNS = {
    "animal": """dog dogs chien perro hund|cat cats chat gato katze|horse horses cheval caballo pferd
cow cows vache vaca kuh|bird birds oiseau pájaro vogel|mouse mice souris ratón maus|bear bears ours oso bär
goat goats chèvre cabra ziege|duck ducks canard pato ente|rabbit rabbits lapin conejo kaninchen
pig pigs cochon cerdo schwein|bee bees abeille abeja biene|monkey monkeys singe mono affe
snake snakes serpent serpiente schlange|frog frogs grenouille rana frosch|fox foxes renard zorro fuchs""",
    "food": """apple apples pomme manzana apfel|bread breads pain pan brot|cheese cheeses fromage queso käse
egg eggs œuf huevo ei|cake cakes gâteau pastel kuchen|cherry cherries cerise cereza kirsche
grape grapes raisin uva traube|strawberry strawberries fraise fresa erdbeere|onion onions oignon cebolla zwiebel
carrot carrots carotte zanahoria karotte|lemon lemons citron limón zitrone|soup soups soupe sopa suppe
nut nuts noix nuez nuss|pear pears poire pera birne""",
    "clothing": """shirt shirts chemise camisa hemd|shoe shoes chaussure zapato schuh|hat hats chapeau sombrero hut
dress dresses robe vestido kleid|glove gloves gant guante handschuh|coat coats manteau abrigo mantel
skirt skirts jupe falda rock|sock socks chaussette calcetín socke|scarf scarves écharpe bufanda schal
belt belts ceinture cinturón gürtel""",
    "furniture": """chair chairs chaise silla stuhl|bed beds lit cama bett|lamp lamps lampe lámpara leuchte
mirror mirrors miroir espejo spiegel|shelf shelves étagère estante regal|desk desks bureau escritorio schreibtisch
drawer drawers tiroir cajón schublade|cupboard cupboards placard armario schrank|bench benches banc banco bank""",
    "body": """head heads tête cabeza kopf|foot feet pied pie fuß|eye eyes œil ojo auge|ear ears oreille oreja ohr
nose noses nez nariz nase|mouth mouths bouche boca mund|tooth teeth dent diente zahn|leg legs jambe pierna bein
knee knees genou rodilla knie|shoulder shoulders épaule hombro schulter|neck necks cou cuello hals
tongue tongues langue lengua zunge""",
    "nature": """tree trees arbre árbol baum|flower flowers fleur flor blume|river rivers rivière río fluss
mountain mountains montagne montaña berg|star stars étoile estrella stern|cloud clouds nuage nube wolke
leaf leaves feuille hoja blatt|stone stones pierre piedra stein|lake lakes lac lago see|island islands île isla insel
forest forests forêt bosque wald|beach beaches plage playa strand""",
    "tool": """knife knives couteau cuchillo messer|spoon spoons cuillère cuchara löffel
fork forks fourchette tenedor gabel|key keys clé llave schlüssel|needle needles aiguille aguja nadel
pencil pencils crayon lápiz bleistift|brush brushes brosse cepillo bürste|bucket buckets seau cubo eimer
rope ropes corde cuerda seil|ladder ladders échelle escalera leiter""",
    "place": """house houses maison casa haus|church churches église iglesia kirche|school schools école escuela schule
city cities ville ciudad stadt|bridge bridges pont puente brücke|street streets rue calle straße
library libraries bibliothèque biblioteca bibliothek|castle castles château castillo schloss
kitchen kitchens cuisine cocina küche|shop shops magasin tienda laden|garden gardens jardin jardín garten""",
}
_OPPOSITES = """hot cold|big small|tall short|fast slow|happy sad|light dark|old new|rich poor|hard soft|wet dry|full empty
strong weak|early late|open closed|high low|clean dirty|thick thin|wide narrow|loud quiet|deep shallow|sweet bitter|near far
right wrong|true false|alive dead|awake asleep|cheap expensive|smooth rough|sharp blunt|safe dangerous|brave afraid
kind cruel|polite rude|bright dim|beautiful ugly|tight loose|first last|modern ancient|public private|simple complex
tame wild|fresh stale|calm nervous|proud humble|guilty innocent|lazy busy"""
# From the smallest to the largest.
_SIZES = """ant bee frog mouse rat rabbit cat fox dog goat pig bear horse camel elephant whale"""
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = """twenty thirty forty fifty sixty seventy eighty ninety"""


class Item(NamedTuple):
    """An input, the answer that is wanted, and how clear an instruction must be for it."""

    input: str
    answer: str
    difficulty: float
    opposite: str | None = None


class Part(NamedTuple):
    """What a slot may say, what it adds to the clarity, and how often the annotator says it."""

    text: str
    worth: float
    weight: float


SLOTS = ("role", "polite", "hedge", "verb", "object", "manner", "format", "closing")
_NONE = Part("", 0.0, 5.0)
_ROLES = (
    Part("you are a helpful assistant", 0.03, 1.0),
    Part("you are a tired clerk", -0.06, 0.8),
    Part("you are a pirate", -0.08, 0.8),
    Part("you are a dreamy poet", -0.05, 0.8),
)
_POLITE = (_NONE, Part("please", 0.01, 1.5), Part("kindly", 0.0, 0.8))
_HEDGES = (
    _NONE,
    Part("try to", -0.04, 1.0),
    Part("maybe", -0.08, 1.0),
    Part("perhaps", -0.07, 0.8),
    Part("if you can,", -0.06, 0.8),
    Part("feel free to", -0.05, 0.8),
)
_VERBS = (
    Part("write", 0.14, 1.0),
    Part("state", 0.12, 0.7),
    Part("give", 0.11, 1.0),
    Part("tell me", 0.08, 1.4),
    Part("show", 0.07, 1.0),
    Part("say", 0.05, 1.2),
    Part("find", 0.04, 1.4),
    Part("think of", 0.0, 1.2),
    Part("look for", -0.02, 1.0),
    Part("think about", -0.06, 1.0),
    Part("guess", -0.08, 0.8),
)
_MANNERS = (
    _NONE,
    Part("exactly", 0.06, 0.6),
    Part("carefully", 0.05, 0.8),
    Part("now", 0.01, 0.8),
    Part("in some way", -0.08, 0.8),
    Part("as you see fit", -0.07, 0.8),
    Part("or something like it", -0.1, 0.8),
)
_FORMATS = (
    Part("do not explain", 0.09, 0.9),
    Part("keep it short", 0.07, 1.0),
    Part("be brief", 0.06, 1.0),
    Part("explain your answer", -0.1, 0.9),
    Part("use a full sentence", -0.12, 0.8),
    Part("be creative", -0.08, 0.8),
)
_CLOSINGS = (
    _NONE,
    Part("check your answer before you reply", 0.08, 0.6),
    Part("be precise", 0.07, 0.7),
    Part("this is important to me", 0.03, 1.0),
    Part("take a deep breath", 0.02, 0.8),
    Part("good luck", 0.0, 1.0),
    Part("have fun with it", -0.05, 0.8),
    Part("i like rainy days", -0.06, 0.8),
    Part("it does not matter much", -0.12, 0.7),
    Part("or do whatever you like", -0.14, 0.6),
)
_ANSWER = {
    "plural": "word",
    "french": "word",
    "german": "word",
    "spanish": "word",
    "antonym": "word",
    "category": "word",
}
_ANSWER |= {"first_letter": "letter", "second_letter": "letter", "sum": "number", "difference": "number"}
_ANSWER |= {"larger_animal": "animal", "number_words": "words"}
_EXPERT = {
    "plural": "you are a teacher of english grammar",
    "french": "you are a skilled french translator",
    "german": "you are a skilled german translator",
    "spanish": "you are a skilled spanish translator",
    "first_letter": "you are an expert at spelling",
    "second_letter": "you are an expert at spelling",
    "category": "you are an expert at sorting things",
    "antonym": "you are the author of a dictionary",
    "sum": "you are a careful mathematician",
    "difference": "you are a careful mathematician",
    "larger_animal": "you are an expert on animals",
    "number_words": "you are a teacher of english numbers",
}
# From the clearest to the vaguest.
_OBJECTS = {
    "plural": (
        "the plural form of the noun",
        "the plural of the word",
        "the word for more than one of it",
        "the noun as used for several things",
        "the word with many of them in mind",
        "what a lot of these would be",
        "the other form of the noun",
    ),
    "french": (
        "the french translation of the word",
        "the french word for the input",
        "the word in french",
        "how people in france call it",
        "what a person from paris would call it",
        "the word in the language of france",
        "something in a french style",
    ),
    "german": (
        "the german translation of the word",
        "the german word for the input",
        "the word in german",
        "how people in germany call it",
        "what a person from berlin would call it",
        "the word in the language of germany",
        "something in a german style",
    ),
    "spanish": (
        "the spanish translation of the word",
        "the spanish word for the input",
        "the word in spanish",
        "how people in spain call it",
        "what a person from madrid would call it",
        "the word in the language of spain",
        "something in a spanish style",
    ),
    "first_letter": (
        "the first letter of the word",
        "the letter that the word starts with",
        "the initial of the word",
        "how the word begins",
        "the start of the word",
        "the sign in front",
        "a letter of the word from the front",
    ),
    "second_letter": (
        "the second letter of the word",
        "the letter after the first one",
        "letter number two of the word",
        "what follows the initial",
        "the next sign in the word",
        "the sign in second place",
        "a letter near the front",
    ),
    "category": (
        "the category that the thing belongs to",
        "the kind of thing that the word names",
        "the group that the word is part of",
        "the general term for the thing",
        "what type of thing it is",
        "where the thing belongs",
        "the bigger idea behind it",
    ),
    "antonym": (
        "the antonym of the adjective",
        "the word with the opposite meaning",
        "the opposite of the word",
        "the reverse of the word",
        "the word at the other end of the scale",
        "a word that does not go with it",
        "the contrary side",
    ),
    "sum": (
        "the sum of the two numbers",
        "the total of both numbers",
        "the first number plus the second number",
        "what the numbers make together",
        "how much there is in all",
        "the result with both of them",
        "the numbers as one",
    ),
    "difference": (
        "the difference of the two numbers",
        "the first number minus the second number",
        "how much larger the first number is",
        "what is left of the first number",
        "the gap between the numbers",
        "how far apart they are",
        "the rest",
    ),
    "larger_animal": (
        "the larger of the two animals",
        "the animal with the bigger body",
        "the bigger animal",
        "the animal that weighs more",
        "which animal takes more room",
        "the one that wins by size",
        "the animal that stands out",
    ),
    "number_words": (
        "the number in english words",
        "the number as it is spoken",
        "the number spelled out",
        "how the number is read aloud",
        "the name of the number",
        "the number without signs",
        "the number in another way",
    ),
}
_OBJECT_WORTH = (0.47, 0.4, 0.32, 0.24, 0.16, 0.08, 0.02)
_OBJECT_WEIGHT = (0.6, 0.9, 1.1, 1.2, 1.1, 0.9, 0.7)


@lru_cache
def parts(task: str) -> dict[str, tuple[Part, ...]]:
    """What each slot of an instruction for ``task`` may say."""
    check_task(task)
    answer = _ANSWER[task]
    alone = (
        Part(f"answer with the {answer} alone and nothing else", 0.2, 0.5),
        Part(f"reply with one {answer}" if answer != "words" else "reply with a few words", 0.15, 0.7),
    )
    objects = tuple(map(Part, _OBJECTS[task], _OBJECT_WORTH, _OBJECT_WEIGHT))
    roles = (_NONE, Part(_EXPERT[task], 0.1, 0.7), *_ROLES)
    formats = (_NONE, *alone, *_FORMATS)
    return dict(zip(SLOTS, (roles, _POLITE, _HEDGES, _VERBS, objects, _MANNERS, formats, _CLOSINGS), strict=True))


@dataclass(frozen=True)
class Phrasing:
    """An instruction of the annotator's grammar: which part each slot says, in the order of ``SLOTS``."""

    task: str
    chosen: tuple[int, ...]

    def part(self, slot: str) -> Part:
        """What ``slot`` says."""
        return parts(self.task)[slot][self.chosen[SLOTS.index(slot)]]

    def put(self, slot: str, choice: int) -> Phrasing:
        """This phrasing with another part in ``slot``."""
        at = SLOTS.index(slot)
        return replace(self, chosen=(*self.chosen[:at], choice, *self.chosen[at + 1 :]))

    @property
    def clarity(self) -> float:
        """The sum of the parts' worth: the accuracy that is meant, before it is cut to [0, 1]."""
        return sum(self.part(slot).worth for slot in SLOTS)

    @property
    def text(self) -> str:
        """The instruction."""
        said = {slot: self.part(slot).text for slot in SLOTS}
        core = " ".join(filter(None, (said[slot] for slot in ("polite", "hedge", "verb", "object", "manner"))))
        return " ".join(
            f"{sentence}." for sentence in (said["role"], core, said["format"], said["closing"]) if sentence
        )

    @property
    def held_out(self) -> bool:
        """Whether verb and object belong to a pair that is kept out of all training."""
        verb, thing = self.chosen[SLOTS.index("verb")], self.chosen[SLOTS.index("object")]
        return verb + thing > 0 and zlib.crc32(f"{self.task} {verb} {thing}".encode()) % 6 == 0


def check_task(task: str) -> None:
    """Refuse an unknown task."""
    if task not in TASKS:
        raise DataError(f"the demo's follower has no task {task!r}; it has {', '.join(TASKS)}")


def sample_part(task: str, slot: str, rng: random.Random, flat: float = 0.0) -> int:
    """A part for ``slot``, by the annotator's habits, or, with chance ``flat``, any part alike."""
    options = parts(task)[slot]
    if rng.random() < flat:
        return rng.randrange(len(options))
    return rng.choices(range(len(options)), [part.weight for part in options])[0]


def sample(task: str, rng: random.Random, *, flat: float = 0.0, held_out: bool = False) -> Phrasing:
    """An instruction as the annotator happens to write it; ``held_out`` draws from the pairs kept out of training."""
    while True:
        phrasing = Phrasing(task, tuple(sample_part(task, slot, rng, flat) for slot in SLOTS))
        if phrasing.held_out == held_out:
            return phrasing


def phrasings(task: str, n: int, seed: int, *, held_out: bool = False) -> list[str]:
    """``n`` instructions for ``task`` as the annotator happens to write them; most are far from the best."""
    rng = random.Random(f"{task} {seed}")
    return [sample(task, rng, held_out=held_out).text for _ in range(n)]


def best_phrasing(task: str) -> Phrasing:
    """The clearest instruction of the grammar."""
    options = parts(task)
    return Phrasing(task, tuple(max(range(len(o)), key=lambda i: o[i].worth) for o in (options[s] for s in SLOTS)))


def best_known(task: str) -> str:
    """The clearest instruction of the grammar."""
    return best_phrasing(task).text


@lru_cache
def items(task: str) -> tuple[Item, ...]:
    """All inputs of ``task``, from the easiest to the hardest."""
    check_task(task)
    known: list[tuple[Any, str, str, str | None]] = []  # rank of difficulty, input, answer, opposite answer
    if task in ("sum", "difference"):
        for a in range(6, 17):
            for b in range(1, min(a, 10)):
                known.append(((a + b, b), f"{a} {b}", str(a + b if task == "sum" else a - b), None))
    elif task == "larger_animal":
        animals = _SIZES.split()
        for i, large in enumerate(animals):
            for j, small in enumerate(animals[:i]):
                known += [((j - i, i), text, large, small) for text in (f"{small}, {large}", f"{large}, {small}")]
    elif task == "number_words":
        units, decades = _ONES.split(), _TENS.split()
        for n in range(10, 100):
            tens, ones = divmod(n, 10)
            words = units[n] if n < 20 else decades[tens - 2] + (f" {units[ones]}" if ones else "")
            known.append((n, str(n), words, None))
    elif task == "antonym":
        for pair in _OPPOSITES.replace("\n", "|").split("|"):
            first, second = pair.split()
            known += [(zlib.crc32(a.encode()), a, b, None) for a, b in ((first, second), (second, first))]
    else:
        for category, lines in _NOUNS.items():
            for line in lines.replace("\n", "|").split("|"):
                noun, plural, french, spanish, german = line.split()
                answer = {
                    "plural": plural,
                    "french": french,
                    "spanish": spanish,
                    "german": german,
                    "category": category,
                    "first_letter": noun[0],
                    "second_letter": noun[1],
                }[task]
                known.append((zlib.crc32(noun.encode()), noun, answer, None))
    known.sort(key=lambda row: row[0])
    return tuple(
        Item(text, answer, (rank + 0.5) / len(known), opposite)
        for rank, (_, text, answer, opposite) in enumerate(known)
    )


def annotate(item: Item, clarity: float, *, formatted: bool = True) -> str:
    """What the annotator answers under an instruction of this clarity, which asks for a format or not."""
    if clarity > item.difficulty:
        return item.answer
    if not formatted and clarity > 0 and clarity + FORMAT_WORTH > item.difficulty:
        return f"the answer is {item.answer}"
    return item.input if item.opposite is None or clarity <= 0 else item.opposite


def query(text: str) -> str:
    """How an input is asked."""
    return f"Input: {text}\nOutput:"


def rows(task: str, split: Literal["train", "test"]) -> Dataset:
    """The known inputs of ``task`` with columns ``prompt``, ``answer`` and ``input``, easy and hard ones mixed.

    ``train`` is for the demonstrations and the validation of a search. The model knows the answers of both splits: what
    is measured is the instruction.
    """
    from datasets import Dataset

    if split not in ("train", "test"):
        raise DataError(f"rows: the splits are 'train' and 'test', not {split!r}")
    chosen = list(items(task)[split == "test" :: 2])
    random.Random(f"{task} {split}").shuffle(chosen)
    return Dataset.from_dict(
        {
            "prompt": [query(item.input) for item in chosen],
            "answer": [item.answer for item in chosen],
            "input": [item.input for item in chosen],
        }
    )


def exact_match(completions: Sequence[Any], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """A TRL reward: 1 where a completion, plain or conversational, is the answer but for case and outer space, else 0."""
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [float(text.strip().lower() == wanted.strip().lower()) for text, wanted in zip(texts, answer, strict=True)]


def load_follower(folder: str | Path = FOLDER) -> tuple[PreTrainedModel, Any]:
    """The shipped model in float32, ready to generate, and its left-padding tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
