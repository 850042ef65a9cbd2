"""``hfdataopt evaluate``: how good saved scores are, by known label errors and by models trained again, also by a reward."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfdataopt.commands.arguments import (
    DATA,
    add_config,
    add_dry_run,
    encode_labels,
    label_names,
    load_rows,
    parse,
    rename_columns,
)
from hfdataopt.errors import DataError, OptionError, StoreError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scores", required=True, nargs="+", help="folders of scores, as `hfdataopt score` writes them"
    )
    parser.add_argument("--pool", required=True, nargs="+", help=f"the rows that were scored: {DATA}")
    add_config(parser)
    add_dry_run(parser)
    parser.add_argument("--text", help="text column (default: text)")
    parser.add_argument("--label", help="label column (default: label)")
    parser.add_argument("--output_dir", required=True, help="where results are written; a killed run resumes here")
    what = parser.add_argument_group("what is measured, one or more")
    what.add_argument(
        "--flipped", metavar="COLUMN", help="AUC of the lowest scores for the rows that this column marks"
    )
    what.add_argument("--lds", action="store_true", help="linear datamodeling score; needs --model and --queries")
    what.add_argument(
        "--curves", action="store_true", help="models on and without the highest rows; needs --model and --test"
    )
    train = parser.add_argument_group("training again")
    train.add_argument("--model", help="folder or hub id of the weights that every training starts from")
    train.add_argument("--queries", nargs="+", help="the validation data that the scores were made with")
    train.add_argument("--test", nargs="+", help="a third split, seen by neither scores nor training")
    train.add_argument("--subsets", type=int, default=64, help="models of the linear datamodeling score")
    train.add_argument("--fraction", type=float, default=0.5, help="of the pool, that each of them is trained on")
    train.add_argument(
        "--fractions",
        type=float,
        nargs="+",
        default=[0.02, 0.05, 0.1, 0.2, 0.5],
        help="of the pool, added or removed",
    )
    train.add_argument("--seeds", type=int, default=3, help="trainings of every subset, and of every point of a curve")
    train.add_argument(
        "--utility",
        choices=("log-likelihood", "margin", "accuracy"),
        help="what is measured of each model, on rows with labels (default: log-likelihood)",
    )
    train.add_argument("--epochs", type=int, default=3)
    train.add_argument("--learning_rate", type=float, default=5e-5)
    train.add_argument("--train_batch_size", type=int, default=8)
    train.add_argument("--weight_decay", type=float, default=0.0)
    train.add_argument("--batch_size", type=int, default=32, help="rows per forward pass when measuring")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--task", choices=("classification", "causal"), help="default: by the model's architecture")
    reward = parser.add_argument_group(
        "the mean reward of completions as the utility; --queries and --test are then prompts"
    )
    reward.add_argument(
        "--reward_funcs",
        nargs="+",
        help="module:function (from the working folder or a package), or a reward model; several are summed",
    )
    reward.add_argument("--samples", type=int, default=4, help="completions of each prompt by each model (default: 4)")
    reward.add_argument(
        "--max_new_tokens", type=int, default=256, help="the most tokens of a completion (default: 256)"
    )
    reward.add_argument("--temperature", type=float, default=1.0, help="of the sampling; 0 goes with --samples 1")
    train.add_argument("--trust_remote_code", action="store_true", help="allow the model's own code from the hub")


def run(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Measure, print a table, and write it with its JSON."""
    arguments = parse(parser, argv)
    _check(arguments)
    from hfdataopt.attribution.reader import write_json
    from hfdataopt.files import write_whole

    pool = rename_columns(load_rows(arguments.pool, "train"), arguments.text, arguments.label, "pool")
    scores = _load_scores(arguments.scores)
    if arguments.dry_run:
        from hfdataopt.commands import estimate

        data = _Data(arguments, pool) if arguments.lds or arguments.curves else None
        estimate.show(f"{len(scores)} rankings are measured", estimate.evaluating(arguments, data, scores, pool))
        return 0
    document: dict[str, Any] = {}
    lines: list[str] = []
    if arguments.flipped:
        _label_noise(arguments, pool, scores, document, lines.append)
    if arguments.lds or arguments.curves:
        data = _Data(arguments, pool)
        if arguments.lds:
            _datamodeling(arguments, data, scores, document, lines.append)
        if arguments.curves:
            _curves(arguments, data, scores, document, lines.append)
    print("\n".join(lines))
    folder = Path(arguments.output_dir)
    write_json(folder / "evaluation.json", document, "evaluate")
    try:
        write_whole(folder / "evaluation.txt", ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise StoreError(f"{str(folder / 'evaluation.txt')!r} cannot be written: {error}") from error
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not (arguments.flipped or arguments.lds or arguments.curves):
        raise OptionError("say what to measure: --flipped COLUMN, --lds, --curves, or several of them")
    for flag, split in (("lds", "queries"), ("curves", "test")):
        missing = [name for name in ("model", split) if getattr(arguments, name) is None]
        if getattr(arguments, flag) and missing:
            raise OptionError(f"--{flag} trains models: give --{' and --'.join(missing)}")
    for name in ("subsets", "seeds", "batch_size"):
        if getattr(arguments, name) < 1:
            raise OptionError(f"--{name} must be at least 1; got {getattr(arguments, name)}")
    if arguments.reward_funcs and arguments.utility:
        raise OptionError(f"give --utility or --reward_funcs; got both, --utility {arguments.utility}")
    if arguments.reward_funcs and not (arguments.lds or arguments.curves):
        raise OptionError("--reward_funcs measures models that are trained: give --lds or --curves")
    if arguments.lds and arguments.subsets < 3:
        raise OptionError(f"--lds ranks models, at least 3 of them; got --subsets {arguments.subsets}")
    if arguments.seed < 0:
        raise OptionError(f"--seed must be at least 0; got {arguments.seed}")


def _load_scores(folders: list[str]) -> dict[str, Any]:
    """Scores by the name of their scorer, or by their folder where two have the same."""
    from hfdataopt import Scores

    loaded = [Scores.load(folder) for folder in folders]
    names = [scores.scorer for scores in loaded]
    chosen = [name if names.count(name) == 1 else folder for name, folder in zip(names, folders, strict=True)]
    if len(set(chosen)) < len(chosen):
        raise OptionError(f"--scores names a folder twice: {' '.join(folders)}")
    return dict(zip(chosen, loaded, strict=True))


def _label_noise(
    arguments: argparse.Namespace,
    pool: Any,
    scores: dict[str, Any],
    document: dict[str, Any],
    show: Callable[[str], None],
) -> None:
    from hfdataopt.attribution.rows import as_list
    from hfdataopt.evaluation import label_noise_auc

    if arguments.flipped not in pool.column_names:
        raise DataError(f"the pool has no column {arguments.flipped!r}; it has: {', '.join(pool.column_names)}")
    flipped = as_list(pool[arguments.flipped])
    wrong = [value for value in flipped if value not in (0, 1)]
    if wrong:
        raise DataError(f"column {arguments.flipped!r} must hold true or false (1 or 0); got {wrong[0]!r}")
    found = {name: label_noise_auc(_values(one, pool), [bool(v) for v in flipped]) for name, one in scores.items()}
    for name, one in sorted(found.items(), key=lambda entry: -entry[1].auc.value):
        show(f"{name}: {one}")
    document["label_noise"] = {name: one.as_dict() for name, one in found.items()}


def _values(scores: Any, pool: Any) -> Any:
    """Scores in the order of the pool. Labels may be encoded otherwise than when it was scored, so they are not compared."""
    return scores.align(pool.remove_columns("label") if "label" in pool.column_names else pool)


class _Data:
    """Model, pool, queries and test split, with labels in the model's numbers."""

    def __init__(self, arguments: argparse.Namespace, pool: Any):
        import torch

        from hfdataopt.commands.score import count_classes, load_model, names_of
        from hfdataopt.retraining import Recipe

        self.recipe = Recipe(
            arguments.epochs, arguments.learning_rate, arguments.train_batch_size, arguments.weight_decay
        )
        labelled = "label" in pool.column_names
        names = label_names(pool, "pool") if labelled else None
        torch.manual_seed(
            arguments.seed
        )  # of a fresh head, so that a run that is repeated starts from the same weights
        self.model, self.tokenizer = load_model(
            arguments.model, arguments.task, count_classes(pool, names), arguments.trust_remote_code
        )
        names = names_of(self.model, names)
        self.raw, self.splits = pool, {"pool": pool}
        for split, default in (("queries", "validation"), ("test", "test")):
            if getattr(arguments, split) is not None:
                rows = load_rows(getattr(arguments, split), default)
                self.splits[split] = rename_columns(rows, arguments.text, arguments.label, split)
        self.utility: Any = arguments.utility or "log-likelihood"
        if arguments.reward_funcs:
            from hfdataopt.evaluation import RewardUtility

            self.utility = RewardUtility(
                arguments.reward_funcs,
                self.tokenizer,
                samples=arguments.samples,
                max_new_tokens=arguments.max_new_tokens,
                temperature=arguments.temperature,
                batch_size=arguments.batch_size,
                seed=arguments.seed,
            )
            for split in self.splits.keys() - {"pool"}:
                self.utility.read(self.splits[split], self.model, split)  # before anything is trained
        elif labelled:
            self.splits = {split: encode_labels(rows, names, split) for split, rows in self.splits.items()}

    def options(self, arguments: argparse.Namespace, what: str) -> dict[str, Any]:
        """What both measurements are called with."""
        return {
            "seeds": arguments.seeds,
            "seed": arguments.seed,
            "training": self.recipe,
            "utility": self.utility,
            "processing_class": self.tokenizer,
            "batch_size": arguments.batch_size,
            "output_dir": Path(arguments.output_dir) / what,
        }


def _datamodeling(
    arguments: argparse.Namespace,
    data: _Data,
    scores: dict[str, Any],
    document: dict[str, Any],
    show: Callable[[str], None],
) -> None:
    from hfdataopt.evaluation import linear_datamodeling_score, measure_subsets

    queries = data.splits["queries"]
    arrays = {name: _matrix(name, one, data.raw, queries) for name, one in scores.items()}
    measured = measure_subsets(
        data.model,
        data.splits["pool"],
        queries,
        subsets=arguments.subsets,
        fraction=arguments.fraction,
        **data.options(arguments, "subsets"),
    )
    found = {
        name: linear_datamodeling_score(array, measured.subsets, measured.outcomes, seed=arguments.seed)
        for name, array in arrays.items()
    }
    for name, one in sorted(found.items(), key=lambda entry: -entry[1].score.value):
        show(f"{name}: {one}" + (" (of the mean over queries)" if arrays[name].ndim == 1 else ""))
    reliability = measured.reliability
    if reliability == reliability:
        show(f"  between halves of the {arguments.seeds} seeds the outcomes' rank correlation is {reliability:.3f}")
    document["linear_datamodeling_score"] = {
        "reliability": reliability if reliability == reliability else None,
        **{name: one.as_dict() for name, one in found.items()},
    }


def _matrix(name: str, scores: Any, pool: Any, queries: Any) -> Any:
    """Scores ``[rows, queries]`` in the order of the pool, or ``[rows]`` where there are none per query."""
    import numpy as np

    from hfdataopt.attribution.rows import row_ids

    values = _values(scores, pool)
    if scores.matrix is None:
        return values
    if scores.metadata.get("query_ids") != row_ids(queries, "the queries"):
        raise DataError(
            f"{name}: the scores are of {scores.matrix.shape[1]} queries with other row ids than the {len(queries)} of --queries; "
            "give the validation data that they were made with"
        )
    if scores.by_position:
        return scores.matrix
    where = {row: position for position, row in enumerate(scores.row_ids)}
    nothing = np.full(scores.matrix.shape[1], np.nan)
    return np.stack([scores.matrix[where[row]] if row in where else nothing for row in row_ids(pool)])


def _curves(
    arguments: argparse.Namespace,
    data: _Data,
    scores: dict[str, Any],
    document: dict[str, Any],
    show: Callable[[str], None],
) -> None:
    from hfdataopt.evaluation import removal_curves

    rankings = {name: _values(one, data.raw) for name, one in scores.items() if one.metadata.get("meaning") != "chance"}
    found = removal_curves(
        rankings,
        data.model,
        data.splits["pool"],
        data.splits["test"],
        fractions=arguments.fractions,
        **data.options(arguments, "curves"),
    )
    show(str(found))
    document["curves"] = found.as_dict()
