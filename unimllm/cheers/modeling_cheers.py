"""CHEERS (arXiv 2603.12793): one language model that reads pictures as decoded latents and draws them by a flow.

pictures -> z_t -> vision tokenizer -> positions | text ids -> embeddings
         -> language model, causal over text and bidirectional inside each picture
         -> text logits where text follows; the flow head's velocity of z_t where a picture is drawn

Shapes: B rows, T positions, P pictures of the batch in reading order, N positions of a picture, V text ids,
H hidden channels, D channels of SigLIP, C channels of the latent, h latent positions along a side.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel, SiglipVisionModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from unimllm.cheers.autoencoder import CheersVae, LatentStatistics
from unimllm.cheers.configuration_cheers import CheersConfig
from unimllm.cheers.flow_head import FlowHead, ZeroLinear
from unimllm.cheers.hybrid_mask import TEXT, hybrid_mask, picture_numbers
from unimllm.cheers.picture_checks import check_pixels, check_times, kinds_of_pictures
from unimllm.cheers.rotary import round_frequencies_of
from unimllm.cheers.sampling import draw_latents
from unimllm.cheers.vision_tokenizer import VisionTokenizer
from unimllm.drawing import save_drawing_options
from unimllm.flow_matching import euler_schedule, path, velocity
from unimllm.model_inputs import UnifiedOutput, captured, given_ids, states
from unimllm.text_head import WithLanguageModel, text_logits


@dataclass
class CheersOutput(UnifiedOutput):
    """What `forward` returns; parts of the loss are "text" and "flow".

    Attributes:
        velocities: (pictures with a flow loss, C, h, h), where labels were given.
        semantics: of those pictures what the flow head draws first, Z', (pictures with a flow loss, L, D).
        with_flow: which pictures these are, (P,) bool.
    """

    velocities: torch.Tensor | None = None
    semantics: torch.Tensor | None = None
    with_flow: torch.Tensor | None = None


@dataclass
class Pictures:
    """The pictures of a batch on their way: times t (P,), velocity targets (P, C, h, h), and S(D(z_t)) (P, L, D)."""

    t: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    details: torch.Tensor


class CheersPreTrainedModel(WithLanguageModel, PreTrainedModel):
    config_class = CheersConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True  # but no flash attention: it knows no mask that is neither causal nor full
    # Latents are those that training began with, whatever the precision; by tensors, for a counter is none to be cast.
    _keep_in_fp32_modules_strict = ["vae_model.encoder", "vae_model.decoder", "running_mean", "running_var"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Compressor, D(.) and flow head; language model, SigLIP and VAE initialise themselves."""
        if isinstance(module, (ZeroLinear, nn.LayerNorm, nn.RMSNorm)):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.GroupNorm, LatentStatistics)):
            CheersVae._init_weights(self, module)


class CheersForConditionalGeneration(CheersPreTrainedModel, GenerationMixin):
    """Reads and draws pictures. `generate(..., generation_mode="text" | "image")`."""

    drawing_options = {"guidance_scale": 3.0, "num_steps": 50, "time_shift": 1.0}
    drawing_unit = "step"
    edits_pictures = True
    accepts_loss_kwargs = False  # for transformers' Trainer: two losses are divided by numbers of their own

    def __init__(self, config: CheersConfig):
        super().__init__(config)
        config.settle()
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.vision_tokenizer = VisionTokenizer(config)
        self.flow_head = FlowHead(config)
        round_frequencies_of(self.language_model, config)
        self.post_init()
        save_drawing_options(self)

    @classmethod
    def from_parts(
        cls, config: CheersConfig, language_model: PreTrainedModel | None, vision_model: SiglipVisionModel,
        vae: CheersVae,
    ) -> "CheersForConditionalGeneration":  # fmt: skip
        """A model of trained parts, which are taken as they are, with a new compressor and flow head.

        Args:
            config: its text_config, vision_config and vae_config are those of the parts.
            language_model: None: a new one too.
        """
        model = cls(config)
        if language_model is not None:
            model.language_model = language_model
            round_frequencies_of(language_model, config)
        model.vision_tokenizer.take(vision_model, vae)
        return model

    # ---- pictures ----------------------------------------------------------------------------------------------

    @property
    def image_tokenizer(self) -> CheersVae:
        """Pictures to latents and back."""
        return self.vision_tokenizer.vae_model

    def get_image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures to read, (P, 3, S, S) in -1..1 -> what the language model gets of them, (P, N, H)."""
        latents = self.vision_tokenizer.encode(pixel_values)  # t = 1: no noise in them
        return self.vision_tokenizer(latents.to(self.dtype))[0]

    def decode_image_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """What `generate` drew, (B, C, h, h) -> pictures (B, 3, S, S) in -1..1."""
        return self.vision_tokenizer.decode(latents)

    def is_picture(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where pictures are, to read or to draw: (B, T) bool."""
        return (input_ids == self.config.image_token_id) | (input_ids == self.config.image_gen_token_id)

    def to_draw(self, input_ids: torch.Tensor, num_pictures: int) -> torch.Tensor:
        """Which pictures, in reading order, are to be drawn: (P,) bool.

        Raises:
            ValueError: the placeholders are not those of so many pictures (see `kinds_of_pictures`).
        """
        ids = input_ids.cpu()  # the one wait for a device, as counting there would be
        kinds = kinds_of_pictures(ids, self.is_picture(ids), num_pictures, self.config.num_positions)
        return (kinds == self.config.image_gen_token_id).to(input_ids.device)

    def check_pictures(self, input_ids: torch.Tensor, image_tokens: torch.Tensor | None) -> None:
        """ValueError where the placeholders are not those of `image_tokens`, (P, N, H); None: of no picture."""
        if image_tokens is not None and not isinstance(image_tokens, torch.Tensor):
            raise ValueError(f"image_tokens are a {type(image_tokens).__name__}; give one tensor of `get_image_tokens`")
        self.to_draw(input_ids, 0 if image_tokens is None else len(image_tokens))

    def look(
        self, pixel_values: torch.Tensor, drawn: torch.Tensor, t: torch.Tensor | None, noise: torch.Tensor | None
    ) -> Pictures:
        """Task-dependent latents, and what the vision tokenizer makes of them.

        Args:
            pixel_values: (P, 3, S, S) in -1..1.
            drawn: (P,) bool; those have noise in them.
            t: (P,); default: uniform where drawn, 1 where read.
            noise: (P, C, h, h) standard normal; default: drawn here.

        Without pictures it looks at a grey one and returns none of it: every rank of a run must touch the same
        parameters.

        Raises:
            ValueError: see `check_times`.
        """
        count, config = len(pixel_values), self.config
        latent_shape = (config.vae_config.patched_channels, config.latent_size, config.latent_size)
        check_times(t, noise, count, latent_shape)
        if not count:
            t = noise = None
            pixel_values, drawn = pixel_values.new_zeros(1, *pixel_values.shape[1:]), drawn.new_zeros(1)
        latents = self.vision_tokenizer.encode(pixel_values)
        if t is None:
            t = torch.where(drawn, torch.rand(len(latents), device=latents.device), 1.0)
        noise = torch.randn_like(latents) if noise is None else noise.to(latents)
        targets = velocity(noise, latents) * (t < 1).view(-1, 1, 1, 1)
        positions, details = self.vision_tokenizer(path(noise, latents, t).to(self.dtype))
        return Pictures(t[:count], targets[:count], positions[:count], details[:count])

    def embed(self, input_ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Ids (B, T), and the pictures' (P, N, H) for the placeholders -> (B, T, H)."""
        embeds = self.get_input_embeddings()(input_ids)
        if positions is None:
            return embeds
        return embeds.masked_scatter(self.is_picture(input_ids).unsqueeze(-1), positions.to(embeds.dtype))

    def read(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = True,
        **kwargs,
    ) -> ModelOutput:
        """The language model on text and pictures; its output has no logits. Arguments as in `forward`."""
        embeds = self.embed(input_ids, positions)
        cached = cache.get_seq_length() if cache is not None else 0
        numbers = None
        if input_ids.shape[1] > 1:  # one position alone is no picture
            is_picture = self.is_picture(input_ids)
            is_text = None
            if self.config.leading_picture_is_causal and not cached:
                is_2d = attention_mask is not None and attention_mask.dim() == 2
                is_text = ~is_picture & attention_mask.bool() if is_2d else ~is_picture
            numbers = F.pad(picture_numbers(is_picture, is_text), (cached, 0), value=TEXT)
        mask = hybrid_mask(
            self.language_model.config, embeds, numbers, attention_mask, position_ids, cache
        )  # fmt: skip
        return self.language_model.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, cache=cache,
            use_cache=use_cache, **captured(kwargs),
        )  # fmt: skip

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
        t: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        loss_weights: dict[str, float] | None = None,
        num_items: dict[str, torch.Tensor | float] | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        image_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> CheersOutput:
        """Losses where `labels` are given, text logits otherwise.

        Args:
            input_ids: (B, T) ids; a picture is N placeholders, to read or to draw.
            pixel_values: (P, 3, S, S) in -1..1, in reading order of the placeholders.
            attention_mask: (B, T), 0 for padding, or (B, 1, T, T) bool, True where a position may look (a picture sees
                all of itself besides). Packed rows without branches need none: `position_ids` that start again at 0
                separate their samples.
            labels: (B, T) text ids, -100 where there is no target (placeholders are none); shifted here.
            t, noise: of the pictures (see `look`); drawn at random where not given.
            loss_weights: weight of "text" and "flow" (default 1).
            num_items: what the summed losses are divided by: targets for "text", pictures for "flow"; default: those
                of this batch.
            logits_to_keep: text logits of the last so many positions only (0: all).
            image_tokens: what `get_image_tokens` made of the pictures, in place of `pixel_values`; without labels.
            kwargs: `output_hidden_states` and `output_attentions` alone are heard.

        Raises:
            ValueError: inputs_embeds, pictures of another shape, or placeholders, times or noise that do not fit them.
        """
        input_ids = given_ids(input_ids, inputs_embeds=kwargs.get("inputs_embeds"))
        if pixel_values is None and labels is not None:
            pixel_values = torch.zeros(0, 3, *[self.config.image_size] * 2, device=input_ids.device)
        pictures = None
        if pixel_values is not None:
            check_pixels(pixel_values, self.config.image_size)
            drawn = self.to_draw(input_ids, len(pixel_values))
            pictures = self.look(pixel_values, drawn, t, noise)
            image_tokens = pictures.positions
        elif input_ids.shape[1] > 1:  # one position alone is no picture: the way behind a cache counts nothing
            self.check_pictures(input_ids, image_tokens)
        outputs = self.read(
            input_ids, image_tokens, attention_mask, position_ids, cache,
            use_cache=use_cache and labels is None, **kwargs,
        )  # fmt: skip
        hidden = outputs.last_hidden_state
        if labels is not None:
            parts = self.losses(hidden, input_ids, labels, pictures, drawn, loss_weights or {}, num_items or {})
            return CheersOutput(**parts, **states(outputs))
        logits = text_logits(self.language_model, hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return CheersOutput(logits=logits, cache=outputs.cache, **states(outputs))

    def losses(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor, pictures: Pictures,
        drawn: torch.Tensor, weights: dict, num_items: dict,
    ) -> dict:  # fmt: skip
        """What `CheersOutput` tells of the losses; arguments as in `forward`, `drawn` (P,) bool as `to_draw` has it."""
        is_picture = self.is_picture(input_ids)
        with_flow = drawn | self.config.flow_loss_on_read_pictures
        flow, velocities, semantics = self.flow_loss(hidden[is_picture], pictures, with_flow)
        text = self.text_loss(hidden, labels.masked_fill(is_picture, -100))
        loss, losses = self.add_losses(text, flow, weights, num_items)
        drawn_parts = {"velocities": velocities, "semantics": semantics, "with_flow": with_flow}
        return {"loss": loss, "losses": losses} | drawn_parts

    def text_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed cross-entropy over the targets, and their number."""
        targets = labels[:, 1:].flatten()
        is_text = targets >= 0
        logits = text_logits(self.language_model, hidden[:, :-1].flatten(0, 1)[is_text])
        return F.cross_entropy(logits.float(), targets[is_text], reduction="sum"), is_text.sum()

    def flow_loss(
        self, hidden: torch.Tensor, pictures: Pictures, chosen: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
        """Squared error of the velocities, a mean in each picture and summed over them, their number; both of the head.

        Args:
            hidden: (P * N, H) of all pictures.
            chosen: (P,) bool; the flow head runs for those alone.
        """
        hidden = hidden.view(len(chosen), self.config.num_positions, hidden.shape[-1])[chosen]
        velocities, semantics = self.flow_head(hidden, pictures.details[chosen], pictures.t[chosen])
        errors = (velocities.float() - pictures.targets[chosen].float()).square()
        return (errors.mean((1, 2, 3)).sum(), chosen.sum()), velocities, semantics

    def add_losses(self, text, flow, weights: dict, num_items: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of (summed loss, count) pairs as means, and these.

        So micro-batches of a step, some of them without a picture perhaps, add up in its log as in its loss.
        """
        sums = {"text": text, "flow": flow}
        means = {name: value / num_items.get(name, count.clamp(min=1)) for name, (value, count) in sums.items()}
        loss = sum(weights.get(name, 1.0) * mean for name, mean in means.items())
        return loss, {name: mean.detach() for name, mean in means.items()}

    @staticmethod
    def create_masks_for_generate(attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor | None:
        """For a cache of fixed length `generate` would make causal masks; `read` makes those that know of pictures."""
        return attention_mask

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, is_first_iteration: bool = False, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if inputs.get("cache") is None or (is_first_iteration and self.is_picture(inputs["input_ids"]).any()):
            return inputs
        return inputs | {"pixel_values": None, "image_tokens": None}  # the cache holds the pictures

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, dict]:
        """Several answers to each row: its pictures are repeated together, not one by one as transformers would.

        Of `kwargs`, pixel_values are (P, 3, S, S) and image_tokens (P, N, H), in reading order.
        """
        rows, counts = input_ids, (self.is_picture(input_ids).sum(1) // self.config.num_positions).tolist()
        pictures = {name: kwargs.pop(name, None) for name in ("pixel_values", "image_tokens")}
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        for name, given in pictures.items():
            if given is not None:
                self.check_pictures(rows, given)  # ahead of split, whose own error would name neither
                kwargs[name] = torch.cat([of_row for of_row in given.split(counts) for _ in range(expand_size)])
        return input_ids, kwargs

    # ---- generation --------------------------------------------------------------------------------------------

    def num_drawing_steps(self, options: dict) -> int:
        """How often a drawing with such options calls `on_step`: once for each step of Euler's method.

        Args:
            options: those of `drawing_options`, and `start_time` where it begins from a picture.
        """
        return len(euler_schedule(options["num_steps"], start=options.get("start_time", 0.0))[0])

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
            input_ids: (B, T), padded on the left; to draw, each ends with the image-start token.
            pixel_values: pictures for the placeholders.
            attention_mask: (B, T), 0 for padding.
            generation_mode: "text": transformers' `generate` over text ids, returns (B, T + new).
                "image": see `sampling.draw_latents`; returns latents (B, C, h, h) for `decode_image_tokens`.
            image_tokens: what `get_image_tokens` made of the pictures, in place of `pixel_values`.
            inputs: `input_ids` under transformers' own name.
        """
        input_ids = given_ids(input_ids, inputs, kwargs.get("inputs_embeds"))
        if pixel_values is not None:
            check_pixels(pixel_values, self.config.image_size)
        if generation_mode == "image":
            return draw_latents(self, input_ids, attention_mask, pixel_values, image_tokens, **kwargs)
        if generation_mode != "text":
            raise ValueError(f"generation_mode is {generation_mode!r}; choose text or image")
        kwargs.setdefault("suppress_tokens", self.config.picture_token_ids)
        pictures = {"pixel_values": pixel_values, "image_tokens": image_tokens}
        return super().generate(input_ids=input_ids, attention_mask=attention_mask, **pictures, **kwargs)
