"""The training task of the discrete family: cross-entropy over text and image ids in packed rows."""

from functools import cached_property

import torch
from torch import nn

from semhitok import SemHiTokModel
from unimllm.data.packing import count_samples, count_tokens
from unimllm.discrete.four_bits import four_bit_layers
from unimllm.discrete.image_heads import products_of
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.training.throughput import LanguageModelFlops
from unimllm.vocabulary import IGNORE

CODE_SIZES = ("num_semantic_codes", "num_pixel_codes", "semantic_dim", "pixel_dim", "num_positions")
ENCODED_AT_ONCE = 64  # pictures; their activations come and go before the language model's


class SftTask(nn.Module):
    """Losses of a packed batch; the image tokenizer stays frozen.

    Args:
        model: the model.
        loss_weights: weight of each part: "text", and "image" or "semantic" and "pixel".
        max_length: ids of a row, for the count of operations.
    """

    kind_of_loss = {"semantic": "image", "pixel": "image"}

    def __init__(self, model: UniMLLMForConditionalGeneration, loss_weights: dict[str, float], max_length: int = 0):
        super().__init__()
        self.model = model
        self.max_length = max_length
        self.loss_weights = loss_weights
        names = [name.rpartition(".") for name in four_bit_layers(model)]
        self.four_bits = [(model.get_submodule(parent), child) for parent, _, child in names]

    def train(self, mode: bool = True) -> "SftTask":
        super().train(mode)
        self.model.image_tokenizer.eval()
        return self

    def apart(self) -> list[tuple[nn.Module, str]]:
        """The image tokenizer: it stays whole and in full precision, so that codes are what shards of codes hold.

        And layers of 4 bits, whose numbers are none to be cast or loaded by name.
        """
        return [(self.model, "image_tokenizer"), *self.four_bits]

    def count_targets(self, batch: dict[str, torch.Tensor]) -> dict[str, int]:
        """Targets of a micro-batch: all, by which the loss is divided, and "text" and "image" ids, for its log."""
        kinds = {name: int(count) for name, count in self.count_kinds(batch).items()}
        return {"all": sum(kinds.values())} | kinds

    count_tokens, count_samples = staticmethod(count_tokens), staticmethod(count_samples)

    def count_kinds(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Targets of a micro-batch that are "text" and those that are "image" ids, placeholders among them."""
        targets, config = batch["labels"][:, 1:], self.model.config
        is_image = (targets >= config.image_offset) | (targets == config.image_token_id)
        return {"text": ((targets != IGNORE) & ~is_image).sum(), "image": is_image.sum()}

    def target_sums(self, batch: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of a micro-batch's text and of its pictures: summed cross-entropy and number of targets, (2,) float64.

        A picture's is that of its ids: semantic and pixel code together, where the head tells them apart.
        """
        counts = self.count_kinds(batch)
        image = sum(value for name, value in outputs.items() if name not in ("loss", "text"))
        means = {"text": outputs["text"], "image": image}
        return {part: torch.stack([mean.double() * counts[part], counts[part]]) for part, mean in means.items()}

    def flops_per_token(self) -> float:
        """Of a training step, as far as it can be told without data: a text target behind each id."""
        return self.language_flops.of_id(self.max_length) + self.language_flops.of_text_target()

    def flops_of(self, batch: dict[str, torch.Tensor]) -> float:
        """Of a training step over a micro-batch: all its ids through the blocks, each head over its own targets.

        The adapter and pictures that the step encodes are left out.
        """
        ids, counts = batch["input_ids"], self.count_kinds(batch)
        blocks = ids.numel() * self.language_flops.of_id(ids.shape[1])
        text = int(counts["text"]) * self.language_flops.of_text_target()
        head = self.model.image_head
        passes = 3 if any(p.requires_grad for p in head.parameters()) else 2
        return blocks + text + passes * 2 * head.num_products(int(counts["image"]))

    @cached_property
    def language_flops(self) -> LanguageModelFlops:
        """Of the language model; layers of 4 bits are hidden from it by the loop."""
        in_four_bits = (getattr(parent, name) for parent, name in self.four_bits)
        return LanguageModelFlops(self.model, products_of(*in_four_bits))

    @torch.no_grad()
    def place_images(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor, **others
    ) -> dict[str, torch.Tensor]:
        """The batch with the ids of the pictures (P, 3, S, S), in reading order, in place of their placeholders.

        Encoded in full precision whatever the step runs in, so the ids are those that shards of codes hold.
        """
        encoder = self.model.image_tokenizer
        with torch.autocast(pixel_values.device.type, enabled=False):
            codes = torch.cat([encoder.encode(part) for part in pixel_values.split(ENCODED_AT_ONCE)])
        ids = self.model.codes_to_ids(codes)  # (P, N)
        placed = self.model.place_image_tokens(input_ids, ids)
        places = input_ids == self.model.config.image_token_id
        labels = labels.masked_scatter(places, torch.where(labels[places] == IGNORE, IGNORE, ids.flatten()))
        return {"input_ids": placed, "labels": labels, **others}

    def forward(
        self,
        num_items: dict[str, torch.Tensor] | torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **batch,
    ) -> dict[str, torch.Tensor]:
        """See the model's; `pixel_values` are encoded here and put where input ids and labels have placeholders."""
        if pixel_values is not None:
            batch = self.place_images(pixel_values, **batch)
        outputs = self.model(**batch, loss_weights=self.loss_weights, num_items=num_items, use_cache=False)
        return {"loss": outputs.loss, **outputs.losses}


def exchange_image_tokenizer(model: UniMLLMForConditionalGeneration, tokenizer: SemHiTokModel) -> None:
    """Put another image tokenizer, with as many codes of the same widths, under a trained model.

    What the model has learnt of pictures holds as far as the codes still mean what they did: the adapter and the
    factorised head read code vectors, so those may move; its semantic scores and a flat head go by a code's number.

    Raises:
        UserError: the codes are of other sizes, or the tokenizer is of another kind.
    """
    old, new = model.image_tokenizer.config, tokenizer.config
    for name in ("model_type", *CODE_SIZES):
        if getattr(old, name) != getattr(new, name):
            raise UserError(
                f"--image-tokenizer has {name} {getattr(new, name)}, that of --init-from {getattr(old, name)}; the "
                "model can only go on over codes of its own sizes"
            )
    model.image_tokenizer = tokenizer.requires_grad_(False)
    model.config.image_tokenizer_config = new
