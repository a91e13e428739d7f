"""The classes that transformers' Auto classes shall know; importing this registers them."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from semhitok.auto import SemHiTokImageProcessor  # (registers its own)
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import CheersConfig, CheersVaeConfig
from unimllm.cheers.modeling_cheers import CheersForConditionalGeneration
from unimllm.cheers.processing_cheers import CheersProcessor
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.discrete.processing_unimllm import UniMLLMProcessor

AutoConfig.register("unimllm", UniMLLMConfig, exist_ok=True)
AutoModel.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(UniMLLMConfig, UniMLLMProcessor, exist_ok=True)
AutoConfig.register("cheers", CheersConfig, exist_ok=True)
AutoConfig.register("cheers_vae", CheersVaeConfig, exist_ok=True)
AutoModel.register(CheersConfig, CheersForConditionalGeneration, exist_ok=True)
AutoModel.register(CheersVaeConfig, CheersVae, exist_ok=True)
AutoImageProcessor.register(CheersVaeConfig, slow_image_processor_class=SemHiTokImageProcessor, exist_ok=True)
AutoModelForImageTextToText.register(CheersConfig, CheersForConditionalGeneration, exist_ok=True)
AutoProcessor.register(CheersConfig, CheersProcessor, exist_ok=True)

__all__ = [
    "CheersConfig",
    "CheersForConditionalGeneration",
    "CheersProcessor",
    "UniMLLMConfig",
    "UniMLLMForConditionalGeneration",
    "UniMLLMProcessor",
]
