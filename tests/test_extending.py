"""docs/extending.md: its blocks are run as they stand, and what they register is used."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from semhitok import SemHiTokModel, quantization
from semhitok.configuration_semhitok import tiny_config
from unimllm.data import sample_index
from unimllm.data.sample_index import open_samples
from unimllm.data.samples import pictures_of
from unimllm.result_measures import MEASURES
from unimllm.results import read_result

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is not beside the tests")


def blocks_of(title: str) -> list[str]:
    (body,) = (part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if part.startswith(f"{title}\n"))
    return re.findall(r"```python\n(.*?)```", body, re.S)


@pytest.fixture
def section(monkeypatch, tmp_path):
    """section(title) -> the names that its blocks, run one after the other beside two pictures, have made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("apple", "dog"):
        Image.new("RGB", (80, 64), "red" if name == "apple" else "brown").save(f"{name}.png")

    def run(title: str) -> dict:
        names = {"__name__": "page"}
        for block in blocks_of(title):
            exec(compile(block, f"{PAGE.name}, {title}", "exec"), names)  # of our own page
        return names

    return run


def test_the_trainer_of_transformers_trains_on_conversations(section):
    names = section("Trainer of transformers")
    before, after = names["load"](device="cpu")[0], names["load"]("mine", "cpu")[0]
    changed = {
        name.split(".")[0] for name, p in before.state_dict().items() if not torch.equal(p, after.state_dict()[name])
    }
    assert changed == {"language_model", "adapter", "image_head"}


def test_a_step_of_dpo_and_the_drawings_of_grpo(section):
    names = section("Log-probabilities, for DPO and GRPO")
    assert names["loss"].item() == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same yet
    assert names["log_probs"].shape == (4, 64) and (names["log_probs"] < 0).all() and names["log_probs"].requires_grad
    assert len({picture.tobytes() for picture in names["pictures"]}) == 4
    chosen = names["processor"].for_training([names["drawing"]("a photo of a red apple", "apple.png")])
    with torch.no_grad():
        gain = names["policy"].log_probs(**chosen).sum() - names["reference"].log_probs(**chosen).sum()
    assert gain > 0


def test_peft_by_hand_leaves_the_image_tokenizer_alone(section):
    names = section("LoRA by peft")
    state = names["merged"].state_dict()
    assert all(torch.equal(p, state[name]) for name, p in names["load"](device="cpu")[0].state_dict().items())
    adapted = json.loads(Path("lora/adapter_config.json").read_text())
    assert adapted["target_modules"] == r".*language_model.*(q_proj|v_proj)"


def test_a_preset_of_one_s_own_is_one_of_the_program_s(tmp_path):
    (tmp_path / "mine.py").write_text(*blocks_of("A preset of your own"))
    command = [sys.executable, str(tmp_path / "mine.py"), "--preset"]
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}}
    known, unknown = (
        subprocess.run([*command, *words], **options, capture_output=True, text=True)
        for words in (["mine", "--help"], ["mime"])
    )
    assert known.returncode == 0 and re.search(r"one of: scenes_64,.* mine\b", " ".join(known.stdout.split()))
    assert unknown.returncode == 2 and "unknown preset 'mime' (did you mean 'mine'?)" in unknown.stderr


def test_a_reader_of_one_s_own_is_known_by_its_ending(section, monkeypatch, tmp_path):
    for name in ("FORMATS", "ENDINGS", "SHARDS"):
        monkeypatch.setattr(sample_index, name, dict(getattr(sample_index, name)))
    section("A reader of data")
    (tmp_path / "data.tsv").write_text("apple.png\ta red apple\ndog.png\t\n")
    index = open_samples(str(tmp_path / "data.tsv"), None, None)
    assert "2 samples in 1 TSV file" in str(index) and index.key(1) == f"{tmp_path / 'data.tsv'}:2"
    (messages,) = index.read(0).variants
    assert messages[0]["content"][0]["text"] == "a red apple" and pictures_of(messages)[0].is_there()
    with pytest.raises(ValueError, match="no text under caption"):
        index.read(1)
    assert len(open_samples(str(tmp_path), None, None)) == 2  # below a folder, too


def test_a_pixel_codebook_of_one_s_own_is_trained_and_opened(section, tmp_path):
    before = dict(quantization.PIXEL_CODEBOOKS)
    try:
        section("A pixel codebook")
        model = SemHiTokModel(tiny_config(pixel_codebook="one_for_all")).train()
        vectors = torch.nn.functional.normalize(torch.randn(40, 4), dim=-1)
        model.pixel.codebook.initialize(vectors)
        codes = model.pixel.codebook.codes()
        assert codes.shape == (10, 3, 4) and torch.equal(codes[0], codes[9])
        model.pixel.codebook(vectors, torch.zeros(40, dtype=torch.long))[2].backward()
        assert model.pixel.codebook.base.grad is not None
        model.save_pretrained(tmp_path / "model")
        assert torch.equal(SemHiTokModel.from_pretrained(tmp_path / "model").pixel.codebook.codes(), codes)
    finally:
        quantization.PIXEL_CODEBOOKS.clear()
        quantization.PIXEL_CODEBOOKS.update(before)


def test_a_benchmark_of_one_s_own_is_shown(section, monkeypatch, tmp_path):
    names = section("A benchmark")
    monkeypatch.delitem(MEASURES, "mine.py")
    monkeypatch.setitem(MEASURES, "mine.py", names["of_mine"])
    (tmp_path / "result.json").write_text(json.dumps({"program": "mine.py", "accuracy": 0.5, "num_samples": 8}))
    (measure,) = read_result(tmp_path / "result.json").measures
    assert (measure.key, measure.value, measure.num_samples) == (("My benchmark", "accuracy"), 0.5, 8)
