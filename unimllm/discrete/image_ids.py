"""Pictures as ids in a language model's vocabulary: places, vectors and codes of theirs, and the frozen tokenizer.

    id < image_offset : token embedding          id >= image_offset : adapter(semantic vector, pixel vector)

Shapes: B rows, T positions, N positions of a picture, H hidden channels.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.varlen import HALVES
from unimllm.text_head import WithLanguageModel


class CodeAdapter(nn.Module):
    """Dual-MLP adapter: semantic vector -> H/2, pixel vector -> H/2, channels side by side: one position per patch."""

    def __init__(self, semantic_dim: int, pixel_dim: int, hidden_size: int):
        super().__init__()
        self.semantic = self._mlp(semantic_dim, hidden_size // 2)
        self.pixel = self._mlp(pixel_dim, hidden_size - hidden_size // 2)

    @staticmethod
    def _mlp(dim_in: int, dim_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(dim_in, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out))

    def forward(self, semantic_vectors: torch.Tensor, pixel_vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.semantic(semantic_vectors), self.pixel(pixel_vectors)], -1)


class UniMLLMPreTrainedModel(WithLanguageModel, PreTrainedModel):
    """What reads and draws pictures as ids, with `language_model`, `image_tokenizer` and `adapter`."""

    config_class = UniMLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["image_tokenizer"]  # codes are those of the checkpoint, whatever the precision
    _keep_in_fp32_modules = ["image_tokenizer"]  # the one that transformers' quantizers heed

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Adapter and heads; the language model and the image tokenizer initialise themselves."""
        owner = self._owner_of(module)
        if owner is not None:
            owner._init_weights(module)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def _owner_of(self, module: nn.Module) -> PreTrainedModel | None:
        for part in (self.language_model, self.image_tokenizer):
            if any(m is module for m in part.modules()):
                return part
        return None

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """transformers' own, which makes every weight trainable; those of the image tokenizer stay frozen."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.image_tokenizer.requires_grad_(False)
        return loaded

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "UniMLLMPreTrainedModel":
        """What `to`, `half` and others call: no half precision for the image tokenizer, whose codes would change."""

        def in_full(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if changed.dtype in HALVES else changed

        image_tokenizer = self._modules.get("image_tokenizer")  # a training run may have taken it out
        if image_tokenizer is None:
            return super()._apply(fn, recurse)
        self._modules["image_tokenizer"] = None  # it keeps its place among the others
        try:
            super()._apply(fn, recurse)
        finally:
            self._modules["image_tokenizer"] = image_tokenizer
        if recurse:
            image_tokenizer._apply(in_full)
        return self

    # ---- pictures and ids --------------------------------------------------------------------------------------

    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, S, S) in -1..1 -> vocabulary ids (B, N)."""
        return self.codes_to_ids(self.image_tokenizer.encode(pixel_values))

    def decode_image_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids (B, N) -> pictures (B, 3, S, S) in -1..1."""
        return self.image_tokenizer.decode(self.ids_to_codes(ids))

    def codes_to_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., 2) -> vocabulary ids (...)."""
        return self.config.image_offset + self.image_tokenizer.codes_to_ids(codes)

    def ids_to_codes(self, ids: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids (...) -> codes (..., 2); ValueError if one is no image id."""
        flat = ids - self.config.image_offset
        if flat.numel() and (flat.min() < 0 or flat.max() >= self.config.image_tokenizer_config.num_codes):
            raise ValueError(
                f"ids {int(ids.min())}..{int(ids.max())} are not all image ids "
                f"({self.config.image_offset}..{self.config.vocab_size - 1})"
            )
        return self.image_tokenizer.ids_to_codes(flat)

    def code_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All code vectors: semantic (K, semantic_dim) and pixel (K, m, pixel_dim)."""
        return self.image_tokenizer.code_tables()

    def place_images(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Replace the placeholders in `input_ids` by the ids of `pixel_values`, in reading order.

        Raises:
            ValueError: the number of placeholders is not N for every picture.
        """
        return self.place_image_tokens(input_ids, self.get_image_tokens(pixel_values))

    def place_image_tokens(self, input_ids: torch.Tensor, image_tokens: torch.Tensor) -> torch.Tensor:
        """As `place_images`, of what `get_image_tokens` made of the pictures."""
        places = input_ids == self.config.image_token_id
        if int(places.sum()) != image_tokens.numel():
            raise ValueError(
                f"{int(places.sum())} image placeholders but {len(image_tokens)} pictures of {image_tokens.shape[1]} "
                f"positions ({image_tokens.numel()}); use the processor that was saved with this model"
            )
        return input_ids.masked_scatter(places, image_tokens.to(input_ids))

    def place_pictures(
        self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Ids and labels (B, T) with the ids of pictures in the place of their placeholders, where those are targets.

        Raises:
            ValueError: the number of placeholders is not N for every picture. Of no picture at all this is looked at on
                a CPU, or outside of training: a GPU would have to be waited for.
        """
        if pixel_values is not None:
            placed = self.place_images(input_ids, pixel_values)
            if labels is not None:
                labels = torch.where((labels >= 0) & (input_ids == self.config.image_token_id), placed, labels)
            return placed, labels
        if input_ids.shape[1] > 1 and not (self.training and input_ids.is_cuda):
            self.place_image_tokens(input_ids, input_ids.new_empty(0, self.config.num_positions))
        return input_ids, labels

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids (B, T) -> (B, T, H)."""
        is_image = input_ids >= self.config.image_offset
        text = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        flat = (input_ids - self.config.image_offset).clamp(min=0)
        with torch.no_grad():  # the codes stay those of the pictures, trainable or not
            semantic, pixel = self.image_tokenizer.code_vectors(self.image_tokenizer.ids_to_codes(flat))
        image = self.adapter(semantic.to(text.dtype), pixel.to(text.dtype))
        return torch.where(is_image.unsqueeze(-1), image.to(text.dtype), text)
