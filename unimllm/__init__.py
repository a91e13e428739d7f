"""unimllm: one language model that reads pictures and draws them.

from unimllm import load, draw, answer
model, processor = load()                                  # the small model that ships inside
picture = draw(model, processor, ["a photo of a red apple"])[0]
print(answer(model, processor, picture, "What is in the picture?"))
"""

import os
import sys

# Idle OpenMP threads sleep instead of spinning: on busy cores a step is several times faster. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_names = ("unimllm", "semhitok")
_is_command = sys.argv[:1] == ["-m"] and any(word.partition(".")[0] in _names for word in sys.orig_argv)

if not _is_command:
    from unimllm.auto import (
        CheersConfig,
        CheersForConditionalGeneration,
        CheersProcessor,
        UniMLLMConfig,
        UniMLLMForConditionalGeneration,
        UniMLLMProcessor,
    )
    from unimllm.inference import answer, draw, load
else:
    import semhitok  # noqa: F401  (now, while it too sees that a command line is being located)
# `python -m unimllm.generate` is being located (Python's documentation of -m: sys.argv[0] is "-m" meanwhile). A
# command line must tell a misspelt option at once, so it loads torch and transformers only when it needs them; what
# asks for a name of __all__ nevertheless gets it.

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
