"""Images of a search, each drawn once and kept as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfdataopt.errors import MissingDependencyError, Refused
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.ledger import key_of


def draw(model: Any, texts: Sequence[str], requests: Any, folder: Path) -> list[Any]:
    """One image of Pillow per text, each of which counts as a call the first time.

    Raises:
        BudgetSpent: not all of them are within the budget.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("images need Pillow: pip install 'hfdataopt[images]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    ledger, budget = requests.ledger, requests.budget
    keys = [key_of("image", text) for text in texts]
    fresh = dict.fromkeys(key for key in keys if requests.new([key]))
    if len(fresh) > budget.left("model"):
        raise BudgetSpent(f"{len(fresh)} images are needed, and {budget.left('model'):g} calls are left")
    texts_of = dict(zip(keys, texts, strict=True))
    missing = [key for key in fresh if key not in ledger.answers or not (folder / f"{key}.png").is_file()]

    def admit(index: int, sample: int) -> bool:
        if not budget.reserve("model", 0, 0):
            return False
        budget.spent.uncertain += missing[index] in ledger.sent
        ledger.request(missing[index], "model", texts_of[missing[index]])
        return True

    def arrived(index: int, sample: int, image: Any) -> None:
        path = folder / f"{missing[index]}.png"
        image.save(path.with_suffix(".partial"), format="PNG")
        path.with_suffix(".partial").replace(path)
        ledger.answer(missing[index], "model", image=path.name, tokens=[0, 0])

    if missing:
        try:
            model.draw(
                [texts_of[key] for key in missing], keys=missing, seed=requests.seed, on_done=arrived, admit=admit
            )
        except Refused as refused:
            raise BudgetSpent(budget.out_of()) from refused
    for key in fresh:
        requests._count("model", key, 1)
    found = {}
    for key in dict.fromkeys(keys):
        with Image.open(folder / f"{key}.png") as image:
            image.load()
        image.filename = str(folder / f"{key}.png")
        found[key] = image
    return [found[key] for key in keys]
