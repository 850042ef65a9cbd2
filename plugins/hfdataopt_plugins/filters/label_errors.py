"""Label errors by confident learning (Northcutt et al. 2021): how well labels agree with probabilities from other rows."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import WholeFilter
from hfdataopt.selection.keys import uniform
from hfdataopt.selection.source import Batch, Source, check_columns
from hfdataopt.selection.words import words

INVERSE_PENALTY = 30.0  # of the logistic regression


@dataclass(frozen=True)
class LabelErrors(WholeFilter):
    """The label quality of cleanlab, between 0 and 1; low where the label is likely wrong.

    Class probabilities come from a column, or from logistic regression on the words and pairs of words of the text (tf-idf),
    fitted on the rows of all other folds. Rows of equal key (equal text and label, without ids) share a fold.

    Args:
        label: column of class labels, integers or strings.
        probabilities: column with a list of class probabilities per row, made without the row's own label; the labels must then
            be integers, the positions in that list.
        method: ``self_confidence``, the probability of the label; ``normalized_margin``, that minus the largest other one;
            ``confidence_weighted_entropy``, for rows that fit no class.
        adjust: whether probabilities are first lowered by the mean confidence in each class, against imbalance.
        folds: how many parts the rows are divided into.
        seed: of the division, a function of (seed, row id).
    """

    name: ClassVar[str] = "label-errors"
    meaning: ClassVar[str] = "suspicion"
    draws: ClassVar[bool] = True

    label: str = "label"
    probabilities: str | None = None
    method: Literal["self_confidence", "normalized_margin", "confidence_weighted_entropy"] = "self_confidence"
    adjust: bool = False
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "folds", at_least=2, at_most=100)
        if self.adjust and self.method == "confidence_weighted_entropy":
            raise OptionError(f"{self.name}: adjust=True does not go with method={self.method!r}; drop one")
        if self.probabilities is not None and self.text is not None:
            raise OptionError(f"{self.name}: text= is not read when probabilities= are given; drop one")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        from_ = super().reads(columns, what) if self.probabilities is None else (self.probabilities,)
        check_columns((*from_, self.label), columns, self.name, what)
        return tuple(dict.fromkeys((*from_, self.label)))

    def vectors(self, batch: Batch) -> np.ndarray:
        return super().vectors(self._text_of(batch))

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        try:
            from cleanlab.rank import get_label_quality_scores
        except ImportError as error:
            raise MissingDependencyError(f"{self.name}: needs cleanlab; pip install 'hfdataopt[cleanlab]'") from error
        labels: list[Any] = []
        rows: list[Any] = []  # texts or probabilities
        usable, keys = [], []
        for batch in pool.batches():
            present = ~batch.missing
            usable.append(present)
            labels.extend(value for value, there in zip(batch[self.label], present, strict=True) if there)
            keys.append(batch.keys[present])
            read = self._text_of(batch).texts if self.probabilities is None else batch[self.probabilities]
            rows.extend(value for value, there in zip(read, present, strict=True) if there)
        where = np.concatenate(usable)
        scores = np.full(len(where), np.nan)
        if not where.any():
            return scores
        if self.probabilities is None:
            codes = self._codes(labels)
            given = self._out_of_fold(rows, codes, np.concatenate(keys))
        else:
            given = self._checked(rows)
            codes = self._positions(labels, given.shape[1])
        scores[where] = get_label_quality_scores(codes, given, method=self.method, adjust_pred_probs=self.adjust)
        return scores

    def _text_of(self, batch: Batch) -> Batch:
        """The batch without its label."""
        return Batch(batch.columns, tuple(name for name in batch.read if name != self.label), batch.with_ids, batch.who)

    def _codes(self, labels: list[Any]) -> np.ndarray:
        """Positions of the labels among the sorted classes."""
        kinds = {type(value) for value in labels}
        if kinds not in ({int}, {str}, {bool}):
            wrong = sorted(kind.__name__ for kind in kinds)
            raise DataError(
                f"{self.name}: column {self.label!r} must hold integers or strings, one kind; got {', '.join(wrong)}"
            )
        if kinds == {int} and min(labels) < 0:
            raise DataError(
                f"{self.name}: column {self.label!r} holds {min(labels)}, which marks a row without label; filter such rows out first"
            )
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"{self.name}: all labels are {labels[0]!r}; there must be two classes at least")
        return codes

    def _positions(self, labels: list[Any], classes: int) -> np.ndarray:
        wrong = next((v for v in labels if type(v) not in (int, bool) or not 0 <= v < classes), None)
        if wrong is not None:
            raise DataError(
                f"{self.name}: column {self.label!r} holds {wrong!r}; with probabilities of {classes} classes it must hold integers "
                f"from 0 to {classes - 1}"
            )
        return np.array(labels, dtype=np.int64)

    def _checked(self, rows: list[Any]) -> np.ndarray:
        """``[rows, classes]`` float64."""
        try:
            values = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: column {self.probabilities!r} must hold lists of equally many numbers; {error}"
            ) from error
        if values.ndim != 2 or values.shape[1] < 2:
            raise DataError(
                f"{self.name}: column {self.probabilities!r} must hold a list of two probabilities or more per row; got shape "
                f"{list(values.shape)}"
            )
        broken = ~(
            np.isfinite(values).all(axis=1) & (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-3)
        )
        if broken.any():
            raise DataError(
                f"{self.name}: {int(broken.sum())} rows of column {self.probabilities!r} are no probabilities (at least 0, sum 1); "
                f"the first is {values[broken.argmax()].tolist()}"
            )
        return values

    def _out_of_fold(self, texts: list[str], codes: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """``[rows, classes]``, from the rows of the other folds; whatever the order of rows."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        order = np.argsort(keys, kind="stable")
        features = TfidfVectorizer(analyzer=_words_and_pairs, sublinear_tf=True).fit_transform(
            [texts[i] for i in order]
        )
        labels, fold = codes[order], np.floor(uniform(self.seed, keys[order]) * self.folds)
        found = np.zeros((len(codes), codes.max() + 1))
        for part in np.unique(fold):
            out, rest = fold == part, fold != part
            if len(np.unique(labels[rest])) < 2:
                raise DataError(
                    f"{self.name}: {len(codes)} rows are too few to divide into folds={self.folds}: without one of them, fewer "
                    "than two classes are left"
                )
            model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(features[rest], labels[rest])
            found[np.ix_(out, model.classes_)] = model.predict_proba(features[out])
        probabilities = np.empty_like(found)
        probabilities[order] = found
        return probabilities


def _words_and_pairs(text: str) -> list[str]:
    found = words(text) or [text.strip()]
    return [*found, *(" ".join(pair) for pair in itertools.pairwise(found))]


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(LabelErrors)
