"""The classes that transformers' Auto classes shall know; importing this registers them."""

from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from semhitok.configuration_semhitok import SemHiTokConfig
from semhitok.errors import UserError
from semhitok.image_processing_semhitok import SemHiTokImageProcessor
from semhitok.modeling_semhitok import SemHiTokModel
from semhitok.shared_index import SharedIndexModel, SharedVectorModel

MODELS = {model.config_class.model_type: model for model in (SemHiTokModel, SharedIndexModel, SharedVectorModel)}

for _name, _model in MODELS.items():
    AutoConfig.register(_name, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoImageProcessor.register(_model.config_class, slow_image_processor_class=SemHiTokImageProcessor, exist_ok=True)


def build_tokenizer(config: SemHiTokConfig) -> SemHiTokModel:
    """The untrained tokenizer of a config."""
    return MODELS[config.model_type](config)


def tokenizer_class(folder: str | Path) -> type[SemHiTokModel]:
    """Which of MODELS a checkpoint holds: a tokenizer's own, or a language model's with one in it.

    Args:
        folder: or hub id.

    Raises:
        UserError: it holds none.
    """
    stored, _ = PreTrainedConfig.get_config_dict(folder)
    kind = stored.get(SemHiTokConfig.base_config_key, stored).get("model_type")
    if kind not in MODELS:
        raise UserError(f"{folder} holds no SemHiTok tokenizer; its model_type is {kind!r}")
    return MODELS[kind]


__all__ = ["MODELS", "SemHiTokConfig", "SemHiTokImageProcessor", "SemHiTokModel", "build_tokenizer", "tokenizer_class"]
