"""A conversation as token ids that fit a row, N placeholders for each picture."""

import re
from bisect import bisect_right

from unimllm.conversation import ConversationTokenizer, Tokenized
from unimllm.data.samples import BadSample

BYTE = re.compile("<0x[0-9A-F]{2}>")


class SampleTokenizer:
    """Tokenizes conversations; those that are too long lose whole turns at their end.

    Args:
        conversation: renders them.
        max_length: ids that a sample may have.
        context: ids that the model can hold, where that may be fewer.
    """

    def __init__(self, conversation: ConversationTokenizer, max_length: int, context: int | None = None):
        self.conversation, self.max_length = conversation, min(max_length, context or max_length)
        self.limit = "fit (--max_length)" if self.max_length == max_length else "fit into the model's context"
        self.marks = marks_of(conversation.tokenizer)
        self.has_system = conversation.has_system

    def __call__(self, messages: list[dict]) -> tuple[Tokenized, list[dict]]:
        """Ids and targets, and the messages that they stand for: all, or as many as fit.

        Raises:
            BadSample: not even the first question and answer fit, or a text holds one of the tokenizer's own marks.
        """
        self._check(messages)
        tokenized = self.conversation(messages)
        if len(tokenized) <= self.max_length:
            return tokenized, messages
        first = 3 if messages[0]["role"] == "system" else 2  # messages that must fit: a question and its answer
        ends = range(first, len(messages), 2)
        fitting = bisect_right(ends, self.max_length, key=lambda end: len(self.conversation(messages[:end])))
        if not fitting:
            length = len(self.conversation(messages[:first]))
            raise BadSample("too long", f"{length:,} ids in its first turns, {self.max_length:,} {self.limit}")
        kept = messages[: ends[fitting - 1]]
        return self.conversation(kept), kept

    def usable(self, variants: list[list[dict]]) -> tuple[list[tuple[Tokenized, list[dict]]], list[BadSample]]:
        """As a call has them, those of a sample's variants that can be used, and what is wrong with the others.

        Raises:
            BadSample: none can be used; of the first.
        """
        usable, refused = [], []
        for messages in variants:
            try:
                usable.append(self(messages))
            except BadSample as error:
                refused.append(error)
        if not usable:
            raise refused[0]
        return usable, refused

    def _check(self, messages: list[dict]) -> None:
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        for mark in self.marks:
            if any(mark in text for text in texts):
                raise BadSample("a mark of the model", f"a text holds {mark}, which the model uses for itself")
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise BadSample("no Unicode", str(error)) from error
        if messages[0]["role"] == "system" and not self.has_system:
            raise BadSample("a system turn", "the text tokenizer's chat template has no place for it")


def marks_of(tokenizer) -> list[str]:
    """Texts that a tokenizer takes for its control tokens, sorted.

    Some are special among the added tokens of tokenizer.json alone. Bytes, `<0x0A>`, are none though a conversion from
    sentencepiece may flag them, and neither are blanks.
    """
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks = {*added, *filter(None, tokenizer.all_special_tokens)}
    return sorted(mark for mark in marks if mark.strip() and not BYTE.fullmatch(mark))
