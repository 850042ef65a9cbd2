"""Tokens per second of gradient features on a GPU, end to end with the store, and FreeShap's permutations there.

    python benchmarks/gpu.py                        # one GPU; some six minutes
    python benchmarks/gpu.py --device cpu --tiny    # the same code on a toy, to see that it runs; nothing is kept

Models have random weights, since speed does not depend on them: GPT-NeoX of 160M and Llama of 1B parameters, rows of 1,024 tokens in
bfloat16. The bound is 4 x parameters FLOP per token (forward, and the half of backward that gives the gradients of activations) at the
GPU's dense bfloat16 peak; parameters are those of the linear layers of the blocks and the LM head. *Floor* is a bare forward and
backward with frozen weights over the same batches; *features* adds per-example features of 8,192 floats; *end to end* is
`attribute(..., "tracin")` with a folder: tokenized rows, the fit of a basis, features, files, products with 16 queries.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from gradient_features import as_batches, plain
from quiet import quiet_and_single_threaded
from results import Results
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from hfdataopt import attribute
from hfdataopt.gradients import fit_basis, per_example_gradients
from hfdataopt.shapley import shapley_values

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}  # dense bfloat16, from the makers' data sheets
TARGETS = {"160M": 200_000, "1B": 80_000}


def models(tiny: bool) -> dict[str, Callable[[], nn.Module]]:
    if tiny:
        shape: dict[str, Any] = {
            "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
            "intermediate_size": 256,
        }  # fmt: skip
        return {
            "tiny NeoX": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**shape)),
            "tiny Llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        }
    return {
        "160M": lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
                max_position_embeddings=2048,
            )
        ),
        "1B": lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32000, hidden_size=2048, num_hidden_layers=18, num_attention_heads=16, num_key_value_heads=16,
                intermediate_size=5632, max_position_embeddings=2048,
            )
        ),
    }  # fmt: skip


def matrix_parameters(model: nn.Module) -> int:
    """Weights that every token is multiplied with: those of linear layers."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def seconds(run: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """The least wall seconds, after one call that pays for set-up; process CPU seconds without a GPU."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    run()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        started = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return min(times)


def peak_flops(device: str) -> float | None:
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name(0)
    return next((found * 1e12 for kind, found in PEAK_TFLOPS.items() if kind in name), None)


def features(name: str, model: nn.Module, options: argparse.Namespace) -> list[list[Any]]:
    """A row of the table for each side of one model."""
    length, size = (64, 8) if options.tiny else (1024, 64)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (size * options.batches, length), generator=generator)
    on_device = ids.to(options.device)
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part), "labels": part} for part in on_device.split(size)
    ]
    sample = as_batches(on_device[: 2 * size], "fit")
    basis = fit_basis(model, sample, floats_per_row=8192, rows=2 * size)
    dataset = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})

    def end_to_end() -> None:
        with tempfile.TemporaryDirectory() as folder:
            attribute(model, dataset, dataset.select(range(16)), "tracin", batch_size=size, output_dir=folder)

    sides: dict[str, tuple[Callable[[], Any], int]] = {
        "floor": (lambda: plain(model, batches), 3),
        "features": (lambda: [None for _ in per_example_gradients(model, batches, basis=basis)], 3),
        "end to end": (end_to_end, 1),
        "fit of a basis, of it": (lambda: fit_basis(model, sample, floats_per_row=8192, rows=2 * size), 1),
    }
    peak, rows = peak_flops(options.device), []
    taken = {side: seconds(run, options.device, repeats) for side, (run, repeats) in sides.items()}
    for side, spent in taken.items():
        speed = ids.numel() / spent
        bound = speed * 4 * matrix_parameters(model) / peak if peak else None
        fit = side.startswith("fit")
        aim = TARGETS.get(name) if side == "end to end" else None
        shown = (None, None) if fit else (speed, bound)
        rows.append([name, side, ids.numel(), spent, shown[0], spent / taken["floor"], shown[1], aim])
    return rows


def shapley(options: argparse.Namespace) -> list[list[Any]]:
    n, t, permutations = (5000, 872, 200) if not options.tiny else (200, 50, 20)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + t, 400, generator=generator, dtype=torch.float64).to(options.device)
    labels = (x[:, 0] > 0).long()
    kernel, cross = x[:n] @ x[:n].T / 400, x[:n] @ x[n:].T / 400

    def run() -> None:
        shapley_values(kernel, cross, labels[:n], labels[n:], ridge=1.0, permutations=permutations, out_of_bag=False)

    taken = seconds(run, options.device, 1)
    return [[n, t, permutations, taken, 30 if not options.tiny else None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, and nothing is kept")
    parser.add_argument("--batches", type=int, default=16, help="of 65,536 tokens")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here; --device cpu --tiny runs the code on a toy")
    quiet_and_single_threaded()
    found = []
    for name, build in models(options.tiny).items():
        torch.manual_seed(0)
        model = build().to(options.device, torch.bfloat16 if options.device == "cuda" else torch.float32).eval()
        model.config.use_cache = False
        found += features(name, model, options)
        print(*found[-4:], sep="\n", flush=True)
        del model
        if options.device == "cuda":
            torch.cuda.empty_cache()
    orders = shapley(options)
    peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {held:.1f} GiB" + (f", on the GPU {peak:.1f} GiB" if peak else ""))
    if options.tiny or options.device != "cuda":
        print(orders)
        return
    results = Results("gpu", "python benchmarks/gpu.py")
    results.table(
        "Gradient features",
        ["model", "side", "tokens", "s", "tokens/s", "x floor", "share of the bound", "aim, tokens/s"],
        found,
        f"Peak memory on the GPU {peak:.1f} GiB." if peak else "",
    )
    results.table("FreeShap's engine", ["rows", "queries", "permutations", "s", "aim, s"], orders)


if __name__ == "__main__":
    main()
