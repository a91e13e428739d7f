"""The training task of CHEERS: cross-entropy over text and flow matching over pictures in packed rows.

Shapes: B rows, T positions, P pictures of the batch in reading order, N positions of a picture.
"""

from functools import cached_property

import torch
from torch import nn

from unimllm.cheers.alignment import FeatureAlignment
from unimllm.cheers.flow_head import FlowHead
from unimllm.cheers.modeling_cheers import CheersForConditionalGeneration
from unimllm.cheers.processing_cheers import mark_drawn
from unimllm.cheers.vision_tokenizer import VisionTokenizer
from unimllm.data.packing import count_samples, count_tokens
from unimllm.flow_matching import time_shift
from unimllm.training.throughput import LanguageModelFlops, counted_flops
from unimllm.vocabulary import IGNORE


class CheersTask(nn.Module):
    """Losses of a packed batch; the autoencoder stays frozen.

    Args:
        model: the model.
        loss_weights: weight of each part, "text" and "flow".
        alignment_weight: that of `FeatureAlignment` with the model's SigLIP as it sees pictures now; 0 leaves it out.
        time_shift: of the times that training draws (`flow_matching.time_shift`); 1: uniform, as in the paper.
    """

    kind_of_loss = {"alignment": "flow"}

    def __init__(
        self,
        model: CheersForConditionalGeneration,
        loss_weights: dict[str, float],
        alignment_weight: float = 0.0,
        time_shift: float = 1.0,
    ):
        super().__init__()
        self.model, self.loss_weights, self.alignment_weight = model, loss_weights, alignment_weight
        self.time_shift = time_shift
        vision = model.vision_tokenizer
        for unused in (vision.vae_model, getattr(vision.vision_representation, "head", None)):
            if unused is not None:  # `from_pretrained` has made every weight trainable; SigLIP's pooling nobody reads
                unused.requires_grad_(False)
        self.alignment = FeatureAlignment(vision.siglip_of_pixels()) if alignment_weight else None

    def apart(self) -> list[tuple[nn.Module, str]]:
        """The autoencoder, and the SigLIP of the alignment: they stay whole, and as precise as they were."""
        frozen: list[tuple[nn.Module, str]] = [(self.model.vision_tokenizer, "vae_model")]
        return frozen + ([(self.alignment, "vision_model")] if self.alignment else [])

    def mark_drawn(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels` of a batch as the model takes them, see `processing_cheers.mark_drawn`."""
        config = self.model.config
        return mark_drawn(
            batch["input_ids"], batch["labels"], config.image_token_id, config.image_gen_token_id,
            config.image_end_token_id,
        )  # fmt: skip

    def count_targets(self, batch: dict[str, torch.Tensor]) -> dict[str, int]:
        """Of a micro-batch: text ids to be told, and pictures with a flow loss."""
        marked, config = self.mark_drawn(batch), self.model.config
        pictures = marked["input_ids"] == config.image_gen_token_id
        if config.flow_loss_on_read_pictures:
            pictures = self.model.is_picture(marked["input_ids"])
        return {
            "text": int((marked["labels"][:, 1:] != IGNORE).sum()), "flow": int(pictures.sum()) // config.num_positions,
        }  # fmt: skip

    count_tokens, count_samples = staticmethod(count_tokens), staticmethod(count_samples)

    def flops_of(self, batch: dict[str, torch.Tensor]) -> float:
        """Of a training step over a micro-batch: all its ids through the blocks, text targets through their head,
        all pictures through the vision tokenizer, those with a flow loss through the flow head.

        The autoencoder's encoder and the alignment's SigLIP, which stay as they are, are left out.
        """
        ids, counts = batch["input_ids"], self.count_targets(batch)
        num_pictures = int(self.model.is_picture(ids).sum()) // self.model.config.num_positions
        seen, drawn = self.picture_flops
        blocks = ids.numel() * self.language_flops.of_id(ids.shape[1])
        text = counts["text"] * self.language_flops.of_text_target()
        return blocks + text + num_pictures * seen + counts["flow"] * drawn

    @cached_property
    def language_flops(self) -> LanguageModelFlops:
        return LanguageModelFlops(self.model)

    @cached_property
    def picture_flops(self) -> tuple[float, float]:
        """Of a picture in the vision tokenizer and, where it is drawn, in the flow head, as they are trained now."""
        config = self.model.config
        with torch.device("meta"):
            vision, flow_head = VisionTokenizer(config), FlowHead(config)
            z_t = torch.empty(1, config.vae_config.patched_channels, config.latent_size, config.latent_size)
            hidden = torch.empty(1, config.num_positions, config.text_config.hidden_size, requires_grad=True)
            details = torch.empty(1, config.latent_size**2, config.vision_config.hidden_size)
            t = torch.empty(1)
        for copy, net in ((vision, self.model.vision_tokenizer), (flow_head, self.model.flow_head)):
            copy.requires_grad_(False)
            for name, parameter in net.named_parameters():
                copy.get_parameter(name).requires_grad_(parameter.requires_grad)
        return counted_flops(vision, z_t), counted_flops(flow_head, hidden, details, t)

    def target_sums(self, batch: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of a micro-batch's text and of its pictures: summed loss and number of targets, (2,) float64."""
        counts = self.count_targets(batch)
        return {
            part: torch.stack([outputs[part].double() * count, outputs[part].new_tensor(count).double()])
            for part, count in counts.items()
        }

    def forward(
        self, num_items: dict[str, torch.Tensor] | None = None, pixel_values: torch.Tensor | None = None, **batch
    ) -> dict[str, torch.Tensor]:
        """See the model's; in training with `FeatureAlignment`. Else a row has the same times and noise each time."""
        if pixel_values is not None and self.training:
            batch = self.shifted_times(batch, len(pixel_values)) | batch
        elif pixel_values is not None:
            batch |= self.fixed_noise(batch)
        outputs = self.model(
            **batch | self.mark_drawn(batch), pixel_values=pixel_values, loss_weights=self.loss_weights,
            num_items=num_items, use_cache=False,
        )  # fmt: skip
        losses = {"loss": outputs.loss, **outputs.losses}
        if self.alignment and self.training:
            size = self.model.config.image_size
            pictures = outputs.semantics.new_zeros(0, 3, size, size) if pixel_values is None else pixel_values
            count = (num_items or {}).get("flow", outputs.with_flow.sum().clamp(min=1))
            aligned = self.alignment(outputs.semantics, pictures[outputs.with_flow]) / count
            losses |= {"loss": outputs.loss + self.alignment_weight * aligned, "alignment": aligned.detach()}
        return losses

    def shifted_times(self, batch: dict[str, torch.Tensor], num_pictures: int) -> dict[str, torch.Tensor]:
        """`t` (P,) for training, 1 where a picture is read; nothing where the model's own uniform times do."""
        if self.time_shift == 1 or not num_pictures:
            return {}
        drawn = self.model.to_draw(self.mark_drawn(batch)["input_ids"], num_pictures)
        t = time_shift(torch.rand(num_pictures, device=drawn.device), self.time_shift)
        return {"t": torch.where(drawn, t, 1.0)}

    def fixed_noise(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`t` (P,), 1 where a picture is read, and `noise` (P, C, h, h): for each row a function of its ids alone.

        So a validation loss, which depends on t, is a mean over many times, whatever rows share a batch.
        """
        ids, config = self.mark_drawn(batch)["input_ids"], self.model.config
        counts = (self.model.is_picture(ids).sum(1) // config.num_positions).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in batch["input_ids"].sum(1).tolist()]
        shape = (config.vae_config.patched_channels, config.latent_size, config.latent_size)
        drawn = self.model.to_draw(ids, sum(counts))
        t = torch.cat([torch.rand(n, generator=g) for n, g in zip(counts, generators, strict=True)])
        noise = torch.cat([torch.randn(n, *shape, generator=g) for n, g in zip(counts, generators, strict=True)])
        return {"t": torch.where(drawn, t.to(ids.device), 1.0), "noise": noise.to(ids.device)}
