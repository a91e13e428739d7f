"""Pictures to `pixel_values` and back. Runs on Pillow and numpy alone."""

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from semhitok.configuration_semhitok import SemHiTokConfig
from semhitok.images import as_seen, check_size

GREY = (127, 127, 127)


class SemHiTokImageProcessor(PilBackend):
    """Crops the centre square at the tokenizer's size as training does (`adm_center_crop`), and scales RGB to -1..1.

    With `pad_to_square` nothing is cut off: the shorter sides are filled with grey first, as LLaVA-1.5 shows pictures.
    With `fit_on_black` neither: see `fit_on_black` below.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"shortest_edge": 256}
    crop_size = {"height": 256, "width": 256}
    default_to_square = False
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    pad_to_square = False
    fit_on_black = False

    @property
    def image_size(self) -> int:
        """Pixels along the side of what comes out."""
        return self.crop_size["height"]

    def convert_to_rgb(self, image: Image.Image | np.ndarray, **kwargs) -> np.ndarray:
        """Pictures of Pillow's as a person would see them (`as_seen`); transformers would clip 16 bits to white."""
        if isinstance(image, Image.Image):
            check_size(image.size, "the picture")
            return np.asarray(as_seen(image))
        return super().convert_to_rgb(image, **kwargs)

    def resize(self, image: np.ndarray, size, resample=None, **kwargs) -> np.ndarray:
        """(3, H, W) uint8 with its shorter side at `size.shortest_edge`, see `adm_resize`; the rest as transformers."""
        if image.dtype != np.uint8 or not size.shortest_edge:
            return super().resize(image, size, resample, **kwargs)
        picture = Image.fromarray(image.transpose(1, 2, 0))
        if self.fit_on_black:
            return np.asarray(fit_on_black(picture, size.shortest_edge, resample)).transpose(2, 0, 1)
        if self.pad_to_square:
            picture = pad_square(picture)
        return np.asarray(adm_resize(picture, size.shortest_edge, resample)).transpose(2, 0, 1)

    def post_process_images(self, pixel_values: torch.Tensor) -> list[Image.Image]:
        """(B, 3, S, S) in -1..1 -> B pictures (values outside are clamped)."""
        pixels = to_uint8(pixel_values)
        return [Image.fromarray(picture) for picture in pixels]


def for_size(image_size: int, resample: int = PILImageResampling.BICUBIC) -> SemHiTokImageProcessor:
    """The processor of a tokenizer that reads `image_size` x `image_size` pictures (resample: Pillow's number)."""
    return SemHiTokImageProcessor(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        resample=PILImageResampling(resample),
    )


def for_tokenizer(config: SemHiTokConfig, pad_to_square: bool = False) -> SemHiTokImageProcessor:
    """The processor to save beside a tokenizer: its SigLIP's size and interpolation."""
    processor = for_size(config.image_size, config.resample)
    processor.pad_to_square = pad_to_square
    return processor


def pad_square(image: Image.Image) -> Image.Image:
    """An RGB picture in the middle of the smallest square that holds it, on the grey that is 0 in `pixel_values`."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def fit_on_black(image: Image.Image, size: int, resample: int) -> Image.Image:
    """An RGB picture scaled at once so that its longer side is `size`, in the middle of a black square.

    So the released CHEERS (arXiv 2603.12793) reads pictures.
    """
    scale = min(size / image.height, size / image.width)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (size, size))
    square.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return square


def adm_center_crop(image: Image.Image, size: int, resample: int = PILImageResampling.BICUBIC) -> Image.Image:
    """The centre square of a picture at `size` x `size`, as ADM crops ImageNet (arXiv 2105.05233, `center_crop_arr`).

    rFID of other tokenizers is measured on pictures cropped so (bicubic); training and the image processor crop alike.

    Args:
        image: RGB.
        resample: interpolation of `adm_resize`, by Pillow's number.
    """
    image = adm_resize(image, size, resample)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def adm_resize(image: Image.Image, size: int, resample: int) -> Image.Image:
    """A picture with its shorter side at `size`: halved by box averages while that is twice as long, then scaled."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), resample)


def to_pixel_values(pictures: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32 in -1..1."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(pixel_values: torch.Tensor) -> np.ndarray:
    """(B, 3, S, S) in -1..1 -> (B, S, S, 3) uint8 RGB, the inverse of `to_pixel_values`."""
    pixels = (pixel_values.detach().float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
