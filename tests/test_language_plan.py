"""The plan that --dry-run prints of train/pretrain.py and train/sft.py, at the size of released models."""

from types import SimpleNamespace

import pytest

from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.training.language_model import OPTIONS, train_language_model
from unimllm.training.language_plan import build_on_meta
from unimllm.training.overrides import parse_arguments
from unimllm.training.presets import PRETRAIN_PRESETS, SFT_PRESETS
from unimllm.training.sft import SftTask
from unimllm.training.start_model import freeze_language_model
from unimllm.training.throughput import training_flops


def plan(presets: dict, *options, freeze=None, capsys) -> dict[str, str]:
    args, recipe = parse_arguments("A test.", "sft", presets, [str(option) for option in options], **OPTIONS)
    train_language_model(args, recipe, freeze)
    return {line[:28].strip(): line[28:].strip() for line in capsys.readouterr().out.splitlines()}


def test_qwen_7b_on_eight_gpus(capsys, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n' * 3)
    data = ["--data", tmp_path / "mine.jsonl"]
    told = plan(SFT_PRESETS, "--preset", "unified_qwen25_7b_sft", "--dry-run", 8, *data, capsys=capsys)
    assert told["language model"] == "7,615.62 M  trained"  # as its model card says: 7.61 B
    assert told["image head"] == f"{196_608 * 3584 / 1e6:.2f} M  trained" and "frozen" in told["image tokenizer"]
    assert told["batch"].startswith("40 = 8 process(es) x 1 rows x 5 in turn; 81,920 ids")
    assert "3 samples" in told["data"] and "mine.jsonl" in told["data"]
    trained = (7615.616512 + 704.643072 + 6.498) * 1e6
    assert float(told["optimiser state"].split()[0]) == pytest.approx(12 * trained / 8 / 2**30, abs=0.02)


def test_the_first_stage_trains_next_to_nothing(capsys, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    data = ["--data", tmp_path / "mine.jsonl"]
    told = plan(
        PRETRAIN_PRESETS, "--preset", "llava15_vicuna7b_pretrain", "--dry-run", 8, *data,
        freeze=freeze_language_model, capsys=capsys,
    )  # fmt: skip
    tables = 2 * 32_000 * 4096 / 1e6
    assert told["language model"] == f"{6738.41504:,.2f} M  {tables:.2f} M trained"  # LLaMA-2-7B: 6.74 B


@pytest.mark.parametrize(
    "name", sorted(name for name in {*SFT_PRESETS, *PRETRAIN_PRESETS} if not name.startswith(("scenes_", "ablation")))
)
def test_every_preset_over_a_released_model_can_be_shared_by_eight_and_by_one(name):
    recipe = (SFT_PRESETS.get(name) or PRETRAIN_PRESETS[name])()
    assert recipe.world is None and recipe.language_model
    recipe.train.per_device(8), recipe.train.per_device(1)
    share = 0.02 if "cheers" in name else 0.03
    assert recipe.train.warmup_steps == round(share * recipe.train.max_steps) and recipe.train.weight_decay == 0


def test_operations_by_hand():
    recipe = SimpleNamespace(model=tiny_config())
    task = SftTask(build_on_meta(recipe), {}, max_length=10)
    # One layer of width 16: q, k, v, o, and an MLP of 32; the tied head over 40 words.
    weights = 4 * 16 * 16 + 3 * 16 * 32 + 40 * 16
    assert task.flops_per_token() == 6 * weights + 6 * 16 * 10
    freeze_language_model(task.model)
    assert task.flops_per_token() == 4 * weights + 2 * 40 * 16 + 6 * 16 * 10
    assert training_flops(10, 4, 2, 8, 100) == 4 * 10 + 2 * 4 + 6 * 2 * 8 * 100


def test_lora_is_in_the_plan(capsys, tmp_path):
    lora = ["--lora_rank", 4, "--train.weight_decay", 0, "--init-from", tmp_path]
    told = plan(SFT_PRESETS, "--preset", "scenes_64", "--dry-run", *lora, capsys=capsys)
    assert "M trained" in told["language model"] and told["image head"].endswith("trained")
    assert float(told["language model"].split()[0]) < 6  # a 5 M Qwen2
