"""The plan that --dry-run prints of train/pretrain.py and train/sft.py, at the size of released models."""

from types import SimpleNamespace

import pytest
import torch
from llava_files import write_llava
from picture_files import picture
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

import unimllm.auto  # noqa: F401
from unimllm.conversation import text_message
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.image_heads import build_image_head
from unimllm.errors import UserError
from unimllm.inference import DEFAULT_MODEL
from unimllm.training.language_model import train_language_model
from unimllm.training.language_options import OPTIONS
from unimllm.training.language_plan import build_on_meta, describe_data, planned_tokenizer
from unimllm.training.overrides import parse_arguments
from unimllm.training.presets import PRETRAIN_PRESETS, SFT_PRESETS
from unimllm.training.sft import SftTask
from unimllm.training.start_model import freeze_language_model
from unimllm.training.step_log import Speed
from unimllm.training.throughput import counted_flops, training_flops


@pytest.fixture
def tokenizer(tiny_checkpoint) -> SampleTokenizer:
    return SampleTokenizer(AutoProcessor.from_pretrained(tiny_checkpoint).conversation, 96)


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
    assert told["data"].endswith("; the first 3: none can be used")
    assert any(line.startswith("missing picture: 3 left") for line in told)
    trained = (7615.616512 + 704.643072 + 6.498) * 1e6
    assert float(told["optimiser state"].split()[0]) == pytest.approx(12 * trained / 8 / 2**30, abs=0.02)


def test_files_that_are_not_used_whole_are_in_the_plan(tmp_path, tokenizer):
    for name in ("mine", "held_out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
        picture(1).save(tmp_path / name / "a.png")
        (tmp_path / name / "b.json").write_text('[{"image": "a.png", "caption": "a')
        (tmp_path / name / "c.jsonl.gz").write_bytes(b"x")
    places = [str(tmp_path / name) for name in ("mine", "held_out")]
    args = SimpleNamespace(data=places[:1], validation_data=places[1:], format=None, image_root=None, codes=None)
    *lines, epochs = describe_data(args, tokenizer, 77)
    assert epochs.split()[:2] == ["epochs", "7"]  # the one sample of --data has eleven ids
    assert [line.split()[0] for line in lines[::5]] == ["data", "validation"] and len(lines) == 10
    for place, told in zip(places, (lines[1:5], lines[6:]), strict=True):
        assert told[0].startswith(f"{place}/b.json: damaged JSON file: broken JSON in line 1")
        assert told[1] == f"{place}/c.jsonl.gz: compressed: unpack it first; nothing of it is used"
        assert told[3] == f"    drawing, {place}/a.jsonl:1: <|user|>a dog<|assistant|>[[<image><|end|>]]"


def test_a_place_without_samples_is_in_the_plan(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    (tmp_path / "b.tar").write_bytes(b"")
    places = [str(tmp_path / "b.tar"), str(tmp_path / "a.jsonl")]
    args = SimpleNamespace(data=places, validation_data=[], format=None, image_root=None, codes=None, strict=False)
    first, second, *_ = describe_data(args, tokenizer, 77)
    assert first.startswith("data ") and f"no samples in {places[0]}; " in first and first.endswith("; left out")
    assert "1 samples in 1 JSON file" in second
    for told, strict in ((places, True), (places[:1], False)):
        args.data, args.strict = told, strict
        with pytest.raises(UserError, match="no samples in "):
            describe_data(args, tokenizer, 77)


def test_the_first_samples_are_looked_at(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("unimllm.data.survey.CHUNK", 16)
    args = SimpleNamespace(data=[str(write_llava(tmp_path))], validation_data=[], format=None, codes=None)
    args.image_root = tmp_path / "images"
    (tmp_path / "images" / "a" / "4.png").unlink()
    first, *lines, _ = describe_data(args, tokenizer, 1000)
    assert first.endswith("20 samples in 1 JSON file, weight 1; the first 16: 10 understanding, 3 drawing, 1 text")
    assert lines[0] == "  missing picture: 2 left out" and len(lines) == 7
    assert lines[-1].endswith("data.json:116: <|user|>What color is the apple?<|assistant|>[[red<|end|>]]")


def test_a_text_tokenizer_that_is_not_here_has_another_in_its_place():
    recipe = SFT_PRESETS["unified_qwen25_7b_sft"]()
    args = SimpleNamespace(init_from=None, language_model="no/such", chat_template=None, text_tokenizer=None)
    tokenizer, (note,) = planned_tokenizer(args, recipe)
    assert note.startswith("the run's text tokenizer is not at hand: ") and "--language-model no/such: " in note
    messages = [text_message("system", "be kind"), text_message("user", "dog " * 9000), text_message("assistant", "no")]
    assert tokenizer(messages)[1] == messages
    args.language_model, recipe.language_model, args.init_from = None, "", DEFAULT_MODEL
    own, notes = planned_tokenizer(args, recipe)
    assert not notes and own.max_length == recipe.max_length and "<|user|>" in own.conversation.text(messages[1:2])


def test_the_first_stage_trains_next_to_nothing(capsys, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    data = ["--data", tmp_path / "mine.jsonl"]
    told = plan(
        PRETRAIN_PRESETS, "--preset", "llava15_vicuna7b_pretrain", "--dry-run", 8, *data,
        freeze=freeze_language_model, capsys=capsys,
    )  # fmt: skip
    tables = 2 * 32_000 * 4096 / 1e6
    assert told["language model"] == f"{6738.41504:,.2f} M  {tables:.2f} M trained"  # LLaMA-2-7B: 6.74 B


@pytest.mark.parametrize("preset", ["scenes_64", "scenes_64_cheers"])
def test_scenes_of_another_size_than_is_read_have_no_plan(preset, capsys):
    with pytest.raises(UserError, match="^the preset draws pictures of 60 x 60 pixels, but 64 x 64 are read: add"):
        plan(SFT_PRESETS, "--preset", preset, "--world.image_size", 60, "--dry-run", capsys=capsys)


def test_the_vocabulary_of_scenes_over_own_data_is_the_models(capsys, tmp_path, tiny_checkpoint):
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "caption": "a dog"}\n')
    options = ["--preset", "scenes_64", "--dry-run", "--data", tmp_path / "mine.jsonl"]
    scenes = plan(SFT_PRESETS, "--preset", "scenes_64", "--dry-run", capsys=capsys)["language model"]
    assert plan(SFT_PRESETS, *options, capsys=capsys)["language model"] == scenes  # the shipped model's own
    config = AutoConfig.from_pretrained(tiny_checkpoint).text_config
    own = plan(SFT_PRESETS, *options, "--init-from", tiny_checkpoint, capsys=capsys)["language model"]
    width = SFT_PRESETS["scenes_64"]().model.text_config.hidden_size
    fewer = (len(AutoTokenizer.from_pretrained(DEFAULT_MODEL)) - config.vocab_size) * width / 1e6
    assert float(scenes.split()[0]) - float(own.split()[0]) == pytest.approx(fewer, abs=0.011)


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
    task = SftTask(task.model, {}, max_length=10)
    assert task.flops_per_token() == 4 * weights + 2 * 40 * 16 + 6 * 16 * 10
    assert training_flops(10, 4, 2, 8, 100) == 4 * 10 + 2 * 4 + 6 * 2 * 8 * 100


def test_operations_of_a_network_and_its_backward_pass():
    with torch.device("meta"):
        layer, x = nn.Linear(3, 5), torch.empty(7, 3)
        assert counted_flops(layer, x) == 2 * 2 * 7 * 3 * 5  # forward, and the gradient of the weight
        assert counted_flops(layer, x.requires_grad_()) == 3 * 2 * 7 * 3 * 5
        assert counted_flops(layer.requires_grad_(False), x) == 2 * 2 * 7 * 3 * 5  # the gradient of the input alone


@pytest.mark.parametrize("kind", ["flat", "factorised"])
@pytest.mark.parametrize("num_targets", [0, 3, 40])
def test_image_heads_tell_their_products(kind, num_targets):
    """As torch counts them, fewer and more positions than semantic codes among them."""
    config = tiny_config(image_head=kind)
    image, head = config.image_tokenizer_config, build_image_head(config)
    assert 3 < image.num_semantic_codes < 40
    tables = (torch.randn(image.num_semantic_codes, image.semantic_dim),
              torch.randn(image.num_semantic_codes, image.num_pixel_codes, image.pixel_dim))  # fmt: skip
    hidden, codes = torch.randn(num_targets, 16), torch.zeros(num_targets, 2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        head.loss(hidden, codes, tables)
    assert 2 * head.num_products(num_targets) == counter.get_total_flops()


def test_operations_of_a_batch_are_those_of_its_targets():
    config = tiny_config(image_head="flat")
    task = SftTask(build_on_meta(SimpleNamespace(model=config)), {}, max_length=6)
    placeholder, image = config.image_token_id, config.image_offset
    labels = torch.tensor([[20, 21, 22, image, image + 1, -100], [-100, -100, -100, placeholder, placeholder, 23]])
    batch = {"input_ids": torch.zeros(2, 6, dtype=torch.long), "labels": labels}  # the first label has no id before it
    assert {kind: int(count) for kind, count in task.count_kinds(batch).items()} == {"text": 3, "image": 4}
    blocks, codes = 4 * 16 * 16 + 3 * 16 * 32, config.image_tokenizer_config.num_codes
    body = 12 * (6 * blocks + 6 * 16 * 6)
    assert task.flops_of(batch) == body + 3 * 6 * 40 * 16 + 4 * 6 * codes * 16
    task = SftTask(task.model, {}, max_length=6)
    freeze_language_model(task.model)  # the head is tied to the table, which stays trained
    task.model.image_head.requires_grad_(False)
    assert task.flops_of(batch) == body - 12 * 2 * blocks + 3 * 6 * 40 * 16 + 4 * 4 * codes * 16


def test_mfu_is_the_share_of_the_peak():
    speed = Speed(torch.device("cpu"), world_size=4)
    sums = {"tokens": 50.0, "flops": 300.0, "waited": 1.0}
    assert speed.values(sums, 2.0)["tokens_per_second"] == 100 and "mfu" not in speed.values(sums, 2.0)
    speed.peak = 600.0
    assert speed.values(sums, 2.0)["mfu"] == 0.25 and "mfu" not in speed.values({"waited": 1.0}, 2.0)


def test_lora_is_in_the_plan(capsys, tmp_path):
    lora = ["--lora_rank", 4, "--train.weight_decay", 0, "--init-from", tmp_path]
    told = plan(SFT_PRESETS, "--preset", "scenes_64", "--dry-run", *lora, capsys=capsys)
    assert "M trained" in told["language model"] and told["image head"].endswith("trained")
    assert float(told["language model"].split()[0]) < 6  # a 5 M Qwen2
