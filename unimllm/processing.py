"""What the processors of both families are: conversations and pictures to model inputs, what was drawn to pictures."""

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from unimllm.conversation import ConversationTokenizer
from unimllm.vocabulary import IMAGE_TOKENS


class ConversationProcessor(ProcessorMixin):
    """A text tokenizer with a chat template and an image processor, saved together.

    A family names its own `image_tokens`.

    Args:
        image_processor: a SemHiTokImageProcessor.
        tokenizer: a text tokenizer that `ConversationTokenizer` can use.
        num_positions: N, positions of a picture.
    """

    image_tokens = IMAGE_TOKENS

    def __init__(self, image_processor=None, tokenizer=None, num_positions: int = 64, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.num_positions = num_positions
        self.conversation = ConversationTokenizer(tokenizer, num_positions, self.image_tokens)

    def to_dict(self) -> dict:
        values = super().to_dict()
        values.pop("conversation", None)
        return values

    def __call__(self, conversations: list[list[dict]], **kwargs) -> BatchFeature:
        """Conversations that the assistant shall continue.

        Args:
            conversations: messages whose parts are {"type": "text", "text": str} or {"type": "image", "image": PIL}; in
                place of all pictures there may be what the model's `get_image_tokens` made of each.

        Returns:
            `input_ids` and `attention_mask` (B, T), padded on the left; if there are pictures, in reading order,
            `pixel_values` (pictures, 3, S, S) in -1..1, or `image_tokens` (pictures, ...).
        """
        data = self._pad_left([self.conversation.prompt(messages) for messages in conversations])
        images = [part["image"] for image_part in conversations for part in _image_parts(image_part)]
        if images and all(isinstance(image, torch.Tensor) for image in images):
            data["image_tokens"] = torch.stack(images)
        elif images:
            data["pixel_values"] = self.preprocess_images(images)
        return BatchFeature(data)

    def preprocess_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Pictures -> (pictures, 3, S, S) float32 in -1..1."""
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    def for_drawing(self, prompts: list[str]) -> BatchFeature:
        """Inputs of `generate(generation_mode="image")`: one row per prompt, padded on the left."""
        return BatchFeature(self._pad_left([self.conversation.drawing_prompt(prompt) for prompt in prompts]))

    def post_process_images(self, pixel_values: torch.Tensor) -> list[Image.Image]:
        """(B, 3, S, S) in -1..1 -> pictures."""
        return self.image_processor.post_process_images(pixel_values)

    def _pad_left(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        return {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }


def _image_parts(messages: list[dict]) -> list[dict]:
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
    return [p for p in parts if p["type"] == "image"]
