"""Training pictures from folders, tars and parquet files: what is read, from where, and in batches."""

import io
import itertools
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picture_files import colours, encoded, pictures, write_folder, write_parquet, write_tar
from PIL import Image

from semhitok.image_processing_semhitok import adm_center_crop, adm_resize, to_uint8
from unimllm.data import picture_index, picture_shards
from unimllm.data.picture_index import open_pictures
from unimllm.data.picture_shards import RowGroupCache
from unimllm.data.pictures import PictureSource, random_square
from unimllm.data.shard_index import compare_indices
from unimllm.data.splits import split_of
from unimllm.errors import UserError
from unimllm.training.batches import open_batches
from unimllm.training.config import TrainConfig

# ---- the three kinds of places --------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """The same ten pictures in each kind of place, the shards of unequal size."""
    contents = pictures(10)
    write_tar(tmp_path / "tars" / "0.tar", contents[:7])
    write_tar(tmp_path / "tars" / "1.tar", contents[7:], first=7, file_format=tarfile.PAX_FORMAT)
    write_parquet(tmp_path / "parquet" / "0.parquet", contents[:4])
    write_parquet(tmp_path / "parquet" / "1.parquet", contents[4:], rows=100)
    return {
        "folder": write_folder(tmp_path / "folder", contents),
        "tars": tmp_path / "tars",
        "parquet": tmp_path / "parquet",
    }


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet"])
def test_every_picture_is_read_from_every_kind_of_place(places, kind):
    index = open_pictures([places[kind]])
    assert len(index) == 10 and not index.faults
    assert sorted(index.read(i) for i in range(10)) == sorted(pictures(10))
    assert str(places[kind]) in index.key(0)


def test_several_places_make_one_index(places):
    index = open_pictures([places["folder"], places["tars"] / "1.tar", places["parquet"]])
    assert len(index) == 23
    assert str(index).startswith("23 pictures in 1 folder and 1 tar and 2 parquet files")
    assert Counter(index.read(i) for i in range(23))[pictures(10)[9]] == 3


def test_long_names_in_tars_and_members_that_are_no_pictures(tmp_path):
    for file_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{file_format}.tar"
        with tarfile.open(path, "w", format=file_format) as tar:
            for name in ("folder/" + "x" * 150 + ".png", "._hidden.png", "b.JPG", "c.json"):
                member = tarfile.TarInfo(name)
                member.size = 5
                tar.addfile(member, io.BytesIO(name[:5].encode()))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "b.JPG"
            tar.addfile(link)
        index = open_pictures([path])
        assert [index.read(i) for i in range(len(index))] == [b"folde", b"b.JPG"]
        assert index.key(0).endswith("x" * 150 + ".png") and index.key(1) == f"{path}:b.JPG"


def test_parquet_columns(tmp_path):
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"jpg": [b"one", b"two"], "text": ["a", "b"]}), plain)
    assert open_pictures([plain]).read(1) == b"two"
    several = tmp_path / "several.parquet"
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), several)
    with pytest.raises(UserError, match=r"several columns of bytes \(left, right\)"):
        open_pictures([several])
    none = tmp_path / "none.parquet"
    pq.write_table(pa.table({"url": ["http://"]}), none)
    with pytest.raises(UserError, match=r"no column of bytes \(url\)"):
        open_pictures([none])


def test_large_row_groups_leave_fewer_lanes(tmp_path):
    index = open_pictures([write_parquet(tmp_path / "a.parquet", pictures(3))])
    for memory, lanes in ((5_000_000, 64), (100_000_000, 5), (2_000_000_000, 1)):  # of 2**30 bytes in all
        index.shards[0].memory = memory
        assert index.num_lanes() == lanes
    index.shards[0].memory = 100_000_000
    assert index.num_lanes(num_sharing=2) == 2


def test_row_groups_are_kept_within_bounds(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [bytes(1000)] * 12, rows=3)
    cache = RowGroupCache(max_bytes=7000)
    for group in (0, 1, 0, 2, 3):
        assert cache.get(path, group, "image", "image.bytes")[0].as_py() == {"bytes": bytes(1000)}
    assert [group for _, group, _ in cache.groups] == [2, 3]


def test_a_row_group_over_the_bounds_is_read_once_for_all_its_rows(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [bytes(1000)] * 6, rows=3)
    cache, read = RowGroupCache(max_bytes=100), []

    class Counted(pq.ParquetFile):
        def read_row_group(self, group, columns, **options):
            read.append((group, *columns))
            return super().read_row_group(group, columns, **options)

    monkeypatch.setattr(picture_shards.pq, "ParquetFile", Counted)
    for group in (0, 0, 0, 1, 1):
        cache.get(path, group, "label", "label")
        cache.get(path, group, "image", "image.bytes")
    assert read == [(group, leaf) for group in (0, 1) for leaf in ("label", "image.bytes")]
    assert {group for _, group, _ in cache.groups} == {1}


def test_a_row_group_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [bytes(1000)] * 3, rows=3)
    cache, read = RowGroupCache(max_bytes=7000), picture_shards.pq.ParquetFile
    monkeypatch.setattr(picture_shards.pq, "ParquetFile", lambda path: read(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        cache.get(path, 0, "image", "image.bytes")
    monkeypatch.setattr(picture_shards.pq, "ParquetFile", read)
    assert len(cache.get(path, 0, "image", "image.bytes")) == 3


def test_other_files_in_a_folder_are_named(tmp_path):
    write_folder(tmp_path, pictures(2))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "phone.heic").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert str(open_pictures([tmp_path])).endswith("(other files left alone: 1 .txt, 1 .heic)")


def test_other_members_of_tars_are_named_and_a_tar_without_pictures_too(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(2))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("0.heic", "1.HEIC", "README"):
            tar.addfile(tarfile.TarInfo(name))
    for _ in range(2):  # scanned, and remembered
        index = open_pictures([tmp_path], tmp_path / "index")
        assert str(index) == "2 pictures in 1 tar (other files left alone: 2 .txt)" and index.shards[0].path == path
        (fault,) = index.faults
        told = "no pictures: nothing of it is used (other files left alone: 2 .heic, 1 without ending)"
        assert str(fault) == f"{tmp_path}/b.tar: {told}"


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ([], "nowhere", "no such file or folder"),
        (["a.txt"], "", "holds neither pictures nor .tar nor .parquet"),
        (["a.png", "b.tar"], "", "holds 1 pictures and 1 .tar files; name a folder or files of one kind"),
        (["a.tar.gz"], "", "but 1 .gz files: unpack them"),
        (["a.tgz"], "a.tgz", "is no folder, .tar or .parquet file; unpack it"),
        (["a.tar"], "a.tar", "no pictures in"),
        (["train2017/a.png", "val2017/b.png"], "", "holds the splits train and validation; name the files or f"),
        (["train/n01/a.png", "test/n01/b.png"], "", "holds the splits test and train"),
        (["train-0.tar", "test-0.tar"], "", "holds the splits test and train"),
        (["x/train/0.parquet", "x/test/0.parquet"], "", "holds the splits test and train"),
    ],
)
def test_places_without_pictures_are_told(tmp_path, files, name, message):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        open_pictures([tmp_path / name])


def test_one_split_and_names_that_tell_none_are_taken(tmp_path):
    assert split_of("test/train-0.parquet") == "train" and split_of("val/a/0.png") == "validation"
    assert not split_of("a/latest/training/test") and not split_of("testing.tar")
    assert split_of("a/vqa.eval.json") == "eval" and split_of("images_test2015/a/0.png") == "test"
    assert not any(map(split_of, ("trainval.json", "a.test", "my-trainer_v2.json", "detest/evaluated-values.jsonl")))
    write_folder(tmp_path / "data" / "train", pictures(3))
    write_folder(tmp_path / "data" / "more", pictures(2))
    (tmp_path / "data" / "test.txt").write_text("")
    (tmp_path / "data" / "train" / "test-0.png").write_bytes(pictures(1)[0])  # nobody names pictures one by one
    assert len(open_pictures([tmp_path / "data"])) == 6


def test_tars_are_looked_through_once(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", pictures(3))
    open_pictures([path], cache=tmp_path / "index")

    def scan_tar(path):
        pytest.fail("scanned again")

    monkeypatch.setattr(picture_index, "scan_tar", scan_tar)
    assert len(open_pictures([path], cache=tmp_path / "index")) == 3
    monkeypatch.undo()
    write_tar(path, pictures(4))
    assert len(open_pictures([path], cache=tmp_path / "index")) == 4


# ---- batches --------------------------------------------------------------------------------------------------------


def test_batches_by_hand(places):
    source = PictureSource(open_pictures([places["tars"]]), 8, seed=0, num_threads=3)
    batch = source(range(40))
    assert batch["pixel_values"].shape == (40, 3, 8, 8) and batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].min() == -1 and batch["pixel_values"].max() == 1 and batch["skipped"] == []
    assert Counter(colours(batch)) == {number: 4 for number in range(10)}
    flipped = batch["pixel_values"][:, 2, 0, 0] == 1  # blue at the left
    assert 8 < int(flipped.sum()) < 32
    again = PictureSource(open_pictures([places["tars"]]), 8, seed=0, num_threads=1)
    parts = [again(range(i, i + 4))["pixel_values"] for i in range(0, 40, 4)]
    assert torch.equal(torch.cat(parts), batch["pixel_values"])


def test_adm_crop_by_hand():
    # 8 x 4, shorter side at least twice 2: halved by averages to 4 x 2, of which the middle 2 x 2 is cropped.
    pixels = np.arange(32, dtype=np.uint8).reshape(4, 8) * 4
    image = Image.fromarray(np.repeat(pixels[..., None], 3, 2))
    expected = [[2 + 3 + 10 + 11, 4 + 5 + 12 + 13], [18 + 19 + 26 + 27, 20 + 21 + 28 + 29]]
    assert np.asarray(adm_center_crop(image, 2))[..., 0].tolist() == expected


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 17), (5, 3), (1, 30), (31, 16), (16, 33)])
def test_adm_crop_gives_squares(size):
    assert adm_center_crop(Image.new("RGB", size), 8).size == (8, 8)


def test_by_default_the_first_random_number_of_a_sample_decides_its_flip(places):
    index = open_pictures([places["tars"]])
    source = PictureSource(index, 8, seed=3)
    for sample in range(6):
        image = Image.open(io.BytesIO(index.read(source.order.picture(sample))))
        expected = np.asarray(adm_center_crop(image, 8))
        flip = np.random.default_rng([3, sample, 1]).random() < 0.5
        found = to_uint8(source(range(sample, sample + 1))["pixel_values"])[0]
        assert np.array_equal(found, expected[:, ::-1] if flip else expected)


def test_a_share_of_the_samples_is_mirrored(places):
    index = open_pictures([places["tars"]])
    mirrored = {}
    for share in (0.0, 0.2, 0.5, 1.0):
        batch = PictureSource(index, 8, seed=0, flip=share)(range(100))
        mirrored[share] = batch["pixel_values"][:, 2, 0, 0] == 1  # blue at the left
    assert not mirrored[0.0].any() and mirrored[1.0].all()
    assert 8 < int(mirrored[0.2].sum()) < 33 < int(mirrored[0.5].sum()) < 67
    assert not (mirrored[0.2] & ~mirrored[0.5]).any()  # the same samples, and more


def test_a_random_square_by_hand():
    """8 pixels of 8 to 10: 20 x 10 pixels stay as they are at 10, and lose a fifth of each side at 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    image, last = Image.fromarray(pixels), np.nextafter(1.0, 0)

    def cut(*place: float) -> np.ndarray:
        return np.asarray(random_square(image, 8, np.array(place)))

    assert np.array_equal(cut(last, 0.0, 0.0), pixels[:8, :8])
    assert np.array_equal(cut(last, last, last), pixels[2:, 12:])
    assert np.array_equal(cut(0.7, 0.5, 0.4), pixels[1:9, 6:14])  # 10 pixels; 13 places from left to right, 3 down
    smaller = np.asarray(adm_resize(image, 8, Image.Resampling.BICUBIC))
    assert np.array_equal(cut(0.0, last, last), smaller[:, 8:]) and smaller.shape == (8, 16, 3)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 17), (5, 3), (1, 30), (31, 16), (16, 33)])
def test_random_squares_are_squares(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert random_square(Image.new("RGB", size, "red"), 8, rng.random(3)).getcolors() == [(64, (255, 0, 0))]


def test_random_crops_belong_to_their_sample_and_change_no_flip(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    index = open_pictures([write_folder(tmp_path, [encoded(Image.fromarray(pixels)) for pixels in noise])])
    cropped = PictureSource(index, 16, seed=0, random_crop=True)(range(16))["pixel_values"]
    assert cropped.shape == (16, 3, 16, 16) and len({tuple(sample.flatten().tolist()) for sample in cropped}) > 12
    again = PictureSource(index, 16, seed=0, num_threads=1, random_crop=True)
    assert torch.equal(torch.cat([again(range(i, i + 2))["pixel_values"] for i in range(0, 16, 2)]), cropped)
    straight = PictureSource(index, 16, seed=0, flip=0.0, random_crop=True)(range(16))["pixel_values"]
    for sample, pixels in enumerate(straight):
        flip = np.random.default_rng([0, sample, 1]).random() < 0.5
        assert torch.equal(pixels.flip(-1) if flip else pixels, cropped[sample])


def test_workers_keep_the_order(places):
    source = PictureSource(open_pictures([places["parquet"]]), 8, seed=0, num_threads=2)
    made = []
    for num_workers in (0, 2):
        batches = open_batches(source, TrainConfig(batch_size=4, num_workers=num_workers), 0, 1, first_sample=4)
        made.append(torch.cat([batch["pixel_values"] for batch in itertools.islice(batches, 4)]))
    assert torch.equal(*made) and torch.equal(made[0][:4], source(range(4, 8))["pixel_values"])


# ---- several processes ----------------------------------------------------------------------------------------------


def test_the_fingerprint_belongs_to_the_pictures_not_to_their_place(places, tmp_path):
    for kind, path in places.items():
        copy = tmp_path / "copy" / path.name
        subprocess.run(["mkdir", "-p", copy.parent], check=True)
        subprocess.run(["cp", "-r", path, copy], check=True)
        assert open_pictures([path]).fingerprint == open_pictures([copy]).fingerprint, kind
        next(p for p in sorted(copy.rglob("*")) if p.is_file()).unlink()
        assert open_pictures([path]).fingerprint != open_pictures([copy]).fingerprint, kind


def test_ranks_with_different_pictures_are_named():
    compare_indices([("a", 10, "f"), ("b", 10, "f")])
    with pytest.raises(UserError, match=r"10 \(f\) for rank 0 on a, 9 \(g\) for rank 2 on b"):
        compare_indices([("a", 10, "f"), ("a", 10, "f"), ("b", 9, "g")])


TWO_RANKS = """
import os, sys
import torch.distributed as dist
from pathlib import Path
from unimllm.command_line import run
from unimllm.data.picture_index import open_pictures

def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    count = len(open_pictures([Path(sys.argv[1])], Path(sys.argv[3]), rank, 2))
    os.write(1, f"same {count}\\n".encode())  # at once and whole: the other process writes too
    open_pictures([Path(sys.argv[1 + rank])], Path(sys.argv[3]), rank, 2)

run(main)
"""


def test_two_processes_with_different_pictures_are_refused(places, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    other = write_tar(tmp_path / "other" / "0.tar", pictures(4)).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += [str(places["tars"]), str(other), str(tmp_path / "index")]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode != 0 and result.stdout.count("same 10") == 2
    assert "error: the processes see different pictures: 10 (" in result.stderr
    assert len(list((tmp_path / "index").glob("*.npz"))) == 3  # each tar's, once
