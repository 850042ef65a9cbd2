"""What evaluate does offline. Written against evaluate 0.4.6.

A local script as a metric is in ``tests/rewards/test_metric.py``. Not relied on: its scan of a script's imports.
"""

import datasets
import evaluate
import pytest

WHO = f"evaluate {evaluate.__version__} (written against 0.4.6)"


class Mine(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"mine": sum(p == r for p, r in zip(predictions, references, strict=True)) / len(references)}


def test_no_metric_is_shipped(monkeypatch):
    """Offline at least; so hfdataopt's own metrics are plain functions."""
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises((FileNotFoundError, ConnectionError)):
        evaluate.load("exact_match_of_nobody")


def test_a_metric_class_works_without_the_hub(tmp_path):
    metric = Mine(cache_dir=str(tmp_path))
    assert metric.compute(predictions=["a", "b"], references=["a", "c"]) == {"mine": 0.5}, WHO
    metric.add_batch(predictions=["a"], references=["a"])
    assert metric.compute() == {"mine": 1.0}, WHO
