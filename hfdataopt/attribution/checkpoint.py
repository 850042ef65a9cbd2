"""A saved checkpoint to score at: its folder, the learning rate that weighs it, and its optimizer state."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, OptionError


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder as ``save_pretrained`` or ``Trainer`` writes it.

    Attributes:
        path: the folder.
        learning_rate: the weight of this checkpoint in sums over checkpoints. None reads the mean logged learning rate
            since the previous checkpoint from ``trainer_state.json``.
        optimizer: path of the optimizer state, for scorers that precondition gradients. None takes ``optimizer.pt`` in the folder.
    """

    path: str
    learning_rate: float | None = None
    optimizer: str | None = None

    @classmethod
    def of(cls, value: Any) -> "Checkpoint":
        """A checkpoint from a path or from itself; raises if the folder is missing."""
        checkpoint = value if isinstance(value, cls) else cls(str(value))
        try:
            there = any((Path(checkpoint.path) / name).is_file() for name in ("config.json", "adapter_config.json"))
        except (OSError, ValueError):  # a name that no file can have
            there = False
        if not there:
            raise DataError(f"checkpoint {checkpoint.path!r} is not a folder with a config.json or adapter_config.json")
        rate = checkpoint.learning_rate
        if rate is not None and not (_is_number(rate) and 0 < rate < math.inf):
            raise OptionError(f"checkpoint {checkpoint.path!r}: learning_rate={rate!r} must be > 0, and finite")
        return checkpoint

    @property
    def state(self) -> dict[str, Any] | None:
        """The trainer's state saved beside the weights, or None where there is none."""
        file = Path(self.path) / "trainer_state.json"
        try:
            found = json.loads(file.read_text()) if file.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"checkpoint {self.path!r}: trainer_state.json cannot be read: {error}") from error
        if found is None and not file.is_file():
            return None
        step = found.get("global_step") if isinstance(found, dict) else -1
        history = found.get("log_history", []) if isinstance(found, dict) else None
        known = step is None or (type(step) is int and step >= 0)
        if not known or not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
            raise DataError(
                f"checkpoint {self.path!r}: trainer_state.json is no state of a Trainer (global_step, log_history)"
            )
        return found

    @property
    def step(self) -> int | None:
        """Optimizer steps taken, as the trainer recorded them, or None."""
        return (self.state or {}).get("global_step")

    def mean_learning_rate(self, since_step: int = 0) -> float:
        """``learning_rate``, else the mean of those logged after ``since_step``.

        Raises:
            DataError: none is known; the message says how to give it.
        """
        if self.learning_rate is not None:
            return self.learning_rate
        logged = [
            entry["learning_rate"]
            for entry in (self.state or {}).get("log_history", [])
            if _is_number(entry.get("learning_rate")) and _is_number(entry.get("step")) and entry["step"] > since_step
        ]
        if not logged or not 0 < sum(logged) < math.inf:
            raise DataError(
                f"checkpoint {self.path!r} has no logged learning rate after step {since_step} in trainer_state.json; "
                "train with smaller logging_steps, or pass Checkpoint(path, learning_rate=...)"
            )
        return sum(logged) / len(logged)
