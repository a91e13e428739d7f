"""Emoji scenes: a small world whose pictures, captions, questions and answers all follow from exact scene programs.

A :class:`World` samples :class:`Scene` programs, ``render`` draws them, ``language`` speaks about them and ``prompts``
writes them as GenEval prompts. Nothing here knows a model.
"""

from unimllm.scenes.glyphs import FontNotFoundError, GlyphAtlas
from unimllm.scenes.objects import CLASSES_24, COLORS, OBJECTS
from unimllm.scenes.program import Scene, SceneObject, World
from unimllm.scenes.render import Renderer

__all__ = [
    "CLASSES_24", "COLORS", "OBJECTS", "FontNotFoundError", "GlyphAtlas", "Renderer", "Scene", "SceneObject", "World",
]  # fmt: skip
