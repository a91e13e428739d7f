"""SemHiTok: an image tokenizer with a semantic codebook and, under every semantic code, a small pixel sub-codebook.

from semhitok import SemHiTokModel, SemHiTokImageProcessor
"""

import sys

is_command = sys.argv[:1] == ["-m"] and any(word.partition(".")[0] in ("unimllm", "semhitok") for word in sys.orig_argv)

if not is_command:
    from semhitok.auto import SemHiTokConfig, SemHiTokImageProcessor, SemHiTokModel
# else: `python -m semhitok` is being located (Python's documentation of -m: sys.argv[0] is "-m" meanwhile). A command
# line must tell a misspelt option at once, so it loads torch and transformers only when it needs them; what asks for a
# name of __all__ nevertheless gets it.

__all__ = ["SemHiTokConfig", "SemHiTokImageProcessor", "SemHiTokModel"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'semhitok' has no attribute {name!r}")
    from semhitok import auto

    return getattr(auto, name)
