"""The joint vocabulary: text ids | special ids among them | the block of image ids behind them.

0 .. text_vocab_size-1                                   text and special tokens
text_vocab_size .. text_vocab_size + K*m - 1             image ids, `offset + semantic * m + pixel`
"""

IMAGE_TOKENS = {"image_start": "<|image_start|>", "image_end": "<|image_end|>", "image": "<image>"}
"""Role -> token that every text tokenizer gains; `<image>` stands for a picture in rendered text."""

CHEERS_TOKENS = {
    "image": IMAGE_TOKENS["image"], "image_gen": "<image_gen>", "image_start": "<im_start>", "image_end": "<im_end>",
    "no_text": "<no_mean>",
}  # fmt: skip
"""The same for CHEERS, in the order in which the released model has them behind Qwen's tokens."""

TEXT_TOKENS = {"pad": "<|pad|>", "end": "<|end|>", "user": "<|user|>", "assistant": "<|assistant|>"}
"""Of the text tokenizer of the scenes, ids 0 to 3; a family's image tokens follow."""

IGNORE = -100
"""Label of positions without a target (torch's cross_entropy ignores it by default)."""


def add_tokens(tokenizer, image_tokens: dict[str, str]) -> list[int]:
    """Give a tokenizer those of a family's tokens that it lacks, behind its own and in their order; their ids."""
    known = tokenizer.get_vocab()
    tokens = {"extra_special_tokens": list(image_tokens.values())}
    tokenizer.add_special_tokens(tokens, replace_extra_special_tokens=False)
    return [tokenizer.convert_tokens_to_ids(token) for token in image_tokens.values() if token not in known]
