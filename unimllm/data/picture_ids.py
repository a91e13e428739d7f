"""From a picture of a sample to its place in a row: ids looked up in shards of codes, or pixels to be encoded later.

Siblings with the same verbs: `check` says what keeps a picture from being had, `load` gets it, `place` puts what was
loaded into a batch.
"""

import io
from pathlib import Path

import numpy as np
import torch

from semhitok.shards import CodeLayout, CodeShards
from unimllm.data.samples import Picture
from unimllm.images import UnreadablePicture, decode_picture


class StoredCodes:
    """Codes that `python -m semhitok encode` or `python -m unimllm.encode` wrote; no pixel is touched.

    Args:
        folder: of the shards.
        layout: of the image tokenizer that the model holds.
        image_offset: the first image id.

    Raises:
        UserError: no shards there, or another tokenizer's.
    """

    def __init__(self, folder: Path, layout: CodeLayout, image_offset: int):
        self.shards, self.image_offset = CodeShards(folder, layout), image_offset
        self.name = f"codes {folder.resolve()} {len(self.shards)}"
        self.first_key = self.shards.key(0).decode("utf-8", "surrogateescape")
        self.shards.row(self.first_key)  # makes the index before workers are forked: they share it

    def check(self, picture: Picture) -> str | None:
        try:
            self.shards.row(picture.key)
        except KeyError:
            return "no codes"
        return None

    def load(self, picture: Picture, is_drawn: bool = False) -> np.ndarray:
        """(N,) int64 ids, whether it is read or drawn; UnreadablePicture if the shards hold none."""
        try:
            codes = self.shards[picture.key]
        except KeyError:
            reason = f"the shards have no key {picture.key!r}; their first is {self.first_key!r}"
            raise UnreadablePicture("no codes", reason) from None
        return self.image_offset + codes[:, 0] * self.shards.layout.num_pixel_codes + codes[:, 1]

    def place(self, batch: dict, loaded: list[np.ndarray], placeholder: int) -> None:
        """See `place_ids`."""
        place_ids(batch, loaded, placeholder)


class OnlinePixels:
    """Pixels for the image tokenizer inside the training process.

    Args:
        processor: a SemHiTokImageProcessor, the one that `encode` uses too.
        of_drawn: another for pictures that are drawn; None: the same.
    """

    name = "files"

    def __init__(self, processor, of_drawn=None):
        self.processor, self.of_drawn = processor, of_drawn or processor

    def check(self, picture: Picture) -> str | None:
        return None if picture.is_there() else "missing picture"

    def load(self, picture: Picture, is_drawn: bool = False) -> torch.Tensor:
        """(3, S, S) float32 in -1..1; UnreadablePicture if it cannot be read."""
        image = decode_picture(io.BytesIO(picture.read()), picture.key)
        return (self.of_drawn if is_drawn else self.processor)(image, return_tensors="pt")["pixel_values"][0]

    def place(self, batch: dict, loaded: list[torch.Tensor], placeholder: int) -> None:
        """See `place_pixels`."""
        place_pixels(batch, loaded)


def place_ids(batch: dict, loaded: list[np.ndarray], placeholder: int) -> None:
    """Put the ids of pictures, (N,) each, where the batch has placeholders, in reading order, targets included."""
    if not loaded:
        return
    places = batch["input_ids"] == placeholder
    ids = torch.from_numpy(np.concatenate(loaded))
    batch["labels"][places] = torch.where(batch["labels"][places] == placeholder, ids, batch["labels"][places])
    batch["input_ids"][places] = ids


def place_pixels(batch: dict, loaded: list[torch.Tensor]) -> None:
    """Add `pixel_values` (pictures, 3, S, S) of pictures (3, S, S) in reading order; the training task encodes them."""
    if loaded:
        batch["pixel_values"] = torch.stack(loaded)
