"""What of the result files of eval/*.py is shown, as measures.

Every program writes other JSON; a function here under the program's name tells what of it is shown, in which order.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unimllm.metrics.geneval_records import NUM_PROMPTS, OWN_PROMPTS
from unimllm.metrics.mme import SUFFIX
from unimllm.metrics.pope import OLDER_RANDOM

DEFAULT_READER = "unimllm/default/reader"  # as eval/scenes.py tells it

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        group: what it was measured on; equal only where two models can be compared.
        name: plain, unique in its group.
        value: None where it could not be measured.
        interval: of 95 %.
        num_samples: what it was measured on.
        ceiling: what a perfect model would get.
        digits: after the point.
        top: where its scale ends, which begins at 0; None: with the greatest value.
        main: whether it sums up others.
    """

    group: str
    name: str
    value: float | None
    interval: Interval | None = None
    num_samples: int | None = None
    ceiling: float | None = None
    digits: int = 3
    top: float | None = 1
    main: bool = False

    def __post_init__(self):
        numbers = (self.value, self.ceiling, self.num_samples, *(self.interval or ()))
        most = sys.float_info.max
        wrong = [n for n in numbers if n is not None and (type(n) not in (int, float) or not -math.inf < n <= most)]
        if wrong or (self.interval and len(self.interval) != 2):
            raise ValueError(f"{self.name!r} is {wrong[0] if wrong else self.interval!r}, no number")

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.name

    def shown(self, number: float | None) -> str:
        """A number of this scale for people."""
        return "-" if number is None else f"{number:,.{self.digits}f}"

    def shown_interval(self) -> str:
        """The interval for people, empty where there is none."""
        if self.interval is None or None in self.interval:
            return ""
        return f"{self.shown(self.interval[0])} to {self.shown(self.interval[1])}"


def plain(name: str) -> str:
    """`color_attr` -> `color attr`."""
    return name.replace("_", " ")


def of_codes(r: dict, group: str) -> Iterator[Measure]:
    """Nothing of a tokenizer of latents, without codes."""
    for name in ("semantic", "flat"):
        if f"{name}_code_use" in r:
            yield Measure(group, f"{name} codes used", r[f"{name}_code_use"], num_samples=r["num_pictures"], digits=2)


def told_set(r: dict) -> str:
    """What a result was measured on, as far as measures, drawings and questions of another one are others."""
    if "benchmark" in r:
        return str(r["benchmark"])
    reader = r.get("reader", DEFAULT_READER)  # another has other objects, or pictures of another size
    read_by = "" if reader == DEFAULT_READER else f", reader {reader}"
    return f"Scenes, {r.get('split', 'test')} split, seed {r['seed']}{read_by}"


def told_data(r: dict) -> dict[str, str]:
    """What a result was measured with and on -> its digest; nothing of what earlier versions did not tell.

    The questions and pictures of a part of a set are those of the whole and are not told: the report marks parts.
    """
    told = {"glyphs": r.get("glyphs_digest"), "reader": r.get("reader_fingerprint")}
    if r.get("limit") is None and not r.get("missing") and not r.get("incomplete"):
        told |= {"pictures": r.get("pictures_fingerprint"), "questions": r.get("questions_fingerprint")}
        told |= {f"{name} questions": s.get("questions_fingerprint") for name, s in r.get("splits", {}).items()}
    return {what: str(digest) for what, digest in told.items() if digest}


def of_scenes(r: dict) -> Iterator[Measure]:
    """eval/scenes.py."""
    on, intervals = told_set(r), r["intervals"]
    group, n = f"{on}: reconstruction", r["num_pictures"]
    yield Measure(group, "PSNR, dB", r["psnr"], intervals["psnr"], n, digits=2, top=None)
    yield Measure(group, "SSIM", r["ssim"], intervals["ssim"], n)
    yield Measure(
        group, "objects read from reconstructions / from true renders", r["objects_read"],
        intervals["objects_read"], n,
    )  # fmt: skip
    yield from of_codes(r, group)
    if "pope" in r:
        yield from of_answers(r, f"{on}: understanding")
    if "geneval" in r:
        yield from of_drawings(r, f"{on}: drawing")
    else:  # a tokenizer alone, or a model that was not to draw
        for tag, share in r.get("tokenizer_ceiling", {}).items():
            yield Measure(f"{on}: ceilings of drawing", f"GenEval-style: {plain(tag)}", share, main=tag == "overall")
    for name in ("picture", "picture_batched", "answer"):
        if f"seconds_per_{name}" in r:
            title = f"seconds for one {name.partition('_')[0]}{' of a batch' if 'batched' in name else ''}"
            yield Measure(f"{on}: speed on {told_machine(r)}", title, r[f"seconds_per_{name}"], digits=2, top=None)


def told_machine(r: dict) -> str:
    """What the seconds of a result were measured on."""
    if "gpu" in r:
        return str(r["gpu"])
    threads = f", {r['threads']} thread{'s' * (r['threads'] != 1)}" if "threads" in r else ""
    unknown = "" if "device" in r else ", or a GPU beside it"  # earlier versions did not tell
    return f"{r['processor']}{threads}{unknown}"


def of_answers(r: dict, group: str) -> Iterator[Measure]:
    intervals, n = r["intervals"], r["num_pope_questions"]
    for split in r["pope"]:
        yield Measure(group, f"POPE F1, {split}", r[f"pope_f1_{split}"], intervals[f"pope_f1_{split}"], n)
    yield Measure(group, "POPE F1, mean", r["pope_f1"], intervals.get("pope_f1"), n * len(r["pope"]), main=True)
    tasks = r.get("mme", {})  # earlier versions did not ask them
    for task, entry in tasks.items():
        n, interval = 2 * r["num_mme_pictures"], intervals[f"mme_{task}"]
        yield Measure(group, f"MME {task}, of 200", entry["score"], interval, n, digits=1, top=200)
    if tasks:
        n, top = 2 * len(tasks) * r["num_mme_pictures"], 200 * len(tasks)
        interval = intervals.get("mme_total")
        yield Measure(group, f"MME, of {top}", r["mme_total"], interval, n, digits=1, top=top, main=True)
    counts = r.get("num_questions_by_kind", {})
    for kind, accuracy in r["question_accuracy_by_kind"].items():
        interval = intervals["question_accuracy_by_kind"][kind]
        yield Measure(group, f"questions: {plain(kind)}", accuracy, interval, counts.get(kind))
    n, accuracy = r["num_questions"], r["question_accuracy"]
    yield Measure(group, "questions: all", accuracy, intervals["question_accuracy"], n, main=True)


def of_drawings(r: dict, group: str) -> Iterator[Measure]:
    counts = r.get("num_pictures_by_tag", {})
    if "positions_per_picture" in r:  # earlier versions did not tell
        yield Measure(group, "positions of a picture", r["positions_per_picture"], digits=0, top=None)
    for tag, share in r["geneval"].items():
        n = r["num_prompts"] * r["images_per_prompt"] if tag == "overall" else counts.get(tag)
        yield Measure(
            group, f"GenEval-style: {plain(tag)}", share, r["intervals"]["geneval"][tag], n,
            ceiling=r["tokenizer_ceiling"][tag], main=tag == "overall",
        )  # fmt: skip


def pope_set(r: dict) -> str:
    """The question files without their splits' names, which random file, and what followed each question."""
    sets = sorted({Path(s["file"]).stem.replace(name, "").strip("_-. ") for name, s in r["splits"].items()} - {""})
    suffix = followed_by(r["suffix"]) if r.get("suffix", "").strip() else ""
    older = r["splits"].get("random", {}).get("num_questions") == OLDER_RANDOM
    told = ", ".join(filter(None, (*sets, "older random file" if older else "", suffix)))
    return f"POPE ({told})" if told else "POPE"


def followed_by(suffix: str) -> str:
    """What follows each question in the prompts, as files of one line each hold it."""
    return f"questions followed by {' '.join(suffix.split())!r}"


def of_pope(r: dict) -> Iterator[Measure]:
    """eval/pope.py."""
    on = pope_set(r)
    total = sum(split["num_questions"] for split in r["splits"].values())
    rows = [(name, split, split["num_questions"]) for name, split in r["splits"].items()]
    rows += [("mean", r["mean"], total)] if len(rows) > 1 else []
    for parsing in ("official", "strict"):
        for name, entry, n in rows:
            for score, title in (("accuracy", "accuracy"), ("f1", "F1"), ("yes_ratio", "says yes")):
                interval = r["intervals"][name][parsing][score]
                main = name == "mean" and score != "yes_ratio"
                yield Measure(
                    f"{on}, {parsing} parsing", f"{title}, {name}", entry[parsing][score], interval, n, main=main
                )


def of_mme(r: dict) -> Iterator[Measure]:
    """eval/mme.py."""
    subtasks, suffix = r["subtasks"], r.get("suffix")  # None: earlier versions did not tell, or the questions do not
    on = "MME" if suffix is None or suffix.split() == SUFFIX.split() else f"MME ({followed_by(suffix)})"
    for group, top in (("perception", 2000), ("cognition", 800)):
        title = f"{group}, of {top:,}"
        yield Measure(on, title, r[group], r["intervals"].get(group), digits=1, top=top, main=True)
    for task, entry in subtasks.items():
        n = entry["num_questions"]
        yield Measure(on, f"{plain(task)}, of 200", entry["score"], r["intervals"][task], n, digits=1, top=200)


def of_geneval(r: dict) -> Iterator[Measure]:
    """eval/geneval.py."""
    group, intervals = f"{r['benchmark']}, {r['detector']}" if "detector" in r else str(r["benchmark"]), r["intervals"]
    if r.get("prompts_digest", OWN_PROMPTS) != OWN_PROMPTS and r["num_prompts"] >= NUM_PROMPTS:
        group += f", other prompts ({r['prompts_digest']})"
    for tag, share in r["scores"].items():
        n = r["num_pictures_by_tag"].get(tag, r["num_pictures"])
        yield Measure(group, plain(tag), share, intervals[tag], n, main=tag == "overall")
    for name, title, n in (("correct_pictures", "pictures right", r["num_pictures"]),
                           ("correct_prompts", "prompts with any picture right", r["num_prompts"])):  # fmt: skip
        yield Measure(group, title, r[name], intervals.get(name), n)


def told_objects(r: dict) -> str:
    """The objects of a result's scenes, see `scenes.sources.world_told`; earlier versions did not tell them."""
    return f", {r['num_classes']} objects ({r['classes_digest']})" if "classes_digest" in r else ""


def of_reconstruction(r: dict) -> Iterator[Measure]:
    """eval/reconstruction.py."""
    split = f", {r['split']} split" if r.get("split") else ""
    group = f"Reconstruction of {r['data']}{split}{told_objects(r)}, {r['resolution']} x {r['resolution']}"
    yield from of_pairs(r, group, r["num_pictures"])
    yield from of_sets(r, group, r["num_pictures"])
    yield from of_codes(r, group)


def of_pairs(r: dict, group: str, n: int) -> Iterator[Measure]:
    """Those of `comparison.summarize_pairs` that were measured."""
    for key, title, digits, top in (
        ("psnr", "PSNR, dB", 2, None),
        ("ssim", "SSIM", 3, 1),
        ("lpips", f"LPIPS ({r.get('lpips_backbone')}), less is better", 3, None),
    ):  # fmt: skip
        if key in r:
            yield Measure(group, title, r[key], r["intervals"][key], n, digits=digits, top=top)


def of_sets(r: dict, group: str, *counts: int) -> Iterator[Measure]:
    """What `comparison.compare_sets` measured on sets of so many pictures, which move a Frechet distance."""
    n, sizes = min(counts), " and ".join(f"{count:,}" for count in dict.fromkeys(counts))
    for name, values in r["frechet"].items():
        told = "less is better" + (", for tokenizers over one SigLIP only" if "own SigLIP" in name else "")
        on = group + told_siglip(values)
        yield Measure(
            f"{on}, sets of {sizes} pictures", f"{name}, {told}", values["distance"], num_samples=n, digits=2, top=None
        )
        if "kid_mean" in values:
            title = f"{values['kid_name']} x 1000, {told}"
            yield Measure(on, title, 1000 * values["kid_mean"], num_samples=n, digits=2, top=None)


def told_siglip(distance: dict) -> str:
    """Which SigLIP a distance was measured in, see `networks.siglip_told`; earlier versions did not tell."""
    told = (part for part in str(distance.get("library")).split(", ") if part.startswith("SigLIP "))
    return "".join(f", {part}" for part in told)


def of_pictures(r: dict) -> Iterator[Measure]:
    """eval/pictures.py, either command."""
    if "clip_score" in r:
        interval, n = r["intervals"]["clip_score"], r["num_pictures"]
        prompts = f", {n:,} prompts ({r['prompts_digest']})" if "prompts_digest" in r else ""
        yield Measure(
            f"CLIPScore by {r['clip']}{prompts}", "100 * max(cos, 0)", r["clip_score"], interval, n, digits=2, top=100
        )
        return
    size = f", {r['size']} x {r['size']}" if r["size"] else ""
    group = f"Pictures beside {r['reference']}{size}"
    yield from of_pairs(r, group, r["num_pairs"])
    yield from of_sets(r, group, r["num_reference"], r["num_generated"])


def of_features(r: dict) -> Iterator[Measure]:
    """eval/features.py."""
    size = f", {r['image_size']} x {r['image_size']}" if "image_size" in r else ""
    group = (
        f"Objects that a linear probe names, scenes, {r['split']} split, seed {r['seed']}{told_objects(r)}{size}, "
        f"trained on {r['num_training_pictures']:,} pictures"
    )
    for key, title in (
        ("continuous", "on SigLIP's features"), ("quantised", "on features from codes"),
        ("cost", "what quantising costs"), ("code", "by the code of the patch alone"),
    ):  # fmt: skip
        yield Measure(group, title, r[key], r["intervals"][key], r["num_pictures"], main=key == "cost")


MEASURES: dict[str, Callable[[dict], Iterator[Measure]]] = {
    "eval/scenes.py": of_scenes,
    "eval/pope.py": of_pope,
    "eval/mme.py": of_mme,
    "eval/geneval.py": of_geneval,
    "eval/reconstruction.py": of_reconstruction,
    "eval/pictures.py": of_pictures,
    "eval/features.py": of_features,
}
