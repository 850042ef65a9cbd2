"""Double Thompson sampling with an ensemble, a baseline of APOHF (Wu and Liu, 2016; Dwaracherla et al., 2024)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.dueling import FeaturedDuels, Pair, open_pairs


@dataclass
class DoubleThompson(FeaturedDuels):
    """The best arms of two members of an ensemble, drawn at random; the best arm is that of the members' mean.

    Args:
        members: of the ensemble, each fitted to votes drawn with replacement.
        member: ridge Bradley-Terry on the features, or a network.
    """

    name: ClassVar[str] = "double-ts"

    members: int = 10
    member: Literal["linear", "mlp"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "members", at_least=2)

    def choose(self, n: int, group: list[int], closed: set[Pair], waiting: list[Pair], number: int) -> list[Pair]:
        import torch

        from hfdataopt.bandits import double_thompson

        n = min(n, len(open_pairs(group, closed)))
        generator = torch.Generator().manual_seed(self.task.rng(self.name, "members", number).getrandbits(63))
        return double_thompson(self.posterior(), n, generator=generator, asked=closed, pending=waiting)

    def make_surrogate(self) -> Any:
        from hfdataopt.bandits import EnsembleSurrogate, LinearSurrogate, MLPSurrogate

        member = MLPSurrogate() if self.member == "mlp" else LinearSurrogate()
        return EnsembleSurrogate(self.task.seed, member, self.members)


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(DoubleThompson)
