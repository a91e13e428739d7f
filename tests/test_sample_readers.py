"""Readers of conversations: every format as a real library writes it, every layout, every fault with its place."""

import base64
import contextlib
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from picture_files import encoded, picture
from PIL import Image

from unimllm.conversation import flatten_content
from unimllm.data import dataset_samples, json_samples, parquet_samples, sample_index
from unimllm.data.parquet_samples import ParquetSamples
from unimllm.data.sample_index import SampleIndex, open_samples, parse_data
from unimllm.data.samples import BadSample, Sample, caption_texts, pictures_of
from unimllm.data.table_rows import pictures_in
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture

COLOURS = [10, 20, 30, 40, 50]


def llava(question: str, answer: str, image: str | list | None = None, **more) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


def words(sample: Sample) -> list[str]:
    """The turns of a sample's first variant as text."""
    return [message["content"] for message in flatten_content(sample.variants[0])]


def colours(sample: Sample) -> list[int]:
    """The numbers of its pictures, read."""
    return [np.asarray(Image.open(io.BytesIO(p.read())))[0, 0, 0] for p in pictures_of(sample.variants[0])]


def write_pictures(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        picture(colour).save(root / f"{colour}.png")
    return root


def read_all(index: SampleIndex) -> list[Sample]:
    return [index.read(i) for i in range(len(index))]


# ---- JSON ------------------------------------------------------------------------------------------------------------

ROWS = [
    llava("<image>\nWhat is this?", "A thing.", "10.png", id="a"),
    llava('Hello <é>, "you"', "Hi \U0001f600.", id="b"),
    {
        "id": 3,
        "image": "20.png",
        "conversations": [
            {"from": "human", "value": "What\n<image>"},
            {"from": "gpt", "value": "Red."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    },
    llava("First <image> or <image> then?", "Second.", ["30.png", "40.png"]),
    llava("Draw a thing", "<image>", "50.png"),
]
WORDS = [
    ["<image>What is this?", "A thing."],
    ['Hello <é>, "you"', "Hi \U0001f600."],
    ["<image>What", "Red.", "Sure?", "Yes."],
    ["First <image> or <image> then?", "Second."],
    ["Draw a thing", "<image>"],
]
TASKS = ["understanding", "text", "understanding", "understanding", "drawing"]


@pytest.mark.parametrize(
    "options", [{}, {"indent": 2}, {"ensure_ascii": False, "indent": 1}, {"lines": True}, {"bom": True}]
)
def test_llava_json_and_jsonl(tmp_path, options):
    options = dict(options)
    lines, bom = options.pop("lines", False), options.pop("bom", False)
    text = "\n\n".join(map(json.dumps, ROWS)) + "\n" if lines else json.dumps(ROWS, **options)
    path = tmp_path / ("data.jsonl" if lines else "data.json")
    path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
    index = open_samples(str(path), None, write_pictures(tmp_path / "images"))
    samples = read_all(index)
    assert [words(sample) for sample in samples] == WORDS and not index.faults
    assert [sample.task for sample in samples] == TASKS
    assert [colours(sample) for sample in samples] == [[10], [], [20], [30, 40], [50]]
    assert [sample.id for sample in samples] == ["a", "b", "3", "", ""]
    place = "7" if lines else "1, sample 4" if not options else None  # a blank line lies between two of them
    assert place is None or index.key(3) == f"{path}:{place}"
    if options.get("indent"):
        start = text[: text.index("First")].count("\n")
        assert 0 <= start - int(index.key(3).rpartition(":")[2]) + 1 < 12


def test_lines_of_path_and_caption(tmp_path):
    root = write_pictures(tmp_path)
    path = root / "captions.jsonl"
    rows = [
        {"path": "10.png", "prompt": "one"},
        {"image": "20.png", "caption": ["two", "zwei"]},
        {"file_name": "30.png"},
        {"images": [".\\40.png"], "caption": "four"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    index = open_samples(str(path), None, None)  # pictures lie beside the file
    first, second = index.read(0), index.read(1)
    assert words(first) == ["one", "<image>"] and first.task == "drawing" and colours(first) == [10]
    assert [messages[0]["content"][0]["text"] for messages in second.variants] == ["two", "zwei"]
    with pytest.raises(BadSample, match="none of conversations"):
        index.read(2)
    assert colours(index.read(3)) == [40] and pictures_of(index.read(3).variants[0])[0].key == "40.png"
    assert words(open_samples(str(path), "captions", None).read(0)) == ["one", "<image>"]
    with pytest.raises(BadSample, match="it has no turns"):
        open_samples(str(path), "llava", None).read(0)


def messages(question, answer, **more) -> dict:
    answer = [{"text": answer}] if isinstance(question, list) else answer  # in a table both are of one type
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer} | more]}


DEEP = "[" * 100_000
LONG = '{"id": ' + "1" * 5000 + "}"  # Python makes no number of it


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"conversations": [', "broken JSON"),
        (b'{"id": "\xff"}', "broken JSON"),
        (DEEP, "broken JSON"),
        (LONG, "broken JSON"),
        ({"conversations": DEEP}, "no conversation"),
        ("[1]", "no object"),
        ('{"url": "x"}', "unknown layout"),
        ({"conversations": []}, "no conversation"),
        ({"conversations": [{"from": "human"}]}, "no text"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown speaker"),
        (llava("a", "b") | {"conversations": [{"from": "human", "value": "a"}] * 2}, "two turns in a row"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no answer"),
        (llava("a", " "), "an empty answer"),
        (llava("", "b"), "an empty question"),
        (llava("<image> a", "b"), "<image> without an image"),
        (llava("a", "b", "10.png"), "an image without <image>"),
        (llava("<image> a", "b", ["10.png", "20.png"]), "an image without <image>"),
        ({"image": 5, "caption": "a"}, "no picture"),
        ({"caption": "a"}, "no picture"),
        ({"caption": " ", "prompt": "", "image": "10.png"}, "an empty caption"),
        ({"image": "10.png", "prompt": "What is it?", "response": "Red."}, "an answer beside a caption"),
        ({"image": "10.png", "text": '{"question": "a?", "chosen": "b"}'}, "an answer beside a caption"),
        (llava("a", "b") | {"image_url": "https://x/1.png"}, "an unread picture or video"),
        (llava("a", "b") | {"image_id": 5}, "an unread picture or video"),
        (llava("<video> a", "b") | {"video": "1.mp4"}, "an unread picture or video"),
        (llava("<image> <audio> a", "b", "10.png"), "an unread picture or video"),
        (llava("<image> a", "b", "https://x/1.png"), "a URL"),
        (llava("a", "b") | {"label": False}, "not to be learnt"),
        (messages("a", "b", weight=0), "not to be learnt"),
        (messages([{"type": "video", "video": "1.mp4"}], "b"), "an unknown part"),
        ({"texts": ["a", None], "images": [None, "10.png"]}, "no picture"),
        ({"texts": ["a", None]}, "no conversation"),
    ],
)
def test_bad_samples_have_a_reason_and_a_line(tmp_path, row, reason):
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(ROWS[1]).encode() + b"\r\n" + line + b"\n")
    index = open_samples(str(path), None, None)
    with pytest.raises(BadSample) as caught:
        index.read(1)
    assert caught.value.reason == reason and index.key(1) == f"{path}:2" and words(index.read(0)) == WORDS[1]
    if line == b'{"conversations": [':
        assert str(caught.value) == "Expecting value in column 20"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"caption": "a\tdog"}', "Invalid control character in column 15"),
        ('{"caption": "a dog', "Unterminated string in column 13"),
    ],
)
def test_broken_json_is_told_in_english(tmp_path, line, told):
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(ROWS[1])}\n{line}\n")
    with pytest.raises(BadSample) as caught:
        open_samples(str(tmp_path), None, None).read(1)
    assert str(caught.value) == told
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "a", "json": b"\n" + line.encode()})
    with pytest.raises(BadSample) as caught:
        open_samples(str(tmp_path / "a.tar"), None, None).read(0)
    assert str(caught.value) == told.replace("in column", "in its line 2, column")


def test_a_question_that_nobody_answers_is_cut_off_at_the_end(tmp_path):
    turns = [("human", "<image>a"), ("gpt", "b"), ("human", "<image>c")]
    rows = [{"image": ["10.png", "20.png"], "conversations": [{"from": w, "value": t} for w, t in turns]}]
    rows.append({"messages": [{"role": "system", "content": "s"}, *messages("a", "b")["messages"],
                              {"role": "user", "content": ""}], "image": "10.png"})  # fmt: skip
    rows.append({"image": "10.png", "conversations": rows[0]["conversations"]})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = open_samples(str(tmp_path), None, None)
    first, second = index.read(0), index.read(1)
    assert words(first) == ["<image>a", "b"] and [p.key for p in pictures_of(first.variants[0])] == ["10.png"]
    assert words(second) == ["s", "<image>a", "b"] and first.is_cut and second.is_cut
    with pytest.raises(BadSample, match="2 times <image> but 1 pictures"):
        index.read(2)


def test_a_leading_answer_is_dropped_and_a_system_turn_kept(tmp_path):
    turns = [("gpt", "Hi."), ("human", "a"), ("gpt", "b")]
    openai = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [
        {"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}],
        "images": ["10.png"]}  # fmt: skip
    rows = [{"conversations": [{"from": who, "value": text} for who, text in turns]}, openai]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    assert [words(sample) for sample in read_all(open_samples(str(path), None, None))] == [
        ["a", "b"],
        ["s", "<image>a", "b"],
    ]


@pytest.mark.parametrize("part", [{"image": "10.png"}, {"path": "10.png"}, {"image_url": {"url": "10.png"}}])
def test_parts_may_name_their_pictures_themselves(tmp_path, part):
    parts = [{"type": "image", **part}, {"type": "text", "text": "a"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    (sample,) = read_all(open_samples(str(path), None, None))
    assert words(sample) == ["<image>a", "b"]
    assert [picture.path for picture in pictures_of(sample.variants[0])] == [tmp_path / "10.png"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (messages([{"image": "10.png"}, {"text": "a"}], "b"), ["<image>a", "b"]),  # Qwen's
        (messages([{"type": "image", "url": "10.png"}, {"type": "text", "text": "a"}], "b"), ["<image>a", "b"]),
        (messages([{"type": "input_text", "text": "a"}], "b"), ["a", "b"]),
        (messages("a", "b") | {"images": ["10.png", "20.png"]}, ["<image><image>a", "b"]),
        (messages("a", "b") | {"image_path": "10.png"}, ["<image>a", "b"]),
        (messages("a <image>b", "c") | {"image": "10.png"}, ["<image>a b", "c"]),
        (messages("a.<image>b", "c") | {"image": "10.png"}, ["<image>a. b", "c"]),
        (messages("a", "b") | {"system": "s"}, ["s", "a", "b"]),
        (messages("a", "b") | {"system": ""}, ["a", "b"]),
        ({"messages": [{"role": "system", "content": " "}, *messages("a", "b")["messages"]]}, ["a", "b"]),
        (llava("<image>a", "b", "file:///10.png"), ["<image>a", "b"]),
        ({"image": "10.png", "prompt": "Describe it.", "caption": "c", "text": "alt"}, ["c", "<image>"]),
        ({"image": "10.png", "text": "['c', 'd']"}, ["c", "<image>"]),
    ],
)
def test_conversations_and_captions_as_others_write_them(tmp_path, row, expected):
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data.parquet")
    for name in ("data.jsonl", "data.parquet"):
        (sample,) = read_all(open_samples(str(tmp_path / name), None, None))
        assert words(sample) == expected
        for found in pictures_of(sample.variants[0]):
            assert found.path.name in ("10.png", "20.png")


def test_lines_as_cheers_has_them(tmp_path):
    """Its marks around pictures, those to draw with another placeholder, several names in one text."""
    read, drawn = "<im_start><image><im_end>", "<im_start><image_gen><im_end>"
    rows = [
        llava(f"{read}\nWhat is it?", "a dog", "10.png"),
        llava("a dog\nBased on the above description, generate an image.", drawn, "10.png"),
        llava(f"{read}\nMake it red.", "<image_gen>", "10.png,20.png"),
        llava(f"{read}{read}\nWhich is larger?", "the first", "10.png; 20.png"),
        llava(f"{read}\nWhat is it?", "a dog", "10,20.png"),  # one picture, so that is its name
        llava(f"{read}{read}\nWhich?", "the first", "10.png"),
        llava(f"What is {drawn}?", "a dog", "10.png"),
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    *good, too_few, asked = range(len(rows))
    index = open_samples(str(tmp_path / "data.jsonl"), None, None)
    samples = list(map(index.read, good))
    assert [words(sample) for sample in samples] == [
        ["<image>What is it?", "a dog"],
        ["a dog\nBased on the above description, generate an image.", "<image>"],
        ["<image>Make it red.", "<image>"],
        ["<image><image>\nWhich is larger?", "the first"],
        ["<image>What is it?", "a dog"],
    ]
    names = [[found.key for found in pictures_of(sample.variants[0])] for sample in samples]
    assert names == [["10.png"], ["10.png"], ["10.png", "20.png"], ["10.png", "20.png"], ["10,20.png"]]
    assert [sample.task for sample in samples] == ["understanding", "drawing", "drawing", *["understanding"] * 2]
    for number in (too_few, asked):
        with pytest.raises(BadSample, match="2 times <image> but 1 pictures|1 pictures but 0 times <image>"):
            index.read(number)


def test_parts_of_tables_hold_their_pictures(tmp_path):
    parts = [{"type": "image", "image": {"bytes": encoded(picture(10)), "path": "10.png"}, "text": None}]
    parts.append({"type": "text", "image": None, "text": "a"})
    answer = [{"type": "text", "image": None, "text": "b"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "data.parquet")
    datasets.Dataset.from_list([{"messages": turns}]).save_to_disk(str(tmp_path / "saved"))
    for name in ("data.parquet", "saved"):
        (sample,) = read_all(open_samples(str(tmp_path / name), None, None))
        assert words(sample) == ["<image>a", "b"] and colours(sample) == [10]


def test_a_picture_may_be_a_data_url(tmp_path):
    held = base64.b64encode(encoded(picture(10))).decode()
    rows = []
    for url in (f"data:image/png;base64,{held}", "data:image/png;base64,no picture", held, "x" * 5000):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "a"}]
        rows.append({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    index = open_samples(str(path), None, None)
    first, second, bare = map(index.read, range(3))
    assert colours(first) == colours(bare) == [10]
    with pytest.raises(UnreadablePicture, match="its data URL is no base64"):
        colours(second)
    with pytest.raises(BadSample, match=r"^a name of 5,000 characters, x{60}\.\.\., which"):
        index.read(3)


def test_pictures_have_keys_by_where_they_lie(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "images")
    names = [f"{root}/10.png", f"{tmp_path}/else/../images/a/20.png", "./a/30.png", "/else/40.png", f"{root}s/50.png"]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"image": name, "caption": "a"}) for name in names))
    monkeypatch.chdir(tmp_path)
    for given in (root, Path("images")):
        keys = [pictures_of(s.variants[0])[0].key for s in read_all(open_samples(str(path), None, given))]
        assert keys == ["10.png", "a/20.png", "a/30.png", "/else/40.png", f"{root}s/50.png"]
    (root / "10.txt").write_text("ten")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, ".")
    index = open_samples(str(tmp_path / "a.tar"), None, None)
    assert index.key(0) == f"{tmp_path}/a.tar:./10.png"
    (found,) = pictures_of(index.read(0).variants[0])
    assert found.key == "/".join([*tmp_path.parts[-2:], "a.tar", "10.png"]) and colours(index.read(0)) == [10]


@pytest.mark.parametrize(
    ("text", "count", "damage"),
    [
        (json.dumps(ROWS)[:-200], 3, "broken JSON in line 1"),
        (json.dumps(ROWS[:2]) + "[]", 2, "more follows after the array"),
        (json.dumps(ROWS[:2]).replace('"a"},', '"a"}'), 1, "without a comma"),
    ],
)
def test_a_damaged_array_gives_what_comes_before(tmp_path, text, count, damage):
    path = tmp_path / "data.json"
    path.write_text(text)
    index = open_samples(str(path), None, None)
    assert len(index) == count and damage in index.faults[0].message and index.faults[0].reason == "damaged JSON file"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_one_object_over_several_lines_is_told_as_such(tmp_path, mark):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[1]))
    (tmp_path / "b.json").write_text(mark + json.dumps({"data": ROWS}, indent=1), "utf-8")
    index = open_samples(str(tmp_path), None, None)
    (fault,) = index.faults
    told = "damaged JSON file: one object; an array of samples or one a line is wanted; nothing of it is used"
    assert str(fault) == f"{tmp_path}/b.json: {told}" and len(index) == 1
    (tmp_path / "b.json").write_text("{\n" + json.dumps(ROWS[1]) + "\n")  # a broken line among others
    assert len(open_samples(str(tmp_path), None, None)) == 3


def test_an_endless_number_in_an_array_spoils_its_sample_alone_and_endless_brackets_the_rest(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(f"[{json.dumps(ROWS[1])},\n{LONG},\n{json.dumps(ROWS[4])},\n{DEEP}, {json.dumps(ROWS[1])}]")
    index = open_samples(str(path), None, None)
    assert len(index) == 3 and words(index.read(0)) == WORDS[1] and words(index.read(2)) == WORDS[4]
    with pytest.raises(BadSample, match="a number of too many digits"):
        index.read(1)
    assert "broken JSON in line 4: brackets nested too deeply" in index.faults[0].message


ODD = {"a": "x\\\u00e9 \U0001f600 ]}", "b": [True, None, -12.5e-7, 123456, [], {}, ""], "c": {"d": [[1], "\\"]}}
ARRAYS = [
    json.dumps([ODD] * 3),
    json.dumps([ODD] * 3, indent=2, ensure_ascii=False),
    json.dumps([ODD, 12345, "text", -1.5e-30, None, True, [ODD]], indent=1),
    json.dumps([ODD] * 3)[:-40],
    json.dumps([ODD] * 2)[:-1] + "  , \n\n",
    json.dumps([ODD] * 2) + "\n \n[",
    json.dumps([ODD] * 2) + "\n \n",
    json.dumps([ODD] * 3).replace("-12.5e-7", "-12.5e-+7", 1) + " " * 99,
    json.dumps([ODD] * 3, indent=1).replace('"c"', "c") + " " * 99,
    f"[{json.dumps(ODD)},\n{DEEP}, 1]",
    "[]",
    "[ \n",
]


@pytest.mark.parametrize("text", ARRAYS)
def test_an_array_is_looked_through_block_by_block(tmp_path, monkeypatch, text):
    (tmp_path / "a.json").write_text(text, "utf-8")
    whole, damage = json_samples.scan_json(tmp_path / "a.json")
    for block in (1, 7, 50):
        monkeypatch.setattr(json_samples, "BLOCK", block)
        parts, told = json_samples.scan_json(tmp_path / "a.json")
        assert np.array_equal(parts["spans"], whole["spans"]) and told == damage
    with contextlib.suppress(ValueError, RecursionError):
        held = [json.loads(text.encode()[start:end]) for start, end, _ in whole["spans"].tolist()]
        assert held == json.loads(text) and not damage


def test_a_long_array_is_never_held_in_memory(tmp_path, monkeypatch):
    path, count = tmp_path / "a.json", 4000
    path.write_text(json.dumps([{"id": number, "caption": "x" * 1000} for number in range(count)], indent=1))
    monkeypatch.setattr(json_samples, "BLOCK", 1 << 16)
    tracemalloc.start()
    found, damage = json_samples.scan_json(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found["spans"]) == count and not damage and peak < path.stat().st_size / 4
    path.write_text(path.read_text().replace('"id": 2000,', '"id": 2000'))  # what follows is not read for it
    monkeypatch.setattr(json_samples.Cursor, "read_on", _at_most(json_samples.Cursor.read_on, 40))
    found, damage = json_samples.scan_json(path)
    assert len(found["spans"]) == 2000 and damage == "broken JSON in line 8004: Expecting ',' delimiter"


def _at_most(function, times: int):
    left = iter(range(times))

    def counted(*args):
        next(left)
        return function(*args)

    return counted


# ---- tars ------------------------------------------------------------------------------------------------------------


def write_tars(folder: Path) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar")) as sink:
        sink.write({"__key__": "a/000", "png": picture(10), "txt": "ten"})
        sink.write({"__key__": "a/001", "jpg": picture(20), "json": {"caption": "twenty", "width": 16}})
    with webdataset.TarWriter(str(folder / "1.tar")) as sink:
        sink.write(
            {
                "__key__": "b",
                "json": llava("<image> What?", "Thirty."),
                "webp": encoded(picture(30), "WEBP", lossless=True),
                "cls": 3,
            }
        )
        sink.write({"__key__": "c", "json": llava("Hello", "Hi")})
        sink.write({"__key__": "d", "png": picture(40)})
    return folder


def test_webdatasets(tmp_path):
    index = open_samples(str(write_tars(tmp_path / "tars")), None, None)
    assert "5 samples in 2 tars" in str(index) and not index.faults
    samples = [index.read(i) for i in range(4)]
    expected = [["ten", "<image>"], ["twenty", "<image>"], ["<image>What?", "Thirty."], ["Hello", "Hi"]]
    assert [words(sample) for sample in samples] == expected
    assert colours(samples[0]) == [10] and abs(int(colours(samples[1])[0]) - 20) < 9
    assert index.key(0) == f"{tmp_path}/tars/0.tar:a/000.png"
    assert [p.key for p in pictures_of(samples[1].variants[0])] == [f"{tmp_path.name}/tars/0.tar/a/001.jpg"]
    with pytest.raises(BadSample, match="neither .txt nor .json"):
        index.read(4)


def test_captions_beside_captions_in_a_tar(tmp_path):
    """As recaptioned sets have them: each is drawn for; a blank text takes nothing from the JSON beside it."""
    rows = [("IMG_1.JPG", "a cat"), (" ", "a cat"), ("", {"captions": ["a", "b"]}), ("a cat ", "a cat"), ("a", None)]
    rows += [("", llava("<image> What?", "Ten.")), ("", None)]
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for number, (text, held) in enumerate(rows):
            about = held if isinstance(held, dict) else {"caption": held, "width": 16}
            sink.write({"__key__": str(number), "png": picture(10), "txt": text, "json": about})
        sink.write({"__key__": "no_json", "png": picture(10), "txt": " "})
    index = open_samples(str(tmp_path), None, None)
    asked = [[flatten_content(variant)[0]["content"] for variant in index.read(i).variants] for i in range(6)]
    assert asked == [["IMG_1.JPG", "a cat"], ["a cat"], ["a", "b"], ["a cat"], ["a"], ["<image>What?"]]
    for i in (6, 7):
        with pytest.raises(BadSample, match="no text under caption"):
            index.read(i)


def test_captions_in_a_tar_are_utf_8(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "a", "png": picture(10), "txt": "\ufeffcaf\xe9"})
        sink.write({"__key__": "b", "png": picture(20), "txt": "caf\xe9".encode("latin-1")})
    index = open_samples(str(tmp_path), None, None)
    assert words(index.read(0)) == ["caf\xe9", "<image>"]
    with pytest.raises(BadSample, match="unexpected end of data at byte 3; save it as UTF-8"):
        index.read(1)


@pytest.mark.parametrize("text", [DEEP, LONG])
def test_odd_json_in_a_tar_is_broken(tmp_path, text):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "a", "json": text.encode()})
    with pytest.raises(BadSample) as caught:
        open_samples(str(tmp_path), None, None).read(0)
    assert caught.value.reason == "broken JSON"


def test_a_tar_that_is_cut_off_or_empty(tmp_path):
    tars = write_tars(tmp_path / "tars")
    whole = (tars / "0.tar").read_bytes()
    with tarfile.open(tars / "0.tar") as tar:
        last = tar.getmembers()[-1]
    (tars / "0.tar").write_bytes(whole[: last.offset_data + 1])
    (tars / "2.tar").write_bytes(b"")
    index = open_samples(str(tars), None, None)
    assert [fault.reason for fault in index.faults] == ["damaged tar file"] * 2
    assert "nothing of it is used" in index.faults[1].message
    assert words(index.read(0)) == ["ten", "<image>"]


def test_members_of_a_tar_that_are_lost_are_told(tmp_path):
    members = {
        "d/img_0.5x.jpg": encoded(picture(10)), "d/img_0.5x.txt": b"ten", "d/1.jpg": encoded(picture(20)),
        "d/1.seg.png": encoded(picture(30)), "d/1.txt": b"twenty", "d/2.jpg": encoded(picture(30)),
        "d/2.png": encoded(picture(40)), "d/2.txt": b"forty",
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for _ in range(2):  # scanned, and remembered
        index = open_samples(str(tmp_path / "a.tar"), None, None, tmp_path / "index")
        assert [words(sample)[0] for sample in read_all(index)] == ["twenty", "forty"]
        assert str(index).endswith("2 samples in 1 tar (other files left alone: 1 .seg.png)")
        dots, two = map(str, index.faults)
        assert ": dots in keys: of its members 2 belong to no sample, the first d/img_0.5x.jpg: " in dots
        assert "so this one's ending is 5x.jpg" in dots
        assert ": two of one key: of its members 1 went over one before them, the first d/2.png: " in two


def test_members_of_other_endings_and_files_without_samples_are_told(tmp_path):
    tars = write_tars(tmp_path / "tars")
    with tarfile.open(tars / "2.tar", "w") as tar:
        for name in ("a.heic", "b.heic", "README"):
            tar.addfile(tarfile.TarInfo(name))
    for _ in range(2):  # scanned, and remembered
        index = open_samples(str(tars), None, None, tmp_path / "index")
        assert str(index).endswith("5 samples in 2 tars (other files left alone: 1 .cls)")
        told = "no samples: nothing of it is used (other files left alone: 2 .heic, 1 without ending)"
        assert [str(fault) for fault in index.faults] == [f"{tars}/2.tar: {told}"]
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="no samples in .*/a.json: no samples: nothing of it is used$"):
        open_samples(str(tmp_path / "a.json"), None, None)


# ---- tables ----------------------------------------------------------------------------------------------------------


def bagel(folder: Path) -> Path:
    folder.mkdir()
    captions = [json.dumps({"caption_1": f"colour {c}", "caption_2": f"{c}"}) for c in COLOURS]
    table = pa.table({"image": [encoded(picture(c)) for c in COLOURS], "captions": captions})
    pq.write_table(table, folder / "0.parquet", row_group_size=2)
    return folder


def test_parquet_as_bagel_has_it(tmp_path):
    index = open_samples(str(bagel(tmp_path / "bagel")), None, None)
    samples = read_all(index)
    assert [colours(sample) for sample in samples] == [[c] for c in COLOURS]
    assert [variant[0]["content"][0]["text"] for variant in samples[3].variants] == ["colour 40", "40"]
    assert list(index.chunk_sizes) == [2, 2, 1] and index.key(3).endswith("0.parquet:row 3")


def hub_dataset() -> datasets.Dataset:
    """As Tar's: conversations of LLaVA beside pictures, written by Hugging Face's library."""
    features = datasets.Features({
        "id": datasets.Value("string"), "image": datasets.Image(), "source": datasets.Value("string"),
        "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
    })  # fmt: skip
    rows = [
        llava("<image>\nWhat?", "Ten.", picture(10), id="a", source="x"),
        llava("Hello", "Hi", id="b", source="x") | {"image": None},
        llava("Draw thirty", "<image>", {"bytes": encoded(picture(30)), "path": "sub/30.png"}, id="c", source="x"),
    ]
    return datasets.Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "disk", "dictionary", "hub"])
def test_a_dataset_of_hugging_face(tmp_path, monkeypatch, kind):
    place = str(tmp_path / "data")
    if kind == "parquet":
        Path(place).mkdir()
        hub_dataset().to_parquet(f"{place}/train.parquet")
    elif kind == "disk":
        hub_dataset().save_to_disk(place)
    elif kind == "dictionary":
        datasets.DatasetDict(test=hub_dataset().select([0]), train=hub_dataset()).save_to_disk(place)
    else:
        place = "somebody/something"
        monkeypatch.setattr(datasets, "load_dataset", lambda name: {place: hub_dataset()}[name])
    samples = read_all(open_samples(place, None, None))
    assert [words(sample) for sample in samples] == [
        ["<image>What?", "Ten."],
        ["Hello", "Hi"],
        ["Draw thirty", "<image>"],
    ]
    assert [colours(sample) for sample in samples] == [[10], [], [30]]
    assert [sample.id for sample in samples] == ["a", "b", "c"]
    assert pictures_of(samples[2].variants[0])[0].key in ("30.png", "sub/30.png")


def test_pairs_of_question_and_answer(tmp_path):
    """As FineVision and the Cauldron have them: the pictures come first, nothing marks them."""
    pairs = [[("What?", "Ten."), ("Sure?", "Yes.")], [("Same?", "No.")], [("Hello", "Hi")]]
    features = datasets.Features({
        "images": datasets.List(datasets.Image()), "source": datasets.Value("string"),
        "texts": datasets.List({"user": datasets.Value("string"), "assistant": datasets.Value("string")}),
    })  # fmt: skip
    rows = {
        "images": [[picture(10)], [picture(20), picture(30)], []],
        "texts": [[{"user": user, "assistant": answer} for user, answer in row] for row in pairs],
        "source": ["x"] * 3,
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    samples = read_all(open_samples(str(tmp_path / "a.parquet"), None, None))
    expected = [["<image>What?", "Ten.", "Sure?", "Yes."], ["<image><image>Same?", "No."], ["Hello", "Hi"]]
    assert [words(sample) for sample in samples] == expected
    assert [colours(sample) for sample in samples] == [[10], [20, 30], []]


def test_a_turn_may_tell_who_its_user_is(tmp_path):
    turns = [{"role": "user", "content": "Hello", "user": "someone"}, {"role": "assistant", "content": "Hi"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    assert [words(sample) for sample in read_all(open_samples(str(tmp_path), None, None))] == [["Hello", "Hi"]]


def test_lists_of_pictures_and_paths_in_tables(tmp_path):
    write_pictures(tmp_path / "root")
    several = [[{"bytes": encoded(picture(c)), "path": None} for c in (10, 20)], []]
    turns = [llava("<image><image> Same?", "No.")["conversations"], llava("a", "b")["conversations"]]
    pq.write_table(pa.table({"images": several, "conversations": turns}), tmp_path / "several.parquet")
    samples = read_all(open_samples(str(tmp_path / "several.parquet"), None, None))
    assert [colours(sample) for sample in samples] == [[10, 20], []]
    table = pa.table({"image": ["10.png", "no.png"], "text": ["ten", "none"], "__index_level_0__": [0, 1]})
    pq.write_table(table, tmp_path / "paths.parquet")
    samples = read_all(open_samples(str(tmp_path / "paths.parquet"), None, tmp_path / "root"))
    assert colours(samples[0]) == [10] and not pictures_of(samples[1].variants[0])[0].is_there()
    with pytest.raises(UnreadablePicture, match=r"no\.png: No such file"):
        colours(samples[1])


def test_rows_without_bytes_name_their_files(tmp_path):
    """Hugging Face's {bytes, path}; beside it a mask, which is no picture to learn from."""
    write_pictures(tmp_path / "root")
    cells = [{"bytes": None, "path": name} for name in ("10.png", "no.png")]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b"]}), tmp_path / "none.parquet")
    cells = [{"bytes": encoded(picture(20)), "path": "20.png"}, None, {"bytes": None, "path": "10.png"}]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"]}), tmp_path / "some.parquet")
    pq.write_table(pa.table({"image": ["10.png"], "mask": [b"1"], "text": ["a"]}), tmp_path / "mask.parquet")
    none, some, mask = (
        open_samples(str(tmp_path / f"{name}.parquet"), None, tmp_path / "root") for name in ("none", "some", "mask")
    )
    there = [pictures_of(sample.variants[0])[0].is_there() for sample in read_all(none)]
    assert there == [True, False]
    assert colours(some.read(0)) == [20] and colours(some.read(2)) == colours(mask.read(0)) == [10]
    with pytest.raises(BadSample, match="nothing under image, images, "):
        some.read(1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("cells", "asked"),
    [
        ([b"0", b"1", b"2"], []),
        ([{"bytes": b"0", "path": "a"}, None, {"bytes": b"2", "path": None}], ["image.path"]),
        (
            [[], [{"bytes": b"0", "path": "a"}, None, {"bytes": b"1", "path": None}], [{"bytes": b"2", "path": "b"}]],
            ["image.list.element.path"],
        ),
        ([None, [{"bytes": b"0", "path": None}], [{"bytes": b"2", "path": None}] * 2], ["image.list.element.path"]),
        # Where bytes lack, all is read: a path counts then.
        ([b"0", None, b"2"], ["image"]),
        ([[], [{"bytes": b"0", "path": "a"}], [{"bytes": None, "path": "b"}]], ["image.list.element.path", "image"]),
        ([[b"0"], [], [b"1", b"2"]], ["image"]),
    ],
)
def test_bytes_of_pictures_are_read_when_they_are_wanted(tmp_path, monkeypatch, cells, asked, large):
    """The pictures are those of the whole cells, with the same keys, and only what `asked` names is read for them."""
    column = pa.array(cells)
    if large and pa.types.is_list(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
    (tmp_path / "b").write_bytes(b"2")
    pq.write_table(pa.table({"image": column, "text": ["x", "y", "z"]}), tmp_path / "a.parquet")
    shard = ParquetSamples(tmp_path / "a.parquet", None, tmp_path)
    read, whole = [], parquet_samples.ROW_GROUPS.get
    monkeypatch.setattr(parquet_samples.ROW_GROUPS, "get", lambda *of: (read.append(of[-1]), whole(*of))[1])
    found = [shard._pictures(i) for i in range(3)]
    assert list(dict.fromkeys(read)) == asked
    expected = [pictures_in(cell, f"{shard.place}:row {i}", tmp_path) for i, cell in enumerate(cells)]
    told = [[[(p.key, p.read()) for p in pictures] for pictures in rows] for rows in (found, expected)]
    assert told[0] == told[1] and sum(map(len, expected)) >= 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["x"], "image": [b"1"]}, "has the columns url, image, none of conversations"),
        ({"text": ["x"], "left": [b"1"], "right": [b"2"]}, r"several columns of bytes \(left, right\)"),
        ({"prompt": ["x"], "completion": ["y"]}, "it holds 'prompt' and 'completion': write it as a conversation"),
    ],
)
def test_tables_that_are_unclear(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path), None, None)


def test_captions_in_every_guise():
    assert caption_texts('{"a": ' + DEEP) == ['{"a": ' + DEEP]
    assert caption_texts("['a', {[]}]") == ["['a', {[]}]"] and caption_texts("[2]") == ["[2]"]
    assert caption_texts("{a cat") == ["{a cat"] and caption_texts(["x", "", None]) == ["x"]
    assert caption_texts('{"a": "x", "b": null}') == ["x"] and caption_texts({"a": " y "}) == ["y"]


# ---- places ----------------------------------------------------------------------------------------------------------


def test_weights_behind_places(tmp_path):
    (tmp_path / "a:2").write_text("")
    assert parse_data("a.json:2.5") == sample_index.DataOption("a.json", 2.5)
    assert parse_data("C:/a.json").weight == 1 and parse_data("a.json").place == "a.json"
    assert parse_data(f"{tmp_path}/a:2") == sample_index.DataOption(f"{tmp_path}/a:2", 1.0)
    with pytest.raises(UserError, match="the weight 0 is not above 0"):
        parse_data("a.json:0")


@pytest.mark.parametrize(
    ("files", "place", "data_format", "message"),
    [
        ([], "nowhere.json", None, "no such file or folder"),
        (["a.json", "b.tar"], "", None, "holds 1 JSON files and 1 tar files; say with --format"),
        (["a.png"], "", None, "holds no .json, .jsonl, .ndjson, .tar, .parquet files"),
        (["a.json"], "", "webdataset", "holds no .tar files"),
        (["a.foo"], "a.foo", None, "is no .json, .jsonl, .ndjson, .tar or .parquet file; say what it is with --format"),
        (["a.csv"], "a.csv", None, "is no .* file; convert it to JSON lines or parquet"),
        (["a.arrow"], "a.arrow", None, "is no .* file; name the folder that save_to_disk wrote it into"),
        (["a/state.json", "b/state.json", "b/dataset_info.json"], "", None, "name one of them, such as .*/a$"),
        (["a.json"], "a.json", None, "no samples in .*a.json.*the file is empty"),
        (["a.parquet"], "", None, "no samples in .*damaged parquet"),
        (["state.json"], "", None, "cannot read it"),
        (["a.jsonl.gz"], "a.jsonl.gz", None, "a.jsonl.gz is compressed: unpack it first"),
        (["a.tar.gz"], "a.tar.gz", "webdataset", "a.tar.gz is compressed: unpack it first"),
        (["a.tgz", "b.csv.gz"], "", None, "no samples in .*a.tgz: compressed: unpack it first"),
        (["train-0.parquet", "test-0.parquet"], "", None, "holds the splits test and train; name the files or f"),
        (["default/train/0.parquet", "default/partial-test/0.parquet"], "", None, "holds the splits test and train"),
        (["train/0.tar", "Val/0.tar"], "", "webdataset", "holds the splits train and val"),
        (["train.json", "dev.json"], "", None, "holds the splits dev and train"),
        (["train_0.jsonl", "test_0.jsonl"], "", None, "holds the splits test and train"),
        (["captions_train2017.json", "captions_val2017.json"], "", None, "holds the splits train and validation"),
        (["llava_train.json", "llava_test.json"], "", None, "holds the splits test and train"),
        (["train/a.json", "eval/a.json"], "", None, "holds the splits eval and train"),
    ],
)
def test_places_without_samples_are_told(tmp_path, files, place, data_format, message):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        open_samples(str(tmp_path / place), data_format, None)


def test_a_lone_split_beside_other_files_is_told(tmp_path):
    for name in ("a.jsonl", "sub/my_eval.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(ROWS[1]))
    told = "2 samples in 2 JSON files (by its name of the split eval: sub/my_eval.jsonl)"
    assert str(open_samples(str(tmp_path), None, None)).endswith(told)
    assert str(open_samples(f"{tmp_path}/sub", None, None)).endswith("1 samples in 1 JSON file")


def test_files_about_a_dataset_and_lines_of_another_ending_are_known(tmp_path):
    for name in ("dataset_info.json", "sub/dataset_infos.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"splits": 1}')
    (tmp_path / "a.ndjson").write_text("\n".join(map(json.dumps, ROWS)))
    index = open_samples(str(tmp_path), None, tmp_path)
    assert [words(sample) for sample in read_all(index)] == WORDS and not index.faults


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_files_is_told_as_such(tmp_path, indent):
    """As InternVL has it, on one line or on several."""
    about = {"mine": {"root": "images/", "annotation": "mine.jsonl", "repeat_time": 1}}
    (tmp_path / "a.json").write_text(json.dumps(about, indent=indent))
    with pytest.raises(UserError, match="name those under `annotation` with --data FILE:WEIGHT and --image-root"):
        open_samples(str(tmp_path), None, None)


def test_a_split_of_a_saved_dictionary_can_be_named(tmp_path):
    place = str(tmp_path / "data")
    datasets.DatasetDict(val=hub_dataset(), test=hub_dataset().select([0])).save_to_disk(place)
    with pytest.raises(UserError, match=f"has the splits val, test and no 'train'; name one of them, {place}/val$"):
        open_samples(place, None, None)
    assert len(open_samples(f"{place}/val", None, None)) == 3


def test_compressed_files_among_others_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[1]))
    for name in ("b.jsonl.gz", "c.JSON.zst", "labels.csv.gz", "d.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
    index = open_samples(str(tmp_path), "llava", None)
    assert [fault.key for fault in index.faults] == [str(tmp_path / name) for name in ("b.jsonl.gz", "c.JSON.zst")]


def test_a_dataset_that_is_not_there(monkeypatch):
    def fail(name):
        raise ConnectionError("offline\nin many lines")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"--data some/body: no such dataset: offline$"):
        dataset_samples.open_dataset("some/body", None, Path())


class Cauldron:
    """A dataset of several configs in place of the hub's; it complains in the words of datasets 5."""

    configs = [f"c{number}" for number in range(10)]

    def __call__(self, name: str, config: str | None = None) -> datasets.Dataset:
        assert name == "owner/cauldron"
        if config is None:
            raise ValueError(f"Config name is missing.\nPlease pick one among the available configs: {self.configs}\n"
                             f"Example of usage:\n\t`load_dataset('cauldron', '{self.configs[0]}')`")  # fmt: skip
        if config not in self.configs:
            raise ValueError(f"BuilderConfig '{config}' not found. Available: {self.configs}")
        return hub_dataset()


def test_a_config_of_a_dataset_is_a_third_part_of_its_name(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", Cauldron())
    (option,) = map(parse_data, ["owner/cauldron/c3:2"])
    assert option == sample_index.DataOption("owner/cauldron/c3", 2.0)
    index = open_samples(option.place, None, None)
    assert len(index) == 3 and index.key(0) == "owner/cauldron/c3:row 0"
    told = r"owner/cauldron has 10 configs \(c0, c1, .*, c7, \.\.\.\); name one of them, such as owner/cauldron/c0$"
    for place in ("owner/cauldron", "owner/cauldron/c11"):
        with pytest.raises(UserError, match=f"^--data {place}: {told}"):
            open_samples(place, None, None)


@pytest.mark.parametrize("place", ["a/b/c/d", "/a/b", "./a/b", "a//b", "a/b/", "a/b/c.jsonl"])
def test_what_cannot_be_a_dataset_is_no_such_file(place):
    with pytest.raises(UserError, match=f"--data {place}: no such file or folder"):
        open_samples(place, None, None)


def test_files_are_looked_through_once(tmp_path, monkeypatch):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS))
    first = open_samples(str(path), None, None, tmp_path / "index")
    scan, make = sample_index.SHARDS["JSON"]
    monkeypatch.setitem(sample_index.SHARDS, "JSON", (_no_scan(scan), make))
    again = open_samples(str(path), None, None, tmp_path / "index")
    assert again.fingerprint == first.fingerprint and words(again.read(4)) == WORDS[4]


def test_what_was_found_and_cannot_be_kept_is_told_once(tmp_path, capsys):
    write_tars(tmp_path / "tars")
    (tmp_path / "file").write_text("")
    for _ in range(2):
        index = open_samples(str(tmp_path / "tars"), None, None, tmp_path / "file" / "index")
    assert len(index) == 5
    told = f"what was found in the data cannot be kept in {tmp_path}/file/index (Not a directory): the next start looks"
    assert capsys.readouterr().out.count(told) == 1


def _no_scan(scan):
    def scan_json(path):
        pytest.fail("scanned again")

    assert scan_json.__name__ == scan.__name__
    return scan_json
