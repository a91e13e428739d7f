"""The training stages of SemHiTok as modules: each wraps the model, trains one part of it and returns its losses.

SemanticStage   SigLIP features through the semantic codebook and back; then frozen for good
PixelStage      pixel encoder, sub-codebooks and decoder under the frozen semantic branch
DecoderStage    the pixel decoder alone, every code frozen: same ids, better pictures
"""

import torch
from torch import nn
from torch.nn import functional as F

from semhitok.losses import PerceptualLoss, edge_loss, feature_distillation
from semhitok.modeling_semhitok import SemHiTokModel


def freeze(module: nn.Module) -> None:
    """No gradients, and evaluation mode."""
    module.requires_grad_(False)
    module.eval()


class SemanticStage(nn.Module):
    """Stage 1: loss = (1 - cosine) + L1 to SigLIP's features + beta * commitment."""

    def __init__(self, model: SemHiTokModel):
        super().__init__()
        self.model = model
        freeze(model)
        model.semantic.requires_grad_(True)

    def train(self, mode: bool = True) -> "SemanticStage":
        self.model.eval()
        self.model.semantic.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        branch = self.model.semantic
        with torch.no_grad():
            features = self.model.vision_features(pixel_values)
        quantized, index, commit = branch.codebook(branch.encode(features))
        cosine, l1 = feature_distillation(branch.decoder(quantized), features)
        return {
            "loss": cosine + l1 + self.model.config.commitment_weight * commit,
            "cosine": cosine,
            "l1": l1,
            "commit": commit,
            "codes_used": torch.bincount(index.flatten(), minlength=self.model.config.num_semantic_codes).gt(0).sum(),
        }

    @torch.no_grad()
    def initialize_codebook(self, pixel_values: torch.Tensor) -> None:
        """Start the codebook at the k-means of these pictures' vectors, and quantise from now on."""
        vectors = self.model.semantic.encode(self.model.vision_features(pixel_values))
        self.model.semantic.codebook.initialize(vectors.flatten(0, 1))


class PixelLosses(nn.Module):
    """Reconstruction losses shared by the pixel and the decoder stage: L1, L2, edges, and SigLIP's features."""

    def __init__(self, model: SemHiTokModel, l2: float, edges: float, perceptual: float):
        super().__init__()
        self.weights = {"l1": 1.0, "l2": l2, "edges": edges, "perceptual": perceptual}
        layers = model.config.vision_config.num_hidden_layers
        self.perceptual = PerceptualLoss(model.vision_outputs, tuple(sorted({layers // 2, layers})))

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = predicted.float()
        losses = {
            "l1": F.l1_loss(predicted, target),
            "l2": F.mse_loss(predicted, target),
            "edges": edge_loss(predicted, target),
        }
        if self.weights["perceptual"]:
            losses["perceptual"] = self.perceptual(predicted, target)
        losses["loss"] = sum(self.weights[name] * value for name, value in losses.items())
        losses["psnr"] = -10 * (losses["l2"].detach() / 4).log10()  # pixel range 2, so MSE / 4 on 0..1
        return losses


class PixelStage(nn.Module):
    """Stage 2: the pixel branch under the frozen semantic branch (arXiv 2503.06764, phased training).

    Args:
        model: its semantic branch is trained already.
        l2, edges, perceptual: weights beside L1's 1.
    """

    def __init__(self, model: SemHiTokModel, l2: float = 1.0, edges: float = 1.0, perceptual: float = 0.0):
        super().__init__()
        self.model = model
        freeze(model)
        model.pixel.requires_grad_(True)
        self.losses = PixelLosses(model, l2, edges, perceptual)

    def train(self, mode: bool = True) -> "PixelStage":
        self.model.eval()
        self.model.pixel.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.model
        with torch.no_grad():
            semantic = model.semantic.codebook(model.semantic.encode(model.vision_features(pixel_values)))[1]
            semantic_vectors = model.semantic.codebook.codes[semantic]
        vectors = model.pixel.encode(pixel_values)
        quantized, index, codebook_loss, commit = model.pixel.codebook(vectors, semantic)
        losses = self.losses(model.pixel.decode(semantic_vectors, quantized), pixel_values)
        weighted = codebook_loss + model.config.pixel_commitment_weight * commit
        losses["loss"] = losses["loss"] + weighted
        ids = semantic * model.config.num_pixel_codes + index
        return losses | {"commit": commit, "codes_used": torch.bincount(ids.flatten()).gt(0).sum()}

    @torch.no_grad()
    def initialize_codebook(self, pixel_values: torch.Tensor) -> None:
        """Start the sub-codebooks at the k-means of these pictures' vectors, and quantise from now on."""
        self.model.pixel.codebook.initialize(self.model.pixel.encode(pixel_values).flatten(0, 1))


class DecoderStage(nn.Module):
    """Stage 3, optional: only the pixel decoder trains, on codes that no longer move."""

    def __init__(self, model: SemHiTokModel, l2: float = 1.0, edges: float = 1.0, perceptual: float = 0.0):
        super().__init__()
        self.model = model
        freeze(model)
        model.pixel.decoder.requires_grad_(True)
        self.losses = PixelLosses(model, l2, edges, perceptual)

    def train(self, mode: bool = True) -> "DecoderStage":
        self.model.eval()
        self.model.pixel.decoder.train(mode)
        return self

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            vectors = self.model.code_vectors(self.model.encode(pixel_values))
        return self.losses(self.model.pixel.decode(*vectors), pixel_values)
