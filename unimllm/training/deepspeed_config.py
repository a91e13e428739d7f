"""`--deepspeed FILE`: DeepSpeed's JSON as people have it, laid over the one that `TrainConfig` makes.

What a field of TrainConfig says is read into that field, so that plans, logs and checkpoints tell the truth; "auto"
leaves ours; the rest goes to DeepSpeed as it is. Every difference is printed.
"""

import json
from dataclasses import asdict
from pathlib import Path

from unimllm.command_line import nearest
from unimllm.errors import UserError
from unimllm.training.config import TrainConfig

FIELDS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_clipping": "max_grad_norm",
    "zero_optimization.stage": "zero_stage",
}
"""DeepSpeed's key -> the field of TrainConfig."""
OWN = {
    "optimizer": "--train.learning_rate and its neighbours",
    "scheduler": "--train.warmup_steps and max_steps",
    "activation_checkpointing": "--train.gradient_checkpointing",
    "torch_autocast": "--train.precision autocast",
}
"""Sections that this package decides, and where."""
SECTIONS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler",
    "fp16", "bf16", "amp", "data_types", "gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "sparse_gradients", "steps_per_print", "wall_clock_breakdown", "dump_state", "flops_profiler", "comms_logger",
    "aio", "checkpoint", "compile", "tensorboard", "wandb", "csv_monitor",
    "autotuning", "elasticity", "data_efficiency", "timers", "memory_breakdown",
    "disable_allgather", "seq_parallel_communication_data_type", "use_node_local_storage", "graph_harvesting",
    "hybrid_engine", "curriculum_learning", "compression_training", "sparse_attention", "zenflow", "tensor_parallel",
)  # fmt: skip
"""Names at the top of DeepSpeed's JSON; it takes any other in silence."""
INSIDE = {
    "data_types": ("grad_accum_dtype",),
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
}
"""Names in sections of which DeepSpeed takes any other in silence; it checks those of most sections itself."""
ROUND_ROBIN = "zero_optimization.round_robin_gradients"
FOLLOWS = ("gradient_accumulation_steps",)  # from the batch size and the number of processes


def lay_over(config: TrainConfig, path: Path) -> list[str]:
    """Read a DeepSpeed JSON into `config`.

    Returns:
        A line for everything that is now otherwise, and for every section that is left out.

    Raises:
        UserError: the file cannot be read, is no JSON object, or asks for what is not to be had.
    """
    values = read(path)
    told = []
    for section, where in OWN.items():
        if values.pop(section, None) is not None:
            told.append(f"{section}: left out; set with {where}")
    for name in FOLLOWS:
        if values.pop(name, "auto") != "auto":
            told.append(f"{name}: left out; it follows from the batch size and the number of processes")
    if is_on(values.get("fp16")):
        raise UserError(f"--deepspeed {path}: fp16 is not to be had; train in bf16 (--train.precision bf16)")
    unknown = [key for key in values if key not in SECTIONS]
    if unknown:
        raise UserError(f"--deepspeed {path}: {unknown[0]} is no setting of DeepSpeed{nearest(unknown[0], SECTIONS)}")
    for section, names in INSIDE.items():
        inside = values.get(section)
        for key in inside if isinstance(inside, dict) else ():
            if key not in names:
                meant = f"{nearest(key, names)}; {section} has {', '.join(names)}"
                raise UserError(f"--deepspeed {path}: {section}.{key} is no setting of DeepSpeed{meant}")
    before = asdict(config)
    values.pop("fp16", None)
    settings = flatten(values)
    if settings.pop(ROUND_ROBIN, False):
        told.append(f"{ROUND_ROBIN}: left out; a run could not go on with another number of processes")
    if settings.pop("bf16.enabled", None) is not None:
        if is_on(values["bf16"]):
            config.precision = "bf16"
        elif config.precision == "bf16":
            config.precision = "auto"
    device = settings.pop("zero_optimization.offload_optimizer.device", None)
    if device is not None:
        if device not in ("cpu", "none"):
            raise UserError(f"--deepspeed {path}: offload_optimizer.device is {device!r}; cpu and none are to be had")
        config.offload_optimizer = device == "cpu"
    for key, field in FIELDS.items():
        if key in settings:
            setattr(config, field, as_type_of(getattr(config, field), settings.pop(key), key, path))
    own = flatten(config.deepspeed(1))
    for key in settings:
        parents = {key[:i] for i, letter in enumerate(key) if letter == "."}
        if parents & own.keys() or any(name.startswith(f"{key}.") for name in own):
            raise UserError(f"--deepspeed {path}: {key} is a section in the place of a value, or the reverse")
    config.deepspeed_settings = {key: value for key, value in settings.items() if own.get(key) != value}
    now = asdict(config) | {"deepspeed_settings": before["deepspeed_settings"]}
    told += [f"train.{name}: {before[name]} -> {now[name]}" for name in before if before[name] != now[name]]
    return told + [f"{key}: {own.get(key, 'unset')} -> {value}" for key, value in config.deepspeed_settings.items()]


def read(path: Path) -> dict:
    """The JSON object in a file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--deepspeed {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--deepspeed {path} holds no JSON object of DeepSpeed's settings")
    return values


def is_on(section) -> bool:
    """Whether a precision's section asks for it; "auto" does not."""
    return isinstance(section, dict) and section.get("enabled") is True


def flatten(values: dict, prefix: str = "") -> dict:
    """Nested objects as dotted keys, without what is "auto"."""
    flat: dict = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value != "auto":
            flat[f"{prefix}{name}"] = value
    return flat


def as_type_of(old, value, key: str, path: Path):
    """A value as the type of the field that takes it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != type(old)(value):
        raise UserError(f"--deepspeed {path}: {key} is {value!r}; {type(old).__name__} is wanted")
    return type(old)(value)
