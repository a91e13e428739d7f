"""eval/speed_gpu.py with tiny sizes on the CPU: all groups run, name their figures, and fail one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import load_program

PROGRAM = Path(__file__).parents[1] / "eval" / "speed_gpu.py"

pytestmark = pytest.mark.skipif(
    not PROGRAM.is_file(), reason="eval/speed_gpu.py is not beside the tests (they run on an installed package)"
)


def launch(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def training(program):
    """What it imports for training."""
    return sys.modules["gpu_training"]


@pytest.fixture(scope="module")
def program():
    """The program as a module."""
    sys.path.insert(0, str(PROGRAM.parent))  # where it finds speed.py
    try:
        return load_program("eval/speed_gpu.py")
    finally:
        sys.path.remove(str(PROGRAM.parent))


def test_every_group_runs_and_writes_its_keys(tmp_path):
    result = launch("--device", "cpu", "--tiny", "--json", tmp_path / "gpu.json")
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())
    keys = {
        "gpu_copy_gb_per_s", "gpu_matmul_tflops", "gpu_encode_256_per_s", "gpu_encode_256_of_limit",
        "gpu_decode_256_per_s", "cheers_step_tflop", "cheers_step_read_gb", "gpu_cheers_1_s_per_picture",
        "gpu_cheers_8_per_s", "gpu_cheers_8_of_limit", "gpu_train_0_5b_2_rows_tokens_per_s",
        "gpu_train_0_5b_4_rows_of_limit", "gpu_train_0_5b_4_rows_gib", "gpu_train_padded_samples_per_s",
        "gpu_train_packed_samples_per_s", "gpu_train_speedup_over_padded", "gpu_train_tiny_recipe_tokens_per_s",
        "gpu_train_tiny_cheers_recipe_tokens_per_s", "gpu_train_tiny_cheers_recipe_estimated_gib",
    }  # fmt: skip
    assert keys <= set(figures) and all(figures[key] > 0 for key in keys)
    assert any(key.endswith("_rows_varlen_tokens_per_s") for key in figures)  # of the best number of rows
    assert figures["failed"] == figures["out_of_memory"] == figures["skipped"] == []
    assert figures["tiny"] is True and figures["device"] == {"name": "cpu"} and figures["versions"]["torch"]
    assert figures["num_samples"]["gpu_cheers_8_per_s"] == {"pictures": 8}
    assert "gpu_encode_256_per_s: " in result.stdout


def test_what_fails_is_told_and_the_rest_goes_on(program, tmp_path, capsys):
    bench = program.Bench(torch.device("cpu"), True, seconds=60, json=tmp_path / "gpu.json")

    def fail() -> list:
        raise RuntimeError("kernel lost\nand more")

    def fill() -> list:
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = program.Row("a copy", 2.0, "copy_s", {"pictures": 1}, "s")
    assert not bench.measure("first", fail) and not bench.measure("second", fill)
    assert bench.measure("third", lambda: [row])
    bench.seconds = 0
    assert not bench.measure("fourth", fail)
    told = capsys.readouterr()
    assert "first: failed: kernel lost\n" in told.out and "second: out of memory\n" in told.out
    assert "copy_s: 2 s: a copy (1 picture)\n" in told.out and "fourth: left out" in told.out
    assert "RuntimeError: kernel lost" in told.err
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["copy_s"] == bench.figure("copy_s") == 2 and written["failed"] == ["first"]
    assert written["out_of_memory"] == ["second"] and written["skipped"] == ["fourth"]


def test_what_compiles_in_the_time_that_counts_fails(program):
    bench = program.Bench(torch.device("cpu"))
    double = torch.compile(lambda x: x * 2, backend="eager", dynamic=False)
    small, large = torch.ones(3), torch.ones(5)
    assert bench.seconds_of(lambda: double(small), 2) > 0
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        bench.seconds_of(lambda: double(large), 2, warm_up=lambda: double(small))


def test_models_are_built_random_and_their_tokenizers_whole(training):
    recipe = training.tiny_recipe()
    task = training.new_task(recipe, torch.device("cpu"))
    weights = dict(task.model.named_parameters())
    for name, weight in weights.items():
        whole = name.startswith("image_tokenizer.")
        assert weight.dtype == (torch.float32 if whole else torch.bfloat16), name
        assert weight.ndim < 2 or weight.float().std() > 0.001, name
    rotary = task.model.language_model.get_decoder().rotary_emb
    assert rotary.inv_freq.dtype == torch.float32 and rotary.inv_freq[0] == 1
    batches = training.rows_of(training.with_rows(recipe, 4))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 64)] * 4  # two steps of eight rows
    assert all(int(batch["input_ids"].max()) < recipe.model.vocab_size for batch in batches)
    assert not any((batch["input_ids"] == recipe.model.image_token_id).any() for batch in batches)
    targets = torch.cat([batch["labels"] for batch in batches])
    assert 0.05 < (targets >= recipe.model.image_offset).float().mean() < 0.4  # drawings, and not only those


def test_rows_of_the_other_family_have_their_pictures_beside_them(training):
    recipe = training.tiny_cheers_recipe()
    config = recipe.model
    for batch in training.rows_of(training.with_rows(recipe, 4)):
        count = int((batch["input_ids"] == config.image_token_id).sum()) // config.num_positions
        assert batch["pixel_values"].shape == (count, 3, config.image_size, config.image_size)


def test_a_preset_that_cannot_fit_is_not_tried(training):
    seven_b = training.share_of_one_gpu(training.llava15_vicuna7b_sft())
    assert 112 < training.needed_bytes(seven_b) / 2**30 < 135  # 16 bytes for each of 7.5 billion parameters, and more
    assert training.needed_bytes(training.tiny_recipe()) < 4 * 2**30


def test_mistakes_are_told_in_one_line(program, call):
    assert "did you mean 'limits'?" in call(program, "--only", "limit", "--device", "cpu").refusal()
    assert "choose cuda, or cpu" in call(program, "--device", "tpu").refusal()
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in call(program).refusal()
