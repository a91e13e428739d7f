"""`train/pretrain.py` and then `train/sft.py` over a language model as released, on a LLaVA data set."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from backbones import write_backbone
from conftest import load_program
from llava_files import write_llava
from programs import run_program
from safetensors.torch import load_file

import unimllm
from unimllm.chat_templates import VICUNA
from unimllm.conversation import text_message
from unimllm.errors import UserError
from unimllm.training import checkpoint
from unimllm.training.presets import PRETRAIN_PRESETS
from unimllm.training.start_model import training_processor

TRAIN = Path(__file__).parent.parent / "train"

pytestmark = pytest.mark.skipif(
    not TRAIN.is_dir(), reason="train/ is not beside the tests (they run on an installed package)"
)


def run_training(name: str, *options, processes: int = 1) -> str:
    result = run_program(TRAIN / name, *options, processes=processes)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_pictures_are_fitted_to_a_model_and_then_both_are_tuned(family, tokenizer_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    data, backbone = write_llava(tmp_path / "mine"), write_backbone(tmp_path / "backbone", family)
    common = [
        "--data", data, "--image-root", data.parent / "images", "--max_length", 400, "--max-steps", 3,
        "--train.batch_size", 4, "--train.compile", "false", "--train.precision", "fp32", "--train.num_threads", 1,
    ]  # fmt: skip
    template = ["--chat-template", "vicuna", "--training_template", "plain"] if family == "llama" else []
    first = tmp_path / "runs" / "pretrain"
    told = run_training(
        "pretrain.py", *common, "--language-model", backbone, "--image-tokenizer", tokenizer_folder, *template,
        "--pad_to_square", "true", "--output-dir", first,
    )  # fmt: skip
    assert f"language model: {backbone}, " in told and "3 of them new" in told

    before, after = load_file(backbone / "model.safetensors"), load_file(checkpoint.latest(first) / "model.safetensors")
    grown = {"model.embed_tokens.weight", "lm_head.weight"}
    for name, value in before.items():
        now = after[f"language_model.{name}"]
        if name in grown:
            moved = (now[: len(value)] != value).any(-1).nonzero().flatten().tolist()
            assert len(moved) <= 3  # spare rows that the image tokens took
        else:
            assert torch.equal(now, value), name
    image = load_file(tokenizer_folder / "model.safetensors")
    assert all(torch.equal(after[f"image_tokenizer.{name}"], value) for name, value in image.items())

    second = tmp_path / "runs" / "sft"
    run_training("sft.py", *common, "--init-from", first, "--output-dir", second)
    tuned = load_file(checkpoint.latest(second) / "model.safetensors")
    if family == "llama":  # the template of the first stage was for that stage alone
        for stage in (first, second):
            folder = checkpoint.latest(stage)
            assert (folder / "chat_template.jinja").read_text() == VICUNA
            assert checkpoint.read_run(folder)["recipe"]["training_template"] == ("plain" if stage == first else "")
    norm = "language_model.model.norm.weight"
    assert not torch.equal(tuned[norm], after[norm])
    model, processor = unimllm.load(second, "cpu")
    assert processor.image_processor.pad_to_square  # as the first stage was told; the second was not
    if family == "llama":
        plain = training_processor(processor, PRETRAIN_PRESETS["llava15_vicuna7b_pretrain"]())
        caption = [text_message("user", "Describe it.", images=1), text_message("assistant", "a dog")]
        texts = [processor.tokenizer.decode(p.conversation(caption).input_ids) for p in (plain, processor)]
        assert ["Describe" in text for text in texts] == [False, True]
    stage, options = (second, ["--init-from", first]) if family == "llama" else (first, ["--language-model", backbone])
    program, begun = ("sft.py", first) if family == "llama" else ("pretrain.py", backbone)
    if family == "qwen2":
        options += ["--image-tokenizer", tokenizer_folder, "--pad_to_square", "true"]
    shutil.rmtree(begun)  # a run goes on without what it began from
    told = run_training(program, *common, *options, "--output-dir", stage, "--max-steps", 4)
    assert "resuming from step-000003" in told and "step 4/4" in told and "warning" not in told
    picture = unimllm.draw(model, processor, ["a dog"])[0]
    assert picture.size == (16, 16)
    assert isinstance(unimllm.answer(model, processor, picture, "Is there a dog?", max_new_tokens=3), str)


def test_two_processes_in_bf16_under_zero_leave_every_old_row_as_it_is(tokenizer_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    data, backbone = write_llava(tmp_path / "mine"), write_backbone(tmp_path / "backbone", "llama")
    words = [
        "pretrain.py", "--data", data, "--image-root", data.parent / "images", "--max_length", 400, "--max-steps", 3,
        "--train.batch_size", 4, "--train.compile", "false", "--train.num_threads", 1, "--train.precision", "bf16",
        "--train.zero_stage", 2, "--train.save_minutes", 0, "--train.keep_checkpoints", 3, "--language-model", backbone,
        "--image-tokenizer", tokenizer_folder, "--chat-template", "vicuna", "--output-dir",
    ]  # fmt: skip
    run_training(*words, tmp_path / "run", processes=2)
    first, last = (load_file(tmp_path / "run" / f"step-00000{step}" / "model.safetensors") for step in (1, 3))
    for name, value in load_file(backbone / "model.safetensors").items():
        now, old = last[f"language_model.{name}"], value.bfloat16()
        assert now.dtype == torch.bfloat16 and torch.equal(now[: len(old)], old), name
        if len(now) > len(old):
            assert len(now) == len(old) + 3
            moved = (now != first[f"language_model.{name}"])[len(old) :].any(-1)
            assert moved.sum() >= 2, name  # the third one's place is taken by codes before it is looked up
    assert any(not torch.equal(last[name], first[name]) for name in last if name.startswith("adapter."))
    shutil.copytree(tmp_path / "run" / "step-000002", tmp_path / "stopped" / "step-000002")
    assert "resuming from step-000002" in run_training(*words, tmp_path / "stopped", processes=2)
    again = load_file(tmp_path / "stopped" / "step-000003" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in last.items())


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("pretrain", [], "name it with --language-model"),
        ("pretrain", ["--language-model", "x", "--train.weight_decay", "0.1"], "weight_decay must be 0"),
        ("sft", ["--language-model", "x", "--init-from", "y"], "both name a language model"),
        ("sft", ["--chat-template", "vicuna", "--init-from", "y"], "--chat-template is for --language-model"),
        ("pretrain", ["--init-from", "y", "--training_template", "plain"], "--training_template is for --data"),
        ("sft", ["--data", __file__, "--training_template", "plane"], "plane is none of vicuna, chatml, plain"),
        ("sft", ["--attention", "flash_attention_2"], "rows of scenes have branches"),
        ("sft", ["--data", __file__, "--attention", "flash_attention_2"], "set train.compile false"),
        ("sft", ["--preset", "unified_qwen25_7b_sft"], "trains on your data: name files"),
        ("sft", ["--language-model", "x", "--data", __file__, "--format", "llava", "--text-tokenizer", "y"],
         "reads its own tokenizer alone"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_line(program, options, message, tmp_path, monkeypatch):
    module = load_program(f"train/{program}.py")
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *options, "--output-dir", str(tmp_path / "out")])
    with pytest.raises(UserError) as caught:
        module.main()
    assert message in str(caught.value) and not (tmp_path / "out").exists()
