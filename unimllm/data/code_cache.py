"""The code cache of scenes: every picture is tokenised once, and training reads ids instead of pixels.

One file `codes-<fingerprint>.npy`, (pictures, N) uint32 of flat codes, memory-mapped. The fingerprint covers the
tokenizer's weights and the world, so codes of another tokenizer are never mixed in. Encoding can be killed and goes on.
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
from semhitok.image_processing_semhitok import to_pixel_values

from unimllm.scenes.program import World
from unimllm.scenes.render import Renderer
from unimllm.scenes.sources import sample_rng

CHUNK = 256  # pictures encoded at a time
SAVE_EVERY = 8192  # pictures between two notes of progress


def fingerprint(model: SemHiTokModel, world: World, seed: int) -> str:
    """Twelve hex digits that change with the tokenizer's weights or the pictures."""
    digest = hashlib.sha256(json.dumps([world.image_size, list(world.classes), seed]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def build_code_cache(
    model: SemHiTokModel, world: World, renderer: Renderer, seed: int, count: int, folder: Path, autocast: bool
) -> np.ndarray:
    """Codes of the training scenes 0..count-1 of a seed, read from the cache or made now.

    Returns:
        (count, N) uint32 memory map of flat codes `semantic * m + pixel`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"codes-{fingerprint(model, world, seed)}-{count}.npy"
    progress = path.with_suffix(".progress")
    if path.exists() and not progress.exists():
        return np.load(path, mmap_mode="r")
    done = int(progress.read_text()) if path.exists() else 0
    shape = (count, model.config.num_positions)
    codes = np.lib.format.open_memmap(path, "r+" if done else "w+", np.uint32, None if done else shape)
    progress.write_text(str(done))
    model.eval()
    start, first = time.monotonic(), done
    while done < count:
        indices = range(done, min(done + CHUNK, count))
        pictures = renderer.render_batch([world.sample(sample_rng(seed, i)) for i in indices])
        with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            batch = model.codes_to_ids(model.encode(to_pixel_values(pictures).to(model.device)))
        codes[done : indices.stop] = batch.cpu().numpy()
        done = indices.stop
        if done % SAVE_EVERY < CHUNK or done == count:
            codes.flush()
            temporary = progress.with_suffix(".new")
            temporary.write_text(str(done))
            os.replace(temporary, progress)
            speed = (done - first) / (time.monotonic() - start)
            eta = timedelta(seconds=round((count - done) / speed))
            print(f"codes {done}/{count} {speed:.0f} pictures/s eta {eta}", flush=True)
    progress.unlink()
    return np.load(path, mmap_mode="r")
