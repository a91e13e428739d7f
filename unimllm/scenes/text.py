"""The text tokenizer of the scenes: byte-level BPE trained on their own language, so any text encodes."""

from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unimllm.scenes.language import KINDS, ask, caption
from unimllm.scenes.program import World
from unimllm.vocabulary import IMAGE_TOKENS, TEXT_TOKENS

VOCAB_SIZE = 1024
NUM_SENTENCES = 12_000

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|user|>' if message['role'] == 'user' else '<|assistant|>' }}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sentences(world: World, seed: int = 0, count: int = NUM_SENTENCES):
    """Captions, questions and answers of training scenes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        scene = world.sample(rng)
        yield caption(scene, rng)
        for question in ask(scene, world, rng, KINDS[number % len(KINDS)]):
            yield question.text
            yield question.answer


def build_text_tokenizer(world: World, image_tokens: dict[str, str] = IMAGE_TOKENS) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the scenes is one token; the same world gives the same tokenizer."""
    return train_text_tokenizer(sentences(world), image_tokens=image_tokens)


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int = VOCAB_SIZE, image_tokens: dict[str, str] = IMAGE_TOKENS
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `texts`, with the special tokens and the chat template; fewer merges where texts are few.

    Args:
        image_tokens: role -> token of a family, see `vocabulary`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*TEXT_TOKENS.values(), *image_tokens.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=TEXT_TOKENS["pad"],
        eos_token=TEXT_TOKENS["end"],
        extra_special_tokens=[TEXT_TOKENS["user"], TEXT_TOKENS["assistant"], *image_tokens.values()],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def encode_padded(tokenizer, texts: list[str], max_length: int) -> torch.Tensor:
    """(len(texts), max_length) int64; SigLIP's text tower reads the last position, so padding goes left.

    Raises:
        ValueError: a text is longer than max_length.
    """
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    if (length := len(rows[longest])) > max_length:
        raise ValueError(f"a text has {length} tokens, the text tower holds {max_length}: {texts[longest]!r}")
    pad = tokenizer.pad_token_id
    return torch.tensor([[pad] * (max_length - len(row)) + row for row in rows])
