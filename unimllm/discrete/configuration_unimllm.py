"""Configuration of the discrete family: a language model, an image tokenizer, and how codes enter and leave."""

from transformers import AutoConfig, PreTrainedConfig, Qwen2Config

from semhitok import SemHiTokConfig
from semhitok.configuration_semhitok import without_places

IMAGE_HEADS = ("flat", "factorised")


class UniMLLMConfig(PreTrainedConfig):
    """A causal language model whose vocabulary goes on with the K * m ids of an image tokenizer.

    Args:
        text_config: any config that AutoModelForCausalLM builds (or its dict with "model_type"); its vocab_size is the
            number of text ids, special tokens included; image ids follow.
        image_tokenizer_config: a SemHiTokConfig, or one of semhitok/shared_index.py, or the dict of either (without
            "model_type": of the first).
        image_head: "flat": K * m rows appended to the vocabulary, as the paper does; "factorised": p(semantic), then
            p(pixel | semantic) at the same position (our departure; same ids).
        head_dim: factorised head: channels in which pixel candidates are scored.
        image_start_token_id, image_end_token_id: around every picture.
        image_token_id: the placeholder that `forward` replaces with the codes of `pixel_values`.
    """

    model_type = "unimllm"
    sub_configs = {"text_config": AutoConfig, "image_tokenizer_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict | None = None,
        image_tokenizer_config: SemHiTokConfig | dict | None = None,
        image_head: str = "flat",
        head_dim: int = 64,
        image_start_token_id: int = 4,
        image_end_token_id: int = 5,
        image_token_id: int = 6,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if text_config is None:
            text_config = Qwen2Config()
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if not isinstance(image_tokenizer_config, SemHiTokConfig):
            values = {"model_type": SemHiTokConfig.model_type} | (image_tokenizer_config or {})
            image_tokenizer_config = AutoConfig.for_model(**values)
        if image_head not in IMAGE_HEADS:
            raise ValueError(f"image_head is {image_head!r}; choose one of {', '.join(IMAGE_HEADS)}")
        self.text_config = text_config
        self.image_tokenizer_config = image_tokenizer_config
        self.image_head = image_head
        self.head_dim = head_dim
        self.image_start_token_id = image_start_token_id
        self.image_end_token_id = image_end_token_id
        self.image_token_id = image_token_id
        self.initializer_range = initializer_range
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def to_dict(self) -> dict:
        """As transformers', but for where its parts were loaded from: places on one machine."""
        return without_places(super().to_dict())

    @property
    def image_size(self) -> int:
        """Pixels along the side of a picture."""
        return self.image_tokenizer_config.image_size

    @property
    def num_positions(self) -> int:
        """N, positions of a picture."""
        return self.image_tokenizer_config.num_positions

    @property
    def image_offset(self) -> int:
        """The first image id: every id below is text."""
        return self.text_config.vocab_size

    @property
    def picture_token_ids(self) -> list[int]:
        """Around and in the place of pictures: what no answer in words holds."""
        return [self.image_start_token_id, self.image_end_token_id, self.image_token_id]

    @property
    def vocab_size(self) -> int:
        """Text ids and image ids together."""
        return self.image_offset + self.image_tokenizer_config.num_codes


def tiny_config(**changes) -> UniMLLMConfig:
    """A model of a few thousand parameters for tests: hidden 16, one layer, 4 positions a picture."""
    from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer

    text = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    sizes = {"image_head": "factorised", "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1}
    return UniMLLMConfig(text_config=text, image_tokenizer_config=tiny_tokenizer(), **(sizes | changes))
