"""Shards of codes: what was written comes back, nothing of another tokenizer or half a file ever does."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semhitok import key_index
from semhitok.errors import UserError
from semhitok.key_index import KeyIndex
from semhitok.shard_writer import Part, ShardWriter
from semhitok.shards import MAGIC, PREFIX, CodeLayout, CodeShard, CodeShards, shard_paths

LAYOUT = CodeLayout("0123456789ab", num_semantic_codes=16384, num_pixel_codes=12, num_positions=4, image_size=16)
CODES = np.array([[[i, i % 12], [16383, 0], [0, 11], [i * i, 5]] for i in range(7)])  # (7, 4, 2)
KEYS = [f"folder/{i}.png" for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    """Three shards: rows 0..2, 3..5, 6."""
    with ShardWriter(tmp_path / "codes", LAYOUT, rows_per_shard=3) as writer:
        for i in range(7):
            writer.add(KEYS[i : i + 1], CODES[i : i + 1])
    return tmp_path / "codes"


# ---- round trips ---------------------------------------------------------------------------------------------------


@st.composite
def contents(draw) -> tuple[CodeLayout, np.ndarray, list[str], int, int]:
    """A layout, codes that fit it with both extremes among them, their keys, and two sizes."""
    num_semantic = draw(st.integers(1, 2**16) | st.integers(1, 2**32))
    num_pixel = draw(st.integers(1, 2**8) | st.integers(1, 2**16))
    num_positions = draw(st.integers(1, 9))
    layout = CodeLayout("0" * 12, num_semantic, num_pixel, num_positions, 8)
    keys = draw(st.lists(st.text(min_size=1).filter(is_name), min_size=1, max_size=12, unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    codes = np.stack([rng.integers(0, size, (len(keys), num_positions)) for size in (num_semantic, num_pixel)], -1)
    codes[0, 0], codes[-1, -1] = (0, 0), (num_semantic - 1, num_pixel - 1)
    return layout, codes, keys, draw(st.integers(1, 5)), draw(st.integers(1, 5))


def is_name(text: str) -> bool:
    return not {"\0", "/"} & set(text) and text not in (".", "..")


@settings(max_examples=60, deadline=None)
@given(contents())
def test_round_trip(tmp_path_factory, content):
    layout, codes, keys, batch_size, rows_per_shard = content
    folder = tmp_path_factory.mktemp("codes")
    with ShardWriter(folder, layout, rows_per_shard=rows_per_shard) as writer:
        for start in range(0, len(keys), batch_size):
            writer.add(keys[start : start + batch_size], codes[start : start + batch_size])
    shards = CodeShards(folder, layout)
    order = np.random.default_rng(0).permutation(len(keys))
    assert len(shards) == len(keys) and shards.keys == keys
    assert np.array_equal(shards.codes(order), codes[order])
    assert all(np.array_equal(shards[key], codes[row]) for row, key in enumerate(keys))
    assert [shards.row(key) for key in keys] == list(range(len(keys)))


def test_names_that_are_no_text_come_back(tmp_path):
    key = os.fsdecode(b"caf\xe9.png")  # Latin-1 on a disk of UTF-8 names
    with ShardWriter(tmp_path, LAYOUT) as writer:
        writer.add([key], CODES[:1])
    assert CodeShards(tmp_path).keys == [key]


@pytest.mark.parametrize(
    ("num_semantic", "num_pixel", "widths", "row_bytes"),
    [
        (256, 2, ("<u2", "|u1"), 768),
        (65536, 256, ("<u2", "|u1"), 768),
        (65537, 256, ("<u4", "|u1"), 1280),
        (65536, 257, ("<u2", "<u2"), 1024),
    ],
)
def test_widths_follow_the_codebooks_and_stand_in_the_header(tmp_path, num_semantic, num_pixel, widths, row_bytes):
    layout = CodeLayout("0" * 12, num_semantic, num_pixel, 256, 256)
    with ShardWriter(tmp_path, layout) as writer:
        writer.add(["a", "b"], np.zeros((2, 256, 2), int))
    content = (tmp_path / "codes-000000.bin").read_bytes()
    length = PREFIX.unpack(content[: PREFIX.size])[1]
    header = json.loads(content[PREFIX.size :][:length])
    assert (header["semantic_dtype"], header["pixel_dtype"]) == widths
    assert header["fingerprint"] == "0" * 12 and header["format_version"] == 1
    assert len(content) == PREFIX.size + length + 2 * row_bytes + 2 * 8 + 2


def test_the_bytes_of_a_row_are_as_the_format_says(tmp_path):
    with ShardWriter(tmp_path, LAYOUT) as writer:
        writer.add(["a"], [[[1, 2], [258, 3], [0, 4], [16383, 5]]])
    content = (tmp_path / "codes-000000.bin").read_bytes()
    assert content.startswith(MAGIC)
    assert content.endswith(bytes([1, 0, 2, 1, 0, 0, 255, 63]) + bytes([2, 3, 4, 5]) + (1).to_bytes(8, "little") + b"a")


def test_rows_stay_on_the_disk(folder):
    assert all(isinstance(shard.rows, np.memmap) for shard in CodeShards(folder).shards)


def test_rows_and_keys_that_are_not_there(folder):
    shards = CodeShards(folder)
    for rows in ([7], [-1]):
        with pytest.raises(IndexError, match="of 7 pictures"):
            shards.codes(rows)
    with pytest.raises(KeyError):
        shards["none.png"]
    assert shards.codes([]).shape == (0, 4, 2)


# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_later_writer_goes_on(folder):
    assert [path.name for path in shard_paths(folder)] == [f"codes-00000{i}.bin" for i in range(3)]
    with ShardWriter(folder, LAYOUT) as writer:
        assert all(key in writer for key in KEYS) and "new" not in writer
        with pytest.raises(ValueError, match=r"a key comes twice: 'folder/0\.png'"):
            writer.add(KEYS[:1], CODES[:1])
        writer.add(["new"], CODES[:1])
    assert CodeShards(folder).keys == [*KEYS, "new"] and len(shard_paths(folder)) == 4
    with ShardWriter(folder, LAYOUT):
        pass
    assert len(shard_paths(folder)) == 4  # no empty one


def test_overwriting_starts_anew(folder):
    other = CodeLayout("ba9876543210", 10, 3, 4, 16)
    with ShardWriter(folder, other, overwrite=True) as writer:
        writer.add(["a"], np.zeros((1, 4, 2), int))
    assert CodeShards(folder, other).keys == ["a"]


def test_what_was_added_survives_an_error(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, LAYOUT) as writer:
        writer.add(KEYS, CODES)
        raise RuntimeError
    assert CodeShards(tmp_path).keys == KEYS


def test_a_kill_loses_the_unfinished_shard_alone(tmp_path):
    child = os.fork()
    if not child:
        with ShardWriter(tmp_path, LAYOUT, rows_per_shard=3) as writer:
            writer.add(KEYS[:3], CODES[:3])
            writer.add(KEYS[3:5], CODES[3:5])
            os._exit(9)
    os.waitpid(child, 0)
    assert CodeShards(tmp_path).keys == KEYS[:3]
    with ShardWriter(tmp_path, LAYOUT) as writer:  # and its lock died with it
        assert KEYS[2] in writer and KEYS[3] not in writer


def test_two_writers_do_not_share_a_folder(tmp_path):
    with ShardWriter(tmp_path, LAYOUT):
        with pytest.raises(UserError, match="another program writes codes into"), ShardWriter(tmp_path, LAYOUT):
            pass
    with ShardWriter(tmp_path, LAYOUT):
        pass
    with ShardWriter(tmp_path, LAYOUT, part=Part(0, 2)), ShardWriter(tmp_path, LAYOUT, part=Part(1, 2)):
        with pytest.raises(UserError, match="another program writes codes into"), ShardWriter(tmp_path, LAYOUT):
            pass


@pytest.mark.parametrize(
    ("keys", "codes", "message"),
    [
        (["a"], CODES[:1] + [[[0, 12]]], r"codes from .* lie outside codebooks of 16,384 x 12"),
        (["a"], CODES[:1] - [[[0, 1]]], "lie outside codebooks"),
        (["a"], CODES[:1, :3], r"codes are \(1, 3, 2\) int64, expected \(n, 4, 2\) integers"),
        (["a"], CODES[:1] / 1, "float64, expected"),
        (["a", "a"], CODES[:2], "a key comes twice: 'a'"),
        (["a"], CODES[:2], "1 keys for 2 pictures"),
        (["/etc/a"], CODES[:1], "is no relative path"),
        (["x/../../a"], CODES[:1], "is no relative path"),
        ([""], CODES[:1], "is no relative path"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, keys, codes, message):
    with ShardWriter(tmp_path, LAYOUT) as writer, pytest.raises(ValueError, match=message):
        writer.add(keys, codes)
    assert not shard_paths(tmp_path)


def test_a_full_disk_is_told_once_and_leaves_no_half_shard(tmp_path, monkeypatch):
    def full(path, write):
        raise UserError(f"cannot write {path}: No space left on device; choose another place")

    monkeypatch.setattr("semhitok.shard_writer.write_atomically", full)
    with pytest.raises(UserError, match="No space left"), ShardWriter(tmp_path, LAYOUT, rows_per_shard=1) as writer:
        writer.add(["a"], CODES[:1])
    assert not shard_paths(tmp_path)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_shard_of_another_tokenizer_is_refused_by_name(folder):
    other = CodeLayout("ba9876543210", 16384, 12, 4, 16)
    for attempt in (lambda: CodeShards(folder, other), lambda: ShardWriter(folder, other).__enter__()):
        with pytest.raises(UserError, match=r"codes-000000\.bin was made by tokenizer 0123456789ab .* ba9876543210"):
            attempt()
    with ShardWriter(folder.parent / "more", other) as writer:
        writer.add(["a"], CODES[:1])
    (folder.parent / "more" / "codes-000000.bin").rename(folder / "codes-000009.bin")
    with pytest.raises(UserError, match=r"codes-000009\.bin was made by tokenizer ba9876543210 .* 0123456789ab"):
        CodeShards(folder)


def test_codes_of_padded_pictures_are_not_those_of_cut_ones(folder):
    padded = replace(LAYOUT, pad_to_square=True)
    with pytest.raises(UserError, match=r"which is not .* padded to squares\): .*another folder \(--pad-to-square\)"):
        CodeShards(folder, padded)
    with ShardWriter(folder.parent / "padded", padded) as writer:
        writer.add(["a"], CODES[:1])
    assert CodeShards(folder.parent / "padded").layout == padded
    with pytest.raises(UserError, match=r"padded to squares\), which is not"):
        CodeShards(folder.parent / "padded", LAYOUT)


def test_a_cut_off_shard_is_refused_with_both_sizes(folder):
    path = folder / "codes-000001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"codes-000001\.bin is cut off: it has {len(whole) - 1} .* of {len(whole)};"):
        CodeShards(folder)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="is too long"):
        CodeShards(folder)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"codes-000001\.bin .*cut off"):
            CodeShards(folder)


def test_damaged_shards_are_refused(folder):
    path = folder / "codes-000000.bin"
    whole = path.read_bytes()
    row = whole.index(CODES[0, :, 0].astype("<u2").tobytes())
    for old, new, message in [
        (MAGIC, b"SEMHITOX", "does not begin with SEMHITOK"),
        (b'"format_version": 1', b'"format_version": 2', "its format version is 2, this program reads 1"),
        (b'"image_size"', b'"image_sice"', "its header lacks 'image_size'"),
        (b'"num_rows": 3', b'"num_rows": 0', "speaks of 0 pictures"),
        (b'"num_rows": 3', b'"num_rows":"3', "no shard that can be read"),
        (b'"pixel_dtype": "|u1"', b'"pixel_dtype": "|u2"', "its header does not speak of"),
        (b'"num_positions": 4', b'"num_positions": 0', "num_positions is 0"),
    ]:
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=message) as caught:
            CodeShards(folder)
        assert str(path) in str(caught.value)
    path.write_bytes(whole[:row] + b"\xff" * 8 + whole[row + 8 :])
    with pytest.raises(UserError, match=r"damaged shard: codes from .* lie outside"):
        CodeShards(folder)[0]
    path.write_bytes(whole.replace(b"folder/1", b"../der/1"))  # would be written outside of its folder
    with pytest.raises(UserError, match="is no relative path"):
        _ = CodeShards(folder).keys
    path.write_bytes(whole)
    path.with_name("codes-000009.bin").write_bytes(whole)
    with pytest.raises(UserError, match="holds 3 keys twice"):
        _ = CodeShards(folder).keys
    with pytest.raises(UserError, match="holds 3 keys twice"):
        CodeShards(folder).row(KEYS[0])
    ends = len(whole) - len("".join(KEYS[:3])) - 3 * 8
    path.write_bytes(whole[:ends] + whole[ends + 8 : ends + 16] + whole[ends + 8 :])
    for use in (lambda: CodeShard(path).keys, lambda: CodeShard(path).key_hashes()):
        with pytest.raises(UserError, match="the ends of its keys are wrong"):
            use()


def test_keys_of_one_hash_are_told_apart(monkeypatch):
    keys = [b"a", b"b", b"a", b"cd", b""]
    index = KeyIndex(np.array([7, 7, 7, 1], np.uint64), lambda row: keys[row])
    monkeypatch.setattr(key_index, "hash_key", lambda key: {b"cd": 1}.get(key, 7))
    assert [index.find(key) for key in (b"a", b"b", b"cd", b"e", b"")] == [0, 1, 3, None, None]
    assert index.num_repeated() == 1


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=9))
def test_hashes_of_many_keys_and_of_one(keys):
    text = np.frombuffer(b"".join(keys), np.uint8)
    assert key_index.hash_keys(text, [*map(len, keys)]).tolist() == [key_index.hash_key(key) for key in keys]


def test_what_no_shard_holds(folder):
    shards = CodeShards(folder)
    for key in ("", "folder", "folder/7.png", "folder/0.png\0", "\ud800"):
        with pytest.raises(KeyError):
            shards.row(key)


def test_no_shards_at_all(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="no codes in"):
            CodeShards(place)
    (tmp_path / "codes-000000.bin").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        CodeShard(tmp_path / "codes-000000.bin")


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1), (2**32 + 1, 1, 1, 1), (1, 65537, 1, 1), (1, 1, 0, 1), (1, 1.5, 1, 1)])
def test_layouts_that_no_shard_can_hold(sizes):
    with pytest.raises(ValueError, match="shards hold whole numbers from 1"):
        CodeLayout("0" * 12, *sizes)
