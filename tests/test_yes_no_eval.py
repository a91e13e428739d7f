"""eval/pope.py and eval/mme.py: every branch of the parsing by hand, and what constant and random answers give."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import load_program
from PIL import Image

from semhitok import SemHiTokModel
from unimllm import inference, questions, report
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint
from unimllm.json_rows import read_rows
from unimllm.metrics import mme, pope
from unimllm.metrics.intervals import bootstrap, percentiles, resampled_sums


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- files of rows -------------------------------------------------------------------------------------------------


def test_rows_are_lines_or_one_array(tmp_path):
    rows = [{"a": 1}, {"a": "[2]"}]
    lines, array = write_rows(tmp_path / "lines", rows), tmp_path / "array"
    array.write_text(json.dumps(rows, indent=4))
    assert read_rows(lines) == read_rows(array, ("a",)) == rows
    for text, what in (
        ("", "is empty"), ("[]", "is empty"), ('{"a": 1}\n\n{"b": 2}', "row 3 lacks 'a'"), ("[1]", "not a JSON object"),
        ('{"a": 1}\n{"a"', "line 2 is no JSON"),
    ):  # fmt: skip
        lines.write_text(text)
        with pytest.raises(UserError, match=what):
            read_rows(lines, ("a",))
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "nothing")


# ---- intervals -----------------------------------------------------------------------------------------------------


def test_resampled_sums_give_the_bootstrap_s_interval():
    rng = np.random.default_rng(0)
    values, clusters = rng.integers(0, 2, 600), np.repeat(np.arange(100), 6)
    sums = resampled_sums(np.stack([values, np.ones(600)], 1), clusters, np.random.default_rng(1))
    assert sums.shape == (1000, 2) and (sums[:, 1] == 600).all()  # equal clusters: always as many samples
    slow = bootstrap(lambda picked: values[picked].mean(), clusters)
    assert percentiles(sums[:, 0] / sums[:, 1]) == pytest.approx(slow, abs=0.01)


def test_strata_are_resampled_independently():
    counts, rng = np.arange(50)[:, None], np.random.default_rng(0)
    first, second = (resampled_sums(counts, range(50), rng)[:, 0] for _ in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


# ---- POPE ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program():
    return load_program("eval/pope.py")


# Every branch of both parsings: (label, answer, official, strict).
POPE_BRANCHES = [
    ("yes", "yes", "yes", "yes"),
    ("yes", "Yes.", "yes", "yes"),
    ("yes", "Yes, there is a dog in the image.", "yes", "other"),
    ("yes", "No, there is none.", "no", "other"),
    ("yes", "There is not, I think.", "no", "other"),
    ("yes", "", "yes", "other"),
    ("no", "no", "no", "no"),
    ("no", "No.", "no", "no"),
    ("no", "NO", "yes", "no"),
    ("no", "I see a cat. There is no dog.", "yes", "other"),
    ("no", "nothing like it", "yes", "other"),
    ("no", "yes", "yes", "yes"),
]


def questions_of(branches) -> list[dict]:
    return [
        {"question_id": i + 1, "image": f"{i // 6}.jpg", "text": f"Is there a thing {i}?", "label": label}
        for i, (label, *_) in enumerate(branches)
    ]


def answers_of(branches) -> list[dict]:
    return [{"question": f"Is there a thing {i}?", "answer": answer} for i, (_, answer, *_) in enumerate(branches)]


def scored(call, program, tmp_path, *words) -> dict:
    ended = call(program, "score", *words, "--json", tmp_path / "out.json")
    assert ended.code == 0, ended.err
    return json.loads((tmp_path / "out.json").read_text())


def test_pope_of_every_branch_by_hand(call, program, tmp_path):
    for _, answer, official, strict in POPE_BRANCHES:
        assert (pope.parse_official(answer), pope.parse_strict(answer)) == (official, strict), answer
    answers = write_rows(tmp_path / "a.jsonl", answers_of(POPE_BRANCHES))
    labels = write_rows(tmp_path / "coco_pope_random.json", questions_of(POPE_BRANCHES))
    results = scored(call, program, tmp_path, answers, "--label-file", labels)
    split = results["splits"]["random"]
    # Official: of six yes 4 are said, of six no 2; 8 predictions are yes.
    official = {"accuracy": 6 / 12, "precision": 4 / 8, "recall": 4 / 6, "f1": 8 / 14, "yes_ratio": 8 / 12}
    assert split["official"] == pytest.approx(official | {"other_ratio": 0})
    # Strict: 2 of six yes, 3 of six no, 3 predictions are yes, 6 answers are neither.
    strict = {"accuracy": 5 / 12, "precision": 2 / 3, "recall": 2 / 6, "f1": 4 / 9, "yes_ratio": 3 / 12}
    assert split["strict"] == pytest.approx(strict | {"other_ratio": 6 / 12})
    assert split["edition"] == "12 questions, not a full split of 3,000"
    assert results["mean"]["official"] == split["official"]
    low, high = results["intervals"]["random"]["official"]["accuracy"]
    assert low == pytest.approx(2 / 6) and high == pytest.approx(4 / 6)  # two pictures: 4 of 6 right, and 2 of 6
    assert results["command"].startswith("python eval/pope.py score") and results["model"] == "a"
    assert (results["program"], results["limited"], results["fingerprint_of"]) == ("eval/pope.py", True, "answers")


def test_pope_of_three_splits_in_llava_s_shape(call, program, tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    branches = POPE_BRANCHES
    said, asked = [], []
    for number, split in enumerate(("random", "popular", "adversarial")):
        write_rows(folder / f"coco_pope_{split}.json", questions_of(branches))
        for i, (_, answer, *_) in enumerate(branches):
            key = 1000 * number + i
            asked.append({"question_id": key, "image": "x", "text": "?", "category": split})
            # The popular split is answered with yes alone, the adversarial one with no.
            text = {"random": answer, "popular": "Yes", "adversarial": "No"}[split]
            said.append({"question_id": key, "prompt": f"Is there a thing {i}?\nAnswer briefly.", "text": text})
    questions = write_rows(tmp_path / "llava_pope_test.jsonl", asked)
    answers = write_rows(tmp_path / "model.jsonl", said)
    words = (answers, "--question-file", questions, "--annotation-dir", folder)
    results = scored(call, program, tmp_path, *words)
    f1 = {name: entry["official"]["f1"] for name, entry in results["splits"].items()}
    assert f1 == pytest.approx({"random": 8 / 14, "popular": 2 / 3, "adversarial": 0})
    assert results["mean"]["official"]["f1"] == pytest.approx((8 / 14 + 2 / 3) / 3)
    assert results["splits"]["popular"]["strict"]["yes_ratio"] == 1
    assert results["num_questions"] == 36 and results["suffix"] == "\nAnswer briefly."
    assert scored(call, program, tmp_path, *words)["intervals"] == results["intervals"]  # one seed, one interval
    for file, rows, message in (
        (answers, [*said[:-1], said[-2]], "model.jsonl, row 36: question 2010 comes a second time"),
        (questions, [*asked, asked[0]], "llava_pope_test.jsonl, row 37: question 0 comes a second time"),
        (questions, [asked[0] | {"question_id": [1]}, *asked[1:]], "row 1: 'question_id' must be text or a whole"),
        (answers, [said[0] | {"question_id": [1]}, *said[1:]], "row 1: 'question_id' must be text or a whole"),
        (questions, [asked[0] | {"category": ["random"]}, *asked[1:]], "'category' text"),
    ):
        write_rows(questions, asked), write_rows(answers, said), write_rows(file, rows)
        assert message in call(program, "score", *words).refusal()


@pytest.mark.parametrize(("said", "expected"), [("yes", (0.5, 0.5, 1, 2 / 3, 1)), ("no", (0.5, 0, 0, 0, 0))])
def test_pope_of_constant_answers_to_a_full_split(program, said, expected):
    questions = [{"image": f"{i // 6}", "label": ("yes", "no")[i % 2]} for i in range(3000)]
    results = program.score_splits([program.Split("popular", "x.json", questions, [said] * 3000)], 0)
    for parsing in pope.PARSERS:
        entry = results["splits"]["popular"][parsing]
        assert tuple(entry[s] for s in program.SCORES[:5]) == pytest.approx(expected)
    assert results["splits"]["popular"]["edition"] == "full split of 3,000 questions"
    # Every picture has three of each label: no resampling changes the score of a constant answer.
    assert results["intervals"]["popular"]["strict"]["accuracy"] == pytest.approx((0.5, 0.5))


def test_pope_of_random_answers_is_a_half(program):
    rng = random.Random(0)
    questions = [{"image": f"{i // 6}", "label": ("yes", "no")[i % 2]} for i in range(3000)]
    answers = [rng.choice(("yes", "no")) for _ in questions]
    results = program.score_splits([program.Split("random", "x.json", questions, answers)], 0)
    entry, intervals = results["splits"]["random"]["official"], results["intervals"]["random"]["official"]
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert entry[name] == pytest.approx(0.5, abs=0.04)
        low, high = intervals[name]
        assert low < entry[name] < high and 0.02 < high - low < 0.07  # 2 * 1.96 * 0.5 / sqrt(3000) = 0.036


def test_pope_s_splits_share_their_pictures(program):
    """Three equal splits are no more than one: the interval of their mean is that of each."""
    questions = [{"image": f"{i // 6}", "label": ("yes", "no")[i % 2]} for i in range(300)]
    answers = [random.Random(i).choice(("yes", "no")) for i in range(300)]
    splits = [program.Split(name, "x.json", questions, answers) for name in pope.SPLITS]
    intervals = program.score_splits(splits, 0)["intervals"]
    for name, interval in intervals["popular"]["official"].items():
        assert intervals["mean"]["official"][name] == pytest.approx(interval)


def test_pope_is_whole_with_three_full_splits(program):
    splits = [program.Split(name, "x.json", [{}] * 3000, []) for name in pope.SPLITS]
    assert program.is_whole(splits) and not program.is_whole(splits[:2])
    older, short = (program.Split("random", "x.json", [{}] * count, []) for count in (2910, 2909))
    assert program.is_whole([older, *splits[1:]]) and not program.is_whole([short, *splits[1:]])


def test_the_split_is_what_stands_last_in_a_name(program):
    names = {"coco_pope_popular": "popular", "random_init_adversarial": "adversarial", "adversarial_Random": "random"}
    assert {name: program.split_name(Path(f"{name}.jsonl")) for name in names} == names
    assert program.split_name(Path("mine.jsonl")) == "mine"


def test_the_older_random_file_is_named():
    assert "older random file" in pope.edition("random", 2910) and "e3e3926" in pope.edition("random", 2910)
    assert "not a full split" in pope.edition("popular", 2910)
    assert "not a full split" in pope.edition("mine", 3000)


def test_pope_reads_the_misspelt_question_and_labels_of_its_own(call, program, tmp_path):
    question = {"image": "1.jpg", "text": "Is there a dog in the imange?", "label": "no"}
    labels = write_rows(tmp_path / "coco_pope_random.json", [question])
    answers = write_rows(tmp_path / "a.jsonl", [{"question": "Is there a dog in the image?", "answer": "no"}])
    assert scored(call, program, tmp_path, answers, "--label-file", labels)["mean"]["strict"]["accuracy"] == 1
    own = write_rows(tmp_path / "mine.jsonl", [{"question": "Is it?", "answer": "yes", "label": "no"}])
    assert scored(call, program, tmp_path, own)["splits"]["mine"]["official"]["accuracy"] == 0
    own = write_rows(tmp_path / "mine.jsonl", [{"prompt": "Is it?", "text": "yes", "label": "no"}])  # LLaVA's names
    assert scored(call, program, tmp_path, own)["splits"]["mine"]["official"]["accuracy"] == 0
    unlabelled = write_rows(tmp_path / "mine.jsonl", [{"question": "Is it?", "answer": "yes"}])
    for words, message in (
        ((labels, "--label-file", labels), "is a question; name a file of answers"),
        ((labels,), "is a question; name a file of answers"),
        ((unlabelled,), "holds answers without labels: name POPE's question files with --label-file"),
    ):
        assert message in call(program, "score", *words).refusal()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"answer": "yes"}], "answers 1 questions of the split random"),
        ([{"answer": "yes"}, {"question": "Is there a cat?", "answer": "no"}], "row 2 answers 'Is there a cat?'"),
        ([{"answer": "yes"}, {"reply": "no"}], "row 2 has no answer"),
    ],
)
def test_pope_tells_what_does_not_fit(call, program, tmp_path, rows, message):
    labels = write_rows(tmp_path / "coco_pope_random.json", questions_of(POPE_BRANCHES[:2]))
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert message in call(program, "score", answers, "--label-file", labels).refusal()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no command"),
        (("scor", "a"), "did you mean 'score'"),
        (("score",), "files of answers are missing"),
        (("score", "a", "--question-file", "b"), "belong together"),
        (("score", "a", "b", "--label-file", "c"), "2 files of answers but 1"),
        (("score", "random_1", "random_2"), "two files are of the split random"),
        (("score", "a"), "cannot read a"),
    ],
)
def test_pope_tells_what_to_mend(call, program, words, message):
    assert message in call(program, *words).refusal()


def test_pope_tells_a_picture_that_is_none(call, program, tmp_path):
    rows = [{"question": "Is it?", "answer": "yes", "label": "yes", "image": image} for image in ("a", ["b"])]
    told = call(program, "score", write_rows(tmp_path / "mine.jsonl", rows)).refusal()
    assert "mine.jsonl, row 2: 'image' is ['b'], neither text nor a whole number" in told


def test_pope_s_results_take_the_place_of_no_file_that_it_reads(call, program, tmp_path):
    labels = write_rows(tmp_path / "coco_pope_random.json", questions_of(POPE_BRANCHES))
    answers = write_rows(tmp_path / "a.jsonl", answers_of(POPE_BRANCHES))
    (tmp_path / "link.json").symlink_to(answers)
    before = answers.read_text(), labels.read_text()
    words = ("score", answers, "--label-file", labels, "--json")
    for read, written in ((answers, answers), (labels, labels), (answers, tmp_path / "link.json")):
        told = call(program, *words, written).refusal()
        assert f"{read} would be overwritten by what is written to {written}; choose another place" in told
    llava = ("score", answers, "--question-file", tmp_path / "q.jsonl", "--annotation-dir", tmp_path, "--json")
    for written in (labels, tmp_path / "q.jsonl"):
        assert f"{written} would be overwritten" in call(program, *llava, written).refusal()
    assert (answers.read_text(), labels.read_text()) == before


@pytest.fixture
def coco(tmp_path) -> Path:
    """Three pictures."""
    (tmp_path / "coco").mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (20, 16), color).save(tmp_path / "coco" / f"{number}.png")
    return tmp_path / "coco"


def link_of(file: Path, folder: Path) -> Path:
    """A folder in which the answers' file is a link to the questions."""
    folder.mkdir()
    (folder / f"{file.stem}.jsonl").symlink_to(file)
    return folder


def count_pictures(monkeypatch) -> list[int]:
    """How many pictures each call of the image tokenizer gets."""
    calls, encode = [], SemHiTokModel.encode

    def counted(self, pixel_values):
        calls.append(len(pixel_values))
        return encode(self, pixel_values)

    monkeypatch.setattr(SemHiTokModel, "encode", counted)
    return calls


def test_pope_asks_about_each_picture_of_all_splits_once(call, program, tiny_checkpoint, coco, tmp_path, monkeypatch):
    files = []
    for split in ("random", "popular"):
        rows = [
            {"image": f"{i % 3}.png", "text": f"Is there a {name} in the image?", "label": ("yes", "no")[i % 2]}
            for i, name in enumerate(("dog", "apple", "car", "cup", "banana", "dog"))
        ]
        files.append(write_rows(tmp_path / f"coco_pope_{split}.json", rows))
    calls = count_pictures(monkeypatch)
    out, scores = tmp_path / "answers", tmp_path / "scores.json"
    words = ("--pictures", coco, "--model", tiny_checkpoint, "--device", "cpu", "--out", out, "--json", scores)
    ended = call(program, "answer", *files, *words, "--batch-size", 5)
    assert ended.code == 0 and "12 answers about 3 pictures, each encoded once" in " ".join(ended.out.split()), (
        ended.err
    )
    assert sum(calls) == 3
    results = json.loads(scores.read_text())
    assert results["speed"]["num_answers"] == 12 and results["speed"]["questions_per_second"] > 0
    written = [out / "coco_pope_random.jsonl", out / "coco_pope_popular.jsonl"]
    model, processor = inference.load(tiny_checkpoint, "cpu")
    for row in read_rows(written[0]):
        assert row["answer"] == inference.answer(model, processor, Image.open(coco / row["image"]), row["question"])
    assert call(program, "score", *written, "--label-file", *files, "--json", scores).code == 0
    again = json.loads(scores.read_text())
    assert (again["splits"], again["intervals"]) == (results["splits"], results["intervals"])
    assert results["pictures_fingerprint"] == fingerprint(*sorted(coco.iterdir()))
    prints = {entry["questions_fingerprint"] for entry in results["splits"].values()}
    assert len(prints) == 1 and len(prints.pop()) == 16  # of the same questions, whatever the split's name
    assert call(program, "score", *written, "--json", scores).code == 0
    assert "questions_fingerprint" not in json.loads(scores.read_text())["splits"]["random"]
    assert again["model"] == out.name  # not that of the first split

    assert call(program, "answer", *files, *words, "--limit", 2, "--suffix", " yes no").code == 0
    assert len(read_rows(written[1])) == 2 and json.loads(scores.read_text())["suffix"] == " yes no"
    (tmp_path / "two").mkdir()
    short = [write_rows(tmp_path / "two" / path.name, read_rows(path)[:2]) for path in files]
    for labels in ((), ("--label-file", *short)):
        assert scored(call, program, tmp_path, *written, *labels)["suffix"] == " yes no"
    numbered = write_rows(tmp_path / "numbered.json", [{"image": 1, "text": "Is it?", "label": "yes"}])
    assert "row 1: 'image' and 'text' must be text" in call(program, "answer", numbered, *words).refusal()
    assert (
        f"{files[0]} would be overwritten by what is written to"
        in call(program, "answer", *files[:1], *words[:-4], "--out", link_of(files[0], tmp_path / "beside")).refusal()
    )
    for place, message in ((files[0], f"{files[0]} would be overwritten by what"), (coco / "1.png", "1.png would be"),
                           (written[0], f"{written[0]} is named for two results")):  # fmt: skip
        assert message in call(program, "answer", *files, *words[:-1], place).refusal()
    (coco / "2.png").write_bytes((coco / "2.png").read_bytes()[:60])
    assert "2.png does not decode" in call(program, "answer", *files, *words).refusal()
    (coco / "1.png").unlink()
    assert "lacks 1 of the 3 pictures" in call(program, "answer", *files, *words).refusal()
    assert "--pictures is missing" in call(program, "answer", *files).refusal()
    assert "the question files are missing" in call(program, "answer", *words).refusal()


def test_the_commit_is_that_of_the_start(call, program, tiny_checkpoint, coco, tmp_path, monkeypatch):
    rows = [{"image": "0.png", "text": "Is there a dog in the image?", "label": "yes"}]
    commits, open_model = ["before"], program.open_model

    def opened_late(*given):
        commits.append("after")
        return open_model(*given)

    monkeypatch.setattr(report, "commit_of", lambda _: commits[-1])
    monkeypatch.setattr(program, "open_model", opened_late)
    words = ("answer", write_rows(tmp_path / "coco_pope_random.json", rows), "--pictures", coco, "--device", "cpu")
    words += ("--model", tiny_checkpoint, "--out", tmp_path / "out", "--json", tmp_path / "scores.json")
    assert call(program, *words, "--dtype", "bfloat16").code == 0
    results = json.loads((tmp_path / "scores.json").read_text())
    assert (results["commit"], results["dtype"], results["device"]) == ("before", "bfloat16", "cpu")


def test_kept_answers_are_of_the_same_rounding(call, program, tiny_checkpoint, coco, tmp_path, monkeypatch):
    rows = [{"image": f"{i}.png", "text": "Is there a dog in the image?", "label": "yes"} for i in range(3)]
    words = ("answer", write_rows(tmp_path / "coco_pope_random.json", rows), "--pictures", coco, "--device", "cpu")
    words += ("--model", tiny_checkpoint, "--out", tmp_path / "out")
    encode, left = questions.encode, []

    def breaks_off(*given):
        left.pop()
        return encode(*given)

    monkeypatch.setattr(questions, "encode", breaks_off)
    for options, others, taken in (
        (("--batch-size", 1), ("--batch-size", 2), True),
        (("--batch-size", 1), ("--batch-size", 1, "--dtype", "bfloat16"), False),
        (("--batch-size", 1, "--dtype", "bfloat16"), ("--batch-size", 2, "--dtype", "bfloat16"), False),
    ):
        left[:] = [1, 1]
        with pytest.raises(IndexError):  # at the third picture
            program.main([str(word) for word in (*words, *options)])
        left[:] = [1, 1, 1]
        ended = call(program, *words, *others)
        assert ended.code == 0 and ("2 answers of a run that was broken off" in ended.err) == taken, ended.err
        for kept in (tmp_path / "out").glob(".answers-*"):
            kept.unlink()


def test_kept_answers_are_of_the_same_pictures(call, program, tiny_checkpoint, coco, tmp_path, monkeypatch):
    rows = [{"image": f"{i}.png", "text": "Is there a dog in the image?", "label": "yes"} for i in range(3)]
    words = ("answer", write_rows(tmp_path / "coco_pope_random.json", rows), "--pictures", coco, "--device", "cpu")
    words += ("--model", tiny_checkpoint, "--out", tmp_path / "out", "--batch-size", 1)
    encode, left = questions.encode, []

    def breaks_off(*given):
        left.pop()
        return encode(*given)

    monkeypatch.setattr(questions, "encode", breaks_off)
    for color, taken in (("red", True), ("white", False)):
        left[:] = [1, 1]
        with pytest.raises(IndexError):  # at the third picture
            program.main([str(word) for word in words])
        Image.new("RGB", (20, 16), color).save(coco / "0.png")  # red it was
        left[:] = [1, 1, 1]
        ended = call(program, *words)
        assert ended.code == 0 and ("2 answers of a run that was broken off" in ended.err) == taken, ended.err


# ---- MME -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ("yes", "yes"), ("No", "no"), ("YES.", "yes"), ("Yes, it is", "yes"), ("no\r", "no"), (" yes", "yes"),
        ("  yes", "other"), ("I say yes", "other"), ("know", "no"), ("not at all", "no"), ("", "other"),
        ("ye", "other"), ("a no", "no"), ("the no", "other"),
    ],
)  # fmt: skip
def test_mme_parsing_by_hand(answer, parsed):
    assert mme.parse(answer) == parsed


def mme_file(path: Path, answers: list[tuple[str, str]]) -> Path:
    """Pairs of answers, one pair a picture; the labels are Yes and No."""
    lines = [
        f"{i}.jpg\tIs it {label}? Please answer yes or no.\t{label}\t{said}"
        for i, pair in enumerate(answers)
        for label, said in zip(("Yes", "No"), pair, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mme_of_one_sub_task_by_hand(tmp_path):
    # Both right, one right, none right, one right and garbage: 4 of 8 answers, 1 of 4 pictures.
    pairs = [("Yes", "no."), ("Yes", "yes"), ("No", "Yes"), ("yes it is", "hard to say")]
    rows = mme.read_results(mme_file(tmp_path / "OCR.txt", pairs))
    assert mme.score(rows) == {"acc": 0.5, "acc_plus": 0.25, "score": 75.0, "other_ratio": 1 / 8}


@pytest.mark.parametrize(
    ("pair", "perception", "cognition"),
    [(("yes", "no"), 2000, 800), (("no", "yes"), 0, 0), (("yes", "yes"), 500, 200), (("no", "no"), 500, 200),
     (("I think", "so"), 0, 0)],
)  # fmt: skip
def test_mme_of_constant_answers(call, tmp_path, pair, perception, cognition):
    for task, size in (mme.PERCEPTION | mme.COGNITION).items():
        mme_file(tmp_path / f"{task}.txt", [pair] * (size // 2))
    results = scored(call, load_program("eval/mme.py"), tmp_path, tmp_path)
    assert (results["perception"], results["cognition"]) == (perception, cognition)
    assert results["num_questions"] == 2374 and results["missing"] == results["incomplete"] == []
    assert results["intervals"]["perception"] == [perception, perception]
    assert results["limited"] is False and results["fingerprint_of"] == "answers"
    for entry in results["subtasks"].values():
        assert entry["intervals"] == {name: [entry[name]] * 2 for name in ("acc", "acc_plus")}


def test_mme_of_random_answers_is_what_arithmetic_says(call, tmp_path):
    rng = random.Random(0)
    for task, size in (mme.PERCEPTION | mme.COGNITION).items():
        mme_file(tmp_path / f"{task}.txt", [tuple(rng.choice(("yes", "no")) for _ in "ab") for _ in range(size // 2)])
    results = scored(call, load_program("eval/mme.py"), tmp_path, tmp_path)
    # 100 / 2 + 100 / 4 a sub-task.
    assert results["perception"] == pytest.approx(750, abs=90) and results["cognition"] == pytest.approx(300, abs=70)
    low, high = results["intervals"]["perception"]
    assert low < 750 < high and low < results["perception"] < high


def test_mme_asks_the_two_questions_about_each_picture_together(call, tiny_checkpoint, coco, tmp_path, monkeypatch):
    release, out, scores = tmp_path / "release", tmp_path / "out", tmp_path / "scores.json"
    for task in ("existence", "OCR"):
        (release / task).mkdir(parents=True)
        for number in range(3):
            (release / task / f"{number}.png").write_bytes((coco / f"{number}.png").read_bytes())
            lines = f"Is there a dog {task}?\tYes\nIs there a cup in {task}?\tNo\n"
            (release / task / f"{number}.txt").write_text(lines)
    calls = count_pictures(monkeypatch)
    words = ("--model", tiny_checkpoint, "--device", "cpu", "--out", out, "--json", scores)
    program = load_program("eval/mme.py")
    ended = call(program, "answer", release, *words, "--batch-size", 5)
    assert ended.code == 0 and "12 answers about 6 pictures" in ended.out and sum(calls) == 6, ended.err
    results = json.loads(scores.read_text())
    again = scored(call, program, tmp_path, out)
    assert (again["subtasks"], again["intervals"]) == (results["subtasks"], results["intervals"])
    assert len(results["pictures_fingerprint"]) == len(results["questions_fingerprint"]) == 16
    row = mme.read_results(out / "OCR.txt")[3]
    assert (row.picture, row.question, row.label) == ("1.png", "Is there a cup in OCR?", "no")
    assert "OCR.txt would be" in call(program, "score", out, "--json", out / "OCR.txt").refusal()
    assert call(program, "answer", release, *words, "--suffix", "\nIn one word.").code == 0
    assert scored(call, program, tmp_path, out)["suffix"] == json.loads(scores.read_text())["suffix"] == " In one word."
    assert mme.read_results(out / "OCR.txt")[3].question == "Is there a cup in OCR? In one word."
    for read in (release / "OCR" / "2.png", release / "OCR" / "2.txt"):
        assert f"{read} would be overwritten by" in call(program, "answer", release, *words[:-1], read).refusal()
    (release / "OCR" / "2.png").write_bytes(b"no picture")
    assert "OCR/2.png is no picture" in call(program, "answer", release, *words).refusal()
    assert "--out is missing" in call(program, "answer", release).refusal()
    assert "folder of MME's release is missing" in call(program, "answer").refusal()
    assert "holds no sub-task" in call(program, "answer", tmp_path, *words).refusal()


def test_mme_s_prompt_may_end_otherwise(call, tmp_path):
    asked = "Is it? Please answer yes or no."
    assert (
        mme.with_suffix(asked, "\nIn one word.")
        == mme.with_suffix("Is it?", "\nIn one word.")
        == ("Is it?\nIn one word.")
    )
    assert mme.with_suffix(f"{asked} ", "") == "Is it?"
    assert mme.suffix_of([asked, "What? Is it? Please answer yes or no.", "Tell me"]) == mme.SUFFIX
    assert mme.suffix_of(["Tell me"]) is None
    mme_file(tmp_path / "count.txt", [("yes", "no")])
    assert scored(call, load_program("eval/mme.py"), tmp_path, tmp_path)["suffix"] == mme.SUFFIX


def test_mme_names_what_is_missing_and_gives_no_total(call, tmp_path):
    mme_file(tmp_path / "count.txt", [("yes", "no")])
    program = load_program("eval/mme.py")
    results = scored(call, program, tmp_path, tmp_path, "--name", "mine")
    assert results["subtasks"]["count"]["score"] == 200 and results["perception"] is results["cognition"] is None
    assert results["incomplete"] == ["count"] and len(results["missing"]) == 13 and results["model"] == "mine"
    told = " ".join(call(program, "score", tmp_path).out.split())
    assert "no total without existence" in told and "an interval without width, as at 0 and 200" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\tq\tYes\n", "line 1: 3 fields"),
        ("a.jpg\tq\tMaybe\tyes\n", "line 1: the label is 'Maybe'"),
        ("a.jpg\tq\tYes\tyes\n", "a.jpg has one question"),
        ("a.jpg\tq\tYes\tyes\nb.jpg\tq\tYes\tyes\n", "a.jpg has one question"),
        ("a.jpg\tq\tYes\tyes\na.jpg\tq\tNo\tno\n", "a.jpg has the question 'q' twice"),
        ("\n", "is empty"),
    ],
)
def test_mme_refuses_files_that_the_official_script_would_miscount(tmp_path, text, message):
    (tmp_path / "OCR.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        mme.read_results(tmp_path / "OCR.txt")


@pytest.mark.parametrize(
    ("words", "message"), [((), "no command"), (("score",), "is missing"), (("score", "."), "no r")]
)
def test_mme_tells_what_to_mend(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in call(load_program("eval/mme.py"), *words).refusal()
