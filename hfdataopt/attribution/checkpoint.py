"""A saved checkpoint to score at: its folder, the learning rate that weighs it, and its optimizer state."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfdataopt.errors import DataError, OptionError


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
        if (
            not (Path(checkpoint.path) / "config.json").is_file()
            and not (Path(checkpoint.path) / "adapter_config.json").is_file()
        ):
            raise DataError(f"checkpoint {checkpoint.path!r} is not a folder with a config.json or adapter_config.json")
        if checkpoint.learning_rate is not None and not checkpoint.learning_rate > 0:
            raise OptionError(f"checkpoint {checkpoint.path!r}: learning_rate={checkpoint.learning_rate} must be > 0")
        return checkpoint

    @property
    def state(self) -> dict[str, Any] | None:
        """The trainer's state saved beside the weights, or None where there is none."""
        file = Path(self.path) / "trainer_state.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except (OSError, ValueError) as error:
            raise DataError(f"checkpoint {self.path!r}: trainer_state.json cannot be read: {error}") from error

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
            if "learning_rate" in entry and entry["step"] > since_step
        ]
        if not logged or not sum(logged) > 0:
            raise DataError(
                f"checkpoint {self.path!r} has no logged learning rate after step {since_step} in trainer_state.json; "
                "train with smaller logging_steps, or pass Checkpoint(path, learning_rate=...)"
            )
        return sum(logged) / len(logged)
