"""eval/geneval.py on tiny random models: drawing and scoring from end to end."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_program
from PIL import Image

from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, weights_fingerprint
from unimllm.metrics.geneval_detector import GenEvalDetector
from unimllm.metrics.geneval_records import COLORS, OBJECT_NAMES, Record, read_records

PICTURE = "00000/samples/0000.png"
PROMPTS = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"},
    {"tag": "colors", "include": [{"class": "apple", "count": 1, "color": "red"}], "prompt": "a photo of a red apple"},
]


@pytest.fixture(scope="module")
def program():
    return load_program("eval/geneval.py")


def tiny_mask2former(num_labels: int = 80):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=5,
        num_labels=num_labels,
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config).eval()


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory) -> Path:
    """Folder of a random Mask2Former of 80 classes that is sure of whatever it sees."""
    model = tiny_mask2former()
    with torch.no_grad():
        model.class_predictor.weight *= 200
        model.class_predictor.bias[-1] -= 50  # never no object
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- loading -------------------------------------------------------------------------------------------------------


def test_a_detector_that_is_none_is_told(mask2former, clip, tmp_path):
    with pytest.raises(UserError, match="--detector .* cannot be loaded"):
        GenEvalDetector.load(str(tmp_path), str(clip), "cpu")
    with pytest.raises(UserError, match="--clip .* cannot be loaded"):
        GenEvalDetector.load(str(mask2former), str(tmp_path), "cpu")
    with pytest.raises(UserError, match="--clip .*nowhere: no such folder"):
        GenEvalDetector.load(str(mask2former), str(tmp_path / "nowhere"), "cpu")
    tiny_mask2former(79).save_pretrained(tmp_path / "79")
    with pytest.raises(UserError, match="knows 79 classes"):
        GenEvalDetector.load(str(tmp_path / "79"), str(clip), "cpu")


# ---- the program ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def names_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_are_drawn_in_geneval_s_layout_and_drawn_once(program, call, tiny_checkpoint, prompts, tmp_path):
    out = tmp_path / "out"
    words = ("generate", "--model", tiny_checkpoint, "--prompts", prompts, "--device", "cpu", "--batch-size", 3)
    ended = call(program, *words, "--out", out)
    assert ended.code == 0 and "8 pictures drawn" in ended.out, ended.err
    samples = [f"{n:05d}/samples/{k:04d}.png" for n in range(2) for k in range(4)]
    assert names_of(out) == sorted([*samples, "00000/metadata.jsonl", "00001/metadata.jsonl", "generation.json"])
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == PROMPTS[1]
    pictures = {name: (out / name).read_bytes() for name in samples}
    assert len(set(pictures.values())) > 4  # one seed each

    (out / samples[5]).unlink()
    (out / samples[0]).write_bytes(b"mine")
    assert "1 pictures drawn" in call(program, *words, "--out", out).out
    assert (out / samples[5]).read_bytes() == pictures[samples[5]]  # the same picture in any batch
    assert (out / samples[0]).read_bytes() == b"mine"


def test_ranks_divide_the_prompts(program, call, tiny_checkpoint, prompts, tmp_path, monkeypatch):
    words = ("generate", "--model", tiny_checkpoint, "--prompts", prompts, "--device", "cpu", "--images-per-prompt", 1)
    call(program, *words, "--out", tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert "1 pictures drawn" in call(program, *words, "--out", tmp_path / "two").out
    for name in names_of(tmp_path / "one"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_runs_do_not_mix(program, call, tiny_checkpoint, tiny_cheers, prompts, tmp_path):
    out = tmp_path / "out"
    words = ("generate", "--model", tiny_checkpoint, "--prompts", prompts, "--device", "cpu", "--out", out)
    assert call(program, *words, "--images-per-prompt", 1).code == 0
    before = {name: (out / name).read_bytes() for name in names_of(out)}
    assert "its seed is 0, now it is 1" in call(program, *words, "--seed", 1).refusal()
    (tmp_path / "others.jsonl").write_text(json.dumps(PROMPTS[1]))
    told = call(program, *words, "--prompts", tmp_path / "others.jsonl").refusal()
    assert f"{out} holds pictures of another run: its prompts are not those of {tmp_path / 'others.jsonl'}; " in told
    told = call(program, *words, "--model", tiny_cheers).refusal()
    assert f"its model is {tiny_checkpoint}, now it is {tiny_cheers}; choose another --out" in told
    assert {name: (out / name).read_bytes() for name in names_of(out)} == before

    settings = json.loads((out / "generation.json").read_text())
    assert settings["fingerprint"] == weights_fingerprint(tiny_checkpoint)
    (out / "generation.json").write_text(json.dumps(settings | {"fingerprint": "0" * 16}))  # the weights were others
    told = call(program, *words).refusal()
    assert f"its fingerprint is {'0' * 16}, now it is {settings['fingerprint']}; choose another --out" in told
    del settings["fingerprint"]  # as earlier versions wrote it
    (out / "generation.json").write_text(json.dumps(settings))
    ended = call(program, *words, "--images-per-prompt", 1)
    assert (
        ended.code == 0 and f"note: nobody knows with which fingerprint the pictures in {out} were drawn" in ended.err
    )
    assert "fingerprint" not in json.loads((out / "generation.json").read_text())  # nobody knows of which weights
    for damaged in ("{", "[]"):
        (out / "generation.json").write_text(damaged)
        assert "generation.json is damaged" in call(program, *words).refusal()
    (out / "generation.json").unlink()
    assert "holds pictures but no generation.json" in call(program, *words).refusal()


def test_pictures_are_drawn_on_as_they_were_begun(program, call, tiny_checkpoint, prompts, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = ("generate", "--model", tiny_checkpoint, "--prompts", prompts, "--device", "cpu", "--out", out)
    monkeypatch.setattr(program, "commit_of", lambda _: "first")
    assert call(program, *words, "--images-per-prompt", 1).code == 0
    told = json.loads((out / "generation.json").read_text())
    assert (told["dtype"], told["device"], told["batch_size"], told["images_per_prompt"]) == ("float32", "cpu", 32, 1)
    assert told["commit"] == "first" and set(told["versions"]) == {"torch", "transformers"}
    assert len(told["settings_fingerprint"]) == len(told["code_fingerprint"]) == 16

    monkeypatch.setattr(program, "commit_of", lambda _: "second")  # of other files than those that draw
    assert "2 pictures drawn" in call(program, *words, "--images-per-prompt", 2, "--batch-size", 1).out
    again = json.loads((out / "generation.json").read_text())
    assert again == told | {"images_per_prompt": 2}  # the first run's; in float32 the batch changes nothing
    told = call(program, *words, "--dtype", "bfloat16").refusal()
    assert "its dtype is float32, now it is bfloat16; choose another --out" in told
    monkeypatch.setattr(program, "code_fingerprint", lambda: "edited")
    assert f"its code_fingerprint is {again['code_fingerprint']}, now it is edited" in call(program, *words).refusal()

    monkeypatch.undo()
    half = (*words[:-1], tmp_path / "half", "--images-per-prompt", 1, "--dtype", "bfloat16", "--batch-size")
    assert call(program, *half, 2).code == 0
    assert "its batch_size is 2, now it is 1; choose another --out" in call(program, *half, 1).refusal()


def test_a_folder_whose_name_is_a_digit_but_no_number_holds_no_pictures(
    program, call, tiny_checkpoint, prompts, tmp_path
):
    (tmp_path / "out" / "\u00b2").mkdir(parents=True)
    words = ("generate", "--model", tiny_checkpoint, "--prompts", prompts, "--device", "cpu", "--images-per-prompt", 1)
    assert call(program, *words, "--out", tmp_path / "out").code == 0


def test_a_prompt_that_is_none_is_told_before_anything_is_drawn(program, call, tiny_checkpoint, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps(PROMPTS[0]) + "\n" + json.dumps(PROMPTS[1] | {"prompt": 7}))
    words = ("generate", "--model", tiny_checkpoint, "--prompts", tmp_path / "prompts.jsonl", "--device", "cpu")
    assert "row 2: 'prompt' is 7, no text" in call(program, *words, "--out", tmp_path / "out").refusal()
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_is_of_all_weights_and_nothing_else(tmp_path):
    assert weights_fingerprint(tmp_path) is None
    (tmp_path / "model-1.safetensors").write_bytes(b"one")
    first = weights_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_fingerprint(tmp_path) == first and len(first) == 16
    (tmp_path / "model-2.safetensors").write_bytes(b"two")
    assert weights_fingerprint(tmp_path) != first


def test_the_fingerprint_of_a_hub_id_is_that_of_its_files(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: tiny_checkpoint)
    assert weights_fingerprint("someone/model") == weights_fingerprint(tiny_checkpoint)


def test_a_folder_is_looked_at_once_and_scored_again(
    program, call, tiny_checkpoint, mask2former, clip, prompts, tmp_path
):
    out, record, scores = tmp_path / "out", tmp_path / "seen.jsonl", tmp_path / "scores.json"
    model = ("--model", tiny_checkpoint, "--device", "cpu")
    assert call(program, "generate", *model, "--prompts", prompts, "--out", out, "--images-per-prompt", 1).code == 0
    look = ("--detector", mask2former, "--clip", clip, "--device", "cpu", "--detections", record)
    ended = call(program, "score", out, *look, "--json", scores, "--results", tmp_path / "results.jsonl")
    assert ended.code == 0 and "GenEval-style (HF detector)" in ended.out, ended.err
    told = " ".join(ended.out.split())
    assert "no overall without two_object, counting, position, color_attr" in told and "overall (mean of tags)" in told
    assert "an interval without width, as at 0 and 1: all pictures scored alike" in told
    first = json.loads(scores.read_text())
    assert first["scores"]["overall"] is first["intervals"]["overall"] is None
    assert first["num_pictures"] == first["num_prompts"] == 2 and first["benchmark"] == "GenEval-style (HF detector)"
    assert set(first["scores"]) == {"single_object", "colors", "overall"} and str(mask2former) in first["detector"]
    assert set(first["intervals"]) == {*first["scores"], "correct_pictures", "correct_prompts"}
    assert (first["program"], first["limited"]) == ("eval/geneval.py", True)
    assert first["fingerprint"] == weights_fingerprint(tiny_checkpoint) and first["fingerprint_of"] == "weights"
    assert first["generation"] == json.loads((out / "generation.json").read_text())
    shown = first["gallery"]["drawings"]
    assert [row["filename"] for row in shown] == ["00000/samples/0000.png", "00001/samples/0000.png"]
    assert first["gallery"]["folder"] == "out" and all(row["found"] for row in shown)

    records = read_records(record)
    assert list(records) == ["00000/samples/0000.png", "00001/samples/0000.png"]
    for seen in records.values():
        assert len(seen.boxes) == 100 and all(0 <= x0 <= x1 <= 16 for x0, _, x1, _ in seen.boxes)

    again = call(program, "score", out, "--detections", record, "--json", scores)
    assert again.code == 0
    second = json.loads(scores.read_text())
    same = ("scores", "intervals", "correct_pictures", "correct_prompts", "detector")
    assert [first[key] for key in same] == [second[key] for key in same]

    official = call(program, "score", "--official-results", tmp_path / "results.jsonl", "--json", scores)
    assert official.code == 0 and "GenEval (official results)" in official.out
    assert json.loads(scores.read_text())["scores"] == first["scores"]


def test_known_detections_get_known_scores(program, call, mask2former, clip, tmp_path):
    detector = GenEvalDetector.load(str(mask2former), str(clip), "cpu")
    seen = detector.look(noise(48, 32), "a", PROMPTS[0])
    surest = OBJECT_NAMES[seen.classes[int(np.argmax(seen.scores))]]
    assert max(seen.scores) > 0.3 and set(seen.colors) == {None}
    asked = {"tag": "colors", "include": [{"class": surest, "count": 1, "color": "red"}], "prompt": "x"}
    colored = detector.look(noise(48, 32), "a", asked)
    assert (colored.boxes, colored.scores) == (seen.boxes, seen.scores)
    for name, score, color in zip(colored.classes, colored.scores, colored.colors, strict=True):
        assert (color in COLORS) == (OBJECT_NAMES[name] == surest and score > 0.3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no command"),
        (("generat",), "did you mean 'generate'"),
        (("generate",), "--prompts is missing"),
        (("score",), "the folder of pictures is missing"),
        (("score", "x"), "--detector is missing"),
        (("score", "x", "--detector", "y"), "belong together"),
        (("score", "x", "--official-results", "y"), "scored alone"),
        (("score", "x", "--detections", "y"), "no such folder"),
    ],
)
def test_the_program_tells_what_to_mend(program, call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in call(program, *words).refusal()


def one_picture(folder: Path, prompt: dict, picture: Image.Image) -> Path:
    """A folder in GenEval's layout of one picture, PICTURE."""
    (folder / PICTURE).parent.mkdir(parents=True)
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps(prompt))
    picture.save(folder / PICTURE)
    return folder


def test_a_record_of_another_detector_is_not_added_to(program, call, mask2former, clip, tmp_path):
    folder = one_picture(tmp_path / "out", PROMPTS[0], noise(16, 16))
    row = {"file": "x", "detector": "another", "boxes": [], "scores": [], "classes": [], "colors": []}
    (tmp_path / "seen.jsonl").write_text(json.dumps(row))
    words = ("--detector", mask2former, "--clip", clip, "--device", "cpu", "--detections", tmp_path / "seen.jsonl")
    assert "is the record of another" in call(program, "score", folder, *words).refusal()


def test_a_record_of_other_weights_of_a_detector_s_name_is_not_added_to(program, call, mask2former, clip, tmp_path):
    folder, record = one_picture(tmp_path / "out", PROMPTS[0], noise(16, 16)), tmp_path / "seen.jsonl"
    detector = tmp_path / "detector"
    words = ("--detector", detector, "--clip", clip, "--device", "cpu", "--detections", record)
    shutil.copytree(mask2former, detector)
    assert call(program, "score", folder, *words).code == 0
    assert re.fullmatch(rf"{detector} \([0-9a-f]{{12}}\) and {clip} \([0-9a-f]{{12}}\), transformers .*",
                        read_records(record)[PICTURE].detector)  # fmt: skip
    tiny_mask2former().save_pretrained(detector)
    assert f"is the record of {detector} (" in call(program, "score", folder, *words).refusal()


def test_a_folder_gives_its_whole_name_and_a_file_loses_its_suffix(program, call, tmp_path):
    folder = one_picture(tmp_path / "qwen2.5-pictures", PROMPTS[0], noise(16, 16))
    record, results, scores = (tmp_path / name for name in ("seen.jsonl", "qwen2.5.jsonl", "scores.json"))
    record.write_bytes(Record(PICTURE, "by hand", [], [], [], [], fingerprint(folder / PICTURE)).line())
    words = ("--detections", record, "--results", results, "--json", scores)
    assert call(program, "score", folder, *words).code == 0
    told = json.loads(scores.read_text())
    assert (told["model"], told["fingerprint_of"]) == ("qwen2.5-pictures", "pictures")
    assert call(program, "score", "--official-results", results, "--json", scores).code == 0
    assert json.loads(scores.read_text())["model"] == "qwen2.5"


def test_results_take_the_place_of_no_file_that_is_read(program, call, tmp_path):
    folder = one_picture(tmp_path / "out", PROMPTS[0], noise(16, 16))
    record, results = tmp_path / "seen.jsonl", tmp_path / "results.jsonl"
    record.write_bytes(Record(PICTURE, "by hand", [], [], [], [], fingerprint(folder / PICTURE)).line())
    before = record.read_bytes()
    words = ("score", folder, "--detections", record)
    for read in (record, folder / PICTURE, folder / "00000" / "metadata.jsonl", folder / "generation.json"):
        for option in ("--results", "--json"):
            told = call(program, *words, option, read).refusal()
            assert f"{read} would be overwritten by what is written to" in told
    told = call(program, *words, "--results", results, "--json", results).refusal()
    assert f"{results} is named for two results" in told
    looking = (*words, "--detector", "d", "--clip", "c", "--results", record)
    assert f"{record} is named for two results" in call(program, *looking).refusal()
    assert record.read_bytes() == before and call(program, *words, "--results", results).code == 0
    official = ("score", "--official-results", results, "--json", results)
    assert f"{results} would be overwritten" in call(program, *official).refusal()


def test_detections_of_one_folder_are_not_scored_as_another_s(program, call, mask2former, clip, tmp_path):
    one = one_picture(tmp_path / "one", PROMPTS[0], noise(48, 32))
    two = one_picture(tmp_path / "two", PROMPTS[0], noise(16, 16))
    record = tmp_path / "seen.jsonl"
    saved = ("--detections", record)
    look = ("--detector", mask2former, "--clip", clip, "--device", "cpu", *saved)
    assert call(program, "score", one, *look).code == 0
    first = read_records(record)[PICTURE]
    assert first.sha256 == hashlib.sha256((one / PICTURE).read_bytes()).hexdigest()[:16]
    told = call(program, "score", two, *saved).refusal()
    assert f"the record of {two / PICTURE} is of another picture; give --detector" in told

    assert call(program, "score", two, *look).code == 0  # looks again
    second = read_records(record)[PICTURE]
    assert second.sha256 == fingerprint(two / PICTURE) != first.sha256 and second.boxes != first.boxes
    assert call(program, "score", two, *saved).code == 0

    record.write_bytes(replace(second, sha256="").line())
    assert "lacks the sha256 of its picture" in call(program, "score", two, *saved).refusal()


def test_colours_that_a_prompt_came_to_ask_for_are_looked_at(program, call, mask2former, clip, tmp_path):
    folder, record = one_picture(tmp_path / "out", PROMPTS[0], noise(48, 32)), tmp_path / "seen.jsonl"
    saved = ("--detections", record)
    look = ("--detector", mask2former, "--clip", clip, "--device", "cpu", *saved)
    assert call(program, "score", folder, *look).code == 0
    seen = read_records(record)[PICTURE]
    surest = OBJECT_NAMES[seen.classes[int(np.argmax(seen.scores))]]
    asked = {"tag": "colors", "include": [{"class": surest, "count": 1, "color": "red"}], "prompt": "x"}
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps(asked))
    assert "lacks colours that its prompt asks for" in call(program, "score", folder, *saved).refusal()
    assert call(program, "score", folder, *look).code == 0
    colored = read_records(record)[PICTURE]
    assert (colored.boxes, colored.scores) == (seen.boxes, seen.scores) and set(colored.colors) != {None}
    assert call(program, "score", folder, *saved).code == 0
