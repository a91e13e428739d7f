"""The classes that transformers' Auto classes shall know; importing this registers them."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from semhitok.configuration_semhitok import SemHiTokConfig
from semhitok.image_processing_semhitok import SemHiTokImageProcessor
from semhitok.modeling_semhitok import SemHiTokModel

AutoConfig.register("semhitok", SemHiTokConfig, exist_ok=True)
AutoModel.register(SemHiTokConfig, SemHiTokModel, exist_ok=True)
AutoImageProcessor.register(SemHiTokConfig, slow_image_processor_class=SemHiTokImageProcessor, exist_ok=True)

__all__ = ["SemHiTokConfig", "SemHiTokImageProcessor", "SemHiTokModel"]
