"""Linear datamodeling score on a small Llama (260,032 parameters) fine-tuned as a language model on TREC's questions.

Scores are made at checkpoints of one training on all rows, by the Trainer; the truth are models trained from the same weights
on random halves of the rows, each with several seeds. The score is the mean over queries of the rank correlation, over the
halves, of the sum of scores and the query's mean log-likelihood; intervals are a bootstrap over halves and queries.

    python benchmarks/lds.py --subsets 64 --seeds 2 --work lds-work --output docs/lds.json
    python benchmarks/lds.py --table docs/lds.json

Bases are compared at equal storage (floats per row). ``tracin`` sums the three epochs' checkpoints with their learning rates;
``influence`` scores the last. A method that is not installed is left out. What is in ``--work`` and ``--output`` is not
computed again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import transformers
from quiet import quiet_and_single_threaded

from hfdataopt import attribute
from hfdataopt.evaluation import linear_datamodeling_score, measure_subsets
from hfdataopt.plugins import host
from hfdataopt.retraining import Recipe
from hfdataopt.statistics import mean_interval

RECIPE = Recipe(epochs=3, learning_rate=5e-4, batch_size=16)
STORAGE = (256, 1024, 4096)

# name in the table -> scorer, options
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tracin, exact": ("tracin", {"basis": "exact"}),
    **{
        f"tracin, {basis}, {floats} floats": ("tracin", {"basis": basis, "floats_per_row": floats})
        for floats in STORAGE
        for basis in ("eigen", "random")
    },
    "identity, exact": ("influence", {"solver": "identity", "basis": "exact"}),
    "datainf, exact": ("influence", {"solver": "datainf", "basis": "exact"}),
    **{
        f"datainf, {basis}, {floats} floats": (
            "influence",
            {"solver": "datainf", "basis": basis, "floats_per_row": floats},
        )
        for floats in STORAGE
        for basis in ("eigen", "random")
    },
    **{
        f"ekfac, eigen, {floats} floats": ("influence", {"solver": "ekfac", "basis": "eigen", "floats_per_row": floats})
        for floats in STORAGE
    },
    "ekfac, exact": ("influence", {"solver": "ekfac", "basis": "exact"}),
    "cg, 20 iterations": ("influence", {"solver": "cg", "iterations": 20}),
    "lissa, 20 iterations": ("influence", {"solver": "lissa", "iterations": 20}),
    "less, eigen, 4096 floats": ("less", {"basis": "eigen", "floats_per_row": 4096}),
    "rds": ("rds", {}),
    "random": ("random", {}),
}
SLOW = ("cg, 20 iterations", "lissa, 20 iterations")  # an hour on one core; run where --only names them


def load(folder: Path, split: str, rows: int) -> datasets.Dataset:
    """The text of ``rows`` questions, drawn with seed 0."""
    lines = [json.loads(line) for line in (folder / "classification" / "trec" / f"{split}.jsonl").open()]
    chosen = np.random.default_rng(0).permutation(len(lines))[:rows]
    return datasets.Dataset.from_dict({"text": [lines[place]["text"] for place in chosen]})


def train(model: Any, tokenizer: Any, pool: Any, folder: Path) -> list[str]:
    """Checkpoints of a training on all rows, one per epoch; those that are there are taken."""
    if len(list(folder.glob("checkpoint-*/trainer_state.json"))) < RECIPE.epochs:

        def encode(row: dict[str, Any]) -> dict[str, Any]:
            ids = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"]
            return {"input_ids": ids, "labels": ids}

        arguments = transformers.TrainingArguments(
            str(folder),
            num_train_epochs=RECIPE.epochs,
            learning_rate=RECIPE.learning_rate,
            per_device_train_batch_size=RECIPE.batch_size,
            save_strategy="epoch",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        trainer = transformers.Trainer(
            model,
            arguments,
            train_dataset=pool.map(encode, remove_columns=["text"]),
            processing_class=tokenizer,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        )
        trainer.train()
    return sorted(map(str, folder.glob("checkpoint-*")), key=lambda name: int(name.rpartition("-")[2]))


def table(document: dict[str, Any]) -> str:
    """A Markdown table, best first, and the paired differences of the bases."""
    found = document["methods"]
    lines = [
        f"{document['rows']} rows, {document['queries']} queries, {document['subsets']} halves x {document['seeds']} seeds; "
        f"rank correlation of the outcomes between halves of the seeds {document['reliability']:.3f}",
        "",
        "| scores | LDS | 95 % interval | CPU s |",
        "|---|---|---|---|",
    ]
    for name in sorted(found, key=lambda name: -found[name]["score"]["value"]):
        score = found[name]["score"]
        lines.append(
            f"| {name} | {score['value']:.3f} | {score['low']:.3f} to {score['high']:.3f} | {found[name]['cpu_seconds']:.0f} |"
        )
    lines += ["", "Eigen less random at equal storage, by query, mean and 95 % interval:", ""]
    for name in found:
        other = name.replace("eigen", "random")
        if other != name and other in found:
            differences = np.array(found[name]["per_query"]) - np.array(found[other]["per_query"])
            mean, low, high = mean_interval(differences.tolist())
            lines.append(f"- {name.replace(', eigen', '')}: {mean:+.3f} ({low:+.3f} to {high:+.3f})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260K"))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--subsets", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of the table to compute; default: all but the slow ones")
    parser.add_argument("--work", type=Path, default=Path("build/lds"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=Path("docs/lds.json"))
    parser.add_argument("--table", type=Path, help="print the table of such a file and exit")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    quiet_and_single_threaded()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pool, queries = load(arguments.data, "train", arguments.rows), load(arguments.data, "validation", arguments.queries)

    def initial() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(arguments.model)

    shape = {name: getattr(arguments, name) for name in ("rows", "queries", "subsets", "seeds")}
    work = arguments.work / "-".join(map(str, shape.values()))
    measured = measure_subsets(
        initial(),
        pool,
        queries,
        subsets=arguments.subsets,
        seeds=arguments.seeds,
        training=RECIPE,
        processing_class=tokenizer,
        output_dir=work / "subsets",
    )
    checkpoints = train(initial(), tokenizer, pool, work / "reference")
    document: dict[str, Any] = {**shape, "reliability": measured.reliability, "methods": {}}
    if arguments.output.is_file():
        kept = json.loads(arguments.output.read_text())
        if all(kept[name] == value for name, value in shape.items()):
            document["methods"] = kept["methods"]
    installed = host().components["scorer"]
    for name in arguments.only or [name for name in METHODS if name not in SLOW]:
        scorer, options = METHODS[name]
        if name in document["methods"] or scorer not in installed:
            continue
        started = time.process_time()
        scores = attribute(
            initial(),
            pool,
            queries,
            scorer,
            checkpoints=checkpoints,
            processing_class=tokenizer,
            batch_size=32,
            **options,
        )
        seconds = time.process_time() - started
        found = linear_datamodeling_score(scores, measured.subsets, measured.outcomes)
        print(f"{name}: {found}", flush=True)
        document["methods"][name] = {**found.as_dict(), "cpu_seconds": seconds}
        arguments.output.write_text(json.dumps(document, indent=1))
    print(table(document))


if __name__ == "__main__":
    main()
