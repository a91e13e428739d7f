"""GenEval's rules on detections with known verdicts, for all six tags; records, folders and summaries by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unimllm.errors import UserError
from unimllm.metrics import geneval, geneval_records
from unimllm.metrics.geneval import TAGS, Detection, failures, is_correct
from unimllm.metrics.geneval_records import (
    COLORS,
    OBJECT_NAMES,
    Record,
    check_pictures,
    fingerprint,
    intervals,
    read_folder,
    read_official,
    read_prompts,
    read_records,
    summary,
    verdicts,
)
from unimllm.metrics.intervals import wilson

SINGLE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
TWO = {
    "tag": "two_object",
    "include": [{"class": "dog", "count": 1}, {"class": "computer mouse", "count": 1}],
    "prompt": "a photo of a dog and a computer mouse",
}
COUNTING = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 3}],
    "exclude": [{"class": "cat", "count": 4}],
    "prompt": "a photo of three cats",
}
COLOR = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a photo of a red car"}
POSITION = {
    "tag": "position",
    "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    "prompt": "a photo of a dog left of a cup",
}
COLOR_ATTR = {
    "tag": "color_attr",
    "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "white"}],
    "prompt": "a photo of a red car and a white dog",
}


def box(x: float, y: float = 50, side: float = 20) -> list[float]:
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def seen(*objects: tuple, file: str = "00000/samples/0000.png") -> Record:
    """A record of (name, score, box or None[, color])."""
    rows = [(*o, None)[:4] for o in objects]
    boxes = [list(b) if b else box(50) for _, _, b, _ in rows]
    classes = [OBJECT_NAMES.index(name) for name, *_ in rows]
    return Record(file, "by hand", boxes, [r[1] for r in rows], classes, [r[3] for r in rows])


# ---- every tag -----------------------------------------------------------------------------------------------------

DOG_LEFT, CUP = ("dog", 0.9, box(20)), ("cup", 0.9, box(80))
VERDICTS = [
    (SINGLE, [("dog", 0.31, None)], []),
    (SINGLE, [("dog", 0.3, None)], ["0 dog found, 1 wanted"]),
    (SINGLE, [("dog", 0.9, None), ("dog", 0.9, box(10)), ("cat", 0.9, None)], []),  # more than asked for
    (TWO, [("dog", 0.4, None), ("computer mouse", 0.4, None)], []),
    (TWO, [("dog", 0.4, None)], ["0 computer mouse found, 1 wanted"]),
    (TWO, [], ["0 dog found, 1 wanted", "0 computer mouse found, 1 wanted"]),
    # Off by one, at both sides of the threshold: the fourth cat is one only above 0.9.
    (COUNTING, [("cat", 0.95, None)] * 3 + [("cat", 0.89, None)], []),
    (COUNTING, [("cat", 0.95, None)] * 3 + [("cat", 0.91, None)], ["4 cat found, fewer than 4 wanted"]),
    (COUNTING, [("cat", 0.95, None)] * 2 + [("cat", 0.91, None)], []),
    (COUNTING, [("cat", 0.95, None)] * 2 + [("cat", 0.89, None)], ["2 cat found, 3 wanted"]),
    (COLOR, [("car", 0.9, None, "red")], []),
    (COLOR, [("car", 0.9, None, "pink")], ["0 red car found, 1 wanted"]),
    (COLOR, [("car", 0.8, None, "red"), ("car", 0.9, None, "pink")], ["0 red car found, 1 wanted"]),  # the surest
    (COLOR, [("truck", 0.9, None, "red")], ["0 car found, 1 wanted"]),  # the right colour on no car
    (COLOR, [("car", 0.3, None, "red")], ["0 car found, 1 wanted"]),
    (POSITION, [DOG_LEFT, CUP], []),
    (POSITION, [("dog", 0.9, box(80)), ("cup", 0.9, box(20))], ["dog not left of its target"]),
    (POSITION, [DOG_LEFT], ["0 cup found, 1 wanted", "nothing for the dog to be left of"]),
    (POSITION, [CUP], ["0 dog found, 1 wanted"]),
    (POSITION, [DOG_LEFT, CUP, ("dog", 0.5, box(95))], []),  # the surest dog
    (COLOR_ATTR, [("car", 0.9, None, "red"), ("dog", 0.9, None, "white")], []),
    (COLOR_ATTR, [("car", 0.9, None, "white"), ("dog", 0.9, None, "red")],
     ["0 red car found, 1 wanted", "0 white dog found, 1 wanted"]),
    (COLOR_ATTR, [("car", 0.9, None, "red")], ["0 dog found, 1 wanted"]),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "objects", "expected"), VERDICTS)
def test_verdicts_by_hand(metadata, objects, expected):
    record = seen(*objects)
    assert verdicts({record.file: record}, {record.file: metadata}) == [expected]
    assert is_correct(record.detections(), metadata) == (not expected)


def test_two_subjects_of_one_target():
    """Both dogs must lie left of the one cup, and each clause refers to the cup by its index."""
    twice = {"class": "dog", "count": 2, "position": ["left of", 0]}
    metadata = {"tag": "position", "include": [{"class": "cup", "count": 1}, twice], "prompt": "two dogs left of a cup"}
    cup = Detection("cup", tuple(box(80)), 0.9)
    near, far = Detection("dog", tuple(box(20)), 0.9), Detection("dog", tuple(box(45)), 0.8)
    assert is_correct([cup, near, far], metadata)
    assert not is_correct([cup, near, Detection("dog", tuple(box(110)), 0.8)], metadata)
    cat = {"class": "cat", "count": 1, "position": ["above", 0]}
    metadata = {**POSITION, "include": [*POSITION["include"], cat]}
    above, below = (Detection("cat", tuple(box(80, y)), 0.9) for y in (10, 90))
    assert is_correct([cup, near, above], metadata)
    assert failures([cup, near, below], metadata) == ["cat not above its target"]
    assert failures([near, above], metadata)[1:] == [
        "nothing for the dog to be left of",
        "nothing for the cat to be above",
    ]


def test_a_target_of_two_boxes_must_be_passed_altogether():
    include = [{"class": "cup", "count": 2}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    metadata = {"tag": "position", "include": include, "prompt": "a dog left of two cups"}
    cups = [Detection("cup", tuple(box(x)), 0.9) for x in (50, 80)]
    assert is_correct([*cups, Detection("dog", tuple(box(20)), 0.9)], metadata)
    assert not is_correct([*cups, Detection("dog", tuple(box(65)), 0.9)], metadata)


@pytest.mark.parametrize(
    ("x", "right"),
    # Boxes of 20 pixels: the margin is 4. A relation needs more than half of the offset d left: d - 4 > d / 2, d > 8.
    [(50, False), (53.9, False), (54.1, False), (57.9, False), (58.0, False), (58.1, True), (70, True)],
)
def test_boxes_on_the_margin(x, right):
    dog, cup = Detection("dog", tuple(box(x)), 0.9), Detection("cup", tuple(box(50)), 0.9)
    metadata = {
        **POSITION,
        "include": [POSITION["include"][0], {**POSITION["include"][1], "position": ["right of", 0]}],
    }
    assert is_correct([dog, cup], metadata) == right


def test_touching_boxes_lie_beside_each_other():
    dog, cup = Detection("dog", (0, 0, 20, 20), 0.9), Detection("cup", (20, 0, 40, 20), 0.9)
    assert is_correct([dog, cup], POSITION)  # offset 20, margin 4: 16 of 20 are left


def test_a_wrong_target_colour_fails_what_lies_beside_it():
    target = {"class": "cup", "count": 1, "color": "red"}
    metadata = {**POSITION, "include": [target, POSITION["include"][1]]}
    lacks = verdicts({"a": seen(DOG_LEFT, (*CUP, "blue"))}, {"a": metadata})
    assert lacks == [["0 red cup found, 1 wanted", "nothing for the dog to be left of"]]


# ---- records -------------------------------------------------------------------------------------------------------


def test_names_are_coco_s_by_index():
    assert len(OBJECT_NAMES) == len(set(OBJECT_NAMES)) == 80
    assert [OBJECT_NAMES[i] for i in (0, 16, 63, 64, 65, 66, 67, 79)] == [
        "person", "dog", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "toothbrush",
    ]  # fmt: skip


def test_records_come_back_from_their_file(tmp_path):
    records = [seen(("car", 0.9, box(3), "red"), file="a"), seen(file="b"), seen(("dog", 0.1, box(3)), file="c")]
    path = tmp_path / "seen.jsonl"
    path.write_bytes(b"".join(record.line() for record in records))
    assert list(read_records(path).values()) == records
    assert [len(record.detections()) for record in records] == [1, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": []}, "unequally many"),
        ({"classes": [80]}, "no index"),
        ({"file": "other"}, "recorded before"),
        ({"boxes": None}, "lacks 'boxes'"),
        ({"file": ["a"]}, "'file' is .*no text"),
        ({"detector": 1}, "'detector' is 1, no text"),
        ({"sha256": 1}, "'sha256' is 1, no text"),
        ({"scores": 0.9}, "'scores' is 0.9, no list"),
        ({"boxes": "abcd"}, "'boxes' is 'abcd', no list"),
        ({"boxes": [[0, 1, 2]]}, r"\[0, 1, 2\] in 'boxes' is no box"),
        ({"boxes": [[0, 1, 2, "3"]]}, "no box of four numbers"),
        ({"scores": ["0.9"]}, "'0.9' in 'scores' is no number"),
        ({"classes": ["dog"]}, "'dog' in 'classes' is no index"),
        ({"classes": [16.0]}, "no index"),
        ({"colors": ["grey"]}, "'grey' in 'colors' is neither null"),
    ],
)
def test_damaged_records_are_told(tmp_path, change, message):
    row = json.loads(seen(("dog", 0.9, None), file="other").line())
    damaged = {k: v for k, v in (row | {"file": "a"} | change).items() if v is not None}
    (tmp_path / "seen.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(damaged) + "\n")
    with pytest.raises(UserError, match=f"row 2.*{message}"):
        read_records(tmp_path / "seen.jsonl")


def test_records_belong_to_their_pictures(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    record = seen(file="a")
    assert fingerprint(tmp_path / "a") == "e3b0c44298fc1c14"  # sha256 of nothing
    check_pictures({"a": replace(record, sha256="e3b0c44298fc1c14")}, tmp_path, {"a": SINGLE})
    check_pictures({"b": record}, tmp_path, {"a": SINGLE})  # of none of these
    for sha256, message in (("0" * 16, "is of another picture"), ("", "lacks the sha256")):
        with pytest.raises(UserError, match=f"a {message}.*give --detector"):
            check_pictures({"a": replace(record, sha256=sha256)}, tmp_path, {"a": SINGLE})
    with pytest.raises(UserError, match="cannot read"):
        fingerprint(tmp_path / "b")


def test_records_of_earlier_versions_lack_the_sha256(tmp_path):
    row = json.loads(seen(file="a").line())
    del row["sha256"]
    (tmp_path / "seen.jsonl").write_text(json.dumps(row))
    assert read_records(tmp_path / "seen.jsonl") == {"a": seen(file="a")}


def test_a_verdict_needs_the_record_and_the_colours():
    with pytest.raises(UserError, match="1 of 1 pictures have no record"):
        verdicts({}, {"a": SINGLE})
    with pytest.raises(UserError, match="lacks colours.*give --detector and --clip to look again"):
        verdicts({"a": seen(("car", 0.9, None))}, {"a": COLOR})
    assert verdicts({"a": seen(("dog", 0.9, None))}, {"a": COLOR}) == [["0 car found, 1 wanted"]]


def test_records_of_all_pictures_of_all_prompts(tmp_path):
    """2,212 records of 100 boxes that all count: reading, judging, and the intervals."""
    boxes = [("dog", 0.31 + i / 200, box(i), "black") for i in range(99)] + [("car", 0.9, box(5), "red")]
    line = seen(*boxes).line()
    rows = [line.replace(b"00000/", f"{n:05d}/".encode()) for n in range(2212)]
    (tmp_path / "seen.jsonl").write_bytes(b"".join(rows))
    prompts = [SINGLE, TWO, COUNTING, COLOR, POSITION, COLOR_ATTR]
    records = read_records(tmp_path / "seen.jsonl")
    pictures = {file: prompts[n // 4 % 6] for n, file in enumerate(records)}
    correct = [not lacks for lacks in verdicts(records, pictures)]
    tags = [p["tag"] for p in pictures.values()]
    names = [str(n // 4) for n in range(2212)]
    scores = summary(tags, names, correct)["scores"]
    spread = intervals(tags, names, correct, 0)
    assert scores["single_object"] == scores["colors"] == 1 and scores["two_object"] == scores["color_attr"] == 0
    assert set(spread) == {*scores, "correct_pictures", "correct_prompts"}


# ---- prompts and folders -------------------------------------------------------------------------------------------


def write_folder(folder: Path, prompts: list[dict], pictures: int = 2) -> Path:
    for n, prompt in enumerate(prompts):
        samples = folder / f"{n:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(prompt) + "\n")
        for k in range(pictures):
            (samples / f"{k:04d}.png").touch()
    return folder


def test_folders_are_read_as_the_official_evaluator_does(tmp_path):
    folder = write_folder(tmp_path / "out", [SINGLE, COLOR])
    (folder / "00001" / "grid.png").touch()
    (folder / "00001" / "samples" / "notes.png").touch()
    (folder / "summary").mkdir()
    (folder / "\u00b2").mkdir()  # a digit, but no number
    (folder / "generation.json").touch()
    assert read_folder(folder) == {
        "00000/samples/0000.png": SINGLE, "00000/samples/0001.png": SINGLE,
        "00001/samples/0000.png": COLOR, "00001/samples/0001.png": COLOR,
    }  # fmt: skip
    (folder / "00000" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="metadata.jsonl"):
        read_folder(folder)
    for empty, message in ((tmp_path, "GenEval's layout"), (tmp_path / "nothing", "no such folder")):
        with pytest.raises(UserError, match=message):
            read_folder(empty)
    with pytest.raises(UserError, match="holds no pictures named"):
        read_folder(write_folder(tmp_path / "bare", [SINGLE], 0))


CUP_CLAUSE = {"class": "cup", "count": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"include": [{"class": "mouse", "count": 1}]}, "'mouse' is none of"),
        ({"include": [{"class": "dog", "count": 1, "color": "grey"}]}, "'grey' is none of"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "earlier include"),
        ({"include": [CUP_CLAUSE, {"class": "dog", "count": 1, "position": ["over", 0]}]}, "'over' is none of"),
        ({"include": [CUP_CLAUSE, {"class": "dog", "count": 1, "position": ["above", 0.0]}]}, "earlier include"),
        ({"include": [CUP_CLAUSE, {"class": "dog", "count": 1, "position": ["above"]}]}, "is not .relation, index"),
        ({"include": [{"class": "dog", "count": "1"}]}, "'1' is no count of dog"),
        ({"include": [{"class": "dog", "count": 1.5}]}, "1.5 is no count of dog"),
        ({"exclude": [{"class": "dog", "count": "two"}]}, "'two' is no count of dog"),
        ({"include": [{"class": "dog"}]}, "no prompt of GenEval's"),
        ({"include": "dog"}, "no prompt of GenEval's"),
        ({"exclude": [{"class": "dug", "count": 2}]}, "'dug' is none of"),
        ({"prompt": 7}, "'prompt' is 7, no text"),
        ({"tag": ["colors"]}, "'tag' is .'colors'., no text"),
    ],
)
def test_prompts_that_no_picture_could_fulfil_are_told(tmp_path, change, message):
    (tmp_path / "p.jsonl").write_text(json.dumps(SINGLE) + "\n" + json.dumps(SINGLE | change) + "\n")
    with pytest.raises(UserError, match=f"row 2.*{message}"):
        read_prompts(tmp_path / "p.jsonl")


# ---- the summary ---------------------------------------------------------------------------------------------------

# tag -> right pictures of each of its prompts, four pictures a prompt.
RIGHT = {"single_object": (4, 2), "two_object": (0,), "counting": (1, 0, 0), "position": (3,)}


def rows_of(right: dict[str, tuple[int, ...]]) -> list[dict]:
    return [
        {"filename": "x", "tag": tag, "metadata": json.dumps({"prompt": f"{tag} {i}"}), "correct": k < count}
        for tag, counts in right.items()
        for i, count in enumerate(counts)
        for k in range(4)
    ]


def test_the_summary_by_hand(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(RIGHT)))
    tags, prompts, correct = (list(column) for column in zip(*read_official(path), strict=True))
    result = summary(tags, prompts, correct)
    assert (result["num_pictures"], result["num_prompts"], result["complete"]) == (28, 7, False)
    assert result["correct_pictures"] == 10 / 28 and result["correct_prompts"] == 4 / 7
    shares = {"single_object": 6 / 8, "two_object": 0, "counting": 1 / 12, "position": 3 / 4}
    assert result["scores"] == shares | {"overall": None}  # two tags are missing
    assert list(result["scores"]) == [t for t in TAGS if t in RIGHT] + ["overall"]
    assert intervals(tags, prompts, correct, 0)["overall"] is None

    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(RIGHT | {"colors": (4,), "color_attr": (1,)})))
    result = summary(*(list(column) for column in zip(*read_official(path), strict=True)))
    # The mean of the six tags, not of the pictures.
    assert result["scores"]["overall"] == pytest.approx((6 / 8 + 0 + 1 / 12 + 3 / 4 + 1 + 1 / 4) / 6)


def test_a_tag_of_its_own_counts_as_one_more():
    result = summary([*TAGS, "mine"], list("abcdefg"), [True] * 6 + [False])
    assert result["scores"] == dict.fromkeys(TAGS, 1) | {"mine": 0, "overall": 6 / 7}


def test_intervals_are_wilson_s_of_prompts_or_resample_them_within_their_tags():
    fixed = dict.fromkeys(("two_object", "counting", "position", "color_attr"), (2,) * 100)
    rows = rows_of(fixed | {"single_object": (4, 0) * 50, "colors": (4, 0) * 50})
    columns = [[row[key] for row in rows] for key in ("tag", "metadata", "correct")]
    spread = intervals(*columns, seed=0)
    assert spread["single_object"] == spread["counting"] == spread["colors"] == wilson(50, 100)
    # 100 prompts, all or nothing: 0.5 +- 1.96 * 0.5 / sqrt(100); the mean of six tags, four of them fixed, has
    # sqrt(2) / 6 of that: the two equal tags do not rise and fall together.
    assert spread["overall"] == pytest.approx((0.477, 0.523), abs=0.005)
    assert spread["correct_pictures"] == pytest.approx(spread["overall"])  # tags of equally many pictures
    assert spread["correct_prompts"] == pytest.approx((0.810, 0.856), abs=0.005)  # 50, 50 and 400 of 600
    assert intervals(*columns, seed=0) == spread


def test_a_tag_that_is_all_right_or_all_wrong_has_an_interval():
    tags, prompts = ["colors"] * 8 + ["position"] * 8, [str(i // 4) for i in range(16)]
    spread = intervals(tags, prompts, [True] * 8 + [False] * 8, 0)
    assert spread["colors"] == wilson(2, 2) and spread["position"] == wilson(0, 2)  # two prompts of each
    assert spread["colors"][0] < 0.5 and spread["colors"][1] == 1


def test_pictures_of_one_prompt_are_one_trial():
    correct = [True, True, True, False, False, False]
    assert geneval.intervals(["colors"] * 6, correct, [0, 0, 1, 1, 2, 2])["colors"] == wilson(1.5, 3)
    assert geneval.intervals(["colors"] * 6, correct, range(6))["colors"] == wilson(3, 6)


def test_official_results_must_hold_verdicts(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"tag": "colors", "metadata": "{}", "correct": 1}')
    with pytest.raises(UserError, match="not true or false"):
        list(read_official(path))
    path.write_text('{"tag": ["colors"], "metadata": "{}", "correct": true}')
    with pytest.raises(UserError, match="'tag' is .'colors'., no text"):
        list(read_official(path))


def test_the_ten_colours_are_geneval_s():
    assert COLORS == ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


def test_rewritten_prompts_are_not_genevals_own(monkeypatch):
    """As many prompts, four pictures of each, longer words: no complete GenEval."""
    own = [json.dumps({"tag": "single_object", "prompt": f"a photo of {i}"}) for i in range(553)]
    longer = [text.replace("a photo of", "a highly detailed photo of") for text in own]
    tags = ["single_object"] * 553 * 4
    monkeypatch.setattr(geneval_records, "OWN_PROMPTS", geneval_records.prompts_digest(tags, own * 4))
    assert summary(tags, own * 4, [True] * 553 * 4)["complete"]
    assert summary(tags, [text.replace("{", "{ ") for text in own] * 4, [True] * 553 * 4)["complete"]
    assert not summary(tags, longer * 4, [True] * 553 * 4)["complete"]
