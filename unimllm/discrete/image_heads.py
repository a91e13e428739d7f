"""From hidden states to image codes: the flat head of the paper and the factorised head. Siblings with the same verbs.

Shapes: P positions, H hidden channels, K semantic codes, m pixel codes under each.
"""

import torch
from torch import nn
from torch.nn import functional as F

from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.sampling import Sampler


def products_of(*layers: nn.Linear) -> int:
    """Multiplications of a row through all of them (ZeRO 3 keeps no weights to count)."""
    return sum(layer.in_features * layer.out_features for layer in layers)


class FlatHead(nn.Module):
    """One softmax over all K * m ids, as SemHiTok appends them to the vocabulary."""

    def __init__(self, config: UniMLLMConfig):
        super().__init__()
        self.num_pixel_codes = config.image_tokenizer_config.num_pixel_codes
        self.proj = nn.Linear(config.text_config.hidden_size, config.image_tokenizer_config.num_codes, bias=False)

    def num_products(self, num_targets: int) -> int:
        """Multiplications of `loss` for so many positions."""
        return num_targets * products_of(self.proj)

    def loss(
        self, hidden: torch.Tensor, codes: torch.Tensor, tables, reduction: str = "sum"
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy, summed: hidden (P, H), codes (P, 2) -> {"image": scalar}; or of each, (P,), with "none"."""
        ids = codes[:, 0] * self.num_pixel_codes + codes[:, 1]
        return {"image": F.cross_entropy(self.proj(hidden).float(), ids, reduction=reduction)}

    def sample(self, hidden: torch.Tensor, tables, sampler: Sampler) -> torch.Tensor:
        """Hidden (R, H) of the sampler's rows -> codes (B, 2)."""
        ids = sampler.draw(self.proj(hidden).float())
        return torch.stack([ids // self.num_pixel_codes, ids % self.num_pixel_codes], -1)


class FactorisedHead(nn.Module):
    """p(semantic), then p(pixel | semantic), at one position (our departure from the paper; the ids are the same).

    Index j means something else under every semantic code, so an m-way softmax over j learns nothing. The head proposes
    a vector from (hidden, semantic vector) and scores the m candidates of that sub-codebook against it.
    """

    def __init__(self, config: UniMLLMConfig):
        super().__init__()
        hidden, dim, image = config.text_config.hidden_size, config.head_dim, config.image_tokenizer_config
        self.semantic = nn.Linear(hidden, image.num_semantic_codes)
        self.proposal = nn.Sequential(nn.Linear(hidden + image.semantic_dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.candidate = nn.Sequential(nn.Linear(image.pixel_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.num_pixel_codes = image.num_pixel_codes

    def num_products(self, num_targets: int) -> int:
        """Multiplications of `loss` for so many positions; no more candidates are made than there are."""
        proposed = products_of(self.semantic, self.proposal[0], self.proposal[2])
        scored = self.num_pixel_codes * self.candidate[2].out_features
        candidates = min(num_targets, self.semantic.out_features) * self.num_pixel_codes
        return num_targets * (proposed + scored) + candidates * products_of(self.candidate[0], self.candidate[2])

    def pixel_logits(self, hidden: torch.Tensor, semantic: torch.Tensor, tables) -> torch.Tensor:
        """Scores of the m candidates under `semantic` (P,): (P, H) -> (P, m) float32."""
        semantic_table, pixel_table = tables
        proposal = self.proposal(torch.cat([hidden, semantic_table[semantic].to(hidden)], -1))  # (P, dim)
        if len(semantic) < len(pixel_table):  # a few positions being drawn: their sub-codebooks alone
            candidates = self.candidate(pixel_table[semantic].to(hidden))  # (P, m, dim)
        else:
            candidates = self.candidate(pixel_table.to(hidden))[semantic]
        return (candidates @ proposal.unsqueeze(-1)).squeeze(-1).float()

    def loss(
        self, hidden: torch.Tensor, codes: torch.Tensor, tables, reduction: str = "sum"
    ) -> dict[str, torch.Tensor]:
        """Cross-entropies, summed: hidden (P, H), codes (P, 2) -> {"semantic": scalar, "pixel": scalar}; or of each,
        (P,), with "none": a code's is the sum of both.
        """
        semantic, pixel = codes.unbind(-1)
        return {
            "semantic": F.cross_entropy(self.semantic(hidden).float(), semantic, reduction=reduction),
            "pixel": F.cross_entropy(self.pixel_logits(hidden, semantic, tables), pixel, reduction=reduction),
        }

    def sample(self, hidden: torch.Tensor, tables, sampler: Sampler) -> torch.Tensor:
        """Hidden (R, H) of the sampler's rows -> codes (B, 2)."""
        semantic = sampler.draw(self.semantic(hidden).float())
        rows = semantic.repeat(len(hidden) // len(semantic))  # guidance: both rows of a picture share its code
        pixel = sampler.draw(self.pixel_logits(hidden, rows, tables))
        return torch.stack([semantic, pixel], -1)


def build_image_head(config: UniMLLMConfig) -> nn.Module:
    return {"flat": FlatHead, "factorised": FactorisedHead}[config.image_head](config)
