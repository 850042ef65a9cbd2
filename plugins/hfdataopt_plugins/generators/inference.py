"""Inference Providers and any OpenAI-compatible URL: ``get_generator("endpoint", model="...", base_url="http://...")``."""

from collections.abc import Callable

from hfdataopt.generation import EndpointGenerator
from hfdataopt.hookspecs import hookimpl


@hookimpl
def register_generators(register: Callable[..., None]) -> None:
    register(EndpointGenerator)
