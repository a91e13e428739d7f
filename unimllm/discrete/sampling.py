"""Drawing image codes from logits: guidance, temperature, top-k, and random numbers of a picture, not of a batch."""

import torch
from torch.nn import functional as F


def guide(logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Guidance on log-probabilities (arXiv 2207.12598): (2B, C), conditional rows first -> (B, C)."""
    conditional, unconditional = logits.log_softmax(-1).chunk(2)
    return unconditional + scale * (conditional - unconditional)


def with_unconditional(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, unconditional_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (2B, T): the prompts, then as many rows of the unconditional prompt (U,), padded on the left."""
    rows, length = len(input_ids), max(input_ids.shape[1], len(unconditional_ids))
    pad, other_pad = length - input_ids.shape[1], length - len(unconditional_ids)
    input_ids, attention_mask = F.pad(input_ids, (pad, 0)), F.pad(attention_mask, (pad, 0))
    other = F.pad(unconditional_ids.to(input_ids), (other_pad, 0))
    other_mask = F.pad(torch.ones_like(unconditional_ids), (other_pad, 0)).to(attention_mask)
    stacked = torch.cat([input_ids, other.expand(rows, -1)])
    return stacked, torch.cat([attention_mask, other_mask.expand(rows, -1)])


def filtered_probabilities(logits: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """Softmax of (B, C) logits at a temperature, all but the `top_k` largest set to zero (0 keeps all)."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    if 0 < top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    return (logits / temperature).softmax(-1)


def pick(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution: (B, C) and (B,) in 0..1 -> (B,) index."""
    cumulative = probabilities.cumsum(-1)
    index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    return index.clamp(max=probabilities.shape[-1] - 1)


class Sampler:
    """Draws one index per picture, with this picture's own random numbers: so in float32 a batch equals its
    pictures one by one.

    Args:
        seeds: one per picture.
        num_draws: draws that will be made of each picture.
        guidance_scale: 1 switches guidance off; else logits come as (2B, C), conditional rows first.
        temperature: 0 takes the most likely.
        top_k: 0 keeps all.
        device: of the logits.

    Attributes:
        is_finite: whether all logits so far were, () bool on the device, where nothing waits for it.
    """

    def __init__(self, seeds: list[int], num_draws: int, guidance_scale: float, temperature: float, top_k: int, device):
        uniforms = [torch.rand(num_draws, generator=torch.Generator().manual_seed(s)) for s in seeds]
        self.uniforms = torch.stack(uniforms).to(device)  # (B, num_draws)
        self.guidance_scale, self.temperature, self.top_k = guidance_scale, temperature, top_k
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)
        self.used = 0

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, C), or (2B, C) where guided -> (B,) int64."""
        if self.guided:
            logits = guide(logits, self.guidance_scale)
        self.is_finite &= logits.isfinite().all()
        probabilities = filtered_probabilities(logits.float(), self.temperature, self.top_k)
        index = pick(probabilities, self.uniforms[:, self.used])
        self.used += 1
        return index
