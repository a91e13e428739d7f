"""Pretrained language models under the unified one: vocabularies grow, old rows stay, templates tell the targets."""

import json
import re
from pathlib import Path

import pytest
import sentencepiece
import torch
from backbones import CHATML, SIZES, TEXTS, llama_tokenizer, qwen_tokenizer, write_backbone
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from semhitok import SemHiTokModel
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer
from unimllm.chat_templates import CHAT_TEMPLATES, PLAIN, VICUNA
from unimllm.conversation import ConversationTokenizer, text_message
from unimllm.data import survey
from unimllm.data.sample_index import open_samples
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import BadSample
from unimllm.discrete.backbone import OnlyRows, add_image_tokens, load_backbone, rows_like
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.errors import UserError
from unimllm.vocabulary import IMAGE_TOKENS

N = 3  # placeholders of a picture


@pytest.fixture(params=["llama", "qwen2"])
def backbone_folder(request, tmp_path):
    return write_backbone(tmp_path, request.param)


def is_llama(folder: Path) -> bool:
    return "llama" in (folder / "config.json").read_text()


@pytest.fixture
def backbone(backbone_folder):
    return load_backbone(str(backbone_folder), "vicuna" if is_llama(backbone_folder) else None)


# ---- the vocabulary -------------------------------------------------------------------------------------------------


def test_image_tokens_join_and_every_old_row_keeps_its_bits(backbone):
    model, tokenizer = backbone
    num_tokens, num_rows = len(tokenizer), model.config.vocab_size
    embeddings, head = (table.weight.detach().clone() for table in (model.get_input_embeddings(), model.lm_head))
    new = add_image_tokens(model, tokenizer)
    assert new == [num_tokens, num_tokens + 1, num_tokens + 2]
    assert tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS.values())) == new
    assert model.config.vocab_size == max(num_rows, num_tokens + 3) == len(model.lm_head.weight)
    old = [row for row in range(num_rows) if row not in new]
    assert torch.equal(model.get_input_embeddings().weight[old], embeddings[old])
    assert torch.equal(model.lm_head.weight[old], head[old])
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert is_tied == model.config.tie_word_embeddings
    assert add_image_tokens(model, tokenizer) == []  # again: nothing happens


def test_a_tokenizer_that_has_some_of_the_tokens_gains_the_others(backbone):
    model, tokenizer = backbone
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    place = tokenizer.convert_tokens_to_ids("<image>")
    row = model.get_input_embeddings().weight[place].clone()
    assert add_image_tokens(model, tokenizer) == [place + 1, place + 2]
    assert torch.equal(model.get_input_embeddings().weight[place], row)


def test_tokens_without_rows_get_some(backbone_folder):
    """As where somebody added them to a tokenizer and left the model as it was."""
    model, tokenizer = load_backbone(str(backbone_folder), "vicuna" if is_llama(backbone_folder) else None)
    tokenizer.add_tokens([f"<new {i}>" for i in range(12)])
    tokenizer.add_special_tokens({"extra_special_tokens": list(IMAGE_TOKENS.values())})
    assert add_image_tokens(model, tokenizer) == []
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == model.lm_head.out_features


def test_new_rows_have_the_mean_and_the_covariance_of_the_old():
    old = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[2.0, 1.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.1]]
    ) + torch.tensor([5.0, 0.0, -1.0])
    torch.manual_seed(0)
    new = rows_like(old, 200_000)
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(new.T.cov(), old.T.cov(correction=0), atol=0.05, rtol=0.02)


def test_only_some_rows_are_trained(backbone):
    model, tokenizer = backbone
    new = add_image_tokens(model, tokenizer)
    model.requires_grad_(False)
    tables = {id(p): p for p in (model.get_input_embeddings().weight, model.lm_head.weight)}.values()
    before = [table.detach().clone() for table in tables]
    for table in tables:
        OnlyRows(table.requires_grad_(True), new)
    optimizer = torch.optim.AdamW(tables, lr=0.1, weight_decay=0.0)
    ids = torch.tensor([[3, 5, *new, 7]])
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for table, then in zip(tables, before, strict=True):
        moved = (table != then).any(-1).nonzero().flatten().tolist()
        assert moved == new


def test_a_unified_model_of_parts_reads_as_its_backbone_and_can_be_saved(backbone, tmp_path):
    model, tokenizer = backbone
    add_image_tokens(model, tokenizer)
    ids = torch.tensor([[3, 5, 8, 13]])
    expected = model(input_ids=ids).logits
    image = SemHiTokModel(tiny_tokenizer())
    for head in ("flat", "factorised"):
        config = UniMLLMConfig(image_tokenizer_config=image.config, image_head=head)
        unified = UniMLLMForConditionalGeneration.from_parts(config, model, image).eval()
        torch.testing.assert_close(unified(ids).logits, expected)
        assert not any(p.is_meta for p in [*unified.parameters(), *unified.buffers()])
        words, pictures = unified.embed(ids), unified.embed(unified.config.image_offset + torch.arange(30)[None])
        assert 0.2 < pictures.std() / words.std() < 2
        unified.save_pretrained(tmp_path / head)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / head)
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in unified.state_dict().items())


def test_what_cannot_be_a_backbone_is_told(tmp_path, backbone_folder):
    with pytest.raises(UserError, match="^--language-model"):
        load_backbone(str(tmp_path / "nowhere"))
    if is_llama(backbone_folder):
        with pytest.raises(UserError, match="has no chat template: name one with --chat-template \\(vicuna, chatml\\)"):
            load_backbone(str(backbone_folder))


def test_weights_that_are_not_the_backbone_s_are_told(backbone_folder):
    weights, norm = load_file(backbone_folder / "model.safetensors"), "model.norm.weight"
    template = "vicuna" if is_llama(backbone_folder) else None
    save_file(weights | {"more": torch.ones(1)}, backbone_folder / "model.safetensors", {"format": "pt"})
    load_backbone(str(backbone_folder), template)  # it may hold more than is read
    save_file(weights | {norm: torch.ones(3)}, backbone_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"^--language-model .*: the checkpoint .* {norm} \(3,\) \(not \(16,\)\)$"):
        load_backbone(str(backbone_folder), template)


def mamba(**sizes):
    return MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **sizes))


def gemma_with_eyes(vocab_size: int, **special):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Gemma3TextConfig(vocab_size=vocab_size, head_dim=8, **SIZES, **special)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision | {"image_size": 16, "patch_size": 8})
    )


def opt(**sizes):
    layers = {"ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    return OPTForCausalLM(OPTConfig(hidden_size=16, word_embed_proj_dim=8, **layers, **sizes))


def bloom(**sizes):
    return BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, **sizes))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (mamba, "mamba\\) has a state beside its attention or in its place"),
        (gemma_with_eyes, r"gemma3\) holds a language model among other parts \(text_config\); save that alone"),
        (opt, "opt\\) has embeddings of 8 channels under layers of 16"),
        (bloom, "bloom\\) has no max_position_embeddings in its config"),
    ],
)
def test_other_kinds_of_language_models_are_refused_in_a_line(make, fault, tmp_path):
    tokenizer = qwen_tokenizer()
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    make(vocab_size=len(tokenizer), **special).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wanted = f"^--language-model {tmp_path} \\({fault}.*; a decoder-only model with attention is wanted"
    with pytest.raises(UserError, match=wanted):
        load_backbone(str(tmp_path))


def test_a_folder_with_a_sentencepiece_model_alone(tmp_path):
    """As lmsys/vicuna-7b-v1.5 has it: no tokenizer.json."""
    corpus = tmp_path / "corpus.txt"
    words = " ".join(TEXTS).replace("'", "").split()
    corpus.write_text("\n".join(" ".join(words[i:] + words[:i]) for i in range(len(words)) for _ in range(20)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=330,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"} | marks))
    LlamaForCausalLM(LlamaConfig(vocab_size=330, tie_word_embeddings=False, **SIZES)).save_pretrained(tmp_path)
    model, tokenizer = load_backbone(str(tmp_path), "vicuna")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("What color is the apple?", "Übermut:\n42 dogs"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text)
    assert add_image_tokens(model, tokenizer) == [330, 331, 332]
    assert tokenizer.pad_token == "<unk>"
    assert target_texts(ConversationTokenizer(tokenizer, N), CONVERSATION) == ["no</s>", "a red apple</s>"]


def test_the_mark_that_ends_an_answer_is_the_templates(tmp_path, capsys):
    """Qwen2.5's base model ends texts with <|endoftext|>, its template ends answers with <|im_end|>."""
    write_backbone(tmp_path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.eos_token = "<|pad|>"
    tokenizer.save_pretrained(tmp_path)
    _, loaded = load_backbone(str(tmp_path))
    assert loaded.eos_token == "<|im_end|>"
    assert "note: answers end with <|im_end|>" in capsys.readouterr().out
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    with pytest.raises(UserError, match="ends an answer with no special token"):
        load_backbone(str(tmp_path))
    with pytest.raises(UserError, match="the chat template cannot be used"):
        load_backbone(str(tmp_path), "{{ raise_exception('no') }}")


# ---- what is a target -----------------------------------------------------------------------------------------------

CONVERSATION = [
    text_message("user", "\nIs there a dog?", images=1),
    text_message("assistant", "no"),
    text_message("user", "What color is the apple?"),
    text_message("assistant", "a red apple"),
]


def target_texts(tokenizer: ConversationTokenizer, messages: list[dict]) -> list[str]:
    """The runs of targets as text."""
    tokenized = tokenizer(messages)
    runs, before = [], False
    for token, target in zip(tokenized.input_ids, tokenized.is_target, strict=True):
        if target:
            runs.append([] if not before else runs.pop())
            runs[-1].append(token)
        before = target
    return [tokenizer.tokenizer.decode(run) for run in runs]


def make(family: str) -> ConversationTokenizer:
    tokenizer = qwen_tokenizer() if family in ("qwen", "chatml") else llama_tokenizer()
    if family == "chatml":
        tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    elif family != "qwen":
        tokenizer.chat_template, tokenizer.pad_token = PLAIN if family == "plain" else VICUNA, "<unk>"
    tokenizer.add_special_tokens({"extra_special_tokens": list(IMAGE_TOKENS.values())})
    return ConversationTokenizer(tokenizer, N)


EXPECTED = {
    "qwen": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{picture}\nIs there a dog?<|im_end|>\n"
        "<|im_start|>assistant\n[no<|im_end|>]\n<|im_start|>user\nWhat color is the apple?<|im_end|>\n"
        "<|im_start|>assistant\n[a red apple<|im_end|>]\n"
    ),
    "chatml": (
        "<|im_start|>user\n{picture}\nIs there a dog?<|im_end|>\n<|im_start|>assistant\n[no<|im_end|>]\n"
        "<|im_start|>user\nWhat color is the apple?<|im_end|>\n<|im_start|>assistant\n[a red apple<|im_end|>]\n"
    ),
    "vicuna": (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {picture}\nIs there a dog? ASSISTANT:[ no</s>]"
        "USER: What color is the apple? ASSISTANT:[ a red apple</s>]"
    ),
    "plain": "<s>{picture}[no\n]What color is the apple?[a red apple\n]",
}
PICTURE = IMAGE_TOKENS["image_start"] + IMAGE_TOKENS["image"] * N + IMAGE_TOKENS["image_end"]


def show(conversation: ConversationTokenizer, messages: list[dict], sentencepiece: bool = True) -> str:
    """A tokenized conversation as text, what the model learns to say between brackets."""
    tokenized = conversation(messages)
    shown, before = "", False
    for token, target, after in zip(
        tokenized.input_ids, tokenized.is_target, [*tokenized.is_target[1:], False], strict=True
    ):
        piece = conversation.tokenizer.convert_ids_to_tokens(token)
        piece = piece.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").replace("<0x0A>", "\n")
        shown += "[" * (target and not before) + piece + "]" * (target and not after)
        before = target
    if sentencepiece:  # the space that it puts before what follows a special token
        for mark in ("<s>", IMAGE_TOKENS["image_end"], "</s>]"):
            shown = shown.replace(f"{mark} ", mark).replace(f"{mark}[ ", f"{mark}[")
    return shown


@pytest.mark.parametrize("family", EXPECTED)
def test_every_target_of_a_conversation(family):
    """By hand: what stands between brackets is what the model learns to say."""
    expected = EXPECTED[family].replace("{picture}", PICTURE)
    assert show(make(family), CONVERSATION, sentencepiece=family in ("vicuna", "plain")) == expected


def test_a_plain_caption_keeps_what_asks_for_a_picture_alone():
    """By hand, as LLaVA-1.5's first stage has it: no words but the caption's, and a line break behind them."""
    conversation = make("plain")
    caption = [text_message("user", "\nRender a brief summary of the photo.", 1), text_message("assistant", "a dog")]
    assert show(conversation, caption) == f"<s>{PICTURE}[a dog\n]"
    two = [text_message("user", "Which is red?", images=2), text_message("assistant", "no")]
    assert show(conversation, two) == f"<s>{PICTURE}{PICTURE}[no\n]"
    drawing = [text_message("user", "a red apple"), text_message("assistant", "", images=1)]
    assert show(conversation, drawing) == f"<s>a red apple[{PICTURE}\n]"
    prompt = conversation.drawing_prompt("a red apple")
    assert prompt == conversation(drawing).input_ids[: len(prompt)] and prompt[-1] == conversation.ids["image_start"]
    with pytest.raises(BadSample, match="has no place for it"):
        SampleTokenizer(conversation, 99)([text_message("system", "Be kind."), *caption])


@pytest.mark.parametrize("family", ["qwen", "chatml", "vicuna"])
def test_what_is_asked_in_training_is_what_is_asked_later(family):
    """The ids up to an answer are those that generation starts from, in every turn."""
    conversation = make(family)
    tokenized = conversation(CONVERSATION)
    starts = [i for i, target in enumerate(tokenized.is_target) if target and not tokenized.is_target[i - 1]]
    assert [tokenized.input_ids[:start] for start in starts] == [
        conversation.prompt(CONVERSATION[:1]), conversation.prompt(CONVERSATION[:3])
    ]  # fmt: skip


def test_a_drawing_is_a_target_from_its_first_token_on():
    for family in ("qwen", "vicuna"):
        conversation = make(family)
        tokenized = conversation([text_message("user", "a red apple"), text_message("assistant", "", images=1)])
        targets = [i for i, t in zip(tokenized.input_ids, tokenized.is_target, strict=True) if t]
        ids = conversation.ids
        assert targets[-1] == ids["end"]
        assert targets[-2 - N - 1 : -1] == [ids["image_start"], *[ids["image"]] * N, ids["image_end"]]
        prompt = conversation.drawing_prompt("a red apple")
        assert prompt[-1] == ids["image_start"] and prompt == tokenized.input_ids[: len(prompt)]


@pytest.mark.parametrize(
    ("family", "opening"),
    [("qwen", "system\nBe kind.<|im_end|>"), ("chatml", "system\nBe kind.<|im_end|>"), ("vicuna", "Be kind. USER:")],
)
def test_a_system_turn_is_no_target(family, opening):
    conversation = make(family)
    messages = [text_message("system", "Be kind."), *CONVERSATION]
    assert opening in conversation.tokenizer.decode(conversation(messages).input_ids)
    assert target_texts(conversation, messages) == target_texts(conversation, CONVERSATION)


@pytest.mark.parametrize(("family", "mark"), [("qwen", "<|im_start|>"), ("llama", "<s>")])
def test_control_tokens_in_texts_are_refused_and_bytes_are_not(family, mark):
    tokenizer = SampleTokenizer(make(family), 999)
    tokenizer([text_message("user", "What is <0x00>?"), text_message("assistant", "a dog")])
    for question, answer in ((f"a {mark}", "b"), ("a", f"b {mark}")):
        with pytest.raises(BadSample, match=re.escape(f"a text holds {mark}")):
            tokenizer([text_message("user", question), text_message("assistant", answer)])


def test_a_template_that_changes_what_it_said_is_refused():
    conversation = make("qwen")
    conversation.tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(UserError, match="otherwise once it goes on, .* give --chat-template chatml"):
        conversation(CONVERSATION)


# As Qwen 3's: thoughts stand before the last answer alone.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_sample_that_a_template_renders_otherwise_is_named(num_workers, tmp_path, monkeypatch):
    conversation = make("qwen")
    conversation.tokenizer.chat_template = THINKING
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [{"messages": turns * (2 if number == 3 else 1)} for number in range(5)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(survey, "CHUNK", 2)
    index, tokenizer = open_samples(str(tmp_path / "data.jsonl"), None, None), SampleTokenizer(conversation, 99)
    named = "^" + re.escape(f"{tmp_path / 'data.jsonl'}:4: the text tokenizer's chat template renders")
    with pytest.raises(UserError, match=named):
        survey.survey_samples(index, tokenizer, lambda picture: None, "files", num_workers=num_workers)
    conversation.tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    found = survey.survey_samples(index, tokenizer, lambda picture: None, "files", num_workers=num_workers)
    assert (found.lengths > 0).all()


def test_a_tokenizer_without_what_is_needed_is_told():
    with pytest.raises(UserError, match=r"lacks <\|image_start\|>, <\|image_end\|>, <image>, pad_token, chat_template"):
        ConversationTokenizer(llama_tokenizer(), N)
