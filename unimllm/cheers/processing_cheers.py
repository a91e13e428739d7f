"""CheersProcessor: conversations and pictures to inputs of CHEERS."""

import copy
from functools import cache

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from unimllm.processing import ConversationProcessor, image_parts
from unimllm.vocabulary import CHEERS_TOKENS, IGNORE


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

    @property
    def drawn_image_processor(self):
        """The released code shrinks what is read onto black, and crops what is drawn."""
        if not self.image_processor.fit_on_black:
            return self.image_processor
        cropping = copy.deepcopy(self.image_processor)
        cropping.fit_on_black = False
        return cropping

    def for_training(self, conversations: list[list[dict]] | list[dict]) -> BatchFeature:
        """As the base's, but pictures are no targets of the text: one to draw has placeholders of its own instead."""
        data = super().for_training(conversations)
        ids = self.conversation.ids
        marked = mark_drawn(data["input_ids"], data["labels"], ids["image"], ids["image_gen"], ids["image_end"])
        return BatchFeature(data | marked)

    def before(self, messages: list[dict]) -> tuple[list[int], list[Image.Image]]:
        if not self.stand_in_picture or image_parts(messages):
            return [], []
        picture = random_picture(self.image_processor.image_size)
        return [self.conversation.ids["image"]] * self.num_positions, [picture]


def mark_drawn(
    input_ids: torch.Tensor, labels: torch.Tensor, image: int, image_gen: int, image_end: int
) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels`, (B, T) both, as the model takes them.

    A picture that is a target is one to draw, and has other placeholders than one to read. Neither is a text target,
    nor is what ends a picture: it always follows.

    Args:
        image, image_gen, image_end: ids of those tokens.
    """
    is_picture = input_ids == image
    drawn = is_picture & (labels == image)
    return {
        "input_ids": input_ids.masked_fill(drawn, image_gen),
        "labels": labels.masked_fill(is_picture | (labels == image_end), IGNORE),
    }


@cache
def random_picture(size: int) -> Image.Image:
    """S x S pixels: uniform noise at half the size (the released processor's, of 256 pixels), made larger."""
    noise = np.random.default_rng(0).integers(0, 256, (size // 2, size // 2, 3), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
