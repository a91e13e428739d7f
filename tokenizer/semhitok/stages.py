"""The training stages of SemHiTok as modules: each wraps the model, trains one part of it and returns its losses.

SemanticStage   SigLIP features through the semantic codebook and back; then frozen for good
PixelStage      pixel encoder, sub-codebooks and decoder under the frozen semantic branch
DecoderStage    the pixel decoder alone, every code frozen: same ids, better pictures
JointStage      in the place of the first two, for comparison: both branches at once

Those that train codes have

    codebooks()                      the codebooks that they train
    initialize_codebook(batches)     starts these at pictures (B, 3, S, S) in -1..1
    code_ids(pixel_values)           (B, N) int64, the codes that they give pictures
"""

import torch
from torch import nn

from semhitok.losses import ReconstructionLosses, feature_distillation
from semhitok.modeling_semhitok import SemHiTokModel
from semhitok.quantization import EMACodebook, SubCodebooks, in_full_precision

NUM_NEAR = 7  # semantic codes that `confuse` exchanges a code for


def freeze(module: nn.Module) -> None:
    """No gradients, and evaluation mode."""
    module.requires_grad_(False)
    module.eval()


class SemanticStage(nn.Module):
    """Stage 1: loss = (1 - cosine) + L1 to SigLIP's features + beta * commitment.

    Args:
        model: over a trained SigLIP.
        cosine_weight, l1_weight: of the two parts.
    """

    def __init__(self, model: SemHiTokModel, cosine_weight: float = 1.0, l1_weight: float = 1.0):
        super().__init__()
        self.model = model
        self.weights = (cosine_weight, l1_weight)
        freeze(model)
        model.semantic.requires_grad_(True)

    def train(self, mode: bool = True) -> "SemanticStage":
        self.training = mode
        self.model.eval()
        self.model.semantic.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        branch = self.model.semantic
        with torch.no_grad():
            features = self.model.vision_features(pixel_values)
        quantized, index, commit = branch.codebook(branch.encode(features))
        cosine, l1 = feature_distillation(branch.decoder(quantized), features)
        loss = self.weights[0] * cosine + self.weights[1] * l1
        return {
            "loss": loss + self.model.config.commitment_weight * commit,
            "cosine": cosine,
            "l1": l1,
            "commit": commit,
            "codes_used": torch.bincount(index.flatten(), minlength=self.model.config.num_semantic_codes).gt(0).sum(),
        }

    def codebooks(self) -> list[EMACodebook]:
        return [self.model.semantic.codebook]

    def code_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, N) int64 in 0..K-1: the codes of meaning alone."""
        return self.model.semantic_codes(pixel_values)

    @torch.no_grad()
    def initialize_codebook(self, batches: list[torch.Tensor]) -> None:
        """Start the codebook at the k-means of these pictures' vectors, and quantise from now on."""
        vectors = [self.model.semantic.encode(self.model.vision_features(pictures)) for pictures in batches]
        self.model.semantic.codebook.initialize(torch.cat(vectors).flatten(0, 1))


class PixelStage(nn.Module):
    """Stage 2: the pixel branch under the frozen semantic branch (arXiv 2503.06764, phased training).

    Args:
        model: its semantic branch is trained already.
        losses: between the decoder's pictures and the true ones.
        confused_share: share of the pictures whose semantic codes are exchanged for near ones, the same for the same
            within a picture. A composition that training never showed gets a semantic code that is a little wrong, so
            pixel codes and decoder have to learn to go by what they see, not by what usually goes with that code.
        foreign_share: share of the positions that are quantised in the sub-codebook of a random semantic code, so
            that every sub-codebook learns to say, if coarsely, also what its own pictures never showed.

    Both shares are of training mode alone.
    """

    def __init__(
        self, model: SemHiTokModel, losses: ReconstructionLosses, confused_share: float = 0.0,
        foreign_share: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.model = model
        self.confused_share = confused_share
        self.foreign_share = foreign_share
        freeze(model)
        model.pixel.requires_grad_(True)
        self.losses = losses

    def train(self, mode: bool = True) -> "PixelStage":
        self.training = mode
        self.model.eval()
        self.model.pixel.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.model
        with torch.no_grad():
            semantic = model.semantic_codes(pixel_values)
            if self.training:
                semantic = confuse(semantic, model.semantic.codebook.codes, self.confused_share)
            semantic_vectors = model.semantic.codebook.codes[semantic]
        vectors = model.pixel.encode(pixel_values)
        chosen = semantic
        if self.training:
            foreign = torch.rand(semantic.shape, device=semantic.device) < self.foreign_share
            chosen = torch.where(foreign, torch.randint_like(semantic, model.config.num_semantic_codes), semantic)
        quantized, index, codebook_loss, commit = model.pixel.codebook(vectors, chosen)
        predicted = model.pixel.decode(semantic_vectors, quantized)
        losses = self.losses(predicted, pixel_values, model.pixel.decoder.last_weight)
        weighted = codebook_loss + model.config.pixel_commitment_weight * commit
        losses["loss"] = losses["loss"] + weighted
        ids = chosen * model.config.num_pixel_codes + index
        return losses | {"commit": commit, "codes_used": torch.bincount(ids.flatten()).gt(0).sum()}

    def codebooks(self) -> list[SubCodebooks]:
        return [self.model.pixel.codebook]

    def code_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return ids_of(self.model, pixel_values)

    @torch.no_grad()
    def initialize_codebook(self, batches: list[torch.Tensor]) -> None:
        """Start the sub-codebooks at the k-means of these pictures' vectors, and quantise from now on."""
        vectors = [self.model.pixel.encode(pictures) for pictures in batches]
        self.model.pixel.codebook.initialize(torch.cat(vectors).flatten(0, 1))


def ids_of(model: SemHiTokModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(B, N) int64 in 0..K*m-1: the ids that the model gives pictures."""
    return model.codes_to_ids(model.encode(pixel_values))


def confuse(semantic: torch.Tensor, codebook: torch.Tensor, share: float) -> torch.Tensor:
    """Exchange every code of some pictures for its r-th nearest other code, r in 1..NUM_NEAR drawn for each picture.

    Args:
        semantic: (B, N) int64 in 0..K-1.
        codebook: (K, D) l2-normalised; a single code has none to be exchanged for.
        share: of the pictures, 0..1.

    Returns:
        (B, N) int64.
    """
    if not share or len(codebook) == 1:
        return semantic
    with in_full_precision(codebook):
        cosines = codebook @ codebook.T
    near = cosines.topk(min(1 + NUM_NEAR, len(codebook)), -1).indices  # (K, 1 + NUM_NEAR), itself first
    rank = torch.randint(1, near.shape[1], semantic.shape[:1], device=semantic.device)  # (B,)
    rank = torch.where(torch.rand(rank.shape, device=rank.device) < share, rank, 0)
    return near[semantic].gather(-1, rank[:, None, None].expand(-1, semantic.shape[1], 1)).squeeze(-1)


class DecoderStage(nn.Module):
    """Stage 3, optional: only the pixel decoder trains, on codes that no longer move.

    Args:
        model, losses, confused_share: as in `PixelStage`.
    """

    def __init__(self, model: SemHiTokModel, losses: ReconstructionLosses, confused_share: float = 0.0):
        super().__init__()
        self.model = model
        self.confused_share = confused_share
        freeze(model)
        model.pixel.decoder.requires_grad_(True)
        self.losses = losses

    def train(self, mode: bool = True) -> "DecoderStage":
        self.training = mode
        self.model.eval()
        self.model.pixel.decoder.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.model
        with torch.no_grad():
            semantic = model.semantic_codes(pixel_values)
            if self.training:
                semantic = confuse(semantic, model.semantic.codebook.codes, self.confused_share)
            pixel = model.pixel.codebook.search(model.pixel.encode(pixel_values), semantic)
            vectors = model.code_vectors(torch.stack([semantic, pixel], -1))
        return self.losses(model.pixel.decode(*vectors), pixel_values, model.pixel.decoder.last_weight)


class JointStage(nn.Module):
    """Both branches at once, for comparison with the paper's phases, and the one way to train a `SingleCodeModel`.

    The sum of what `SemanticStage` and `PixelStage` minimise. The gradient of the pictures reaches the semantic branch
    through its codes (straight-through); SigLIP stays frozen.

    Args:
        model: untrained but for its SigLIP.
        losses: between the decoder's pictures and the true ones.
        cosine_weight, feature_l1_weight: as in `SemanticStage`; they decide how much meaning weighs beside pictures.
    """

    def __init__(
        self, model: SemHiTokModel, losses: ReconstructionLosses, cosine_weight: float = 1.0,
        feature_l1_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.model = model
        self.weights = (cosine_weight, feature_l1_weight)
        model.requires_grad_(True)
        freeze(model.vision_model)
        self.losses = losses

    def train(self, mode: bool = True) -> "JointStage":
        self.training = mode
        self.model.train(mode)
        self.model.vision_model.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.model
        with torch.no_grad():
            features = model.vision_features(pixel_values)
        quantized = model.quantize(features, pixel_values)
        cosine, feature_l1 = feature_distillation(model.semantic.decoder(quantized.for_features), features)
        predicted = model.decode_vectors(quantized.semantic, quantized.pixel)
        losses = self.losses(predicted, pixel_values, model.pixel.decoder.last_weight)
        meaning = self.weights[0] * cosine + self.weights[1] * feature_l1
        losses["loss"] = losses["loss"] + meaning + quantized.loss
        used = torch.bincount(model.codes_to_ids(quantized.codes).flatten()).gt(0).sum()
        return losses | {"cosine": cosine, "feature_l1": feature_l1, "quantization": quantized.loss, "codes_used": used}

    def codebooks(self) -> list[EMACodebook | SubCodebooks]:
        return [module for module in self.model.modules() if isinstance(module, (EMACodebook, SubCodebooks))]

    def code_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return ids_of(self.model, pixel_values)

    @torch.no_grad()
    def initialize_codebook(self, batches: list[torch.Tensor]) -> None:
        """Start the codebooks at the k-means of these pictures' vectors, and quantise from now on."""
        self.model.initialize_codebooks(batches)
