"""One causal language model over text ids and image ids (SemHiTok, arXiv 2503.06764, section on the unified model).

    id < image_offset : token embedding          id >= image_offset : adapter(semantic vector, pixel vector)
    -> language model -> text logits where text may follow, image codes where an image goes on

Shapes: B rows, T positions, N positions of a picture, V text ids, H hidden channels.
"""

from collections.abc import Callable

import torch
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
from unimllm.discrete.image_ids import CodeAdapter, UniMLLMPreTrainedModel
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
            all_ids = torch.arange(len(words.weight), device=words.weight.device)
            size = words(all_ids).float().std()  # not of the table: Gemma multiplies behind it
            for branch in (model.adapter.semantic, model.adapter.pixel):
                branch[-1].weight *= size
            if isinstance(model.image_head, FlatHead):
                rows = language_model.get_output_embeddings().weight
                model.image_head.proj.weight.copy_(rows_like(rows, image.num_codes))
        model.adapter.to(words.weight.dtype), model.image_head.to(words.weight.dtype)
        return model

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
            ValueError: inputs_embeds, rows with branches for flash attention, or placeholders that do not fit pictures.
        """
        input_ids = given_ids(input_ids, inputs_embeds=kwargs.get("inputs_embeds"))
        input_ids, labels = self.place_pictures(input_ids, pixel_values, labels)
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
        input_ids, labels = self.place_pictures(input_ids, pixel_values, labels)
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
            ValueError: of what `unimllm.drawing` checks.
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
        cache, tables = DynamicCache(config=self.config.text_config), self.code_tables()
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
