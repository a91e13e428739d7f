"""The code cache of scenes: every picture is tokenised once, and training reads ids instead of pixels.

One file `codes-<fingerprint>.npy`, (pictures, N) uint32 of flat codes, memory-mapped. The fingerprint covers the
tokenizer's codes and the world, so codes of another tokenizer are never mixed in. Encoding can be killed and goes on.
"""

import hashlib
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from semhitok import SemHiTokModel
from semhitok.fingerprint import fingerprint
from semhitok.image_processing_semhitok import to_pixel_values
from unimllm.distributed import barrier
from unimllm.scenes.program import World
from unimllm.scenes.render import Renderer
from unimllm.scenes.sources import sample_rng

CHUNK = 256  # pictures encoded at a time
SAVE_EVERY = 32  # chunks between two notes of progress


def cache_fingerprint(model: SemHiTokModel, world: World, seed: int, split: str) -> str:
    """Twelve hex digits that change with the tokenizer's codes or the pictures."""
    parts = [fingerprint(model), world.image_size, list(world.classes), seed, "float32"]
    parts += [split] if split != "train" else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def build_code_cache(
    model: SemHiTokModel, world: World, renderer: Renderer, seed: int, count: int, folder: Path,
    rank: int = 0, world_size: int = 1, split: str = "train",
) -> np.ndarray:  # fmt: skip
    """Codes of the scenes 0..count-1 of a seed and a split, read from the cache or made now by all ranks together.

    In full precision, so that they are the codes that a model meets when it is asked about a picture.

    Returns:
        (count, N) uint32 memory map of flat codes `semantic * m + pixel`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"codes-{cache_fingerprint(model, world, seed, split)}-{count}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    partial = path.with_suffix(f".{world_size}.partial")
    if rank == 0 and not partial.exists():
        np.lib.format.open_memmap(partial, "w+", np.uint32, (count, model.config.num_positions)).flush()
    barrier()
    codes = np.lib.format.open_memmap(partial, "r+")
    _encode_share(model.eval(), world, renderer, seed, split, codes, rank, world_size)
    barrier()
    if rank == 0:
        os.replace(partial, path)
        for note in folder.glob(f"{partial.name}.rank*"):
            note.unlink()
    barrier()
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _encode_share(model, world, renderer, seed, split: str, codes: np.ndarray, rank: int, world_size: int) -> None:
    """Fill this rank's chunks of `codes`, noting now and then how far it is."""
    note = Path(f"{codes.filename}.rank{rank}")
    first = done = int(note.read_text(encoding="utf-8")) if note.exists() else 0
    chunks = range(rank, -(-len(codes) // CHUNK), world_size)
    start = time.monotonic()
    for number, chunk in enumerate(chunks):
        if number < done:
            continue
        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(codes)))
        pictures = renderer.render_batch([world.sample(sample_rng(seed, i), split) for i in indices])
        batch = model.codes_to_ids(model.encode(to_pixel_values(pictures).to(model.device)))
        codes[indices.start : indices.stop] = batch.cpu().numpy()
        done = number + 1
        if done % SAVE_EVERY == 0 or done == len(chunks):
            codes.flush()
            temporary = note.with_name(f"{note.name}.new")  # of this rank alone
            temporary.write_text(str(done), encoding="utf-8")
            os.replace(temporary, note)
            speed = (done - first) / (time.monotonic() - start)
            eta = timedelta(seconds=round((len(chunks) - done) / speed))
            if rank == 0:
                print(
                    f"codes {done}/{len(chunks)} chunks {speed * CHUNK * world_size:.0f} pictures/s eta {eta}",
                    flush=True,
                )
