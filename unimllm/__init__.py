"""unimllm: one language model that reads pictures and draws them.

from unimllm import load, draw, answer
model, processor = load()                                  # the small model that ships inside
picture = draw(model, processor, ["a photo of a red apple"])[0]
print(answer(model, processor, picture, "What is in the picture?"))
"""

import os

# Idle OpenMP threads sleep instead of spinning: on busy cores a step is several times faster. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import semhitok  # noqa: E402, F401  (registers its Auto classes)
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor  # noqa: E402

from unimllm.discrete.configuration_unimllm import UniMLLMConfig  # noqa: E402
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration  # noqa: E402
from unimllm.inference import answer, draw, load  # noqa: E402
from unimllm.processing_unimllm import UniMLLMProcessor  # noqa: E402

AutoConfig.register("unimllm", UniMLLMConfig, exist_ok=True)
AutoModel.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(UniMLLMConfig, UniMLLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(UniMLLMConfig, UniMLLMProcessor, exist_ok=True)

__all__ = ["UniMLLMConfig", "UniMLLMForConditionalGeneration", "UniMLLMProcessor", "answer", "draw", "load"]
__version__ = "0.1.0"
