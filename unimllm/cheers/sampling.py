"""Drawing with CHEERS (arXiv 2603.12793, appendix): the prompt is read once, then Euler's method from noise.

Each step runs D(.), SigLIP, the language model on the N positions of the picture, and the flow head. What depends on
x_t alone (the first two) is computed once; with guidance the rest runs on both branches as one batch.

Shapes: B rows, T positions of the prompts, N positions of a picture, C channels of the latent, h along its side.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from unimllm.cheers.hybrid_mask import TEXT, hybrid_mask
from unimllm.cheers.picture_checks import check_pixels
from unimllm.drawing import (
    START_TIME,
    check_finite,
    check_number,
    check_prompt_ids,
    check_start_time,
    choose_drawing,
    choose_seeds,
)
from unimllm.flow_matching import euler, euler_schedule, guide, path


def without_text(model, input_ids: torch.Tensor) -> torch.Tensor:
    """The unconditional prompts, (B, T): `<no_mean>` for all but pictures and the tokens around them."""
    config = model.config
    kept = model.is_picture(input_ids)
    kept |= (input_ids == config.image_start_token_id) | (input_ids == config.image_end_token_id)
    return input_ids.masked_fill(~kept, config.no_text_token_id)


def noise_of(seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal (B, *shape) float32: each row depends on its seed, not on its batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class Prompt:
    """Prompts that have been read, ready for the velocities of pictures behind them.

    Args:
        input_ids: (B, T), padded on the left.
        attention_mask: (B, T), 0 for padding.
        image_tokens: (P, N, H) of `get_image_tokens`, for the placeholders in them.
        guidance_scale: 1 leaves the unconditional branch out.

    Raises:
        ValueError: the number of placeholders is not N for every picture.
    """

    def __init__(
        self,
        model,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_tokens: torch.Tensor | None,
        guidance_scale: float,
    ):
        self.model, self.scale = model, guidance_scale
        self.branches = 1 if guidance_scale == 1 else 2
        model.check_pictures(input_ids, image_tokens)
        if self.branches == 2:
            input_ids = torch.cat([input_ids, without_text(model, input_ids)])
            attention_mask = attention_mask.repeat(2, 1)
            image_tokens = None if image_tokens is None else image_tokens.repeat(2, 1, 1)
        self.num_positions = model.config.num_positions
        self.cache = DynamicCache(config=model.config.text_config)
        self.cache.activate_past_recording()  # else layers with a window could not forget the picture again
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        model.read(input_ids, image_tokens, attention_mask, positions, self.cache)
        picture = torch.arange(1, self.num_positions + 1, device=input_ids.device)
        self.position_ids = positions[:, -1:] + picture
        numbers = F.pad(torch.full_like(input_ids, TEXT), (0, self.num_positions), value=0)
        attention_mask = F.pad(attention_mask, (0, self.num_positions), value=1)
        like = torch.empty(len(input_ids), self.num_positions, 0, dtype=model.dtype, device=input_ids.device)
        self.mask = hybrid_mask(
            model.language_model.config, like, numbers, attention_mask, self.position_ids, self.cache
        )  # fmt: skip

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Of x_t (B, C, h, h) at the scalar time t, guided; the cache is left as it was."""
        model, branches = self.model, self.branches
        embeds, details = model.vision_tokenizer(x_t.to(model.dtype))
        embeds, details = embeds.repeat(branches, 1, 1), details.repeat(branches, 1, 1)
        hidden = model.language_model.get_decoder()(
            inputs_embeds=embeds, attention_mask=self.mask, position_ids=self.position_ids, cache=self.cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip
        self.cache.crop(-self.num_positions)
        velocities = model.flow_head(hidden, details, t.expand(len(embeds)))[0].to(x_t.dtype)
        return velocities if branches == 1 else guide(*velocities.chunk(2), self.scale)


def _chosen(
    model, guidance_scale: float | None, num_steps: int | None, time_shift: float | None
) -> tuple[float, int, float]:
    """The three as they are, or where left out as the checkpoint has them; ValueError for what is no number."""
    given = {"guidance_scale": guidance_scale, "num_steps": num_steps, "time_shift": time_shift}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        check_number(name, value, is_whole=name == "num_steps")
    chosen = choose_drawing(model, {}) | given
    return chosen["guidance_scale"], chosen["num_steps"], chosen["time_shift"]


def _check_ends(model, input_ids: torch.Tensor) -> None:
    """ValueError where a prompt does not end where its picture begins."""
    if (input_ids[:, -1] != model.config.image_start_token_id).any():
        raise ValueError(
            f"a prompt to draw from ends with the id {int(input_ids[0, -1])}; end each with image_start_token_id "
            f"({model.config.image_start_token_id}), its picture follows"
        )


def draw_latents(
    model, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None, image_tokens: torch.Tensor | None = None,
    guidance_scale: float | None = None, num_steps: int | None = None, time_shift: float | None = None,
    seeds: list[int] | None = None, start_pictures: torch.Tensor | None = None, start_time: float | None = None,
    on_step: Callable[[], None] | None = None, **others,
) -> torch.Tensor:  # fmt: skip
    """Draw one picture per row.

    Args:
        input_ids: (B, T) prompts that end with the image-start token, padded on the left.
        attention_mask: (B, T), 0 for padding.
        pixel_values: pictures for the placeholders in the prompts, all of them to read.
        image_tokens: what `get_image_tokens` made of these, in place of them.
        guidance_scale: 1 leaves the unconditional branch out (the paper's figures: 9.5).
        num_steps: evaluations of the velocity.
        time_shift: alpha of `flow_matching.time_shift` (the released demo: 0.5). These three, where left out, are as
            the checkpoint's generation_config.json has them.
        seeds: one per row (default 0, 1, ...): in float32 a picture does not depend on its batch.
        start_pictures: (B, 3, S, S) in -1..1; editing begins from them with noise, at `start_time`.
        start_time: of them; None: START_TIME.
        on_step: called after each step.
        others: options that there are none of.

    Returns:
        (B, C, h, h) normalised latents, float32 or wider.

    Raises:
        ValueError: an option of another name or that is no number; no prompt, one that is empty, padded on the right or
            does not end with the image-start token; not one seed or start picture per row; pictures of another shape;
            a start time without pictures or outside 0..1; not N placeholders for every picture; numbers that are not
            finite; or see `flow_matching.euler_schedule`.
    """
    choose_drawing(model, others)
    guidance_scale, num_steps, time_shift = _chosen(model, guidance_scale, num_steps, time_shift)
    check_start_time(start_time, start_pictures is not None)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    check_prompt_ids(input_ids, attention_mask)
    _check_ends(model, input_ids)
    seeds = choose_seeds(seeds, len(input_ids))
    config = model.config
    if start_pictures is not None:
        check_pixels(start_pictures, config.image_size, "start_pictures")
        if len(start_pictures) != len(input_ids):
            raise ValueError(f"{len(start_pictures)} start_pictures for {len(input_ids)} prompts; give one for each")
    start = 0.0 if start_pictures is None else START_TIME if start_time is None else start_time
    schedule = euler_schedule(num_steps, time_shift, start, config.extra_euler_step)
    shape = (config.vae_config.patched_channels, config.latent_size, config.latent_size)
    x = noise_of(seeds, shape).to(model.device, torch.promote_types(model.dtype, torch.float32))
    if start_pictures is not None:
        clean = model.vision_tokenizer.encode(start_pictures).to(x.dtype)
        x = path(x, clean, torch.full((len(x),), start, device=x.device))
    if pixel_values is not None:
        image_tokens = model.get_image_tokens(pixel_values)
    prompt = Prompt(model, input_ids, attention_mask, image_tokens, guidance_scale)
    drawn = euler(x, prompt.velocity, *schedule, on_step)
    check_finite(drawn.isfinite().all())
    return drawn
