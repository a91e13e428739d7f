"""DeepSpeed's ZeRO state, saved by some number of processes, for another number of them.

Stages 1 and 2 lay the trained parameters of a group end to end and give every process an equal stretch; stage 3 gives
every process an equal stretch of each parameter. What does not divide is filled up with zeros at the end. So the new
stretch of a process is a cut through the old ones; each process reads the parts of the files that it needs.
"""

from math import ceil
from pathlib import Path

import torch
import torch.distributed as dist

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


def cut(pieces: list[torch.Tensor], start: int, length: int) -> torch.Tensor:
    """`length` numbers from `start` on of 1-D pieces laid end to end; zeros where those end."""
    taken, offset = torch.zeros(length, dtype=pieces[0].dtype), 0
    for piece in pieces:
        low, high = max(start, offset), min(start + length, offset + len(piece))
        if low < high:
            taken[low - start : high - start] = piece[low - offset : high - offset]
        offset += len(piece)
    return taken


def load_resharded(engine, folder: Path, saved_by: int) -> None:
    """Restore weights and optimiser of an engine under ZeRO 1 to 3.

    Args:
        folder: of the state, as `engine.save_checkpoint` wrote it.
        saved_by: number of processes that did.
    """
    from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT

    optimizer, whole = engine.optimizer, engine.zero_optimization_stage() < 3
    prefix = "bf16_" if engine.bfloat16_enabled() else ""
    ranks = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(saved_by)]
    models = [read(folder / f"{rank}_model_states.pt") for rank in (["mp_rank_00"] if whole else ranks)]
    shards = [read(folder / f"{prefix}{rank}_optim_states.pt")[OPTIMIZER_STATE_DICT] for rank in ranks]
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()
    engine.load_module_state_dict(models[0] if whole else with_own_frozen(engine, models))
    mine = stretches(engine, shards) if whole else stretches_of_each(engine, models[0], shards)
    optimizer.load_state_dict({dist.get_rank(): mine}, load_from_fp32_weights=True)
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    engine.global_steps = models[0]["global_steps"]


def read(path: Path) -> dict:
    """A file mapped into memory: its tensors are read when they are used."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def stretches(engine, shards: list[dict]) -> dict:
    """The state of this rank's optimiser under ZeRO 1 and 2, as `load_state_dict` takes it."""
    from deepspeed.checkpoint.constants import BASE_OPTIMIZER_STATE, SINGLE_PARTITION_OF_FP32_GROUPS

    mine, rank = engine.optimizer.state_dict(), dist.get_rank()
    states = [shard[BASE_OPTIMIZER_STATE]["state"] for shard in shards]
    for number, group in enumerate(engine.optimizer.optimizer.param_groups):
        length = group["params"][0].numel()
        state = {"step": states[0][number]["step"].clone()}
        for key in MOMENTS:
            state[key] = cut([old[number][key] for old in states], rank * length, length)
        mine[BASE_OPTIMIZER_STATE]["state"][number] = state
        weights = [shard[SINGLE_PARTITION_OF_FP32_GROUPS][number] for shard in shards]
        mine[SINGLE_PARTITION_OF_FP32_GROUPS][number] = cut(weights, rank * length, length)
    return mine


def stretches_of_each(engine, model: dict, shards: list[dict]) -> dict:
    """The state of this rank's optimiser under ZeRO 3, as `load_state_dict` takes it.

    How many parameters go into one of the optimiser's tensors depends on the number of processes; names tell them.
    """
    from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT, PARAM_SHAPES

    places = {}  # name -> (number of the tensor that holds it, offset, length of a stretch) in every shard
    for number, shapes in enumerate(model[PARAM_SHAPES]):
        offset = 0
        for name, shape in shapes.items():
            length = ceil(shape.numel() / len(shards))
            places[name] = number, offset, length
            offset += length

    def of_each(shapes: dict[str, torch.Size], flat) -> torch.Tensor:
        parts = []
        for name, shape in shapes.items():
            number, offset, length = places[name]
            new = ceil(shape.numel() / dist.get_world_size())
            pieces = [flat(shard, number)[offset : offset + length] for shard in shards]
            parts.append(cut(pieces, dist.get_rank() * new, new))
        return torch.cat(parts)

    mine = engine.optimizer.state_dict()
    step = shards[0][OPTIMIZER_STATE_DICT]["state"][0]["step"]
    for number, shapes in enumerate(engine._get_zero_param_shapes()):
        state = {"step": step.clone()}  # each is counted up in its place
        for key in MOMENTS:
            state[key] = of_each(shapes, lambda shard, i, key=key: shard[OPTIMIZER_STATE_DICT]["state"][i][key])
        mine[OPTIMIZER_STATE_DICT]["state"][number] = state
        mine[FP32_FLAT_GROUPS][number] = of_each(shapes, lambda shard, i: shard[FP32_FLAT_GROUPS][i])
    return mine


def with_own_frozen(engine, models: list[dict]) -> dict:
    """The state of the module under ZeRO 3, with this rank's stretches of the parameters that are not trained."""
    from deepspeed.checkpoint.constants import FROZEN_PARAM_FRAGMENTS

    frozen = {}
    for parameter, name in engine.param_names.items():
        if name in models[0][FROZEN_PARAM_FRAGMENTS]:
            length = parameter.ds_tensor.numel()
            frozen[name] = cut([m[FROZEN_PARAM_FRAGMENTS][name] for m in models], dist.get_rank() * length, length)
    return models[0] | {FROZEN_PARAM_FRAGMENTS: frozen}
