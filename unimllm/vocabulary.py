"""The joint vocabulary: text ids | special ids among them | the block of image ids behind them.

0 .. text_vocab_size-1                                   text and special tokens
text_vocab_size .. text_vocab_size + K*m - 1             image ids, `offset + semantic * m + pixel`
"""

IMAGE_TOKENS = {"image_start": "<|image_start|>", "image_end": "<|image_end|>", "image": "<image>"}
"""Role -> token that every text tokenizer gains; `<image>` stands for a picture in rendered text."""

SPECIAL_TOKENS = {"pad": "<|pad|>", "end": "<|end|>", "user": "<|user|>", "assistant": "<|assistant|>"} | IMAGE_TOKENS
"""The same with those of the text tokenizer of the scenes (ids 0 to 6 of it)."""

IGNORE = -100
"""Label of positions without a target (torch's cross_entropy ignores it by default)."""
