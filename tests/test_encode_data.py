"""python -m unimllm.encode: pictures of training data of every kind to shards of codes."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from llava_files import write_llava
from picture_files import encoded, picture, write_parquet

from semhitok.checkpoints import load_tokenizer
from semhitok.fingerprint import code_layout
from semhitok.shard_writer import Part
from semhitok.shards import CodeShards
from unimllm import encode
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.sample_index import open_samples
from unimllm.data.samples import BadSample, Sample, StoredPicture, pictures_of
from unimllm.data.unique_pictures import UniquePictures
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture


@pytest.fixture
def encode_into(call, tokenizer_folder, tmp_path):
    """encode_into(*words) -> Ended: encode below tmp_path into codes."""

    def run(*words):
        return call(encode, *words, "--out", tmp_path / "codes", "--model", tokenizer_folder, "--batch-size", 2)

    return run


def conversation(name: str) -> list[dict]:
    return [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": name}]


def write_source(kind: str, folder):
    """A place with two pictures for --data."""
    images, captions = [encoded(picture(n)) for n in (10, 20)], ["ten", "twenty"]
    if kind == "webdataset":
        folder.mkdir()
        for number, image in enumerate(images):  # the same keys in each tar
            with webdataset.TarWriter(str(folder / f"{number}.tar")) as sink:
                sink.write({"__key__": "a/0", "png": image, "txt": captions[number]})
    elif kind == "parquet":
        folder.mkdir()
        pq.write_table(pa.table({"image": images, "caption": captions}), folder / "rows.parquet")
    elif kind == "datasets":
        rows = {"image": [picture(10), picture(20)], "conversations": [conversation(c) for c in captions]}
        features = datasets.Features({
            "image": datasets.Image(),
            "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
        })  # fmt: skip
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "datasets", "llava"])
def test_training_finds_the_codes_of_every_picture(encode_into, tokenizer_folder, tmp_path, kind):
    source, count, root = tmp_path / "data", 2, None
    if kind == "llava":
        source, count, root = write_llava(tmp_path / "data"), 10, tmp_path / "data" / "images"
    else:
        write_source(kind, source)
    result = encode_into("--data", source, *(("--image-root", root) if root else ()))
    assert result.code == 0, result.err
    assert result.out.endswith(f"{tmp_path}/codes: {count} pictures encoded\n")
    model, processor = load_tokenizer(str(tokenizer_folder), "cpu")
    stored = StoredCodes(tmp_path / "codes", code_layout(model, False), 0)
    online, index = OnlinePixels(processor), open_samples(str(source), None, root)
    for sample in map(index.read, range(len(index))):
        for found in pictures_of(sample.variants[0]):
            codes = model.encode(online.load(found)[None])[0]
            expected = codes[:, 0] * model.config.num_pixel_codes + codes[:, 1]
            assert stored.check(found) is None and np.array_equal(stored.load(found), expected.numpy())


def test_it_goes_on_and_a_picture_of_several_samples_is_encoded_once(encode_into, tmp_path):
    images = [{"bytes": encoded(picture(n)), "path": f"{n}.png"} for n in (10, 20, 10)]
    table = pa.table({"image": images, "caption": ["a", "b", "c"]})
    pq.write_table(table.slice(0, 1), tmp_path / "rows.parquet")
    assert encode_into("--data", tmp_path / "rows.parquet").out.endswith("codes: 1 picture encoded\n")
    pq.write_table(table, tmp_path / "more.parquet")
    out = encode_into("--data", f"{tmp_path}/more.parquet:2").out  # a weight, as in training
    assert out.endswith("codes: 1 picture encoded, 1 there already by their names (--overwrite: all anew)\n")
    assert CodeShards(tmp_path / "codes").keys == ["10.png", "20.png"]


def test_parts_are_encoded_beside_each_other(encode_into, tmp_path):
    images = [{"bytes": encoded(picture(n)), "path": f"{n}.png"} for n in (10, 20, 30, 40, 10)]
    pq.write_table(pa.table({"image": images, "caption": [*"abcde"]}), tmp_path / "rows.parquet")
    data = ("--data", tmp_path / "rows.parquet")
    parts = [[name for name in ("10.png", "20.png", "30.png", "40.png") if name in Part(i, 2)] for i in (0, 1)]
    for i in (0, 1):
        assert encode_into(*data, "--part", f"{i}/2").out.endswith(f"codes: {len(parts[i])} pictures encoded\n")
    stored = CodeShards(tmp_path / "codes")
    assert parts[0] and parts[1] and stored.keys == parts[0] + parts[1]
    assert [stored.row(key) for key in stored.keys] == [0, 1, 2, 3]
    for words in ((), ("--part", "2/3")):  # whoever comes later knows them all
        assert " 0 pictures encoded" in encode_into(*data, *words).out
    assert len(CodeShards(tmp_path / "codes")) == 4
    assert "delete what the others write" in encode_into(*data, "--part", "0/2", "--overwrite").refusal()
    for word in ("2/2", "1", "a/2", "-1/2"):
        assert "is no part: write 0/8 to 7/8" in encode_into(*data, f"--part={word}").refusal()


def test_two_pictures_of_one_name_are_refused(encode_into, tmp_path):
    for number in (10, 20):
        images = [{"bytes": encoded(picture(number)), "path": "0.png"}]
        pq.write_table(pa.table({"image": images, "caption": ["a"]}), tmp_path / f"{number}.parquet")
    error = encode_into("--data", tmp_path / "10.parquet", tmp_path / "20.parquet").err
    assert f"'0.png', in {tmp_path}/10.parquet:row 0 and in {tmp_path}/20.parquet:row 0: rename one" in error
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        picture(number).save(tmp_path / f"{number}" / "0.png")
        row = {"image": "0.png", "conversations": conversation("a")}
        (tmp_path / f"{number}" / "data.json").write_text(json.dumps([row]))
    error = encode_into("--data", tmp_path / "1", tmp_path / "2").refusal()
    assert "name the one folder above all pictures with --image-root" in error


def test_shards_of_the_same_names_in_other_folders_are_other_pictures(encode_into, tmp_path):
    for name, number in (("a", 10), ("b", 20)):
        (tmp_path / name).mkdir()
        with webdataset.TarWriter(str(tmp_path / name / "0.tar")) as sink:
            sink.write({"__key__": "0", "png": encoded(picture(number)), "txt": "x"})
        assert encode_into("--data", tmp_path / name).out.endswith("codes: 1 picture encoded\n")
    assert CodeShards(tmp_path / "codes").keys == [f"{tmp_path.name}/{name}/0.tar/0.png" for name in "ab"]


def test_a_sample_may_show_a_picture_twice(encode_into, tmp_path):
    picture(10).save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image><image>Same?"}, {"from": "gpt", "value": "Yes."}]
    (tmp_path / "data.json").write_text(json.dumps([{"image": ["0.png", "./0.png"], "conversations": turns}]))
    assert encode_into("--data", tmp_path / "data.json").out.endswith("codes: 1 picture encoded\n")


def test_what_cannot_be_read_is_counted_and_named(encode_into, tmp_path):
    write_parquet(tmp_path / "rows.parquet", [encoded(picture(1)), b"no picture", None])
    table = pq.read_table(tmp_path / "rows.parquet").append_column("caption", pa.array(["a", "b", ""]))
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = [{"image": name, "caption": "a"} for name in ("../above.png", "missing.png")]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--data", tmp_path / "rows.parquet", tmp_path / "lines.jsonl")
    result = encode_into(*words)
    assert result.code == 0
    assert result.out.endswith("codes: 1 picture encoded, 2 unreadable (1 no picture, 1 missing picture)\n")
    for told in ("an empty caption: 1 left out", "no relative path: 1 left out", "the key '../above.png' is"):
        assert told in result.out
    assert "unreadable (missing picture): " in result.err
    assert "(--strict)" in encode_into(*words, "--strict").err


def test_a_place_without_samples_is_told_and_left_out(encode_into, tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"")
    write_parquet(tmp_path / "rows.parquet", [encoded(picture(1))])
    table = pq.read_table(tmp_path / "rows.parquet").append_column("caption", pa.array(["a"]))
    pq.write_table(table, tmp_path / "rows.parquet")
    words = ("--data", tmp_path / "empty.tar", tmp_path / "rows.parquet")
    result = encode_into(*words)
    assert result.code == 0 and result.out.endswith("codes: 1 picture encoded\n")
    assert f"data no samples in {tmp_path}/empty.tar; " in result.out
    assert "no samples in " in encode_into(*words, "--strict").err and encode_into(*words[:2]).code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--data is missing: files, folders of them, or datasets"),
        (("--data", "x", "--format", "lava"), "--format lava is none of llava, captions, webdataset"),
        (("--data", "x", "--image-root", "nowhere"), "--image-root nowhere: no such folder"),
        (("--data", "nowhere.json"), "--data nowhere.json: no such file or folder"),
        (("--data", "x", "--image-rot", "y"), "did you mean '--image-root'"),
    ],
)
def test_refusals(encode_into, words, message):
    assert message in encode_into(*words).refusal()


class Index:
    """Two samples that cannot be read."""

    name, faults = "x", []

    def __len__(self):
        return 2

    def key(self, number):
        return f"x:{number}"

    def read(self, number):
        if number:
            raise BadSample("no text", "it says\nnothing")
        return Sample([[{"role": "user", "content": [{"type": "image", "image": StoredPicture("a.png", self.fail)}]}]])

    @staticmethod
    def fail():
        raise UnreadablePicture("not readable", "gone")


def test_samples_that_cannot_be_read_are_no_reason_to_stop():
    pictures = UniquePictures([Index()], Part(), set())
    assert list(pictures) == []
    assert pictures.findings == [[(0, "not readable", "gone"), (1, "no text", "it says nothing")]]
    with pytest.raises(UserError, match="x:0: not readable: gone .--strict."):
        list(UniquePictures([Index()], Part(), set(), strict=True))
