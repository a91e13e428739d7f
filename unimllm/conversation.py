"""The one sample format: messages with text and image parts -> token ids, and which of them are targets.

    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
     {"role": "assistant", "content": [{"type": "text", "text": "a red apple"}]}]

The text tokenizer's own chat template renders the messages; every `<image>` in it becomes
`image_start`, N placeholders, `image_end`. Targets are what the assistant says, pictures and end token included.
"""

from dataclasses import dataclass
from functools import lru_cache

from unimllm.errors import UserError
from unimllm.vocabulary import SPECIAL_TOKENS


@dataclass(frozen=True)
class Tokenized:
    """One conversation: ids with placeholders where pictures go, and for each id whether it is a target."""

    input_ids: list[int]
    is_target: list[bool]

    def __len__(self) -> int:
        return len(self.input_ids)


def text_message(role: str, text: str, images: int = 0) -> dict:
    """A message of some pictures followed by text."""
    parts: list[dict] = [{"type": "image"} for _ in range(images)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}] if text else parts}


def flatten_content(messages: list[dict]) -> list[dict]:
    """Messages whose content is one string with `<image>` for every picture, as text models' chat templates read it."""
    flat = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = [SPECIAL_TOKENS["image"] if part["type"] == "image" else part["text"] for part in content]
            content = "".join(parts)
        flat.append({"role": message["role"], "content": content})
    return flat


class ConversationTokenizer:
    """Renders conversations with a text tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer that has a chat template and the tokens of `vocabulary.SPECIAL_TOKENS`.
        num_positions: N, placeholders per picture.
    """

    def __init__(self, tokenizer, num_positions: int):
        self.tokenizer = tokenizer
        self.num_positions = num_positions
        self.ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
        missing = [SPECIAL_TOKENS[n] for n, i in self.ids.items() if i is None]
        if missing:
            raise UserError(
                f"the text tokenizer lacks the tokens {', '.join(missing)}; use the one saved with the model"
            )
        self._encode = lru_cache(maxsize=200_000)(self._encode_text)

    def __call__(self, messages: list[dict]) -> Tokenized:
        """A whole conversation, for training."""
        flat = flatten_content(messages)
        input_ids: list[int] = []
        is_target: list[bool] = []
        done = ""
        for end, message in enumerate(flat, 1):
            whole = self._render(flat[:end], False)
            if message["role"] == "assistant":
                prompt = self._render(flat[: end - 1], True)
                self._append(prompt[len(done) :], False, input_ids, is_target)
                self._append(whole[len(prompt) :], True, input_ids, is_target)
            else:
                self._append(whole[len(done) :], False, input_ids, is_target)
            done = whole
        return Tokenized(input_ids, is_target)

    def prompt(self, messages: list[dict]) -> list[int]:
        """The ids up to where the assistant begins to speak."""
        return list(self._encode(self._render(flatten_content(messages), True)))

    def drawing_prompt(self, text: str) -> list[int]:
        """The ids up to where a picture of `text` begins; an empty text gives the unconditional prompt."""
        return [*self.prompt([text_message("user", text)]), self.ids["image_start"]]

    def _render(self, flat: list[dict], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _append(self, text: str, target: bool, input_ids: list[int], is_target: list[bool]) -> None:
        ids = self._encode(text)
        input_ids.extend(ids)
        is_target.extend([target] * len(ids))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            if token == self.ids["image"]:
                ids += [self.ids["image_start"], *[token] * self.num_positions, self.ids["image_end"]]
            else:
                ids.append(token)
        return tuple(ids)
