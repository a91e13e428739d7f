"""What tells one image tokenizer from another: a digest of its weights and of the numbers that codes are made with.

A config whose number of heads or activation was edited by hand is not noticed. How a file becomes pixel_values (crop,
interpolation, the way up) is the image processor's and not part of it.
"""

import hashlib
import json

import numpy as np
import torch

from semhitok.modeling_semhitok import SemHiTokModel
from semhitok.shards import CodeLayout

# The decoders are left out: training them anew (Enhance Decoder) changes no code, so codes made before stay good.
DECODERS = ("semantic.decoder.", "pixel.decoder.")
# Of the config; weights tell the rest.
FIELDS = ("num_semantic_codes", "num_pixel_codes", "image_size", "patch_size", "image_mean", "image_std")
SOME_HAVE = ("semantic_weight",)


def weights_digest(state: dict[str, torch.Tensor], first: bytes = b"") -> str:
    """Twelve hex digits of weights in the order of their names, behind some other bytes.

    The same on any device, and for weights of 16 bits also after they were loaded as float32.
    """
    digest = hashlib.sha256(first)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
    return digest.hexdigest()[:12]


def fingerprint(model: SemHiTokModel) -> str:
    """See `weights_digest`: changes with SigLIP, the encoders, the codebooks, one of FIELDS or of SOME_HAVE."""
    config = model.config
    values = [getattr(config, name) for name in (*FIELDS, *(name for name in SOME_HAVE if hasattr(config, name)))]
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(DECODERS)}
    return weights_digest(state, json.dumps(values).encode())


def code_layout(model: SemHiTokModel, pad_to_square: bool) -> CodeLayout:
    """What a shard says of the tokenizer that made it, and of how its pictures became square."""
    config = model.config
    return CodeLayout(
        fingerprint(model), config.num_semantic_codes, config.num_pixel_codes, config.num_positions, config.image_size,
        pad_to_square,
    )  # fmt: skip
