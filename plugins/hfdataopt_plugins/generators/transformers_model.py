"""A causal LM of transformers in memory, by hub id or folder: ``get_generator("transformers", model="...")``."""

from collections.abc import Callable

from hfdataopt.generation import LocalGenerator
from hfdataopt.hookspecs import hookimpl


@hookimpl
def register_generators(register: Callable[..., None]) -> None:
    register(LocalGenerator)
