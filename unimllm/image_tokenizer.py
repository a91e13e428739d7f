"""The image tokenizers of both families behind one function: what `encode`s pictures and `decode`s them again."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from semhitok.auto import tokenizer_class
from semhitok.checkpoints import find_tokenizer, load_whole, resolve
from semhitok.image_processing_semhitok import SemHiTokImageProcessor
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import CheersConfig, CheersVaeConfig
from unimllm.errors import UserError
from unimllm.fingerprint import weights_fingerprint
from unimllm.inference import folder_of

AUTOENCODERS = (CheersVaeConfig.model_type, CheersConfig.model_type)


def image_tokenizer_class(path: str) -> type[PreTrainedModel]:
    """Which image tokenizer a checkpoint holds: its own, or that of the model that it holds."""
    stored, _ = PreTrainedConfig.get_config_dict(path)
    return CheersVae if stored.get("model_type") in AUTOENCODERS else tokenizer_class(path)


def load_image_tokenizer(
    model: str, device: str | None = None, option: str = "--model"
) -> tuple[PreTrainedModel, SemHiTokImageProcessor]:
    """An image tokenizer of any family and its image processor; see `semhitok.checkpoints.load_tokenizer`.

    Both have `encode`, (B, 3, S, S) pictures in -1..1 to codes (B, N, 2) int64 or to latents (B, C, h, h), and `decode`
    back to pictures; `config.image_size` and `config.num_positions`.
    """
    return load_whole(image_tokenizer_class, find_tokenizer(model, option), device)


def open_measured(
    model: Path | None, device: str | None, load: Callable = load_image_tokenizer
) -> tuple[Path, PreTrainedModel, str | None]:
    """What a program of eval/ measures.

    Args:
        model: a folder, or None for the model that ships.
        load: `load_image_tokenizer`, or `load_tokenizer` where it has to have codes.

    Returns:
        (the checkpoint, its image tokenizer, the fingerprint of its weights: a run that goes on may write others).
    """
    folder = resolve(folder_of(model))
    tokenizer, _ = load(str(folder), device)
    return folder, tokenizer, weights_fingerprint(folder)


def load_autoencoder(model: str, option: str) -> CheersVae:
    """That of CHEERS alone, on the CPU; see `load_image_tokenizer`.

    Raises:
        UserError: also where the checkpoint holds something else.
    """

    def find_class(path: str) -> type[CheersVae]:
        kind = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
        if kind not in AUTOENCODERS:
            raise UserError(f"{option} {path} holds a {kind}; CHEERS draws in the latents of a cheers_vae")
        return CheersVae

    return load_whole(find_class, find_tokenizer(model, option), "cpu")[0]
