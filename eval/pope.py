"""POPE: ask a model its questions, or score files of answers, under the official parsing and a strict one.

    python eval/pope.py answer coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json \\
        --pictures val2014 --model PATH --out answers/
    python eval/pope.py score random.jsonl popular.jsonl adversarial.jsonl \\
        --label-file coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json
    python eval/pope.py score answers.jsonl --question-file llava_pope_test.jsonl --annotation-dir pope/coco

`answer` encodes each picture once for all questions about it, writes a file of answers for each file of questions, and
scores them; killed, the same command goes on where it was. The prompt is the question; LLaVA's is
--suffix $'\\nAnswer the question using a single word or phrase.'

The first `score` is the official evaluate.py's shape: one file of answers ({"question", "answer"}) for each file of
questions, in the same order. The second is LLaVA's: one file of answers ({"question_id", "prompt", "text"}) to all
splits, told apart by the category of its question file. Rows with their own "label", as `answer` writes, need neither.

official: no if No, not or no is a word of the first sentence, anything else is yes. strict: the answer is yes or no and
nothing else, or it is wrong. Intervals: 95 %, bootstrap over pictures (over questions where rows name no "image").
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from unimllm.command_line import CommandLine, check_given, number, open_model, out_of_memory_told, run, run_command
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, json_fingerprint
from unimllm.images import check_outputs, check_readable, open_picture
from unimllm.inference import checkpoint_of
from unimllm.json_rows import read_rows, write_rows
from unimllm.metrics import pope
from unimllm.metrics.intervals import percentiles
from unimllm.questions import KeptAnswers, answer_questions
from unimllm.report import (
    about_model,
    as_range,
    describe_run,
    describe_start,
    model_told,
    open_table,
    print_table,
    rounding_told,
    speed_told,
    write_json,
)

ANSWER_KEYS, QUESTION_KEYS = ("answer", "text"), ("question", "prompt")  # POPE's and LLaVA's name for each
LABELLED_KEYS = ("text", "question")  # of a question beside its label
LABEL_FILES = "*pope*.json"  # POPE's question files in their folder
SCORES = ("accuracy", "precision", "recall", "f1", "yes_ratio", "other_ratio")


@dataclass(frozen=True)
class Split:
    """The questions of one split (rows with "label", "image") and what was answered, in the same order.

    Args:
        name: of the split.
        file: that holds the labels, without its folder.
        suffixes: what followed the questions in the prompts, as far as the answers tell it.
    """

    name: str
    file: str
    questions: list[dict]
    answers: list[str]
    suffixes: set[str] = field(default_factory=set)


def main(argv: list[str] | None = None) -> None:
    run_command({"answer": answer, "score": score}, __doc__, argv)


def tell(args: argparse.Namespace, splits: list[Split], results: dict, start: dict, **about: str | None) -> None:
    """A table, and JSON where it is asked for; `start` and `about` are for `describe_run`."""
    results = {"benchmark": "POPE"} | score_splits(splits, args.seed) | results
    results |= describe_run(
        start, seed=args.seed, num_samples={"questions": results["num_questions"]},
        limited=not is_whole(splits), **about,
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results))


def parse_score(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/pope.py score", __doc__)
    parser.add_argument("answers", nargs="*", type=Path, help="files of answers")
    parser.add_argument(
        "--label-file", nargs="+", type=Path, help="POPE's question files, one for each file of answers"
    )
    parser.add_argument("--annotation-dir", type=Path, help="the folder of POPE's question files (LLaVA's way)")
    parser.add_argument("--question-file", type=Path, help="llava_pope_test.jsonl, which tells the splits apart")
    parser.add_report_options()
    args = parser.parse_args(argv)
    if not args.answers:
        raise UserError("the files of answers are missing; see --help")
    if (args.annotation_dir is None) != (args.question_file is None):
        raise UserError("--annotation-dir and --question-file belong together: questions without labels, and labels")
    if args.annotation_dir and args.label_file:
        raise UserError("--label-file and --annotation-dir both name labels; choose one")
    if args.annotation_dir and len(args.answers) > 1:
        raise UserError(f"{len(args.answers)} files of answers; with --question-file one file answers all splits")
    if args.label_file and len(args.label_file) != len(args.answers):
        raise UserError(
            f"{len(args.answers)} files of answers but {len(args.label_file)} after --label-file; name one for each, "
            "in the same order"
        )
    return args


def score(argv: list[str]) -> None:
    """Score files of answers."""
    args, start = parse_score(argv), describe_start(__file__, ["score", *argv])
    labels = args.annotation_dir.glob(LABEL_FILES) if args.annotation_dir else args.label_file or ()
    check_outputs([args.json], [*args.answers, *labels, args.question_file])
    splits = list(read_splits(args))
    suffixes = sorted(set().union(*(split.suffixes for split in splits)))  # one, but for answers to mixed prompts
    more = {"suffix": suffixes[0] if len(suffixes) == 1 else " or ".join(map(repr, suffixes))} if suffixes else {}
    tell(
        args, splits, more, start, model=args.name or name_of(args.answers),
        fingerprint=fingerprint(*args.answers), fingerprint_of="answers",
    )  # fmt: skip


def name_of(answers: list[Path]) -> str:
    """A file of answers gives its name, several their folder's, for theirs are those of splits."""
    return answers[0].stem if len(answers) == 1 else answers[0].resolve().parent.name


# ---- answer --------------------------------------------------------------------------------------------------------


def parse_answer(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/pope.py answer", __doc__)
    parser.add_argument("questions", nargs="*", type=Path, help="POPE's question files")
    parser.add_argument("--pictures", type=Path, help="the folder of the pictures they ask about, COCO's val2014")
    parser.add_argument("--out", type=Path, help="the folder for the files of answers")
    parser.add_argument("--suffix", default="", help="what follows each question in the prompt (nothing)")
    parser.add_argument("--limit", type=number(int, 1), help="the first so many questions of each file")
    parser.add_argument("--batch-size", type=number(int, 1), default=64, help="questions at once (%(default)s)")
    parser.add_model_options()
    parser.add_report_options()
    args = parser.parse_args(argv)
    if not args.questions:
        raise UserError("the question files are missing; see --help")
    check_given(args, pictures="the folder of the pictures", out="the folder for the files of answers")
    return args


def answer(argv: list[str]) -> None:
    """Ask the model, write files of answers, and score them."""
    args, start = parse_answer(argv), describe_start(__file__, ["answer", *argv])
    check_names(args.questions)
    asked = {path: read_questions(path, args.pictures)[: args.limit] for path in args.questions}
    written = {path: args.out / f"{path.stem}.jsonl" for path in asked}
    pictures = dict.fromkeys(args.pictures / row["image"] for rows in asked.values() for row in rows)
    check_outputs([*written.values(), args.json], [*asked, *pictures])
    check_readable(pictures)
    checkpoint = checkpoint_of(args.model)  # once: a folder that is trained in may hold a newer one any time
    model, processor = open_model(checkpoint, args.device, args.dtype)
    about = about_model(checkpoint, args.name or args.model)
    questions = [(row["image"], row["text"] + args.suffix) for rows in asked.values() for row in rows]
    data = {"pictures_fingerprint": fingerprint(*sorted(pictures))}
    keep = KeptAnswers(args.out, checkpoint, about | data | rounding_told(model, args.batch_size))
    with out_of_memory_told(args.batch_size):
        said = answer_questions(
            model, processor, questions, lambda n: open_picture(args.pictures / n), args.batch_size, keep=keep
        )
    texts, splits = iter(said.texts), []
    for path, rows in asked.items():
        splits.append(Split(split_name(path), path.name, rows, [next(texts) for _ in rows]))
        write_answers(written[path], splits[-1], args.suffix)
    keep.remove()
    more = {"suffix": args.suffix, "limit": args.limit, "speed": said.speed} | data | model_told(model)
    tell(args, splits, more, start, **about)


def read_questions(path: Path, pictures: Path) -> list[dict]:
    """The rows of one of POPE's question files.

    Raises:
        UserError: a row lacks something, or its picture is not in the folder.
    """
    rows = read_rows(path, ("image", "text", "label"))
    check_labels(rows, path)
    for n, row in enumerate(rows, 1):
        if not isinstance(row["image"], str) or not isinstance(row["text"], str):
            raise UserError(f"{path}, row {n}: 'image' and 'text' must be text")
    names = dict.fromkeys(row["image"] for row in rows)
    missing = [name for name in names if not (pictures / name).is_file()]
    if missing:
        raise UserError(
            f"{pictures} lacks {len(missing):,} of the {len(names):,} pictures of {path}, {missing[0]} first"
        )
    return rows


def write_answers(path: Path, split: Split, suffix: str) -> None:
    """Rows as the official script reads them, which carry their label, their picture and the prompt too."""
    rows = [
        {"question": question["text"], "answer": text, "label": question["label"], "image": question["image"],
         "prompt": question["text"] + suffix}
        for question, text in zip(split.questions, split.answers, strict=True)
    ]  # fmt: skip
    write_rows(path, rows)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_splits(args: argparse.Namespace) -> Iterator[Split]:
    """What the command line names, split by split.

    Raises:
        UserError: a file cannot be read, or answers do not belong to their questions.
    """
    if args.annotation_dir:
        yield from read_llava(args.answers[0], args.question_file, args.annotation_dir)
        return
    names = check_names(args.label_file or args.answers)
    for path, labels, name in zip(args.answers, args.label_file or args.answers, names, strict=True):
        if not args.label_file and any("label" not in row for row in read_rows(path)):
            raise UserError(f"{path} holds answers without labels: name POPE's question files with --label-file")
        questions = read_rows(labels, ("label",))
        yield join(name, questions, read_rows(path), labels, path)


def read_llava(answers: Path, question_file: Path, folder: Path) -> Iterator[Split]:
    """LLaVA's one file of answers: those to each category, in their order, meet that split's labels."""
    asked, rows = read_rows(question_file, ("question_id", "category")), read_rows(answers, ("question_id",))
    check_ids(asked, question_file)
    check_ids(rows, answers)
    category = {row["question_id"]: row["category"] for row in asked}
    unknown = [row["question_id"] for row in rows if row["question_id"] not in category]
    if unknown:
        raise UserError(f"{answers}: question {unknown[0]!r} is not in {question_file}")
    files = {split_name(path): path for path in sorted(folder.glob(LABEL_FILES))}
    for name in dict.fromkeys(category.values()):
        if name not in files:
            raise UserError(f"{folder} holds no question file of the split {name!r}, such as coco_pope_{name}.json")
        said = [row for row in rows if category[row["question_id"]] == name]
        yield join(name, read_rows(files[name], ("label",)), said, files[name], answers)


def join(name: str, questions: list[dict], rows: list[dict], labels: Path, path: Path) -> Split:
    """Answers and questions in one order.

    Raises:
        UserError: unequally many, an answer to another question, a label that is neither yes nor no, a picture's name
            that is none.
    """
    if len(rows) != len(questions):
        raise UserError(f"{path} answers {len(rows):,} questions of the split {name}, {labels} has {len(questions):,}")
    check_labels(questions, labels)
    for n, (row, question) in enumerate(zip(rows, questions, strict=True), 1):
        image = question.get("image")
        if image is not None and type(image) not in (str, int):
            raise UserError(f"{labels}, row {n}: 'image' is {image!r}, neither text nor a whole number")
        asked, said = first_of(row, QUESTION_KEYS) or "", first_of(row, ANSWER_KEYS)
        wanted = asked if labels == path else first_of(question, LABELLED_KEYS) or ""
        if asked and not mended(asked).startswith(mended(wanted)):  # LLaVA's prompts go on after the question
            raise UserError(f"{path}, row {n} answers {asked!r}, but {labels} asks {wanted!r} there")
        if said and (said == wanted or (labels == path and not asked and "answer" not in row)):
            raise UserError(f"{path}, row {n}: {said!r} is a question; name a file of answers, labels by --label-file")
    answers = [first_of(row, ANSWER_KEYS) for row in rows]
    if None in answers:
        raise UserError(f"{path}, row {answers.index(None) + 1} has no answer under {' or '.join(ANSWER_KEYS)}")
    wanted = [first_of(question, QUESTION_KEYS if labels == path else LABELLED_KEYS) for question in questions]
    return Split(name, labels.name, questions, answers, suffixes_of(wanted, rows))


def suffixes_of(questions: Sequence[str | None], rows: list[dict]) -> set[str]:
    """What follows the questions in the prompts of rows of answers; nothing of rows that do not tell their prompt."""
    prompts = [first_of(row, QUESTION_KEYS[::-1]) for row in rows]
    pairs = [(mended(q), mended(prompt)) for q, prompt in zip(questions, prompts, strict=True) if q and prompt]
    return {prompt[len(q) :] for q, prompt in pairs if prompt.startswith(q)}


def mended(question: str) -> str:
    """A question without the older random file's misspelt word."""
    return question.replace("imange", "image")


def check_ids(rows: list[dict], path: Path) -> None:
    """UserError for a question_id that is neither text nor a number or comes twice, and a category that is no text."""
    seen = set()
    for n, row in enumerate(rows, 1):
        name, category = row["question_id"], row.get("category", "")
        if type(name) not in (str, int) or not isinstance(category, str):
            raise UserError(f"{path}, row {n}: 'question_id' must be text or a whole number, 'category' text")
        if name in seen:
            raise UserError(f"{path}, row {n}: question {name!r} comes a second time")
        seen.add(name)


def check_labels(rows: list[dict], path: Path) -> None:
    """UserError for a label that is neither yes nor no."""
    for n, row in enumerate(rows, 1):
        if row["label"] not in ("yes", "no"):
            raise UserError(f"{path}, row {n}: the label is {row['label']!r}, not yes or no")


def check_names(paths: list[Path]) -> list[str]:
    """The splits of files; UserError if two are of one."""
    names = [split_name(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"two files are of the split {max(names, key=names.count)}; take them one by one")
    return names


def first_of(row: dict, keys: tuple[str, ...]) -> str | None:
    """The text under the first of `keys` that there is one under."""
    return next((row[key] for key in keys if isinstance(row.get(key), str)), None)


def split_name(path: Path) -> str:
    """The split in a file's name, the last where it holds several ("random_init_adversarial"), else the name."""
    stem = path.stem.lower()
    return max((split for split in pope.SPLITS if split in stem), key=stem.rfind, default=path.stem)


# ---- scoring -------------------------------------------------------------------------------------------------------


def score_splits(splits: list[Split], seed: int) -> dict:
    """Every split under both parsings, and the means over splits that papers report."""
    rng = np.random.default_rng(seed)
    results: dict = {"splits": {}, "intervals": {split.name: {} for split in splits} | {"mean": {}}, "mean": {}}
    for split in splits:
        labels = [question["label"] for question in split.questions]
        entry = {"file": split.file, "edition": pope.edition(split.name, len(labels)), "num_questions": len(labels)}
        entry |= questions_told(split.questions)
        results["splits"][split.name] = entry | {
            parsing: pope.score(labels, split.answers, parsing) for parsing in pope.PARSERS
        }
    for parsing in pope.PARSERS:
        entries = [entry[parsing] for entry in results["splits"].values()]
        results["mean"][parsing] = {name: statistics.mean(e[name] for e in entries) for name in SCORES}
        resampled = resampled_rates(splits, parsing, rng)
        for s, split in enumerate(splits):
            results["intervals"][split.name][parsing] = {n: percentiles(v[:, s]) for n, v in resampled.items()}
        results["intervals"]["mean"][parsing] = {n: percentiles(v.mean(1)) for n, v in resampled.items()}
    results["num_questions"] = sum(entry["num_questions"] for entry in results["splits"].values())
    return results


def questions_told(questions: list[dict]) -> dict[str, str]:
    """What tells questions from others of a file of the same name; nothing of answers with labels of their own."""
    asked = [[question.get(key) for key in ("image", "text", "label")] for question in questions]
    known = all(None not in row for row in asked) and not any("prompt" in question for question in questions)
    return {"questions_fingerprint": json_fingerprint(asked)} if known else {}


def is_whole(splits: list[Split]) -> bool:
    """Whether these are POPE's three splits with all their questions."""
    full = {split.name for split in splits if pope.is_full(split.name, len(split.questions))}
    return full == set(pope.SPLITS)


def resampled_rates(splits: list[Split], parsing: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Each of SCORES (resamples, splits), by pictures, or by questions where rows name none."""
    pictures = [question.get("image") for split in splits for question in split.questions]
    answered = [([question["label"] for question in split.questions], split.answers) for split in splits]
    return pope.resampled_rates(answered, range(len(pictures)) if None in pictures else pictures, parsing, rng)


def make_table(results: dict) -> Table:
    """A row for every split and parsing."""
    editions = [f"{name}: {entry['file']}, {entry['edition']}" for name, entry in results["splits"].items()]
    speed = [speed_told(results["speed"])] if "speed" in results else []
    headings = ("", "parsing", *SCORES[:4], "95 % of f1", "yes", "neither")
    table = open_table(f"POPE, {results['model']}", headings, editions + speed, num_names=2)
    for name, entry in (*results["splits"].items(), ("mean", results["mean"])):
        if name == "mean" and len(results["splits"]) == 1:
            continue
        for parsing in pope.PARSERS:
            shares = [f"{entry[parsing][score]:.3f}" for score in SCORES]
            interval = as_range(results["intervals"][name][parsing]["f1"])
            table.add_row(name, parsing, *shares[:4], interval, *shares[4:])
    return table


if __name__ == "__main__":
    run(main)
