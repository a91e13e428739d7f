"""What the processors of both families are: conversations and pictures to model inputs, what was drawn to pictures."""

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from unimllm.conversation import ConversationTokenizer
from unimllm.errors import UserError
from unimllm.images import open_picture
from unimllm.vocabulary import IGNORE, IMAGE_TOKENS

TAKEN = {
    "return_tensors": ("pt",), "padding": (True, "longest"), "continue_final_message": (False,),
    "processor_kwargs": ({},),
}  # fmt: skip
"""What transformers' processors can be told, its pipelines tell them, and ours do anyway."""


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
        tokenizer.padding_side = "left"  # for who pads by it, as transformers' pipelines do: rows are gone on with
        self.num_positions = num_positions
        self.conversation = ConversationTokenizer(tokenizer, num_positions, self.image_tokens)

    def to_dict(self) -> dict:
        values = super().to_dict()
        values.pop("conversation", None)
        return values

    def __call__(self, conversations: list[list[dict]] | list[dict] | None = None, **options) -> BatchFeature:
        """Conversations that the assistant shall continue; one alone is a batch of one.

        Args:
            conversations: messages whose parts are {"type": "text", "text": str}, {"type": "image", "image": PIL} or
                {"type": "image", "path": FILE}; in place of all pictures there may be what the model's
                `get_image_tokens` made of each.
            options: see TAKEN.

        Returns:
            `input_ids` and `attention_mask` (B, T), padded on the left; if there are pictures, in reading order,
            `pixel_values` (pictures, 3, S, S) in -1..1, or `image_tokens` (pictures, ...).

        Raises:
            UserError: no conversation, or another option.
        """
        return self.apply_chat_template(conversations, add_generation_prompt=True, tokenize=True, **options)

    def apply_chat_template(
        self,
        conversation: list[list[dict]] | list[dict] | None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        **options,
    ) -> str | list[str] | BatchFeature | torch.Tensor:
        """As the model reads it: text with one `<image>` for each picture, or what `__call__` returns of it.

        Args:
            conversation: one, or a list of them, which gives a list of texts.
            add_generation_prompt: up to where the assistant begins to speak.
            tokenize: inputs of the model instead of text.
            return_dict: False gives the `input_ids` of these alone.
            options: see TAKEN.

        Raises:
            UserError: no conversation, or another option.
        """
        _check_options(options)
        conversations, is_single = _batch(conversation)
        if not tokenize:
            texts = [self.conversation.text(messages, add_generation_prompt) for messages in conversations]
            return texts[0] if is_single else texts
        before = [self.before(messages) for messages in conversations]
        asked = [self.conversation.prompt(messages, add_generation_prompt) for messages in conversations]
        data = self._pad_left([first + ids for (first, _), ids in zip(before, asked, strict=True)])
        images = [
            image
            for (_, first), messages in zip(before, conversations, strict=True)
            for image in [*first, *map(picture_of, image_parts(messages))]
        ]
        if images and all(isinstance(image, torch.Tensor) for image in images):
            data["image_tokens"] = torch.stack(images)
        elif images:
            data["pixel_values"] = self.preprocess_images(images)
        return BatchFeature(data) if return_dict else data["input_ids"]

    def before(self, messages: list[dict]) -> tuple[list[int], list[Image.Image]]:
        """What stands before a conversation, of which `ConversationTokenizer` knows nothing: ids and their pictures."""
        return [], []

    def prompt_length(self, messages: list[dict]) -> int:
        """How many ids `__call__` makes of a conversation."""
        return len(self.before(messages)[0]) + len(self.conversation.prompt(messages))

    def preprocess_images(self, images: list[Image.Image]) -> torch.Tensor:
        """Pictures -> (pictures, 3, S, S) float32 in -1..1."""
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    @property
    def drawn_image_processor(self):
        """What prepares a picture that is drawn, for training."""
        return self.image_processor

    def for_training(self, conversations: list[list[dict]] | list[dict]) -> BatchFeature:
        """Whole conversations to learn from, as `forward` takes them; one alone is a batch of one.

        What the assistant says is learnt, its pictures and the token that ends its turn included, as the programs of
        train/ have it; they also leave the prompts of some drawings out (`text_drop`), which is up to you here.

        Args:
            conversations: as `__call__` takes them, pictures as such or by path.

        Returns:
            `input_ids`, `labels` and `attention_mask` (B, T), padded on the right; labels are -100 where there is no
            target, and placeholders where a picture is one. If there are pictures, in reading order, `pixel_values`
            (pictures, 3, S, S) in -1..1.

        Raises:
            UserError: no conversation, one without an answer, a picture that is missing, or a text with a mark of one.
        """
        conversations, _ = _batch(conversations)
        rows = [self.conversation(messages) for messages in conversations]
        images = [picture_of(part) for messages in conversations for part in image_parts(messages)]
        drawn = [is_drawn for row in rows for is_drawn in self.conversation.drawn(row)]
        if len(drawn) != len(images):
            mark = self.image_tokens["image"]
            raise UserError(
                f"a text holds {mark}, which stands for a picture: give the picture itself, as a part of type image"
            )
        empty = next((number for number, row in enumerate(rows, 1) if not any(row.is_target[1:])), None)
        if empty:
            raise UserError(f"conversation {empty} of {len(rows)} has nothing to learn: no message of the assistant")
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        data = {
            "input_ids": [row.input_ids + [pad] * (longest - len(row)) for row in rows],
            "labels": [row.labels + [IGNORE] * (longest - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
        }
        data = {name: torch.tensor(values) for name, values in data.items()}
        if images:
            to_read, to_draw = self.image_processor, self.drawn_image_processor
            processors = [to_draw if is_drawn else to_read for is_drawn in drawn]
            made = [of(image, return_tensors="pt") for of, image in zip(processors, images, strict=True)]
            data["pixel_values"] = torch.cat([pixels["pixel_values"] for pixels in made])
        return BatchFeature(data)

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


def image_parts(messages: list[dict]) -> list[dict]:
    parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
    return [p for p in parts if p["type"] == "image"]


def picture_of(part: dict) -> Image.Image | np.ndarray | torch.Tensor:
    """The picture of an image part, read where it is named by a path.

    Raises:
        UserError: none, a URL, or what is no picture; a file that cannot be read.
    """
    image = part.get("image")
    if image is None and part.get("path"):
        return open_picture(part["path"])
    if image is None and part.get("url"):
        raise UserError(f"pictures are not fetched, {part['url']} is a URL: download it and give its path")
    if not isinstance(image, (Image.Image, np.ndarray, torch.Tensor)):  # transformers would fetch a text
        what = "missing" if image is None else f"given as {type(image).__name__}"
        raise UserError(
            f'a picture is {what}: its part is {{"type": "image", "image": a PIL picture}} or '
            '{"type": "image", "path": a file}'
        )
    return image


def _batch(conversations: list[list[dict]] | list[dict] | None) -> tuple[list[list[dict]], bool]:
    """Conversations, and whether it was one alone; UserError for what is none."""
    if not isinstance(conversations, (list, tuple)) or not conversations:
        raise UserError(
            "the processor takes conversations, not text: processor([messages]), with pictures as parts of messages "
            '{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}'
        )
    is_single = isinstance(conversations[0], dict)
    return [conversations] if is_single else conversations, is_single


def _check_options(options: dict) -> None:
    """UserError for an option that would be without effect."""
    if "text" in options or "images" in options:
        _batch(None)
    for name, value in options.items():
        if value is not None and value not in TAKEN.get(name, ()):
            raise UserError(
                f"the processor cannot be told {name}={value!r}: it pads to the longest row, on the left, cuts nothing "
                "off and returns tensors of torch; leave it out"
            )
