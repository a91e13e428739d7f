"""Packed rows through flash attention: no mask, the samples' bounds instead, and the loss of samples one by one."""

import pytest
import torch
from torch.nn import functional as F
from transformers import modeling_flash_attention_utils as flash

from unimllm.data.packing import PackedRow, stack_rows, varlen_arguments
from unimllm.discrete.configuration_unimllm import tiny_config
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.training.start_model import choose_attention

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
    found = varlen_arguments(batch["position_ids"])
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


def test_sdpa_gets_one_mask_for_all_heads(model, batch, monkeypatch):
    attention, masks = F.scaled_dot_product_attention, []

    def spy(*tensors, attn_mask=None, **others):
        masks.append(attn_mask)
        return attention(*tensors, attn_mask=attn_mask, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model(**batch)
    assert {(mask.shape, mask.dtype) for mask in masks} == {((2, 1, 12, 12), torch.bool)}


def test_an_attention_that_is_not_to_be_had_is_told(model):
    with pytest.raises(UserError, match="^--attention no_such: "):
        choose_attention(model, "no_such")
    choose_attention(model, "eager")
    assert model.language_model.get_decoder().config._attn_implementation == "eager"
