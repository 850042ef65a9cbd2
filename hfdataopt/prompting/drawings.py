"""Images of a search, each drawn once and kept as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdataopt.errors import Refused
from hfdataopt.generation.images import ImageCompletion
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.ledger import key_of


def draw(model: Any, texts: Sequence[str], requests: Any, folder: Path) -> list[Any]:
    """One image of Pillow per text, each of which counts as a call the first time; ``filename`` says where it is kept.

    Raises:
        BudgetSpent: not all of them are within the budget.
    """
    ledger, budget = requests.ledger, requests.budget
    about = model.describe()
    keys = [key_of("image", about, text) for text in texts]
    new = len(set(keys) - requests.used)
    if new > budget.left("model"):
        raise BudgetSpent(f"{new} images are needed, and {budget.left('model'):g} calls are left")
    text_of = dict(zip(keys, texts, strict=True))
    missing = requests.missing("model", keys)

    def admit(index: int, sample: int) -> bool:
        if not budget.reserve("model", 0, 0):
            return False
        ledger.request(missing[index], "model", text_of[missing[index]])
        budget.spent.uncertain = ledger.uncertain
        return True

    def arrived(index: int, sample: int, made: ImageCompletion) -> None:
        ledger.answer(missing[index], "model", image=made.to_json(folder), tokens=[0, 0])
        requests.count("model", missing[index])

    if missing:
        try:
            model.draw(
                [text_of[key] for key in missing], keys=missing, seed=requests.seed, on_done=arrived, admit=admit
            )
        except Refused as refused:
            raise BudgetSpent(budget.out_of()) from refused
    found = {}
    for key in dict.fromkeys(keys):
        document = ledger.answers[key]["image"]
        found[key] = ImageCompletion.from_json(document, folder).image
        found[key].filename = str(folder / Path(document["image"]).name)
    return [found[key] for key in keys]
