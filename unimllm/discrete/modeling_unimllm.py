"""One causal language model over text ids and image ids (SemHiTok, arXiv 2503.06764, section on the unified model).

    id < image_offset : token embedding          id >= image_offset : adapter(semantic vector, pixel vector)
    -> language model -> text logits where text may follow, image codes where an image goes on

Shapes: B rows, T positions, N positions of a picture, V text ids, H hidden channels.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from semhitok import SemHiTokModel
from semhitok.auto import build_tokenizer
from unimllm.discrete.backbone import rows_like
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.image_heads import FactorisedHead, FlatHead, build_image_head
from unimllm.discrete.sampling import Sampler, with_unconditional
from unimllm.discrete.varlen import attention_arguments
from unimllm.drawing import (
    check_finite,
    check_option,
    check_prompt_ids,
    choose_drawing,
    choose_seeds,
    save_drawing_options,
)
from unimllm.model_inputs import UnifiedOutput, captured, given_ids, states
from unimllm.text_head import text_logits

HALVES = (torch.bfloat16, torch.float16)


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


class UniMLLMPreTrainedModel(PreTrainedModel):
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

        image_tokenizer = self._modules["image_tokenizer"]
        self._modules["image_tokenizer"] = None  # it keeps its place among the others
        try:
            super()._apply(fn, recurse)
        finally:
            self._modules["image_tokenizer"] = image_tokenizer
        if recurse:
            image_tokenizer._apply(in_full)
        return self


class UniMLLMForConditionalGeneration(UniMLLMPreTrainedModel, GenerationMixin):
    """Reads and draws pictures. `generate(..., generation_mode="text" | "image")`."""

    drawing_options = {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 0}
    drawing_unit = "position"
    edits_pictures = False

    def __init__(self, config: UniMLLMConfig):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.image_tokenizer = build_tokenizer(config.image_tokenizer_config)
        self.image_tokenizer.requires_grad_(False)
        image = config.image_tokenizer_config
        self.adapter = CodeAdapter(image.semantic_dim, image.pixel_dim, config.text_config.hidden_size)
        self.image_head: FlatHead | FactorisedHead = build_image_head(config)
        self.post_init()
        save_drawing_options(self)

    @classmethod
    def from_parts(
        cls, config: UniMLLMConfig, language_model: PreTrainedModel, image_tokenizer: SemHiTokModel
    ) -> "UniMLLMForConditionalGeneration":
        """A model of trained parts, which are taken as they are, and a new adapter and image head between them.

        The adapter begins with vectors as large as the embeddings of words. A flat head begins around the rows of the
        model's head (`rows_like`), so that no image id stands out.

        Args:
            config: its text_config and image_tokenizer_config are replaced by those of the parts.
            language_model: a causal language model.
            image_tokenizer: of any kind that `semhitok.auto` knows.
        """
        config.text_config, config.image_tokenizer_config = language_model.config, image_tokenizer.config
        config.tie_word_embeddings = language_model.config.tie_word_embeddings
        with torch.device("meta"):
            model = cls(config)
        words = language_model.get_input_embeddings()
        image, hidden = image_tokenizer.config, language_model.config.hidden_size
        model.language_model = language_model
        model.image_tokenizer = image_tokenizer.requires_grad_(False)
        model.adapter = CodeAdapter(image.semantic_dim, image.pixel_dim, hidden)
        model.image_head = build_image_head(config)
        for module in (*model.adapter.modules(), *model.image_head.modules()):
            model._init_weights(module)
        with torch.no_grad():
            size = (
                words(torch.arange(len(words.weight), device=words.weight.device)).float().std()
            )  # Gemma scales there
            for branch in (model.adapter.semantic, model.adapter.pixel):
                branch[-1].weight *= size
            if isinstance(model.image_head, FlatHead):
                rows = language_model.get_output_embeddings().weight
                model.image_head.proj.weight.copy_(rows_like(rows, image.num_codes))
        model.adapter.to(words.weight.dtype), model.image_head.to(words.weight.dtype)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

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

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Vocabulary ids (B, T) -> (B, T, H)."""
        is_image = input_ids >= self.config.image_offset
        text = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        flat = (input_ids - self.config.image_offset).clamp(min=0)
        with torch.no_grad():  # the codes stay those of the pictures, trainable or not
            semantic, pixel = self.image_tokenizer.code_vectors(self.image_tokenizer.ids_to_codes(flat))
        image = self.adapter(semantic.to(text.dtype), pixel.to(text.dtype))
        return torch.where(is_image.unsqueeze(-1), image.to(text.dtype), text)

    # ---- training and text -------------------------------------------------------------------------------------

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as transformers' own models do
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: dict[str, float] | None = None,
        num_items: dict[str, torch.Tensor] | torch.Tensor | float | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> UnifiedOutput:
        """Losses where `labels` are given, text logits otherwise.

        Args:
            input_ids: (B, T) vocabulary ids; placeholders are replaced where `pixel_values` is given, and targets at
                their places with them.
            pixel_values: (pictures, 3, S, S) in -1..1, in reading order of the placeholders.
            attention_mask: (B, T), 0 for padding, or (B, 1, T, T) bool, True where a position may look. Packed rows
                without branches need none: `position_ids` that start again at 0 separate their samples. Of those SDPA
                gets a mask of (B, 1, T, T) bool, 64 MiB a row at 8,192 ids; flash attention and varlen none.
            labels: (B, T) vocabulary ids, -100 where there is no target; shifted here.
            loss_weights: weight of each part of the loss (default 1).
            num_items: number of targets that the summed loss is divided by; default: those of this batch. Or by name,
                "all", "text" and "image": then the parts of the loss are divided by those of their kind, so that they
                add up over micro-batches of which some have none.
            num_items_in_batch: the same, as transformers' Trainer calls it.
            logits_to_keep: text logits of the last so many positions only (0: all).
            kwargs: `output_hidden_states` and `output_attentions` alone are heard.

        Raises:
            ValueError: inputs_embeds, rows with branches for flash attention, or placeholders that do not fit pictures
                (those without any picture are noticed on a CPU, or outside of training: a GPU must not be waited for).
        """
        input_ids = given_ids(input_ids, inputs_embeds=kwargs.get("inputs_embeds"))
        if pixel_values is None and input_ids.shape[1] > 1 and not (self.training and input_ids.is_cuda):
            self.place_image_tokens(input_ids, input_ids.new_empty(0, self.config.num_positions))
        if pixel_values is not None:
            placeholders, input_ids = input_ids, self.place_images(input_ids, pixel_values)
            if labels is not None:
                labels = torch.where((labels >= 0) & (placeholders == self.config.image_token_id), input_ids, labels)
        decoder = self.language_model.get_decoder()
        embeds = self.embed(input_ids)
        is_cached = cache is not None
        outputs = decoder(
            inputs_embeds=embeds,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache and labels is None,  # with one, packed samples would see one another in transformers
            **attention_arguments(decoder.config, embeds, attention_mask, position_ids, is_cached),
            **captured(kwargs),
        )
        hidden = outputs.last_hidden_state
        if labels is not None:
            num_items = num_items_in_batch if num_items is None else num_items
            loss, losses = self.losses(hidden, labels, loss_weights or {}, num_items)
            return UnifiedOutput(loss=loss, losses=losses, **states(outputs))
        logits = text_logits(self.language_model, hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return UnifiedOutput(logits=logits, cache=outputs.cache, **states(outputs))

    def losses(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weights: dict[str, float],
        num_items: dict[str, torch.Tensor] | torch.Tensor | float | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of `cross_entropies` the weighted sum as a mean, and its parts as means; arguments as in `forward`."""
        sums, is_text, is_image = self.cross_entropies(hidden, labels)
        counts = {name: (is_text if name == "text" else is_image).sum().clamp(min=1) for name in sums}
        if isinstance(num_items, dict):
            counts = {name: num_items["text" if name == "text" else "image"] for name in sums}
            num_items = num_items["all"]
        elif num_items is None:
            num_items = (is_text | is_image).sum().clamp(min=1)
        loss = sum(weights.get(name, 1.0) * value for name, value in sums.items()) / num_items
        return loss, {name: value.detach() / counts[name] for name, value in sums.items()}

    def cross_entropies(
        self, hidden: torch.Tensor, labels: torch.Tensor, reduction: str = "sum"
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Cross-entropy over the slice of the vocabulary that is legal at each target: text ids, or image codes.

        Args:
            hidden: (B, T, H).
            labels: (B, T) vocabulary ids, -100 where there is no target; shifted here.
            reduction: "sum", or "none" for that of each target.

        Returns:
            (by name "text" and the parts of the image head: a scalar, or (targets,) with "none"; which of the
            B * (T - 1) next ids are targets of text; which are of pictures).
        """
        targets = labels[:, 1:].flatten()
        hidden = hidden[:, :-1].flatten(0, 1)
        is_image = targets >= self.config.image_offset
        is_text = (targets >= 0) & ~is_image
        logits = text_logits(self.language_model, hidden[is_text])
        text_loss = F.cross_entropy(logits.float(), targets[is_text], reduction=reduction)
        # Without pictures this is zero, but every rank of a run must touch the same parameters.
        codes = self.image_tokenizer.ids_to_codes(targets[is_image] - self.config.image_offset)
        image = self.image_head.loss(hidden[is_image], codes, self.code_tables(), reduction)
        return {"text": text_loss, **image}, is_text, is_image

    def log_probs(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log-probability of each target given what stands before it, with gradients, as DPO and GRPO need it.

        That of a text id is among all text ids, that of an image id among all image ids (of a factorised head the sum
        of its semantic and its pixel code's): at temperature 1, without top-k and without guidance, whatever the ids
        were drawn with. Minus their mean over the targets is the loss of `forward`.

        Args:
            input_ids, labels, pixel_values: as in `forward`.
            attention_mask: as in `forward`; rows may be padded on either side.
            position_ids: (B, T); default: those that `attention_mask` (B, T) counts, as `generate` has them.

        Returns:
            (B, T - 1) float32, at t that of `labels[:, t + 1]`; 0 where there is no target.
        """
        if pixel_values is not None:
            placeholders, input_ids = input_ids, self.place_images(input_ids, pixel_values)
            labels = torch.where((labels >= 0) & (placeholders == self.config.image_token_id), input_ids, labels)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        outputs = self(input_ids, attention_mask=attention_mask, position_ids=position_ids, logits_to_keep=1)
        parts, is_text, is_image = self.cross_entropies(outputs.last_hidden_state, labels, reduction="none")
        text, image = parts.pop("text"), sum(parts.values())
        found = torch.zeros(is_text.shape, dtype=text.dtype, device=text.device)
        return found.masked_scatter(is_text, -text).masked_scatter(is_image, -image).view(len(labels), -1)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs) -> dict:
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        inputs.pop("pixel_values", None)  # `generate` has placed them already
        return inputs

    # ---- generation --------------------------------------------------------------------------------------------

    def num_drawing_steps(self, options: dict) -> int:
        """How often a drawing with such options calls `on_step`: once for each position."""
        return self.config.image_tokenizer_config.num_positions

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_mode: str = "text",
        image_tokens: torch.Tensor | None = None,
        inputs: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Continue each row with text, or with one picture.

        Args:
            input_ids: (B, T), padded on the left.
            pixel_values: pictures for the placeholders.
            attention_mask: (B, T), 0 for padding.
            generation_mode: "text": transformers' `generate` over text ids, returns (B, T + new).
                "image": see `generate_image_tokens`; returns image ids (B, N).
            image_tokens: what `get_image_tokens` made of the pictures, in place of `pixel_values`.
            inputs: `input_ids` under transformers' own name.
        """
        input_ids = given_ids(input_ids, inputs, kwargs.get("inputs_embeds"))
        if pixel_values is not None:
            image_tokens = self.get_image_tokens(pixel_values)
        if image_tokens is not None:
            input_ids = self.place_image_tokens(input_ids, image_tokens)
        if generation_mode == "image":
            return self.generate_image_tokens(input_ids, attention_mask, **kwargs)
        if generation_mode != "text":
            raise ValueError(f"generation_mode is {generation_mode!r}; choose text or image")
        kwargs.setdefault("suppress_tokens", self.config.picture_token_ids)
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate_image_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        unconditional_ids: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        seeds: list[int] | None = None,
        on_step: Callable[[], None] | None = None,
        **others,
    ) -> torch.Tensor:
        """Draw one picture per row.

        Args:
            input_ids: (B, T) prompts that end with the image-start token, padded on the left.
            attention_mask: (B, T), 0 for padding.
            unconditional_ids: (U,) the prompt without its text; needed where guidance_scale is not 1.
            guidance_scale: s in `unconditional + s * (conditional - unconditional)` over log-probabilities.
            temperature: 0 takes the most likely code.
            top_k: so many most likely codes are kept (0: all).
            seeds: one per row (default 0, 1, ...): in float32 a picture does not depend on its batch.
            on_step: called after each of the N positions.
            others: options that there are none of.

        Returns:
            (B, N) vocabulary ids, all of them image ids.

        Raises:
            ValueError: see `choose_drawing`, `check_option`, `check_prompt_ids`, `choose_seeds` and `check_finite` of
                `unimllm.drawing`.
        """
        choose_drawing(self, others)
        for name, value in {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k}.items():
            check_option(name, value, is_whole=name == "top_k")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        check_prompt_ids(input_ids, attention_mask)
        num_positions, seeds = self.config.image_tokenizer_config.num_positions, choose_seeds(seeds, len(input_ids))
        sampler = Sampler(seeds, 2 * num_positions, guidance_scale, temperature, top_k, self.device)
        if sampler.guided:
            if unconditional_ids is None:
                raise ValueError("guidance_scale other than 1 needs unconditional_ids, the prompt without its text")
            input_ids, attention_mask = with_unconditional(input_ids, attention_mask, unconditional_ids)
        repeats = len(input_ids) // len(seeds)
        cache = DynamicCache(config=self.config.text_config)
        tables = self.code_tables()
        ids, drawn = input_ids, []
        for _ in range(num_positions):
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            outputs = self.language_model.get_decoder()(
                inputs_embeds=self.embed(ids), attention_mask=attention_mask, position_ids=positions,
                cache=cache, use_cache=True,
            )  # fmt: skip
            codes = self.image_head.sample(outputs.last_hidden_state[:, -1], tables, sampler)
            drawn.append(self.codes_to_ids(codes))
            ids = drawn[-1].repeat(repeats).unsqueeze(-1)
            attention_mask = F.pad(attention_mask, (0, 1), value=1)
            if on_step:
                on_step()
        check_finite(sampler.is_finite)
        return torch.stack(drawn, -1)
