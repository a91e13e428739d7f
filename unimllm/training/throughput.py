"""How fast a run is: tokens a second, memory, and the share of the accelerator's peak that the model's products use."""

import re
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

try:
    import resource
except ImportError:  # Windows
    resource = None

PEAK_FLOPS = {
    "GB200": 2500e12, "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12,
}  # fmt: skip
"""Dense bf16 (V100: fp16) products with fp32 sums, by a part of the device's name; NVIDIA's data sheets."""


def peak_flops(device: torch.device) -> float | None:
    """Of one device, in operations a second; None where it is not known (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def training_flops(num_matrix: int, num_trained: int, num_layers: int = 0, hidden: int = 0, length: int = 0) -> float:
    """Operations of a training step for one token of a packed row.

    Two for each weight in a product forward, two for the gradient of its input backward, two more where the weight is
    trained; causal attention over half of `length` positions: two products of hidden * length a layer, three times
    (PaLM, arXiv 2204.02311, appendix B, halved for causality). Recomputed activations do not count.

    Args:
        num_matrix: weights of all matrices that a token passes.
        num_trained: those of them that are trained.
        num_layers, hidden, length: layers with attention, channels of all heads together, ids of a row.
    """
    return 4 * num_matrix + 2 * num_trained + 6 * num_layers * hidden * length


def matrix_weights(module: nn.Module, but: tuple[str, ...] = ()) -> tuple[int, int]:
    """(all, trained) numbers in the matrices of a module, those under the names `but` left out."""
    every = trained = 0
    for name, parameter in module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 keeps the true one there
        if len(shape) >= 2 and not name.startswith(but):
            every += shape.numel()
            trained += shape.numel() * parameter.requires_grad
    return every, trained


class LanguageModelFlops:
    """Operations of a training step in a language model's blocks and in its head.

    Counted once from what is trained when it is made; embeddings are looked up, not multiplied.

    Args:
        model: the whole model.
        hidden: numbers in matrices that are no parameters of it now (of layers in 4 bits); they are not trained.
    """

    def __init__(self, model: nn.Module, hidden: int = 0):
        every, trained = matrix_weights(model.language_model, but=("model.embed_tokens", "lm_head"))
        self.blocks, self.head = (every + hidden, trained), matrix_weights(model.get_output_embeddings())
        text = model.config.text_config
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.attention = text.num_hidden_layers, size * text.num_attention_heads

    def of_id(self, length: int) -> float:
        """Of an id in a row of `length` through the blocks."""
        return training_flops(*self.blocks, *self.attention, length)

    def of_text_target(self) -> float:
        """Of a text target through the head, tied or not."""
        return training_flops(*self.head)


def counted_flops(net: nn.Module, *inputs: torch.Tensor) -> float:
    """Operations of `net(*inputs)` and of its backward pass, as torch counts them; on the meta device too."""
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        outputs = net(*inputs)
        told = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
        torch.autograd.backward(told, [torch.empty_like(out) for out in told])
    return float(counter.get_total_flops())


def memory_gib(device: torch.device) -> float | None:
    """The most that this process has held: of the GPU's memory, on a CPU of the machine's; see `peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    held = peak_memory()
    return None if held is None else held / 2**30


def peak_memory() -> int | None:
    """Most bytes that this process has held in the machine's memory; None where the system does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands a child the ru_maxrss of the process that started it
        told = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if told:
            return int(told[1]) * 2**10
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
