"""The training task of the discrete family: cross-entropy over text and image ids in packed rows."""

import torch
from torch import nn

from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.vocabulary import IGNORE


class SftTask(nn.Module):
    """Losses of a packed batch; the image tokenizer stays frozen.

    Args:
        model: the model.
        loss_weights: weight of each part: "text", and "image" or "semantic" and "pixel".
    """

    def __init__(self, model: UniMLLMForConditionalGeneration, loss_weights: dict[str, float]):
        super().__init__()
        self.model = model
        self.loss_weights = loss_weights

    def train(self, mode: bool = True) -> "SftTask":
        super().train(mode)
        self.model.image_tokenizer.eval()
        return self

    @staticmethod
    def count_targets(batch: dict[str, torch.Tensor]) -> int:
        """Targets of a micro-batch."""
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def forward(self, num_items: torch.Tensor, **batch) -> dict[str, torch.Tensor]:
        outputs = self.model(**batch, loss_weights=self.loss_weights, num_items=num_items, use_cache=False)
        return {"loss": outputs.loss, **outputs.losses}
