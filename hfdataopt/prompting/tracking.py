"""What a search tells while it runs: a line on stderr, trackers, and a table of prompts per step."""

from pathlib import Path
from typing import Any

from hfdataopt.errors import MissingDependencyError, OptionError, StoreError
from hfdataopt.prompting.config import PromptConfig

NAME_OF_RUN = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


def check_trackers(config: PromptConfig) -> list[str]:
    """Names of the trackers of ``report_to``; raises as :func:`tracker_names`."""
    return tracker_names(config.report_to, "PromptConfig: report_to")


def tracker_names(given: str | list[str] | None, who: str) -> list[str]:
    """Names of the trackers that are meant; ``who`` is for messages.

    Raises:
        OptionError: there is no such tracker. MissingDependencyError: its package is not installed.
    """
    names = [given] if isinstance(given, str) else list(given or [])
    names = list(dict.fromkeys(name for name in names if name != "none"))
    if not names:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = [str(name) for name in get_available_trackers()]
    if "all" in names:
        return available
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise OptionError(
                f"{who}={name!r} is no tracker; there are: none, all, {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in available:
            raise MissingDependencyError(f"{who}={name!r} needs a package: pip install {name}")
    return names


def open_trackers(config: PromptConfig) -> list[Any]:
    """The trackers of ``report_to``, by accelerate."""
    folder = config.output_dir
    run = config.run_name or (Path(folder).name if folder else "prompt-search")
    trackers = start_trackers(check_trackers(config), project=config.project, run=run, folder=folder)
    for tracker in trackers:
        tracker.store_init_configuration(
            {name: value for name, value in vars(config).items() if isinstance(value, int | float | str | bool)}
        )
    return trackers


def start_trackers(names: list[str], *, project: str, run: str, folder: str | None) -> list[Any]:
    """Accelerate's trackers of these names, started; ``folder`` is for those that write files."""
    if not names:
        return []
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers do not start without it
    trackers = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        if kind.requires_logging_directory:
            tracker = kind(run, logging_dir=folder or ".")
        else:
            tracker = kind(project, **{NAME_OF_RUN[name]: run} if name in NAME_OF_RUN else {})
        if hasattr(tracker, "start"):
            tracker.start()
        trackers.append(tracker)
    return trackers


def write_table(folder: Path, step: int, rows: list[dict[str, Any]]) -> Path:
    """``prompts/prompts_{step:05d}.parquet``, as TRL writes completions."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = folder / "prompts" / f"prompts_{step:05d}.parquet"
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), partial)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"PromptTrainer: {str(path)!r} cannot be written: {error}") from error
    return path
