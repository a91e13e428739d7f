"""`python -m semhitok`: pictures to shards and back, whatever lies in the folder."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok import SemHiTokModel, __main__, checkpoints
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import tiny_config
from semhitok.errors import UserError
from semhitok.fingerprint import fingerprint
from semhitok.image_processing_semhitok import for_size
from semhitok.images import open_picture
from semhitok.picture_files import files_below, find_pictures
from semhitok.psnr import psnr
from semhitok.shards import CodeShards


def build_tokenizer(seed: int = 0) -> SemHiTokModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SemHiTokModel(tiny_config())
        model.pixel.codebook.bend.data.normal_()
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Folder of a tiny random tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    for_size(16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    build_tokenizer(1).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Folder of five pictures at two depths, in several formats, and a text."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "sub/a.jpg", "sub/c.WEBP", "sub/d.png"):
        size = rng.integers(16, 40, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


KEYS = ["a.jpg", "b.png", "sub/a.jpg", "sub/c.WEBP", "sub/d.png"]


# ---- encode --------------------------------------------------------------------------------------------------------


def test_encode_writes_what_the_model_makes_of_each_picture(call, tokenizer, photos, tmp_path):
    result = call(__main__, "encode", photos, "--out", tmp_path / "codes", "--model", tokenizer, "--batch-size", 2)
    assert result.code == 0 and "5/5" in result.err
    assert result.out == f"{tmp_path}/codes: 5 pictures encoded, 1 other file left out\n"
    shards = CodeShards(tmp_path / "codes")
    assert shards.keys == KEYS
    model, processor = load_tokenizer(str(tokenizer), "cpu")
    for key in KEYS:
        pixel_values = processor(open_picture(photos / key), return_tensors="pt")["pixel_values"]
        assert np.array_equal(shards[key], model.encode(pixel_values)[0].numpy())


def test_parts_of_a_folder_make_the_whole(call, tokenizer, photos, tmp_path):
    for i in (0, 1, 2):
        words = ("--out", tmp_path / "codes", "--model", tokenizer, "--part", f"{i}/3")
        assert call(__main__, "encode", photos, *words).code == 0
    assert sorted(CodeShards(tmp_path / "codes").keys) == sorted(KEYS)


def test_pictures_are_padded_where_it_is_asked_for(call, tokenizer, photos, tmp_path):
    words = ("--out", tmp_path / "codes", "--model", tokenizer, "--pad-to-square")
    assert call(__main__, "encode", photos, *words).code == 0
    shards = CodeShards(tmp_path / "codes")
    model, processor = load_tokenizer(str(tokenizer), "cpu")
    processor.pad_to_square = True
    pixel_values = processor(open_picture(photos / KEYS[0]), return_tensors="pt")["pixel_values"]
    assert np.array_equal(shards[KEYS[0]], model.encode(pixel_values)[0].numpy()) and shards.layout.pad_to_square
    assert "padded to squares), which is not" in call(__main__, "encode", photos, *words[:-1]).refusal()
    assert call(__main__, "decode", tmp_path / "codes", "--out", tmp_path / "new", "--model", tokenizer).code == 0


def test_pictures_of_pillow_are_seen_as_files_are(tokenizer, tmp_path):
    """16 bits of grey, and a camera that was turned."""
    processor = load_tokenizer(str(tokenizer), "cpu")[1]
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.linspace(0, 65535, 24 * 16).reshape(24, 16).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "wide.png")
    Image.fromarray((grey // 256).astype(np.uint8)).save(tmp_path / "turned.png", exif=exif)
    for name in ("wide.png", "turned.png"):
        with Image.open(tmp_path / name) as picture:
            seen = processor(picture, return_tensors="pt")["pixel_values"]
        expected = processor(open_picture(tmp_path / name), return_tensors="pt")["pixel_values"]
        assert torch.equal(seen, expected) and abs(float(seen.mean())) < 0.1


def test_encode_goes_on_where_it_ended(call, tokenizer, photos, tmp_path):
    options = ("--out", tmp_path / "codes", "--model", tokenizer)
    call(__main__, "encode", photos, *options)
    first = (tmp_path / "codes" / "codes-000000.bin").read_bytes()
    Image.new("RGB", (20, 20), "red").save(photos / "new.png")
    result = call(__main__, "encode", photos, *options)
    assert "1 picture encoded, 5 there already" in result.out
    assert (tmp_path / "codes" / "codes-000000.bin").read_bytes() == first
    assert CodeShards(tmp_path / "codes").keys == [*KEYS, "new.png"]
    result = call(__main__, "encode", photos, *options, "--overwrite")
    assert "6 pictures encoded" in result.out and len(CodeShards(tmp_path / "codes").shards) == 1


def test_another_tokenizer_is_refused_with_both_fingerprints(call, tokenizer, other_tokenizer, photos, tmp_path):
    names = [fingerprint(load_tokenizer(str(folder), "cpu")[0]) for folder in (tokenizer, other_tokenizer)]
    assert names[0] != names[1]
    codes = tmp_path / "codes"
    call(__main__, "encode", photos, "--out", codes, "--model", tokenizer)
    for words in (["encode", photos, "--out", codes], ["decode", codes, "--out", tmp_path / "pictures"]):
        message = call(__main__, *words, "--model", other_tokenizer).refusal()
        assert "codes-000000.bin was made by tokenizer" in message and all(name in message for name in names)
    assert not (tmp_path / "pictures").exists()


def bad_files(folder) -> None:
    """Pictures that cannot be read."""
    whole = (folder / "b.png").read_bytes()
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 200)).save(folder / "thin.png")


def test_what_cannot_be_read_is_skipped_counted_and_named(call, tokenizer, photos, tmp_path):
    bad_files(photos)
    options = (photos, "--model", tokenizer, "--batch-size", 3)
    result = call(__main__, "encode", *options, "--out", tmp_path / "codes")
    assert result.code == 0
    assert "5 pictures encoded, 5 unreadable (2 damaged, 1 empty, 1 no picture, 1 too thin)" in result.out
    assert f"unreadable (empty): {photos}/empty.png is empty" in result.err
    assert f"unreadable (too thin): {photos}/thin.png is 1 x 200 pixels" in result.err
    assert CodeShards(tmp_path / "codes").keys == KEYS
    (photos / "empty2.png").touch()
    result = call(__main__, "encode", *options, "--out", tmp_path / "strict", "--strict")
    assert result.code == 2 and "5 pictures encoded" in result.out and "and 1 more" in result.err
    assert "error: 6 unreadable (2 damaged, 2 empty, 1 no picture, 1 too thin)" in result.err
    assert CodeShards(tmp_path / "strict").keys == KEYS


def test_a_folder_of_unreadable_pictures_alone(call, tokenizer, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "empty.png").touch()
    result = call(__main__, "encode", tmp_path / "photos", "--out", tmp_path / "codes", "--model", tokenizer)
    assert result.code == 0 and "0 pictures encoded, 1 unreadable (1 empty)" in result.out


def test_every_kind_of_picture_is_encoded_as_it_is_seen(call, tokenizer, tmp_path):
    """Each kind beside the same picture as plain RGB: equal codes."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16), dtype=np.uint8))
    grey.convert("RGB").save(folder / "plain.png")
    grey.save(folder / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "bits16.png")
    Image.merge("CMYK", [Image.new("L", grey.size)] * 3 + [grey.point(lambda value: 255 - value)]).save(
        folder / "cmyk.tiff"
    )
    grey.convert("RGB").save(folder / "animated.png", save_all=True, append_images=[Image.new("RGB", grey.size)])
    exif = Image.Exif()
    exif[0x0112] = 8
    grey.transpose(Image.Transpose.ROTATE_270).convert("RGB").save(folder / "turned.png", exif=exif)
    palette = grey.convert("P")
    palette.info["transparency"] = bytes([255] * 256)
    palette.save(folder / "palette.png")
    Image.merge("LA", [grey, Image.new("L", grey.size, 255)]).save(folder / "alpha.png")
    result = call(__main__, "encode", folder, "--out", tmp_path / "codes", "--model", tokenizer, "--strict")
    assert "8 pictures encoded" in result.out
    shards = CodeShards(tmp_path / "codes")
    assert len({tuple(row) for row in shards["plain.png"].tolist()}) > 1
    for key in shards.keys:
        assert np.array_equal(shards[key], shards["plain.png"]), key


def test_too_little_memory_is_told_and_what_was_encoded_is_kept(call, tokenizer, photos, tmp_path, monkeypatch):
    encode, calls = SemHiTokModel.encode, []

    def fail(self, pixel_values):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return encode(self, pixel_values)

    monkeypatch.setattr(SemHiTokModel, "encode", fail)
    result = call(
        __main__, "encode", photos, "--out", tmp_path / "codes", "--model", tokenizer, "--batch-size", 2
    )  # fmt: skip
    assert result.code == 2 and "not enough memory for 2 pictures at once; choose a smaller --batch-size" in result.err
    assert CodeShards(tmp_path / "codes").keys == KEYS[:2]


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_paths_below_the_folder_that_was_given(photos):
    keys = [file.key for file in find_pictures([photos / "sub", photos / "b.png"])[0]]
    assert keys == ["a.jpg", "c.WEBP", "d.png", "b.png"]
    assert [file.path for file in find_pictures([photos])[0]] == [photos / key for key in KEYS]


def test_two_pictures_of_one_key_are_refused(call, photos, tmp_path):
    message = call(__main__, "encode", photos, photos / "sub", "--out", tmp_path / "codes").refusal()
    assert f"{photos}/a.jpg and {photos}/sub/a.jpg would both have the key 'a.jpg'" in message
    message = call(__main__, "encode", photos, photos / "a.jpg", "--out", tmp_path / "codes").refusal()
    assert f"{photos}/a.jpg is given twice" in message


def test_hidden_files_and_other_files_are_counted(photos):
    (photos / "._a.jpg").write_bytes(b"macOS")
    assert find_pictures([photos])[1] == 2


def test_folders_behind_links_are_searched_and_circles_once(photos, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photos").symlink_to(photos)
    assert [file.key for file in find_pictures([tmp_path / "links"])[0]] == [f"photos/{key}" for key in KEYS]
    (photos / "sub" / "up").symlink_to(photos)
    assert [file.key for file in find_pictures([photos])[0]] == KEYS
    (tmp_path / "links" / "b").mkdir()
    (tmp_path / "links" / "b" / "back").symlink_to(tmp_path / "links")  # a circle over two links
    (photos / "links").symlink_to(tmp_path / "links")
    assert [key for key in files_below(photos) if "back" in key or "links/photos" in key] == []


def test_hidden_folders_are_left_alone_and_twins_are_two(photos):
    expected = files_below(photos)
    (photos / ".thumbnails").mkdir()
    (photos / ".thumbnails" / "a.jpg").write_bytes(b"")
    assert files_below(photos) == expected
    (photos / "twin").symlink_to(photos / "sub")
    assert files_below(photos) == sorted(expected + [f"twin/{n[4:]}" for n in expected if n.startswith("sub/")])


def test_a_folder_that_cannot_be_searched_is_told(photos, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="^cannot search .*: Permission denied$"):
        files_below(photos)


# ---- decode --------------------------------------------------------------------------------------------------------


def test_decode_writes_what_the_model_makes_of_the_codes(call, tokenizer, photos, tmp_path):
    call(__main__, "encode", photos, "--out", tmp_path / "codes", "--model", tokenizer)
    result = call(
        __main__, "decode", tmp_path / "codes", "--out", tmp_path / "new", "--model", tokenizer, "--batch-size", 2
    )  # fmt: skip
    assert result.code == 0 and result.out == f"{tmp_path}/new: 5 pictures\n" and "5/5" in result.err
    written = sorted(path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*"))
    assert written == [f"{key}.png" for key in KEYS]
    model, processor = load_tokenizer(str(tokenizer), "cpu")
    shards = CodeShards(tmp_path / "codes")
    for key in KEYS:
        expected = processor.post_process_images(model.decode(torch.from_numpy(shards[key])[None]))[0]
        got = np.asarray(open_picture(tmp_path / "new" / f"{key}.png"), np.int16)
        assert np.abs(got - np.asarray(expected)).max() <= 1  # kernels may round by the size of the batch


def test_a_decoder_trained_anew_reads_the_codes_made_before(call, tokenizer, photos, tmp_path):
    model = SemHiTokModel.from_pretrained(tokenizer)
    for parameter in model.pixel.decoder.parameters():
        parameter.data.add_(0.01)
    model.save_pretrained(tmp_path / "enhanced")
    call(__main__, "encode", photos, "--out", tmp_path / "codes", "--model", tokenizer)
    result = call(__main__, "decode", tmp_path / "codes", "--out", tmp_path / "new", "--model", tmp_path / "enhanced")
    assert result.code == 0


# ---- reconstruct ---------------------------------------------------------------------------------------------------


def test_reconstruct_one_picture(call, tokenizer, photos, tmp_path):
    result = call(__main__, "reconstruct", photos / "b.png", tmp_path / "both.png", "--model", tokenizer)
    model, processor = load_tokenizer(str(tokenizer), "cpu")
    pixel_values = processor(open_picture(photos / "b.png"), return_tensors="pt")["pixel_values"]
    pair = [processor.post_process_images(values)[0] for values in (pixel_values, model(pixel_values).reconstruction)]
    expected = psnr(*(np.asarray(picture)[None] for picture in pair))[0]
    assert result.code == 0 and result.out == f"{tmp_path}/both.png: PSNR {expected:.2f} dB\n"
    page = open_picture(tmp_path / "both.png")
    for number, picture in enumerate(pair):
        left = 4 + number * 20
        assert np.array_equal(np.asarray(page.crop((left, 4, left + 16, 20))), np.asarray(picture))
    assert np.asarray(page)[22:].min() < 100  # the caption


def test_reconstruct_a_folder(call, tokenizer, photos, tmp_path):
    bad_files(photos)
    result = call(__main__, "reconstruct", photos, tmp_path / "both", "--model", tokenizer, "--batch-size", 2)
    assert result.code == 0
    assert result.out.startswith(f"{tmp_path}/both: 5 pictures, mean PSNR ")
    assert "5 unreadable (2 damaged, " in result.out and "1 other file left out" in result.out
    assert sorted(path.name for path in (tmp_path / "both" / "sub").iterdir()) == [
        "a.jpg.png",
        "c.WEBP.png",
        "d.png.png",
    ]


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command; choose one of encode, decode, reconstruct, export"),
        (["encod"], "unknown command 'encod' (did you mean 'encode'?)"),
        (["encode"], "encode photos/ --out codes/"),
        (["encode", "photos"], "encode photos/ --out codes/"),
        (["encode", "none", "--out", "codes"], "no such picture or folder: none"),
        (["encode", "photos/notes", "--out", "codes"], "none with an ending such as .png"),
        (["encode", "photos", "--out", "photos/b.png"], "cannot write photos/b.png"),
        (["encode", "photos", "--out", "codes", "--modle", "x"], "unknown option --modle (did you mean '--model'?)"),
        (["encode", "photos", "--out", "codes", "--batch-size", "0"], "'0' is not a whole number of 1 or more"),
        (["encode", "photos", "--out", "codes", "--model", "./none"], "--model ./none: no such folder"),
        (["encode", "photos", "--out", "codes", "--model", "photos"], "no checkpoint in photos"),
        (["decode", "photos", "--out", "new"], "no codes in photos"),
        (["decode", "photos"], "decode codes/ --out pictures/"),
        (["decode", "photos", "more", "--out", "new"], "unexpected 'more'"),
        (["reconstruct", "photos/b.png"], "reconstruct photo.jpg both.png"),
        (["reconstruct", "photos/b.png", "new.xyz"], "has the ending '.xyz'"),
        (["reconstruct", "photos/notes.txt", "new.png"], "photos/notes.txt is no picture"),
        (["reconstruct", "photos", "photos/b.png"], "photos/b.png lies in photos, whose pictures are read"),
        (["reconstruct", "photos", "photos"], "photos lies in photos"),
        (["reconstruct", "photos/b.png", "photos/b.png"], "would be overwritten by its own reconstruction"),
    ],
)
def test_refusals(call, photos, monkeypatch, words, message):
    (photos / "notes").mkdir()
    monkeypatch.chdir(photos.parent)
    assert message in call(__main__, *words).refusal()
    assert sorted(path.name for path in photos.parent.iterdir()) == ["photos"]


def test_help(call):
    assert "side by side" in call(__main__, "--help").out
    for command in __main__.COMMANDS:
        result = call(__main__, command, "--help")
        assert result.code == 0 and f"python -m semhitok {command}" in result.out
        assert ("--results" if command == "export" else "--batch-size") in result.out


def test_options_may_stand_before_the_pictures(call, tokenizer, photos, tmp_path):
    options = ("--out", tmp_path / "codes", photos / "b.png", "--model", tokenizer, photos / "sub", "--bf16")
    assert "4 pictures encoded" in call(__main__, "encode", *options).out


# ---- which tokenizer -----------------------------------------------------------------------------------------------


def test_the_default_is_the_model_that_ships(call, tokenizer, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "shipped_model", lambda: tokenizer)
    assert call(__main__, "encode", photos, "--out", tmp_path / "codes").code == 0
    monkeypatch.setattr(checkpoints, "shipped_model", lambda: None)
    message = call(__main__, "encode", photos, "--out", tmp_path / "codes").refusal()
    assert "no model ships with this installation: name a tokenizer with --model" in message


def test_a_language_model_s_tokenizer_and_a_run_s_newest_checkpoint(tiny_checkpoint, tmp_path):
    model, processor = load_tokenizer(str(tiny_checkpoint), "cpu")
    assert processor.crop_size["height"] == model.config.image_size
    step = tmp_path / "run" / "step-000010"
    shutil.copytree(tiny_checkpoint, step)
    (step / "run.json").write_text("{}")
    assert fingerprint(load_tokenizer(str(tmp_path / "run"), "cpu")[0]) == fingerprint(model)


def test_checkpoints_that_are_none(tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tokenizer, broken)
    tensors = load_file(broken / "model.safetensors")
    base = tensors.pop("pixel.codebook.base")
    shape, short = re.escape(f"pixel.codebook.base (1,) (not {tuple(base.shape)})"), base.flatten()[:1].clone()
    for changes, told in (
        ({}, r"lacks 1 tensors: pixel\.codebook\.base; is it cut off\?"),
        ({"pixel.codebook.base": short, "more": base}, f"for 1 tensors: more; .* 1 tensors: {shape}"),
    ):
        save_file(tensors | changes, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"broken: the checkpoint .*{told}$"):
            load_tokenizer(str(broken), "cpu")
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="cannot load a tokenizer from"):
        load_tokenizer(str(broken), "cpu")
    (broken / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds no SemHiTok tokenizer; its model_type is 'bert'"):
        load_tokenizer(str(broken), "cpu")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        load_tokenizer(str(tokenizer), "gpu")


def test_the_fingerprint_is_of_what_makes_the_codes():
    model = build_tokenizer()
    name = fingerprint(model)
    assert name == fingerprint(build_tokenizer()) and len(name) == 12
    assert fingerprint(build_tokenizer().half()) == fingerprint(build_tokenizer().half().float())
    for changed in (model.pixel.decoder, model.semantic.decoder):
        next(changed.parameters()).data.add_(1)
        assert fingerprint(model) == name
    for part in (model.vision_model, model.semantic.encoder, model.pixel.encoder, model.pixel.codebook):
        parameter = next(part.parameters())
        parameter.data.add_(1)
        assert fingerprint(model) != name
        parameter.data.sub_(1)
    model.semantic.codebook.codes[0] += 1
    assert fingerprint(model) != name
