"""The README.md of a tokenizer that is shared: what it is, how it was trained, what was measured, how to load it.

It has the front matter that the Hugging Face hub reads, and names no folder of the machine that wrote it.
"""

from __future__ import annotations

from pathlib import PurePath, PureWindowsPath
from typing import TYPE_CHECKING

from PIL import Image

from semhitok.fingerprint import fingerprint

if TYPE_CHECKING:
    from semhitok import SemHiTokConfig, SemHiTokImageProcessor, SemHiTokModel

FRONT_MATTER = """---
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- image-tokenizer
- vector-quantization
- {model_type}
---
"""
SCORES = {  # of eval/reconstruction.py: what it is called, digits
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS", 4),
}
LOADING = """It needs the library `semhitok` of the repository unimllm. transformers' Auto classes know it once
`semhitok` has been imported:

```python
import semhitok  # registers the classes
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

tokenizer = AutoModel.from_pretrained("{name}").eval()  # this folder, or its id on the hub
processor = AutoImageProcessor.from_pretrained("{name}")
pictures = [Image.open("picture.png")]
pixel_values = processor(pictures, return_tensors="pt")["pixel_values"]  # (1, 3, {size}, {size}) in -1..1
codes = tokenizer.encode(pixel_values)  # (1, {positions}, 2): semantic and pixel code of each position
picture = processor.post_process_images(tokenizer.decode(codes))[0]
```

Both at once, on a GPU if there is one:

```python
from semhitok.checkpoints import load_tokenizer

tokenizer, processor = load_tokenizer("{name}")
```

and `python -m semhitok encode PICTURES --model {name} --out codes/` from the command line."""


def model_card(name: str, model: SemHiTokModel, processor: SemHiTokImageProcessor, run: dict, results: dict) -> str:
    """The whole card, in Markdown.

    Args:
        name: of the folder.
        run: run.json of the checkpoint; empty: nothing is said of training.
        results: of eval/reconstruction.py; empty: no figures.
    """
    config = model.config
    parts = {
        "What it is": table(facts(model, processor)),
        "How it was trained": table(training(run)),
        "What was measured": "\n\n".join(filter(None, (measured_on(results), table(scores(results))))),
        "How to load it": LOADING.format(name=name, size=config.image_size, positions=config.num_positions),
    }
    about = "An image tokenizer: a picture becomes a row of discrete codes, and codes become a picture."
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in parts.items() if text)
    return f"{FRONT_MATTER.format(model_type=config.model_type)}\n# {name}\n\n{about}\n\n{body}\n"


def table(rows: dict[str, str]) -> str:
    """A table of two columns; nothing where there are no rows."""
    lines = [f"| {title} | {value} |" for title, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines]) if lines else ""


def facts(model: SemHiTokModel, processor: SemHiTokImageProcessor) -> dict[str, str]:
    """Sizes of the tokenizer and of the SigLIP in it."""
    config, vision = model.config, model.config.vision_config
    size, grid = config.image_size, config.grid_size
    by = Image.Resampling(processor.resample).name.lower()
    square = "the whole picture on grey" if processor.pad_to_square else "the centre square"
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {
        "kind": f"{kind_of(config)} (`{config.model_type}`)",
        "pictures": f"{size} x {size} pixels: {square}, scaled by {by}",
        "positions of a picture": f"{config.num_positions:,} ({grid} x {grid} patches of {config.patch_size} pixels)",
        "codes (K x m)": f"{config.num_semantic_codes:,} semantic x {config.num_pixel_codes:,} pixel codes under each: "
        f"{config.num_codes:,} ids",
        "code vectors": f"{config.semantic_dim} semantic and {config.pixel_dim} pixel channels",
        "teacher": f"frozen inside: `{vision.model_type}`, {vision.num_hidden_layers} layers of width "
        f"{vision.hidden_size:,}, patches of {vision.patch_size} pixels",
        "parameters": f"{numbers:,}, the teacher's among them",
        "codes' fingerprint": f"`{fingerprint(model)}` (shards of codes carry it)",
    }


def kind_of(config: SemHiTokConfig) -> str:
    """In words."""
    if config.model_type == "semhitok":
        return "[SemHiTok](https://arxiv.org/abs/2503.06764), a pixel sub-codebook under every semantic code"
    return "one flat codebook, a rival of [SemHiTok](https://arxiv.org/abs/2503.06764)"


def training(run: dict) -> dict[str, str]:
    """What run.json tells of the last stage; nothing of where its data lay."""
    recipe = run.get("recipe") or {}
    options, data = recipe.get("train") or {}, recipe.get("data") or {}
    told = {name: str(run.get(name) or recipe.get(name) or "") for name in ("preset", "stage")}
    if "step" in run:
        told["steps"] = f"{run['step']:,}" + (f" of {options['max_steps']:,}" if "max_steps" in options else "")
    for title, name in (("pictures a step", "batch_size"), ("precision", "precision"), ("seed", "seed")):
        told[title] = str(options.get(name, ""))
    if "pictures" in data:
        told["data"] = f"{data['pictures']:,} pictures, fingerprint `{data.get('fingerprint')}`"
    told["processes"] = str(run.get("world_size", ""))
    told["commit"] = str(run.get("commit") or "")
    return {title: value for title, value in told.items() if value}


def measured_on(results: dict) -> str:
    """A sentence before the figures; nothing where there are none."""
    if not results:
        return ""
    size, count = results.get("resolution"), results.get("num_pictures", 0)
    where = f"`{last_name(str(results.get('data')))}`" + (f", {results['split']} split" if results.get("split") else "")
    commit = f", commit {results['commit']}" if results.get("commit") else ""
    part = " A part of them alone was measured." if results.get("limited") else ""
    return f"On {count:,} pictures of {where}, {size} x {size}, by `{results['program']}`{commit}.{part}"


def last_name(path: str) -> str:
    """`val` of /data/imagenet/val: what may be told of a path."""
    return PureWindowsPath(path).name if "\\" in path else PurePath(path).name


def scores(results: dict) -> dict[str, str]:
    """Reconstruction, distances and code use, with the intervals of 95 % that are there."""
    rows, intervals = {}, results.get("intervals") or {}
    for key, (title, digits) in SCORES.items():
        if results.get(key) is not None:
            backbone = f" ({results['lpips_backbone']})" if key == "lpips" and "lpips_backbone" in results else ""
            low, high = intervals.get(key) or (None, None)
            interval = "" if None in (low, high) else f" ({low:.{digits}f} to {high:.{digits}f})"
            rows[title + backbone] = f"{results[key]:.{digits}f}{interval}"
    for name, values in (results.get("frechet") or {}).items():
        rows[name] = f"{values['distance']:.3f}"
    for key, title in (("semantic_code_use", "semantic codes used"), ("flat_code_use", "all codes used")):
        if key in results:
            rows[title] = f"{100 * results[key]:.1f} %"
    return rows
