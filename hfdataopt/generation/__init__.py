"""Completions of prompts: from the live model, from an endpoint, or from a column.

- :mod:`~hfdataopt.generation.completion`: one completion, and its JSON
- :mod:`~hfdataopt.generation.prompts`: prompts and completions as token ids
- :mod:`~hfdataopt.generation.generator`: what every source offers
- :mod:`~hfdataopt.generation.local`, :mod:`~hfdataopt.generation.batches`, :mod:`~hfdataopt.generation.draws`: sampling from
  a model in memory
- :mod:`~hfdataopt.generation.endpoint`: any OpenAI-compatible URL
- :mod:`~hfdataopt.generation.callables`: a function of the user's, and whatever else is handed over as ``model``
- :mod:`~hfdataopt.generation.images`: an image for each text
- :mod:`~hfdataopt.generation.column`: completions that a dataset already has
"""

from hfdataopt.errors import Refused
from hfdataopt.generation.callables import CallableGenerator, as_generator
from hfdataopt.generation.column import ColumnGenerator
from hfdataopt.generation.completion import Completion, unfinished_share
from hfdataopt.generation.endpoint import EndpointGenerator
from hfdataopt.generation.generator import Generator
from hfdataopt.generation.images import (
    CallableImages,
    DiffusersImages,
    ImageCompletion,
    ImageGenerator,
    as_image_generator,
)
from hfdataopt.generation.local import LocalGenerator
from hfdataopt.generation.prompts import as_messages, completion_ids, prompt_ids

__all__ = [
    "CallableGenerator",
    "CallableImages",
    "ColumnGenerator",
    "Completion",
    "DiffusersImages",
    "EndpointGenerator",
    "Generator",
    "ImageCompletion",
    "ImageGenerator",
    "LocalGenerator",
    "Refused",
    "as_generator",
    "as_image_generator",
    "as_messages",
    "completion_ids",
    "prompt_ids",
    "unfinished_share",
]
