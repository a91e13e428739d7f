"""CheersProcessor: conversations and pictures to inputs of CHEERS."""

import torch
from torch.nn import functional as F
from transformers import BatchFeature

from unimllm.processing import ConversationProcessor
from unimllm.vocabulary import CHEERS_TOKENS


class CheersProcessor(ConversationProcessor):
    """See `ConversationProcessor`; the prompt without its text the model makes itself, of `<no_mean>`.

    Args:
        stand_in_picture: quirk of the released processor: before every prompt to draw from stands a picture of random
            pixels, to be read. Here it is the same one each time, so a drawing depends on its prompt and seed alone.
    """

    image_tokens = CHEERS_TOKENS

    def __init__(
        self, image_processor=None, tokenizer=None, num_positions: int = 64, chat_template=None,
        stand_in_picture: bool = False, **kwargs,
    ):  # fmt: skip
        super().__init__(image_processor, tokenizer, num_positions, chat_template, **kwargs)
        self.stand_in_picture = stand_in_picture

    def for_drawing(self, prompts: list[str]) -> BatchFeature:
        """As the base's; with `stand_in_picture` N positions longer, and `pixel_values` (B, 3, S, S) for them."""
        if not self.stand_in_picture:
            return super().for_drawing(prompts)
        stand_in = [self.conversation.ids["image"]] * self.num_positions
        inputs = self._pad_left([stand_in + self.conversation.drawing_prompt(prompt) for prompt in prompts])
        picture = random_picture(self.image_processor.crop_size["height"])
        return BatchFeature(inputs | {"pixel_values": picture.expand(len(prompts), -1, -1, -1)})


def random_picture(size: int) -> torch.Tensor:
    """(1, 3, S, S) in -1..1: uniform noise at half the size (the released processor's, of 256 pixels), made larger."""
    noise = torch.rand(1, 3, size // 2, size // 2, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size, mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
