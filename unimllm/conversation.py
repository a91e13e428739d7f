"""The one sample format: messages with text and image parts -> token ids, and which of them are targets.

    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
     {"role": "assistant", "content": [{"type": "text", "text": "a red apple"}]}]

The text tokenizer's own chat template renders the messages; every `<image>` in it becomes
`image_start`, N placeholders, `image_end`. Targets are what the assistant says, pictures and end token included.

A conversation is tokenized as one text, and targets are told by where in it a token lies: pieces tokenized apart would
get other ids from a sentencepiece model, which puts a space before everything that it takes for a beginning.
"""

from dataclasses import dataclass

from semhitok.errors import first_line
from unimllm.errors import UserError
from unimllm.vocabulary import IGNORE, IMAGE_TOKENS


@dataclass(frozen=True)
class Tokenized:
    """One conversation: ids with placeholders where pictures go, and for each id whether it is a target."""

    input_ids: list[int]
    is_target: list[bool]

    @property
    def labels(self) -> list[int]:
        """The ids, IGNORE where there is no target; the first is none, for nothing precedes it."""
        told = zip(self.input_ids, [False, *self.is_target[1:]], strict=True)
        return [token if is_target else IGNORE for token, is_target in told]

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
            parts = [IMAGE_TOKENS["image"] if part["type"] == "image" else part["text"] for part in content]
            content = "".join(parts)
        flat.append({"role": message["role"], "content": content})
    return flat


class ConversationTokenizer:
    """Renders conversations with a text tokenizer's chat template.

    Args:
        tokenizer: a fast transformers tokenizer that has a chat template, an end-of-text token, a padding token and
            `image_tokens`.
        num_positions: N, placeholders per picture.
        image_tokens: role -> token of a family, see `vocabulary`.

    Raises:
        UserError: the tokenizer lacks one of these.
    """

    def __init__(self, tokenizer, num_positions: int, image_tokens: dict[str, str] = IMAGE_TOKENS):
        self.tokenizer = tokenizer
        self.num_positions = num_positions
        self.ids = special_ids(tokenizer, image_tokens)
        self._has_system: dict[str, bool] = {}  # by chat template

    @property
    def has_system(self) -> bool:
        """Whether the chat template knows a system turn: it renders one, and otherwise than a role that nobody has."""
        template = str(self.tokenizer.chat_template)
        if template not in self._has_system:
            self._has_system[template] = self._rendered("system") not in (None, self._rendered("nobody"))
        return self._has_system[template]

    def _rendered(self, role: str) -> str | None:
        messages = [{"role": role, "content": "a"}, {"role": "user", "content": "b"}]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # jinja's own, raised by templates that want user and assistant in turn
            return None

    def __call__(self, messages: list[dict]) -> Tokenized:
        """A whole conversation, for training."""
        flat = flatten_content(messages)
        whole = self._render(flat, False)
        answers = [self._answer(flat, i, whole) for i, message in enumerate(flat) if message["role"] == "assistant"]
        ids, spans = self._encode(whole)
        is_target = [False] * len(ids)
        for first, last in answers:
            is_target = [
                told or (end > first and start < last) for told, (start, end) in zip(is_target, spans, strict=True)
            ]
        return Tokenized(ids, is_target)

    def prompt(self, messages: list[dict], add_generation_prompt: bool = True) -> list[int]:
        """The ids up to where the assistant begins to speak, or of the messages alone."""
        return self._encode(self.text(messages, add_generation_prompt))[0]

    def text(self, messages: list[dict], add_generation_prompt: bool = True) -> str:
        """What `prompt` makes ids of, with one `<image>` for each picture."""
        return self._render(flatten_content(messages), add_generation_prompt)

    def drawing_prompt(self, text: str, images: int = 0) -> list[int]:
        """The ids up to where a picture of `text` begins; an empty text gives the unconditional prompt.

        Args:
            images: pictures ahead of the text, to draw from.
        """
        # Not the prompt and one id more: a tokenizer may put something between the two.
        ids = self([text_message("user", text, images), text_message("assistant", "", images=1)]).input_ids
        return ids[: len(ids) - ids[::-1].index(self.ids["image_start"])]

    def without_text(self, messages: list[dict]) -> Tokenized:
        """A question that asks for a picture, and the picture, as guidance wants it learnt: without the question.

        Where the family has a token for missing text, that stands for everything but the picture and what surrounds it,
        so that what is drawn lies where it would lie behind the text; else the question is empty.
        """
        if "no_text" not in self.ids:
            return self([text_message("user", ""), *messages[1:]])
        whole = self(messages)
        of_pictures = {self.ids[role] for role in ("image", "image_start", "image_end")}
        kept = [token in of_pictures for token in whole.input_ids]
        ids = [token if keep else self.ids["no_text"] for token, keep in zip(whole.input_ids, kept, strict=True)]
        return Tokenized(ids, [target and keep for target, keep in zip(whole.is_target, kept, strict=True)])

    def drawn(self, tokenized: Tokenized) -> list[bool]:
        """Of each picture in a conversation, whether it is drawn: its placeholders are targets."""
        told = zip(tokenized.input_ids, tokenized.is_target, strict=True)
        return [is_target for token, is_target in told if token == self.ids["image"]][:: self.num_positions]

    def _answer(self, flat: list[dict], index: int, whole: str) -> tuple[int, int]:
        """Where in the rendered conversation the answer of message `index` stands, its end token included."""
        before = self._render(flat[:index], True)
        until = whole if index + 1 == len(flat) else self._render(flat[: index + 1], False)
        if not (until.startswith(before) and whole.startswith(until)):
            raise UserError(
                "the text tokenizer's chat template renders the beginning of a conversation otherwise once it goes on, "
                "so it cannot be told which tokens are answers: give --chat-template chatml, where the tokenizer has "
                "<|im_start|> and <|im_end|> as Qwen's have, or a file with another template"
            )
        end = until.rfind(self.tokenizer.eos_token)  # what follows it, a line break say, belongs to the next turn
        return len(before), end + len(self.tokenizer.eos_token) if end >= len(before) else len(until)

    def _render(self, flat: list[dict], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(flat, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a rendered text, and from which to which of its characters each stands for."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token == self.ids["image"]:
                picture = [self.ids["image_start"], *[token] * self.num_positions, self.ids["image_end"]]
                ids += picture
                spans += [span] * len(picture)
            else:
                ids.append(token)
                spans.append(span)
        return ids, spans


def special_ids(tokenizer, image_tokens: dict[str, str] = IMAGE_TOKENS) -> dict[str, int]:
    """Ids of `pad` and `end`, and those of the image tokens by their roles."""
    ids = {role: tokenizer.convert_tokens_to_ids(token) for role, token in image_tokens.items()}
    missing = [image_tokens[role] for role, token in ids.items() if token in (None, tokenizer.unk_token_id)]
    missing += [name for name in ("pad_token", "eos_token", "chat_template") if not getattr(tokenizer, name, None)]
    if missing:
        raise UserError(f"the text tokenizer lacks {', '.join(missing)}; use the one saved with the model")
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand; save the tokenizer as tokenizer.json"
        )
    return {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id} | ids


def end_of_answer(tokenizer) -> str:
    """The special token with which a tokenizer's chat template ends what the assistant says.

    Raises:
        UserError: the template cannot be used, or ends an answer with none.
    """
    answer = "a red apple"
    flat = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": answer}]
    try:
        rendered = tokenizer.apply_chat_template(flat, tokenize=False)
        tokenizer.apply_chat_template(flat[:1], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of jinja
        raise UserError(f"the chat template cannot be used: {first_line(error)}") from error
    rest = rendered.rpartition(answer)[2]
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    marks = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in tokenizer.added_tokens_decoder]
    if answer not in rendered or not marks:
        raise UserError("the chat template ends an answer with no special token, so a model cannot learn to stop")
    return marks[0]
