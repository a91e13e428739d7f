"""QLoRA: a language model in 4 bits under LoRA is trained, resumed, merged, and its adapter laid over its model."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from backbones import llama_tokenizer
from llava_files import write_llava
from programs import run_program
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import unimllm
from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer
from semhitok.image_processing_semhitok import for_size
from unimllm.chat_templates import VICUNA
from unimllm.discrete.backbone import add_image_tokens
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.four_bits import dequantize, four_bit_layers, linear_layers, quantize_linear
from unimllm.discrete.lora import add_lora, layers, merged_state, save_lora
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.training import checkpoint
from unimllm.training.config import TrainConfig
from unimllm.training.language_plan import build_on_meta, language_model_plan
from unimllm.training.presets import SftRecipe, llava15_vicuna7b_sft
from unimllm.training.start_model import check_four_bits, choose_trained, train_image_tokens

bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.50")

SFT = Path(__file__).parent.parent / "train" / "sft.py"
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A unified checkpoint over a random Llama of 64 channels and one block."""
    torch.manual_seed(0)
    tokenizer = llama_tokenizer()
    tokenizer.chat_template, tokenizer.pad_token = VICUNA, "<unk>"
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
    ))  # fmt: skip
    add_image_tokens(llama, tokenizer)
    image = SemHiTokModel(tiny_tokenizer())
    ids = dict(zip(("image_start", "image_end", "image"), tokenizer.convert_tokens_to_ids(
        ["<|image_start|>", "<|image_end|>", "<image>"]), strict=True))  # fmt: skip
    config = UniMLLMConfig(image_head="flat", **{f"{name}_token_id": i for name, i in ids.items()})
    folder = tmp_path_factory.mktemp("base") / "model"
    UniMLLMForConditionalGeneration.from_parts(config, llama, image).save_pretrained(folder)
    processor = unimllm.UniMLLMProcessor(for_size(16), tokenizer, num_positions=image.config.num_positions)
    processor.save_pretrained(folder)
    return folder


def load_quantized(folder: Path) -> UniMLLMForConditionalGeneration:
    model = UniMLLMForConditionalGeneration.from_pretrained(folder)
    quantize_linear(model.language_model)
    return model.to("cpu").eval()  # moving quantises


def logits(model) -> torch.Tensor:
    return model(torch.tensor([[8, 9, 30, model.config.image_offset + 3, 11]])).logits


def test_transformers_own_quantizers_leave_the_image_tokenizer_alone(base):
    model = UniMLLMForConditionalGeneration.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    quantized = [name for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"]
    assert quantized and not any(name.startswith("image_tokenizer.") for name in quantized)


def test_the_time_of_a_flow_head_in_8_bits_stays_a_float(tiny_cheers):
    model = unimllm.CheersForConditionalGeneration.from_pretrained(
        tiny_cheers, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    ).eval()
    assert model.flow_head.time_embed.mlp_1[0].weight.dtype == torch.int8
    waves = model.flow_head.time_embed(torch.tensor([0.3]), torch.float32)
    assert all(torch.isfinite(time).all() for time in waves)


def test_the_blocks_are_those_of_transformers_in_4_bits(base, tmp_path):
    model = load_quantized(base)
    found = four_bit_layers(model)
    assert {name.rpartition(".")[2] for name in found} == LINEAR and len(found) == 7
    plain = UniMLLMForConditionalGeneration.from_pretrained(base)
    plain.language_model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    for name, layer in found.items():
        other = theirs.get_submodule(name.removeprefix("language_model."))
        assert torch.equal(layer.weight.data, other.weight.data) and layer.compute_dtype == other.compute_dtype
        weight = plain.get_submodule(name).weight
        assert (
            dequantize(layer).dtype == weight.dtype
            and 0 < (dequantize(layer) - weight).abs().mean() < 0.1 * weight.std()
        )
    assert 0 < (logits(model) - logits(plain)).abs().max() < 0.2 * logits(plain).abs().max()


def test_adapters_in_full_precision_are_merged_and_laid_over_their_model(base, tmp_path):
    model = load_quantized(base)
    before = logits(model)
    add_lora(model.language_model, rank=2, alpha=0, dropout=0)
    train_image_tokens(model)
    torch.testing.assert_close(logits(model), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    with torch.no_grad():
        for layer in layers(model).values():
            layer.lora_B["default"].weight += 0.2 * torch.randn(layer.lora_B["default"].weight.shape)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    model.save_pretrained(tmp_path / "merged", state_dict=merged_state(model))
    merged, report = UniMLLMForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(logits(merged), expected, atol=0.02, rtol=0.02)  # that computes in float32, this in bf16
    save_lora(model, tmp_path / "lora", str(base))
    laid, _ = unimllm.load(tmp_path / "lora", "cpu")
    difference = (logits(laid) - expected).abs().max()  # that of the 4 bits, which the model below does not have
    assert 0 < difference < 0.2 * (expected - before).abs().max()


def run_sft(base: Path, data: Path, output: Path) -> dict[int, float]:
    """Step -> loss of a run with --quantize_base, in bf16 under ZeRO 2."""
    words = [
        "--init-from", base, "--data", data, "--image-root", data.parent / "images",
        "--lora_rank", 2, "--quantize_base", "true", "--max_length", 400, "--max-steps", 4, "--train.batch_size", 2,
        "--train.weight_decay", 0, "--train.compile", "false", "--train.save_minutes", 0, "--train.keep_checkpoints", 4,
        "--train.num_threads", 1, "--train.learning_rate", 0.01, "--output-dir", output,
        "--train.precision", "bf16", "--train.zero_stage", 2,
    ]  # fmt: skip
    result = run_program(SFT, *words)
    assert result.returncode == 0, result.stderr[-2000:]
    return {int(s): float(loss) for s, loss in re.findall(r"step (\d+)/\d+ loss (\S+)", result.stdout)}


@pytest.mark.skipif(not SFT.is_file(), reason="train/ is not beside the tests (they run on an installed package)")
def test_a_run_in_4_bits_learns_and_is_resumed_bit_for_bit(base, tmp_path):
    (tmp_path / "mine").mkdir()
    data, output = write_llava(tmp_path / "mine"), tmp_path / "runs" / "sft"
    straight = run_sft(base, data, output)
    folder = checkpoint.latest(output)
    written = (folder / "model.safetensors").read_bytes()
    for step in (3, 4):
        shutil.rmtree(output / f"step-00000{step}")
    assert run_sft(base, data, output) == {3: straight[3], 4: straight[4]}
    assert straight[4] < straight[1] and (folder / "model.safetensors").read_bytes() == written
    adapter = load_file(folder / "lora" / "adapter_model.safetensors")
    moved = [value for name, value in adapter.items() if ".lora_B." in name]
    assert len(moved) == 7 and all(value.abs().max() > 0 for value in moved)
    for place in (folder, folder / "lora"):
        model, processor = unimllm.load(place, "cpu")
        assert not four_bit_layers(model) and unimllm.draw(model, processor, ["a dog"])[0].size == (16, 16)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SftRecipe(TrainConfig(), None), "set --lora_rank"),
        (SftRecipe(TrainConfig(zero_stage=3), None, lora_rank=2), "set --train.zero_stage 0, 1 or 2"),
        (SftRecipe(TrainConfig(compile=True), None, lora_rank=2), "set --train.compile false"),
    ],
)
def test_what_4_bits_do_not_go_with_is_one_line(recipe, message):
    with pytest.raises(UserError, match=f"^--quantize_base: .*{message}$"):
        check_four_bits(recipe)


def test_the_plan_of_a_model_in_4_bits_by_hand():
    """Vicuna-7B: 32 blocks of 4 x 4096 x 4096 and 3 x 4096 x 11,008 weights, 4.127 bits each, are 3.11 GiB.

    What stays in bf16: embeddings, head and image head, (2 x 32,000 + 196,608) x 4096, with 29 M of adapter and LoRA.
    """
    recipe = llava15_vicuna7b_sft()
    recipe.quantize_base, recipe.lora_rank, recipe.train.zero_stage = True, 8, 2
    model = build_on_meta(recipe)
    with torch.device("meta"):
        choose_trained(model, recipe, None)
    in_four_bits = sum(layer.weight.numel() for layer in linear_layers(model.language_model).values())
    assert in_four_bits == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    lines = language_model_plan("vicuna", model, recipe, 1, 1.0).splitlines()
    told = {line[:28].strip(): float(line[28:].split()[0]) for line in lines if line.endswith(" GiB")}
    assert told["weights in 4 bits"] == 3.11 and told["weights"] == 2.04
