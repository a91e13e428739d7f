"""eval/scenes.py on a tiny random model: every number is there, the same seed gives the same, and mistakes are told."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import load_program
from PIL import Image
from safetensors.torch import load_file, save_file

from semhitok import SemHiTokModel
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint
from unimllm.inference import load
from unimllm.metrics.geneval import TAGS
from unimllm.report import device_told, rounding_told, write_json
from unimllm.scenes import CLASSES_24, GlyphAtlas
from unimllm.scenes.glyphs import FONT_ENV
from unimllm.scenes.language import KINDS
from unimllm.scenes.reader import SceneReader, SceneReaderConfig

TIMINGS = ("seconds_per_picture", "seconds_per_picture_batched", "seconds_per_answer", "load_average")


@pytest.fixture(scope="module")
def program():
    return load_program("eval/scenes.py")


def save_reader(folder: Path, image_size: int) -> Path:
    torch.manual_seed(0)
    config = SceneReaderConfig(image_size=image_size, class_names=CLASSES_24, widths=(4, 6, 8), num_blocks=(1, 1))
    SceneReader(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """An untrained reader of the tiny model's 16 pixels."""
    return save_reader(tmp_path_factory.mktemp("reader"), 16)


@pytest.fixture
def no_font(monkeypatch, fake_atlas):
    """The scenes are drawn with hand-made glyphs."""
    monkeypatch.setattr(GlyphAtlas, "from_font", lambda names, font_path=None: fake_atlas)


def test_all_results_are_there(program, no_font, fake_atlas, tiny_checkpoint, reader, tmp_path, capsys):
    out, pictures = tmp_path / "new" / "scores.json", tmp_path / "pictures"
    options = ["--model", str(tiny_checkpoint), "--reader", str(reader), "--limit", "4", "--device", "cpu"]
    program.main([*options, "--json", str(out), "--save-pictures", str(pictures), "--images-per-prompt", "2"])
    results = json.loads(out.read_text())
    for key in (
        "psnr", "ssim", "objects_read", "semantic_code_use", "flat_code_use", "sub_codebook_use_median", "pope_f1",
        "pope_f1_random", "pope_f1_popular", "pope_f1_adversarial", "question_accuracy", *TIMINGS,
    ):  # fmt: skip
        assert isinstance(results[key], float), key
    for key in ("geneval", "reader_ceiling", "tokenizer_ceiling"):
        assert set(results[key]) == {*TAGS[:4], "overall"} and results[key]["overall"] is None  # of six tags
    assert set(results["question_accuracy_by_kind"]) <= set(KINDS)
    assert (results["num_pictures"], results["num_prompts"], results["num_questions"]) == (4, 4, 4)
    assert results["num_pope_questions"] == 4 and results["images_per_prompt"] == 2 and results["seed"] == 0
    assert results["positions_per_picture"] == load(tiny_checkpoint)[1].num_positions
    assert results["model"] == str(tiny_checkpoint) and results["split"] == "test" and results["sampling"]
    assert set(results["pope"]["random"]) == {"official", "strict"}
    assert list(results["mme"]) == ["existence", "count", "position", "color"] and results["num_mme_pictures"] == 4
    assert results["mme_total"] == sum(scores["score"] for scores in results["mme"].values())
    assert results["intervals"]["mme_count"][0] <= results["mme"]["count"]["score"]
    for low, high in (results["intervals"]["psnr"], results["intervals"]["geneval"]["colors"]):
        assert low <= high
    assert results["intervals"]["geneval"]["overall"] is None

    assert results["program"] == "eval/scenes.py" and results["limited"] is True and results["versions"]["torch"]
    assert (
        (results["device"], results["dtype"]) == ("cpu", "float32") and results["threads"] > 0 and "gpu" not in results
    )
    assert results["fingerprint"] == fingerprint(tiny_checkpoint / "model.safetensors")
    assert results["glyphs_digest"] == fake_atlas.digest()
    assert results["reader_fingerprint"] == fingerprint(reader / "model.safetensors")
    assert results["command"].startswith("python eval/scenes.py --model ") and results["num_samples"]["questions"] == 4
    for key in ("pope_f1", "pope_f1_random", "pope_f1_strict", "mme_total", "objects_read_in_true_renders"):
        low, high = results["intervals"][key]
        assert low <= results[key] <= high
    for ceiling in ("reader_ceiling", "tokenizer_ceiling"):
        assert set(results["intervals"][ceiling]) == set(results[ceiling])
    assert results["num_pictures_by_tag"] == dict.fromkeys(TAGS[:4], 2)

    gallery = results["gallery"]
    assert gallery["folder"] == "../pictures"
    assert [row["filename"] for row in gallery["drawings"]] == [f"{i:05d}/samples/0000.png" for i in range(4)]
    assert all(row["correct"] == (not row["reason"]) and row["found"] for row in gallery["drawings"])
    assert len(gallery["questions"]) == 4 and all(not row["correct"] for row in gallery["wrong_answers"])
    kept = {row["filename"] for row in gallery["questions"] + gallery["wrong_answers"]}
    assert kept == {f"questions/{p.name}" for p in (pictures / "questions").iterdir()}

    assert sorted(p.name for p in pictures.iterdir()) == [*(f"{i:05d}" for i in range(4)), "questions"]
    metadata = json.loads((pictures / "00002" / "metadata.jsonl").read_text())
    assert {"tag", "include", "prompt"} <= set(metadata)
    assert sorted(p.name for p in (pictures / "00002" / "samples").iterdir()) == ["0000.png", "0001.png"]
    assert Image.open(pictures / "00002" / "samples" / "0001.png").size == (16, 16)

    table, progress = capsys.readouterr()
    for words in ("PSNR", "POPE F1, adversarial", "MME count", "GenEval: overall", "seconds per answer", "test split"):
        assert words in table
    assert "objects read from reconstructions / from true renders  " in table  # uncut
    assert "Drawing (4 prompts)" in table and "batch/s" not in table
    names = [bar.partition(":")[0] for bar in re.split(r"[\r\n]", progress) if bar]
    told = ["reconstructing", "ceilings of drawing", "POPE random"]  # no two bars of one name
    assert list(dict.fromkeys(names))[:3] == told and "drawing" in names

    again = tmp_path / "again.json"
    program.main([*options, "--json", str(again), "--images-per-prompt", "2", "--batch-size", "3"])
    repeated = json.loads(again.read_text())
    numbers = {k: v for k, v in results.items() if isinstance(v, (int, float)) and k not in TIMINGS}
    different = {k for k, v in numbers.items() if repeated[k] != pytest.approx(v)}
    assert different == {"batch_size"}
    assert all(results[key] == repeated[key] for key in ("geneval", "pope", "mme"))


def test_a_run_that_broke_off_is_begun_anew(program, call, no_font, tiny_checkpoint, reader, tmp_path, monkeypatch):
    words = ("--model", tiny_checkpoint, "--reader", reader, "--limit", 4, "--device", "cpu")
    words += ("--save-pictures", tmp_path / "runs" / "pictures")

    def breaks_off(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(program, "examine_drawing", breaks_off)
        program.main([str(word) for word in words])
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert call(program, *words).code == 0  # the same command
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pictures"]
    assert len(list((tmp_path / "runs" / "pictures").glob("*/samples/0000.png"))) == 4

    def meanwhile(*given):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "picture.png").write_bytes(b"x")

    monkeypatch.setattr(program, "examine_drawing", meanwhile)
    assert f"cannot write the pictures to {tmp_path / 'other'}" in call(program, *words[:-1], tmp_path / "other").err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["picture.png"]


def test_a_tokenizer_is_examined_alone(program, no_font, tiny_checkpoint, reader, tmp_path, capsys):
    from unimllm import load

    model, _ = load(tiny_checkpoint, "cpu")
    model.image_tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "scores.json"
    program.main([
        "--tokenizer-only", str(tmp_path / "tokenizer"), "--reader", str(reader), "--limit", "6", "--json", str(out)
    ])  # fmt: skip
    results = json.loads(out.read_text())
    assert results["num_pictures"] == 6 and results["psnr"] and results["tokenizer_ceiling"]["overall"] is not None
    assert "geneval" not in results and "pope" not in results
    table = capsys.readouterr().out
    assert "Ceilings of drawing, nothing drawn (6 prompts)" in table and "Drawing" not in table
    assert "GenEval: overall" in table and "A part of the set alone (--limit 6)." in table
    assert SemHiTokModel.from_pretrained(tmp_path / "tokenizer").config.num_codes == 30

    whole = tmp_path / "whole.json"  # the tokenizer inside a whole model is the same one
    program.main([
        "--tokenizer-only", str(tiny_checkpoint), "--reader", str(reader), "--limit", "6", "--json", str(whole)
    ])  # fmt: skip
    assert json.loads(whole.read_text())["psnr"] == results["psnr"]
    CheersVae(tiny_cheers().vae_config).save_pretrained(tmp_path / "vae")  # has latents instead of codes
    program.main([
        "--tokenizer-only", str(tmp_path / "vae"), "--reader", str(reader), "--limit", "6", "--json", str(out)
    ])  # fmt: skip
    latents = json.loads(out.read_text())
    assert latents["psnr"] and latents["tokenizer_ceiling"] and "flat_code_use" not in latents
    with pytest.raises(UserError, match="holds no SemHiTok tokenizer"):
        program.main(["--tokenizer-only", str(reader), "--reader", str(reader)])
    (tmp_path / "tokenizer" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        program.main(["--tokenizer-only", str(tmp_path / "tokenizer"), "--reader", str(reader)])


def test_wrong_options_are_told(program, no_font, tiny_checkpoint, reader, tmp_path):
    model = ["--model", str(tiny_checkpoint)]
    with pytest.raises(UserError, match="did you mean '--limit'"):
        program.main(["--limti", "3"])
    with pytest.raises(UserError, match="whole number of 1 or more"):
        program.main([*model, "--limit", "0"])
    with pytest.raises(UserError, match="choose one"):
        program.main([*model, "--tokenizer-only", str(tmp_path)])
    with pytest.raises(UserError, match="an image tokenizer is float32 always"):
        program.main(["--tokenizer-only", str(tmp_path), "--dtype", "bfloat16"])
    with pytest.raises(UserError, match="no reader in"):
        program.main([*model, "--reader", str(tmp_path / "none")])
    with pytest.raises(UserError, match="reads 24 pixels, the model draws 16"):
        program.main([*model, "--reader", str(save_reader(tmp_path / "24", 24))])
    with pytest.raises(UserError, match="folder"):
        program.main([*model, "--json", str(tmp_path)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.png").touch()
    with pytest.raises(UserError, match="not empty"):
        program.main([*model, "--save-pictures", str(tmp_path / "full")])


def test_a_reader_without_all_its_tensors_is_refused(program, no_font, tiny_checkpoint, reader, tmp_path):
    shutil.copytree(reader, tmp_path / "cut")
    tensors = load_file(reader / "model.safetensors")
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"^--reader .*: the checkpoint lacks 1 tensors: {name}; is it cut off"):
        program.main(["--model", str(tiny_checkpoint), "--reader", str(tmp_path / "cut")])


def test_a_model_of_another_world_is_refused(program, no_font, tiny_checkpoint, reader, tmp_path):
    folder = tmp_path / "step-000001"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "run.json").write_text(json.dumps({"recipe": {"world": {"classes": ["car", "dog"]}}}))
    with pytest.raises(UserError, match="trained on 2 objects"):
        program.main(["--model", str(folder), "--reader", str(reader)])


def test_a_missing_font_is_one_line_and_exit_code_2(program, tiny_checkpoint, reader, tmp_path):
    done = subprocess.run(
        [sys.executable, program.__file__, "--model", tiny_checkpoint, "--reader", reader, "--json", "x/y.json"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {FONT_ENV: str(tmp_path / "none.ttf")},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "none.ttf" in line and "fonts-noto-color-emoji" in line
    assert not list(tmp_path.glob("x/*"))


def test_json_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"psnr": float("inf"), "pairs": [(1.0, float("nan"))]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"psnr": None, "pairs": [[1.0, None]]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "b.json", {"psnr": object()})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert "null" in (tmp_path / "a" / "b.json").read_text()


def test_a_gpu_is_told_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert device_told(torch.device("cuda:0")) == {"device": "cuda:0", "gpu": "a GPU"}
    assert device_told(torch.device("cpu")) == {"device": "cpu"}


def test_the_batch_is_told_where_numbers_depend_on_it(tiny_checkpoint):
    exact = rounding_told(load(tiny_checkpoint, "cpu")[0], 3)
    assert (exact["dtype"], exact["device"], "batch_size" in exact) == ("float32", "cpu", False)
    assert set(exact["versions"]) == {"torch", "transformers"}
    half = load(tiny_checkpoint, "cpu", dtype="bfloat16")[0]  # its image tokenizer is float32
    assert rounding_told(half, 3) == exact | {"dtype": "bfloat16", "batch_size": 3}
