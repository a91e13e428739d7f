"""CheersProcessor: conversations and pictures to inputs of CHEERS."""

from functools import cache

import numpy as np
from PIL import Image
from transformers import BatchFeature

from unimllm.processing import ConversationProcessor, image_parts
from unimllm.vocabulary import CHEERS_TOKENS


class CheersProcessor(ConversationProcessor):
    """See `ConversationProcessor`; the prompt without its text the model makes itself, of `<no_mean>`.

    Args:
        stand_in_picture: quirk of the released processor: before every prompt to draw from, and every conversation
            without a picture, stands one of random pixels, to be read. Here it is the same one each time, so a drawing
            depends on its prompt and seed alone.
    """

    image_tokens = CHEERS_TOKENS

    def __init__(
        self, image_processor=None, tokenizer=None, num_positions: int = 64, chat_template=None,
        stand_in_picture: bool = False, **kwargs,
    ):  # fmt: skip
        super().__init__(image_processor, tokenizer, num_positions, chat_template, **kwargs)
        self.stand_in_picture = stand_in_picture

    def for_drawing(self, prompts: list[str], pictures: list[Image.Image] | None = None) -> BatchFeature:
        """As the base's; with `stand_in_picture` N positions longer, and `pixel_values` (B, 3, S, S) for them.

        Args:
            pictures: one for each prompt, to begin from: it stands ahead of the prompt in the user's turn, and is in
                `pixel_values` and in `start_pictures`, both (B, 3, S, S).
        """
        if pictures is not None:
            inputs = self._pad_left([self.conversation.drawing_prompt(prompt, images=1) for prompt in prompts])
            pixel_values = self.preprocess_images(pictures)
            return BatchFeature(inputs | {"pixel_values": pixel_values, "start_pictures": pixel_values})
        if not self.stand_in_picture:
            return super().for_drawing(prompts)
        ids, pictures = self.before([])
        inputs = self._pad_left([ids + self.conversation.drawing_prompt(prompt) for prompt in prompts])
        picture = self.preprocess_images(pictures)  # once for all prompts
        return BatchFeature(inputs | {"pixel_values": picture.expand(len(prompts), -1, -1, -1)})

    def before(self, messages: list[dict]) -> tuple[list[int], list[Image.Image]]:
        if not self.stand_in_picture or image_parts(messages):
            return [], []
        picture = random_picture(self.image_processor.image_size)
        return [self.conversation.ids["image"]] * self.num_positions, [picture]


@cache
def random_picture(size: int) -> Image.Image:
    """S x S pixels: uniform noise at half the size (the released processor's, of 256 pixels), made larger."""
    noise = np.random.default_rng(0).integers(0, 256, (size // 2, size // 2, 3), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
