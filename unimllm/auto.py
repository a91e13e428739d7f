"""The classes that transformers' Auto classes shall know; importing this registers them."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import semhitok.auto  # noqa: F401  (registers its own)
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.processing_unimllm import UniMLLMProcessor

AutoConfig.register("unimllm", UniMLLMConfig, exist_ok=True)
AutoModel.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(UniMLLMConfig, UniMLLMProcessor, exist_ok=True)

__all__ = ["UniMLLMConfig", "UniMLLMForConditionalGeneration", "UniMLLMProcessor"]
