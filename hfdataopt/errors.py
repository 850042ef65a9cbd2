"""The errors this package raises on purpose. Each message names who (plugin, component, row), what arrived, and what to do."""


class HfDataOptError(Exception):
    """Base of every error raised on purpose by hfdataopt."""


class PluginError(HfDataOptError):
    """A plugin broke the contract of the host, or a component was asked for that no plugin provides."""


class OptionError(HfDataOptError, ValueError):
    """An option has a value, or a combination of values, that cannot be honoured."""


class DataError(HfDataOptError, ValueError):
    """A dataset, its labels, its row ids or numbers computed from it cannot be used as they are."""


class StoreError(HfDataOptError):
    """A folder on disk holds something else than what was asked of it, or cannot be written."""


class MissingDependencyError(HfDataOptError, ImportError):
    """An optional package is needed; the message gives the pip command."""


class GenerationError(HfDataOptError):
    """A source of completions did not deliver all that was asked of it; the message says how many arrived."""


class Refused(HfDataOptError):
    """The caller let not every request through; the message says how many were left."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the rest is for its author."""
    return (str(error).strip().splitlines() or [""])[0]
