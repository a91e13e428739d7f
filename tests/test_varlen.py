"""Packed rows through flash attention, flash-attn's or torch's: no mask, but bounds, and the loss of samples alone."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, FalconConfig, MistralConfig, Qwen2Config
from transformers import modeling_flash_attention_utils as flash

from unimllm.data.packing import PackedRow, flash_arguments, stack_rows
from unimllm.discrete import varlen
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.training import attention
from unimllm.training import config as training_config
from unimllm.training.attention import choose_attention
from unimllm.training.config import TrainConfig
from unimllm.training.presets import SftRecipe

OFFSET = tiny_config().image_offset
SAMPLES = [[8, 9, 10], [11, 4, OFFSET, OFFSET + 3, OFFSET + 7, OFFSET + 1, 5, 1], [12, 13], [14, 15, 16, 17, 18, 19]]


@pytest.fixture
def model() -> UniMLLMForConditionalGeneration:
    torch.manual_seed(0)
    return UniMLLMForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows of 12 ids: the samples 0 and 1, with one place left; 2 and 3, with four."""
    rows = [PackedRow(12, pad_id=0) for _ in range(2)]
    for number, sample in enumerate(SAMPLES):
        assert rows[number // 2].add(sample, [True] * len(sample))
    return stack_rows(rows)


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """What flash-attn's varlen function was called with; a loop over the samples takes its place."""
    seen: list[dict] = []

    def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **others):
        seen.append({"q": cu_seqlens_q.tolist(), "k": cu_seqlens_k.tolist(), **others})
        pieces = zip(*(t.transpose(0, 1).split(cu_seqlens_q.diff().tolist(), 1) for t in (q, k, v)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*one, is_causal=True) for one in pieces], 1).transpose(0, 1)

    def arguments(max_seqlen_q=None, max_seqlen_k=None, is_causal=None, **others):
        return {"longest": (max_seqlen_q, max_seqlen_k), "causal": is_causal}

    functions = (None, varlen, None, None, None), (arguments, None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_: functions)
    return seen


def test_the_bounds_of_samples_by_hand(batch):
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert batch["position_ids"][1].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    found = flash_arguments(batch["position_ids"])
    assert found["cu_seq_lens_q"].tolist() == [0, 3, 11, 12, 14, 20, 24] and found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_q"] == found["max_length_k"] == 8


def test_packed_rows_through_flash_attention_are_their_samples_one_by_one(model, batch, calls):
    alone = 0.0
    for sample in SAMPLES:
        ids = torch.tensor([sample])
        alone += model(ids, labels=ids, num_items=1).loss.item()
    through_sdpa = model(**batch, num_items=1)
    assert not calls
    model.language_model.config._attn_implementation = "flash_attention_2"
    packed = model(**batch, num_items=1)
    bounds = [0, 3, 11, 12, 14, 20, 24]
    assert calls == [{"q": bounds, "k": bounds, "longest": (8, 8), "causal": True}]
    assert abs(packed.loss.item() - alone) <= 1e-5 * alone
    torch.testing.assert_close(packed.last_hidden_state, through_sdpa.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_branches_are_refused(model, calls):
    row = PackedRow(12, pad_id=0)
    row.add_branches([8, 9], [False, True], [([10, 11], [False, True]), ([12, 13], [False, True])])
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="knows no branches"):
        model(**stack_rows([row], with_mask=True))


# ---- torch's own ---------------------------------------------------------------------------------------------------


def gradients(model, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model(**batch, num_items=1).loss.backward()
    return [p.grad for p in model.language_model.parameters() if p.grad is not None]


def test_varlen_and_sdpa_compute_the_same(model, batch, monkeypatch):
    copied = copy.deepcopy(model)
    choose_attention(copied, "varlen")
    masks = []
    monkeypatch.setattr(varlen, "sdpa_attention_forward", lambda *_, **__: masks.append(1))
    torch.testing.assert_close(copied(**batch).last_hidden_state, model(**batch).last_hidden_state)
    torch.testing.assert_close(gradients(copied, batch), gradients(model, batch))
    assert not masks


def test_varlen_is_sdpa_where_rows_are_not_packed(model):
    """Branches, padding and a cache."""
    copied = copy.deepcopy(model)
    choose_attention(copied, "varlen")
    row = PackedRow(12, pad_id=0)
    row.add_branches([8, 9], [False, True], [([10, 11], [False, True]), ([12, 13], [False, True])])
    rows = stack_rows([row], with_mask=True)
    torch.testing.assert_close(copied(**rows).last_hidden_state, model(**rows).last_hidden_state)
    ids = torch.tensor([[0, 0, 8, 9], [10, 11, 12, 13]])
    prompt = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 4, "do_sample": False}
    assert torch.equal(copied.generate(**prompt), model.generate(**prompt))


def test_torch_s_kernel_is_given_the_bounds(monkeypatch):
    """A loop over the samples in its place."""
    told = []

    def kernel(query, key, value, bounds, bounds_k, longest, longest_k, *, scale, window_size):
        told.append((bounds.tolist(), bounds_k.tolist(), longest, longest_k, window_size))
        return varlen.one_by_one(query, key, value, bounds, scale)

    monkeypatch.setattr(varlen, "import_varlen", lambda: kernel)
    query, key, value = torch.randn(3, 12, 2, 8).unbind()
    bounds = torch.tensor([0, 5, 12, 12])
    varlen.flash(query, key, value, bounds, 12, 0.5, 4)
    found = varlen.flash(query, key, value, bounds, 12, 0.5)
    places = [0, 5, 12, 12]
    assert told == [(places, places, 12, 12, (3, 0)), (places, places, 12, 12, (-1, 0))]
    alone = [F.scaled_dot_product_attention(*(x[None, s].transpose(1, 2) for x in (query, key, value)), is_causal=True,
             scale=0.5)[0].transpose(0, 1) for s in (slice(0, 5), slice(5, 12))]  # fmt: skip
    torch.testing.assert_close(found, torch.cat(alone))


def test_bounds_are_filled_up_with_the_last(batch):
    bounds = varlen.varlen_arguments(batch["position_ids"])["varlen_bounds"].tolist()
    assert len(bounds) == 64 and bounds[:7] == [0, 3, 11, 12, 14, 20, 24] and set(bounds[7:]) == {24}


@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config])
def test_windows_are_heeded(config):
    """Of Qwen2's two layers here the second alone has one."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}  # fmt: skip
    if config is Qwen2Config:
        sizes |= {"use_sliding_window": True, "max_window_layers": 1}
    model = AutoModelForCausalLM.from_config(config(**sizes)).eval()
    embeds, positions = torch.randn(1, 16, 32), torch.tensor([[*range(9), *range(7)]])
    alone = [model(inputs_embeds=part).logits for part in embeds.split([9, 7], 1)]
    model.set_attn_implementation("varlen")
    arguments = varlen.attention_arguments(model.config, embeds, None, positions, False)
    packed = model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **arguments).logits
    torch.testing.assert_close(packed, torch.cat(alone, 1))


def test_branches_of_a_row_longer_than_the_window_are_refused():
    mask, embeds = torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 4)
    config = MistralConfig(attn_implementation="sdpa")
    for config.sliding_window in (8, None):
        assert varlen.attention_arguments(config, embeds, mask, None, False)
    config.sliding_window = 7
    with pytest.raises(ValueError, match="looks back 7 positions at most"):
        varlen.attention_arguments(config, embeds, mask, None, False)


def test_what_varlen_lacks_is_told(monkeypatch):
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="does not cap scores"):
        varlen.varlen_attention(None, query, query, query, None, softcap=30.0, varlen_bounds=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="no dropout"):
        varlen.varlen_attention(None, query, query, query, None, dropout=0.1, varlen_bounds=torch.tensor([0, 4]))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, is_causal: query)
    with pytest.raises(UserError, match="^--attention varlen needs torch 2.11"):
        varlen.import_varlen()


# ---- chosen where none is named --------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch, capsys):
    """`open_attention` of a model where there is a GPU with this kernel: (its attention then, what is printed)."""

    def opened(model, kernel, **changes) -> tuple[str, str]:
        recipe = SftRecipe(TrainConfig(precision="bf16"), model.config)
        for name, value in changes.items():
            setattr(recipe.train if hasattr(recipe.train, name) else recipe, name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(varlen, "import_varlen", lambda: kernel)
        monkeypatch.setattr(attention, "import_varlen", lambda: kernel)
        monkeypatch.setattr(attention, "try_varlen", partial(attention.try_varlen, device="cpu"))
        monkeypatch.setattr(training_config, "has_fast_bf16", lambda: True)
        attention.open_attention(model, recipe, has_branches=False)
        return model.language_model.config._attn_implementation, capsys.readouterr().out

    return opened


def in_halves(query, key, value, bounds, *_, scale, window_size):
    assert query.dtype == torch.bfloat16
    return varlen.one_by_one(query, key, value, bounds, scale, None if window_size[0] < 0 else window_size[0] + 1)


@pytest.mark.parametrize("precision", ["bf16", "autocast", "auto"])
def test_varlen_is_taken_on_a_gpu_that_computes_it(model, on_a_gpu, precision):
    assert on_a_gpu(model, in_halves, precision=precision) == (
        "varlen", "attention: varlen, sample by sample without masks (--attention sdpa: with them)\n"
    )  # fmt: skip


def test_a_kernel_that_fails_its_trial_is_left(model, on_a_gpu):
    def wrong(*arguments, **options):
        return in_halves(*arguments, **options).roll(1, 0)

    def broken(*_, **__):
        raise RuntimeError("no kernel image\nat all")

    name, told = on_a_gpu(model, wrong)
    assert name == "sdpa" and "failed its trial on the GPU of process 0: it is off by" in told
    name, told = on_a_gpu(model, broken)
    assert name == "sdpa" and told.endswith("process 0: no kernel image\n")


def test_a_right_kernel_passes_with_heads_of_released_models(monkeypatch):
    """In bfloat16 it is off by what rounding makes, half of what is allowed."""
    monkeypatch.setattr(varlen, "import_varlen", lambda: in_halves)
    config = Qwen2Config(hidden_size=4096, num_attention_heads=32)
    assert 0 < attention.try_varlen(config, False, "cpu") < 0.7 * attention.TOLERANCE


def test_one_gpu_s_fault_is_everybody_s(model, on_a_gpu, monkeypatch):
    monkeypatch.setattr(attention, "faults_of_varlen", lambda *_: ["", "no kernel image"])
    name, told = on_a_gpu(model, in_halves)
    assert name == "sdpa" and told.endswith("failed its trial on the GPU of process 1: no kernel image\n")


def test_a_language_model_that_does_not_take_it_is_told():
    """transformers only warns."""
    falcon = FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    parts = AutoModelForCausalLM.from_config(falcon), UniMLLMForConditionalGeneration(tiny_config()).image_tokenizer
    unified = UniMLLMForConditionalGeneration.from_parts(tiny_config(), *parts)
    with pytest.raises(UserError, match="^--attention varlen: a falcon has its own alone"):
        choose_attention(unified, "varlen")


@pytest.mark.parametrize("changes", [{"precision": "fp32"}, {"attention": "sdpa"}, {"attention": "eager"}])
def test_varlen_is_not_forced_on_anybody(model, on_a_gpu, changes):
    assert on_a_gpu(model, in_halves, **changes) == (changes.get("attention", "sdpa"), "")


# ---- the others ----------------------------------------------------------------------------------------------------


def test_sdpa_gets_one_mask_for_all_heads(model, batch, monkeypatch):
    attention, masks = F.scaled_dot_product_attention, []

    def spy(*tensors, attn_mask=None, **others):
        masks.append(attn_mask)
        return attention(*tensors, attn_mask=attn_mask, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model(**batch)
    assert {(mask.shape, mask.dtype) for mask in masks} == {((2, 1, 12, 12), torch.bool)}


def test_an_attention_that_is_not_to_be_had_is_told(model, monkeypatch):
    with pytest.raises(UserError, match="^--attention no_such: "):
        choose_attention(model, "no_such")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="^--attention flex_attention: it trains on a GPU alone"):
        choose_attention(model, "flex_attention")
    choose_attention(model, "eager")
    assert model.language_model.get_decoder().config._attn_implementation == "eager"
