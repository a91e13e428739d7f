"""What quantising costs understanding, on pictures of your own: zero-shot classification through SigLIP's text tower.

    python eval/zero_shot.py --model runs/semhitok_256/pixel --teacher google/siglip-large-patch16-256 \\
        --data imagenet/val --classes names.json

--data holds one folder of pictures for each class, called like the class unless --classes, a JSON object of folder and
name, says otherwise. A picture is what its features, pooled by SigLIP's head, lie nearest to: the text "This is a photo
of NAME." (--template), of all classes. Once these are SigLIP's own features, once those that the semantic decoder makes
of the picture's codes. --teacher is the SigLIP or SigLIP 2 (transformers) that the tokenizer was trained over, with its
text tower. Intervals: 95 %, bootstrap over pictures, the same for both.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.errors import first_line
from semhitok.image_processing_semhitok import to_pixel_values
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.command_line import CommandLine, check_given, number, out_of_memory_told, run, silence_libraries
from unimllm.data.sequential import FolderPictures, cropped_batches
from unimllm.errors import UserError
from unimllm.image_tokenizer import open_measured
from unimllm.images import check_writable
from unimllm.json_rows import read_text
from unimllm.metrics.intervals import bootstrap_mean
from unimllm.report import as_range, describe_run, describe_start, model_told, open_table, print_table, write_json

TEMPLATE = "This is a photo of {}."
INPUTS = {"continuous": "SigLIP's features", "quantised": "features from codes"}
TOP = 5


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/zero_shot.py", __doc__)
    parser.add_argument("--model", type=Path, help="folder of a tokenizer or of a model")
    parser.add_argument("--teacher", help="folder or hub id of its SigLIP, the whole of it")
    parser.add_argument("--data", type=Path, help="a folder with one folder of pictures for each class")
    parser.add_argument("--classes", type=Path, help="JSON object: folder -> name of the class (default: the folder's)")
    parser.add_argument(
        "--template", action="append", help=f"text with {{}} for the name ({TEMPLATE!r}); the mean of several"
    )
    parser.add_argument("--limit", type=number(int, 1), help="the first so many pictures of each class")
    parser.add_argument("--batch-size", type=number(int, 1), default=64)
    parser.add_device_option()
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    check_given(args, model="the tokenizer's folder", teacher="its SigLIP", data="a folder of folders of pictures")
    args.template = args.template or [TEMPLATE]
    for template in args.template:
        if template.count("{}") != 1:
            raise UserError(f"--template {template!r}: it needs one {{}} for the name of the class")
    return args


def main(argv: list[str] | None = None) -> None:
    args, start = parse_args(argv), describe_start(__file__, argv)
    if args.json:
        check_writable(args.json)
    silence_libraries()
    classes = find_classes(args.data, args.classes)
    _, tokenizer, weights = open_measured(args.model, args.device, load_tokenizer)
    siglip, text_tokenizer = load_siglip(args.teacher, tokenizer)
    texts = text_embeddings(siglip, text_tokenizer, list(classes.values()), args.template)
    right: dict[str, list[np.ndarray]] = {f"{name}_top{k}": [] for name in INPUTS for k in (1, TOP)}
    skipped: dict[str, str] = {}
    with out_of_memory_told(args.batch_size):
        for label, pictures in labelled_batches(args, tokenizer, list(classes), skipped):
            for name, pooled in pooled_features(tokenizer, siglip, pictures).items():
                nearest = (pooled @ texts.T).topk(min(TOP, len(texts))).indices.cpu().numpy()
                right[f"{name}_top1"].append(nearest[:, 0] == label)
                right[f"{name}_top{TOP}"].append((nearest == label).any(1))
    for key, reason in skipped.items():
        print(f"skipped: {key}: {reason}", file=sys.stderr)
    if not right["continuous_top1"]:
        raise UserError(f"none of the {len(skipped)} pictures in --data {args.data} can be read")
    results = summarize({name: np.concatenate(parts).astype(float) for name, parts in right.items()})
    results |= {"num_classes": len(classes), "templates": args.template, "teacher": args.teacher, "skipped": skipped}
    results |= {"data": str(args.data), "limit": args.limit} | model_told(tokenizer)
    results |= describe_run(
        start, model=str(args.model), fingerprint=weights, fingerprint_of="weights", seed=0,
        num_samples={"pictures": results["num_pictures"]}, limited=args.limit is not None or bool(skipped),
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results), 110)


def find_classes(data: Path, names: Path | None) -> dict[str, str]:
    """Folder -> name of every class, in the order of the folders.

    Raises:
        UserError: fewer than two folders, or names that do not fit them.
    """
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; it holds one folder of pictures for each class")
    folders = sorted(path.name for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(f"--data {data} holds {len(folders)} folders; it needs one for each class, two or more")
    if names is None:
        return {folder: folder.replace("_", " ") for folder in folders}
    try:
        told = json.loads(read_text(names))
    except ValueError as error:
        raise UserError(f"--classes {names} is no JSON: {error}") from error
    if not isinstance(told, dict) or not all(isinstance(name, str) and name.strip() for name in told.values()):
        raise UserError(f'--classes {names}: expected an object such as {{"n01440764": "tench"}}')
    missing = [folder for folder in folders if folder not in told]
    if missing:
        raise UserError(f"--classes {names} names no {missing[0]!r}, which is a folder of {data} ({len(missing)} such)")
    return {folder: told[folder] for folder in folders}


def load_siglip(teacher: str, tokenizer: SemHiTokModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The whole SigLIP on the image tokenizer's device, float32, and its text tokenizer.

    Raises:
        UserError: it is none with a text tower, or not the one that the tokenizer reads through.
    """
    try:
        own = {"trust_remote_code": False}  # else transformers asks on stdin whether to run a folder's code
        (siglip, report), texts = AutoModel.from_pretrained(teacher, dtype=torch.float32, **own, **LOADING), None
        if hasattr(siglip, "text_model"):
            texts = AutoTokenizer.from_pretrained(teacher, **own)
    except (OSError, ValueError) as error:
        raise UserError(f"--teacher {teacher}: {first_line(error)}") from error
    if told := misfit_of_report(report, is_whole=False):
        raise UserError(f"--teacher {teacher}: the checkpoint {told}")
    if not hasattr(siglip, "text_model") or getattr(getattr(siglip, "vision_model", None), "head", None) is None:
        raise UserError(f"--teacher {teacher} is a {type(siglip).__name__}; name a whole SigLIP, with its text tower")
    own, theirs = (model.vision_model.post_layernorm for model in (tokenizer, siglip))
    if own.weight.shape != theirs.weight.shape or not torch.equal(own.weight.cpu().float(), theirs.weight):
        raise UserError(f"--teacher {teacher} is not the SigLIP of this tokenizer: their last norms differ")
    return siglip.eval().to(tokenizer.device), texts


@torch.inference_mode()
def text_embeddings(
    siglip: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: list[str], templates: list[str]
) -> torch.Tensor:
    """(C, D) of length 1: the mean over templates of the embeddings of each class."""
    length = siglip.config.text_config.max_position_embeddings
    total = torch.zeros(())
    for template in templates:
        texts = [template.format(name).lower() for name in names]  # as SigLIP's own preprocessing
        inputs = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids = inputs["input_ids"].to(siglip.device)
        parts = [siglip.text_model(input_ids=part).pooler_output for part in ids.split(256)]
        total = total.to(siglip.device) + F.normalize(torch.cat(parts), dim=-1)
    return F.normalize(total, dim=-1)


def labelled_batches(
    args: argparse.Namespace, tokenizer: SemHiTokModel, folders: list[str], skipped: dict[str, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the class, pictures (n, S, S, 3) uint8 cropped as everywhere); what cannot be read goes to `skipped`.

    Raises:
        UserError: a class has no picture.
    """
    for label, folder in enumerate(tqdm(folders, desc="classes", unit="class")):
        source = FolderPictures(args.data / folder)
        config = tokenizer.config
        for _, pictures in cropped_batches(source, config.image_size, args.batch_size, args.limit, config.resample):
            yield label, pictures
        skipped |= {f"{folder}/{key}": reason for key, reason in source.skipped.items()}


@torch.inference_mode()
def pooled_features(tokenizer: SemHiTokModel, siglip: PreTrainedModel, pictures: np.ndarray) -> dict[str, torch.Tensor]:
    """Of INPUTS: (n, D) of length 1."""
    pixel_values = to_pixel_values(pictures).to(tokenizer.device)
    vectors = tokenizer.code_vectors(tokenizer.encode(pixel_values))
    features = {
        "continuous": tokenizer.vision_features(pixel_values),
        "quantised": tokenizer.restore_features(*vectors),
    }
    return {name: F.normalize(siglip.vision_model.head(x.float()), dim=-1) for name, x in features.items()}


def summarize(right: dict[str, np.ndarray]) -> dict:
    """Shares named right, and what quantising costs of them, with intervals.

    Args:
        right: "continuous_top1", "quantised_top5", ... -> (n,) of 0 and 1.
    """
    values = dict(right)
    for k in (1, TOP):
        values[f"cost_top{k}"] = right[f"continuous_top{k}"] - right[f"quantised_top{k}"]
    results: dict = {name: float(each.mean()) for name, each in values.items()}
    results["intervals"] = {name: bootstrap_mean(each) for name, each in values.items()}
    return results | {"num_pictures": len(right["continuous_top1"])}


def make_table(results: dict) -> Table:
    """The table for people."""
    title = (
        f"Zero-shot: {results['num_pictures']:,} pictures of {results['data']}, {results['num_classes']:,} classes, "
        f"{len(results['templates'])} template(s)"
    )
    table = open_table(title, (results["model"], "share right", "95 %"))
    for k in (1, TOP) if results["num_classes"] > TOP else (1,):
        for name, what in (INPUTS | {"cost": "what quantising costs"}).items():
            key = f"{name}_top{k}"
            table.add_row(f"{what}, top {k}", f"{results[key]:.4f}", as_range(results["intervals"][key], 4))
    return table


if __name__ == "__main__":
    run(main)
