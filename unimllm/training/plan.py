"""What a run will need, before it is started: `train/tokenizer.py ... --dry-run`. Models are built on the meta device.

Memory is an estimate for one GPU, on whatever machine it is made (`on_a_gpu`). Weights, gradients and optimiser state
follow from the counts of parameters and the ZeRO stage. Activations are what the trained networks keep for the backward
pass, counted by running one picture through them on the meta device in float32; under bf16 autocast about 0.6 of those
bytes remain (a ViT block: 36 of 64 for each channel and position). Left out: buffers of the allocator, of communication
and of kernels, one to three GiB.

Shapes: B pictures, N positions, D channels, S pixels along a side.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from semhitok.lpips_weights import LPIPS
from semhitok.transformer import Block
from unimllm.training.config import TrainConfig
from unimllm.training.presets import TokenizerRecipe
from unimllm.training.stages import stages_of

BF16_SHARE = 0.6  # of the float32 activations that remain under bf16 autocast
PICTURE_SHARE = 0.8  # of a row's ids, those of pictures: what a row of drawings alone has


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without its numbers, in seconds at any size."""
    with torch.device("meta"):
        return AutoModel.from_config(config)


def parts_of(task: nn.Module) -> dict[str, nn.Module]:
    """The networks of a tokenizer stage by name, LPIPS and PatchGAN's discriminator included where there is one."""
    parts = stages_of(task.model.config).parts(task.model)
    distance, discriminator = loss_networks(task)
    parts |= {f"LPIPS ({distance.backbone})": distance} if isinstance(distance, LPIPS) else {}
    return parts | ({"discriminator": discriminator} if discriminator else {})


def loss_networks(task: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """The perceptual distance and PatchGAN's discriminator, None where a stage trains without."""
    losses = getattr(task, "losses", None)
    adversarial = getattr(losses, "adversarial", None)
    return getattr(losses, "distance", None), adversarial and adversarial.discriminator


def count(module: nn.Module) -> int:
    """Numbers that a module holds: parameters, and buffers of floats (an EMA codebook)."""
    buffers = (b for b in module.buffers() if b.is_floating_point() and b.ndim > 1)
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in buffers)


def count_trained(module: nn.Module) -> int:
    """Parameters that get gradients."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def tokenizer_plan(
    name: str, stage: str, task: nn.Module, recipe: TokenizerRecipe, num_processes: int, num_pictures: int | None
) -> str:
    """The plan of one stage, in lines.

    Args:
        task: the stage's module over a model on the meta device.
        num_pictures: of --data; None: not named, or drawn without end.

    Raises:
        UserError: the batch cannot be shared among the processes.
    """
    recipe = replace(recipe, train=on_a_gpu(recipe.train))
    config, train = task.model.config, recipe.train
    micro, accumulation = train.per_device(num_processes)
    samples = train.max_steps * train.batch_size
    epochs = f" = {samples / num_pictures:.1f} epochs of {num_pictures:,}" if num_pictures else ""
    lines = [
        f"{name}, stage {stage}",
        row("picture", f"{config.image_size} x {config.image_size} pixels, {config.num_positions} positions"),
        row(*stages_of(config).describe_positions(config)),
        row("batch", f"{train.batch_size} = {num_processes} process(es) x {micro} pictures x {accumulation} in turn; "
                     f"{train.batch_size * config.num_positions:,} positions"),
        row("steps", f"{train.max_steps:,} = {samples:,} pictures{epochs}"),
        "parameters",
    ]  # fmt: skip
    for part_name, part in parts_of(task).items():
        trained = count_trained(part)
        state = "trained" if trained else "frozen" if list(part.parameters()) else "no gradients"
        lines.append(row(f"  {part_name}", f"{count(part) / 1e6:9.2f} M  {state}"))
    lines.append(row("  all", f"{count(task) / 1e6:9.2f} M, {count_trained(task) / 1e6:.2f} M trained"))
    lines.append(f"memory per GPU (estimate; ZeRO {train.zero_stage}, {train.describe_precision()})")
    memory = memory_by_part(task, recipe, stage, num_processes)
    lines += [row(f"  {what}", f"{size / 2**30:9.2f} GiB") for what, size in memory.items()]
    lines.append(row("  all", f"{sum(memory.values()) / 2**30:9.2f} GiB, and 1 to 3 of working space"))
    return "\n".join(lines)


def on_a_gpu(train: TrainConfig) -> TrainConfig:
    """What a run would be on GPUs: where this machine has none to ask, their `precision` auto is autocast."""
    is_open = train.precision == "auto" and not torch.cuda.is_available()
    return replace(train, precision="autocast") if is_open else train


def row(what: str, value: str) -> str:
    """One line of the plan."""
    return f"{what:<28}{value}"


def memory_by_part(task: nn.Module, recipe: TokenizerRecipe, stage: str, num_processes: int) -> dict[str, float]:
    """Bytes on each GPU, by what they are for."""
    train = recipe.train
    micro, _ = train.per_device(num_processes)
    memory = state_bytes(count(task), count_trained(task), train, num_processes)
    activations = kept_for_backward(task, stage, train.gradient_checkpointing)
    share = BF16_SHARE if train.autocast() or train.precision == "bf16" else 1.0
    return memory | {f"activations, {micro} pictures": micro * share * activations}


def state_bytes(num_all: int, num_trained: int, train: TrainConfig, num_processes: int) -> dict[str, float]:
    """Bytes of weights, gradients and AdamW's state on each GPU; ZeRO deals what it shares to the processes."""
    share = [1 / num_processes if train.zero_stage >= stage else 1.0 for stage in range(4)]
    is_bf16 = train.precision == "bf16"
    width = 2 if is_bf16 else 4
    has_master = is_bf16 or train.zero_stage > 0  # DeepSpeed keeps an fp32 copy of what it trains, fp32 or not
    casts = {"bf16 casts of the trained": 2.0 * num_trained} if train.autocast() else {}
    # of bf16 weights without ZeRO: DeepSpeed casts all gradients at the step
    casts |= {"gradients in float32": 4.0 * num_trained} if is_bf16 and not train.zero_stage else {}
    state = (12 if has_master else 8) * num_trained * share[1]
    return {
        "weights": width * num_all * share[3],
        **casts,
        "gradients": (4 if train.adds_in_float32(num_processes) else width) * num_trained * share[2],
        **({} if train.offload_optimizer else {"optimiser state": state}),
        **({"average of the weights": 4.0 * num_trained} if train.ema_decay else {}),  # on rank 0
    }


def kept_for_backward(task: nn.Module, stage: str, checkpointing: bool) -> int:
    """Bytes in float32 that the trained networks of a stage keep for one picture until the backward pass."""
    config = task.model.config
    picture = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    calls = stages_of(config).trained_calls(task.model, stage, picture)
    total = sum(saved_bytes(net, x) - checkpointing * spared_bytes(net, config.num_positions) for net, x in calls)
    distance, discriminator = loss_networks(task)
    drawn = torch.empty_like(picture, requires_grad=True)
    if isinstance(distance, LPIPS):
        total += saved_bytes(distance.network, drawn, picture)
    elif distance is not None:
        total += saved_bytes(task.model.vision_model, drawn)
    if discriminator:  # it sees the true picture once and the drawn one twice
        total += 3 * saved_bytes(discriminator, drawn)
    return total


def spared_bytes(net: nn.Module, num_positions: int) -> int:
    """What gradient checkpointing spares in a network: the insides of all blocks but one, less the blocks' inputs."""
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    if not blocks:
        return 0
    x = torch.empty(1, num_positions, blocks[0].proj.in_features, device="meta", requires_grad=True)
    return (len(blocks) - 1) * saved_bytes(blocks[0], x) - len(blocks) * x.nbytes


def saved_bytes(net: nn.Module, *inputs: torch.Tensor) -> int:
    """Bytes of the tensors, weights aside, that autograd keeps of `net(*inputs)`."""
    weights = set(map(storage, net.parameters())) if isinstance(net, nn.Module) else set()
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if storage(tensor) not in weights:
            kept[storage(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.enable_grad(), FlashAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(*inputs)  # noqa: F841  alive while its graph is counted
    return sum(part.nbytes() for part in kept.values())


def storage(tensor: torch.Tensor) -> int:
    """What is the same for all views of one piece of memory (on the meta device nothing has an address)."""
    return tensor.untyped_storage()._cdata


class FlashAttention(TorchFunctionMode):
    """Attention that keeps what a GPU's does; by itself the meta device would keep N x N weights for each head."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3]  # (B, h, N, D/h) each; grouped queries share heads of keys and values
            if query.shape[1] != key.shape[1]:
                query, key, value = query.unflatten(1, (key.shape[1], -1)), key.unsqueeze(2), value.unsqueeze(2)
            # keeps three inputs and one result of the queries' size, as flash attention
            return (query * key * value).view(args[0].shape)
        return func(*args, **(kwargs or {}))
