"""unimllm: one language model that reads pictures and draws them.

from unimllm import load, draw, answer
model, processor = load()                                  # the small model that ships inside
picture = draw(model, processor, ["a photo of a red apple"])[0]
print(answer(model, processor, picture, "What is in the picture?"))
"""

import os

# Idle OpenMP threads sleep instead of spinning: on busy cores a step is several times faster. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import semhitok

if not semhitok.is_command:
    from unimllm.auto import (
        CheersConfig,
        CheersForConditionalGeneration,
        CheersProcessor,
        UniMLLMConfig,
        UniMLLMForConditionalGeneration,
        UniMLLMProcessor,
    )
    from unimllm.inference import answer, draw, load
# else: `python -m unimllm.generate` is being located, see semhitok/__init__.py; what asks for a name of __all__
# nevertheless gets it.

__all__ = [
    "CheersConfig",
    "CheersForConditionalGeneration",
    "CheersProcessor",
    "UniMLLMConfig",
    "UniMLLMForConditionalGeneration",
    "UniMLLMProcessor",
    "answer",
    "draw",
    "load",
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'unimllm' has no attribute {name!r}")
    from unimllm import auto, inference

    return getattr(auto, name, None) or getattr(inference, name)
