"""The frozen networks through which pictures are compared: the Inception of FID, any SigLIP, LPIPS.

A name belongs to its weights. "FID" is the Frechet distance in the TensorFlow Inception of 2015 and in no other
network; in a SigLIP it is "FD(...)" with the network named. "LPIPS" is a distance in torchvision's VGG-16 or AlexNet.
So weights are known by their checksum, and others are refused.

Both libraries import torchvision. Of torch-fidelity only the one module is loaded that holds the Inception and does
without it; lpips needs a torchvision that works, and is imported only when it is asked for.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import nn

from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import square_size
from semhitok.fingerprint import weights_digest
from semhitok.image_processing_semhitok import to_pixel_values
from semhitok.lpips_weights import checksum, load_lpips
from semhitok.teacher import Teacher
from unimllm.errors import UserError

INCEPTION = "6726825d"  # sha256 of the TF-2015 Inception as torch-fidelity and pytorch-fid publish it begins so


@dataclass(frozen=True)
class FeatureNet:
    """A network that describes pictures.

    Args:
        name: of the network; "" for the one that FID is named after.
        library: where it comes from and how pictures enter it, for the report.
        extract: (n, H, W, 3) uint8 RGB -> (n, D) float32.
    """

    name: str
    library: str
    extract: Callable[[np.ndarray], np.ndarray]

    @property
    def frechet_name(self) -> str:
        """What a Frechet distance in these features may be called."""
        return f"FD({self.name})" if self.name else "FID"

    @property
    def kid_name(self) -> str:
        """What a kernel distance in these features may be called."""
        return f"KD({self.name})" if self.name else "KID"


# ---- Inception -----------------------------------------------------------------------------------------------------


def inception_net(weights: Path, device: torch.device) -> FeatureNet:
    """The TensorFlow Inception of 2015, 2,048 features of its last pooling, resized to 299 pixels as TensorFlow 1 did.

    Args:
        weights: weights-inception-2015-12-05-6726825d.pth (torch-fidelity) or pt_inception-... (pytorch-fid).

    Raises:
        UserError: other weights, or torch-fidelity is not installed.
    """
    if checksum(weights) != INCEPTION:
        raise UserError(
            f"{weights} is not the Inception of FID: its sha256 begins with {checksum(weights)}, not {INCEPTION}; get "
            "weights-inception-2015-12-05-6726825d.pth (torch-fidelity) or leave --inception-weights out and read FD"
        )
    # Its own loading unpickles whatever the file holds; what this one accepts is weights alone.
    torch.load(weights, map_location="cpu", weights_only=True)
    network = import_inception()("inception", ["2048"], feature_extractor_weights_path=str(weights)).to(device)

    @torch.inference_mode()
    def extract(pictures: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device)  # (n, 3, H, W) uint8
        return network(pixels)[0].cpu().numpy()

    return FeatureNet("", f"torch-fidelity {_version('torch-fidelity')}, TF-2015 Inception {INCEPTION}", extract)


def import_inception() -> type[nn.Module]:
    """torch-fidelity's Inception without the rest of that package, which would import torchvision.

    Raises:
        UserError: it is not installed.
    """
    package = "torch_fidelity"
    spec = find_spec(package)
    if spec is None:
        raise UserError("FID needs torch-fidelity: pip install --no-deps torch-fidelity")
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    if not before:  # a bare package in its place: its __init__, which imports everything, does not run
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = list(spec.submodule_search_locations)
    try:
        return importlib.import_module(f"{package}.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package and name not in before]:
            del sys.modules[name]


# ---- SigLIP --------------------------------------------------------------------------------------------------------


def tokenizer_net(tokenizer: SemHiTokModel) -> FeatureNet:
    """The SigLIP inside a tokenizer: mean over positions of its last hidden state."""

    @torch.inference_mode()
    def extract(pictures: np.ndarray) -> np.ndarray:
        features = tokenizer.vision_features(to_pixel_values(pictures).to(tokenizer.device))  # (n, N, D)
        return features.float().mean(1).cpu().numpy()

    told = siglip_told(tokenizer.vision_model)
    return FeatureNet("own SigLIP", f"{told}; for tokenizers over one SigLIP only", extract)


def siglip_net(name: str, teacher: Teacher, device: torch.device) -> FeatureNet:
    """Any SigLIP: mean over positions of its last hidden state, pictures prepared as it was trained.

    Args:
        name: of the network, for the report.
        teacher: from `semhitok.teacher.load_teacher`; its size, interpolation, mean and standard deviation hold.
    """
    side = square_size(teacher.vision_model.config)
    vision_model = teacher.vision_model.float().eval().to(device)
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (teacher.image_mean, teacher.image_std))

    @torch.inference_mode()
    def extract(pictures: np.ndarray) -> np.ndarray:
        resized = [Image.fromarray(picture).resize((side, side), teacher.resample) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))  # (n, S, S, 3) uint8
        pixel_values = (pixels.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std  # (n, 3, S, S)
        return vision_model(pixel_values).last_hidden_state.mean(1).cpu().numpy()  # (n, N, D) -> (n, D)

    return FeatureNet(name, f"{siglip_told(vision_model)} at {side} pixels", extract)


def siglip_told(vision_model: nn.Module) -> str:
    """A SigLIP for the report, with digits by which one of other weights is known behind the same name."""
    digits = weights_digest(vision_model.state_dict())
    return f"transformers {_version('transformers')}, SigLIP {digits}, mean of patch features"


# ---- LPIPS ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairDistance:
    """LPIPS over one backbone: `distance` takes two (n, H, W, 3) uint8 RGB and gives (n,) float64."""

    backbone: str
    library: str
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]


def lpips_distance(weights: Path, device: torch.device) -> PairDistance:
    """LPIPS over the backbone in a file; see `semhitok.lpips_weights.load_lpips`."""
    network, backbone = load_lpips(weights)
    network.to(device)

    @torch.inference_mode()
    def distance(pictures: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
        first, second = (to_pixel_values(p).to(device) for p in (pictures, reconstructions))  # (n, 3, H, W) in -1..1
        return network(first, second).float().flatten().cpu().double().numpy()  # mps has no float64

    return PairDistance(backbone, f"lpips {_version('lpips')}", distance)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path without having been installed
        return "?"
