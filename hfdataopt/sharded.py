"""Models whose weights are spread over processes (FSDP, DeepSpeed, tensor parallelism): recognised and refused by name.

A process of such a training holds a part of each weight, so neither a row's gradient nor a completion can be made by it alone.
"""

from typing import Any

from hfdataopt.errors import OptionError


def how_sharded(model: Any, args: Any = None) -> str | None:
    """What spreads the weights of ``model`` over processes, or the training of ``args`` would; None where they are whole.

    ``args.deepspeed_plugin`` is there also where only the launcher was told (``accelerate launch --use_deepspeed``), and FSDP's
    weights are recognised by themselves.
    """
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
        return "DeepSpeed"
    if getattr(args, "fsdp", None):
        return "FSDP"
    parameters = list(model.parameters()) if hasattr(model, "parameters") else []
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        return "DeepSpeed ZeRO-3"
    if any(type(parameter).__name__ == "DTensor" for parameter in parameters):
        return "FSDP2 or tensor parallelism"
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in getattr(model, "modules", list)()):
        return "FSDP"
    return None


def refuse_sharded(who: str, model: Any, args: Any = None) -> None:
    """Raise where the weights are spread over processes.

    Raises:
        OptionError: it says what to do instead.
    """
    how = how_sharded(model, args)
    if how is not None:
        merge = "zero_to_fp32.py" if how.startswith("DeepSpeed") else "accelerate merge-weights"
        raise OptionError(
            f"{who}: {how} spreads the weights over processes, and no process has them whole; train without it, or save a checkpoint "
            f"with whole weights (FULL_STATE_DICT, or merged by {merge}) and afterwards load it unsharded, for example "
            "attribute(model, pool, queries, scorer, checkpoints=[folder])"
        )
