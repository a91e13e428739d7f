"""Random language models of a few thousand parameters, saved as transformers saves the released ones."""

import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEXTS = [
    "What color is the apple?",
    "a red apple",
    "Is there a dog?",
    "yes no",
    "USER: ASSISTANT: system user",
]
# ChatML with a system turn of its own where there is none, as Qwen's templates have it.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML, as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=sorted(alphabet)))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|pad|>", "<|im_start|>", "<|im_end|>")])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    wrapped.chat_template = CHATML
    return wrapped


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Sentencepiece's BPE as transformers converts Llama's: spaces become ▁, one more goes before the beginning."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [*string.ascii_letters, *",.:'?▁"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    words = [f"▁{word}" for text in TEXTS for word in text.split()]  # so that no token has a ▁ but at its beginning
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip


def write_backbone(folder: Path, family: str) -> Path:
    """llama: untied, sentencepiece, no chat template, like Vicuna; qwen2: tied, rows to spare, ChatML, like Qwen2.5."""
    torch.manual_seed(0)
    if family == "llama":
        tokenizer = llama_tokenizer()
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **SIZES))
    else:
        tokenizer = qwen_tokenizer()
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 9, tie_word_embeddings=True, **SIZES))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
