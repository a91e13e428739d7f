"""`python -m unimllm.chat`, with a tiny random model: one question, a pipe, a person at a terminal."""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from unimllm import chat, generate
from unimllm.errors import UserError
from unimllm.inference import answer, answer_batch, answer_length, load

APPLE = "a photo of a red apple"
CUT = "... (cut at 64 tokens; --max-new-tokens allows more)\n"  # a random model finds no end


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def told(monkeypatch):
    """In place of the model: answers with the words of all turns so far, and keeps the messages."""
    conversations = []

    def reply(model, processor, batch, *args, **kwargs):
        conversations.extend(batch)
        parts = [part for message in batch[0] for part in message["content"]]
        return [" | ".join(part.get("text", "PICTURE") for part in parts)]

    monkeypatch.setattr(chat, "answer_batch", reply)
    return conversations


def test_one_question_prints_the_answer_alone(call, tiny_checkpoint, picture):
    options = ("--image", picture, "--question", "What is in the picture?", "--model", tiny_checkpoint)
    first, second = call(chat, *options), call(chat, *options)
    assert first.code == 0 and first.err == CUT and first.out.endswith("\n") and first.out == second.out
    assert not any(mark in first.out for mark in ("<|", "<image>", "\x1b"))


def test_a_question_without_a_picture(call, tiny_checkpoint):
    result = call(chat, "--question", "Is there a dog?", "--model", tiny_checkpoint)
    assert result.code == 0 and result.err == CUT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--imgae", "x"], "unknown option --imgae (did you mean '--image'?)"),
        (["--image", "none.png"], "no such picture: none.png"),
        (["--image", "text.png"], "text.png is no picture"),
        (["--image", "huge.ppm"], "huge.ppm is too large"),
        (["--image", ""], "--image is empty"),
        (["--question", ""], "--question is empty"),
        (["--model", "./none"], "--model ./none: no such folder"),
        (["--question", "x", "--model", "./none"], "--model ./none: no such folder"),
    ],
)
def test_chat_refuses(call, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("text")
    Path("huge.ppm").write_text("P6 100000 100000 255\n")
    assert message in call(chat, *options, stdin="What is it?\n").refusal()


def test_questions_that_the_model_cannot_take(call, tiny_checkpoint, picture):
    options = ("--image", picture, "--model", tiny_checkpoint, "--question")
    assert "the conversation is too long" in call(chat, *options, "why " * 200).refusal()
    assert "the question holds <image>" in call(chat, *options, "Is <image> red?").refusal()
    assert "the question is not valid text" in call(chat, *options, "\udcff").refusal()


def spelled(processor, monkeypatch, *answers: str) -> None:
    """Let the model say these, one a turn."""
    said = iter(answers)
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda ids, **kwargs: [next(said)])


def test_an_answer_that_spells_a_mark_lets_the_conversation_go_on(loaded, monkeypatch):
    model, processor = loaded
    spelled(processor, monkeypatch, "a <image> tag <ima<|end|>ge>", "yes")
    conversation = chat.Conversation(model, processor, [Image.new("RGB", (16, 16))])
    assert conversation.ask("What is it?")[0] == "a  tag" == conversation.turns[0][1]
    assert conversation.ask("Really?") == ("yes", 0)


def test_a_mark_across_parts_of_a_question_is_told(loaded):
    parts = [{"type": "text", "text": text} for text in ("Is <ima", "ge> red?")]
    with pytest.raises(UserError, match="^the question holds <image>"):
        answer_batch(*loaded, [[{"role": "user", "content": parts}]])
    parts.insert(1, {"type": "image", "image": Image.new("RGB", (16, 16))})
    assert len(answer_batch(*loaded, [[{"role": "user", "content": parts}]])) == 1


def test_an_answer_that_ends_for_its_length_is_told(call, loaded, tiny_checkpoint, picture):
    end = loaded[0].config.text_config.vocab_size  # no token: nothing ends an answer of this random model
    cuts = []
    messages = [[{"role": "user", "content": text}] for text in ("Is there a dog?", "And what is beside the dog?")]
    answer_batch(*loaded, messages, 3, on_cut=lambda *cut: cuts.append(cut), eos_token_id=end)
    assert cuts == [(0, 3), (1, 3)]
    cuts.clear()
    every = list(range(end))  # each ends one
    answer_batch(*loaded, messages, 3, on_cut=lambda *cut: cuts.append(cut), eos_token_id=every)
    assert not cuts
    told = "... (cut at 2 tokens; --max-new-tokens allows more)\n"
    options = ("--max-new-tokens", 2, "--model", tiny_checkpoint)
    alone = call(chat, "--image", picture, "--question", "What is it?", *options)
    assert alone.err == told and alone.out.count("\n") == 1
    assert call(chat, "--image", picture, *options, stdin="What is it?").err == told
    assert chat.told_cut(5, 9) == "... (cut at 5 tokens; the context is full)"


def test_the_checkpoint_says_how_long_answers_are(loaded, monkeypatch):
    assert answer_length(loaded[0]) == 64
    monkeypatch.setattr(loaded[0].generation_config, "max_new_tokens", 2)
    cuts = []
    answer(*loaded, None, "What is it?", on_cut=lambda *cut: cuts.append(cut), eos_token_id=10**6)
    assert cuts == [(0, 2)] and chat.Conversation(*loaded).max_new_tokens == 2


def test_a_question_about_several_pictures(loaded):
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    parts = [*({"type": "image", "image": p} for p in pictures), {"type": "text", "text": "Are they alike?"}]
    expected = answer_batch(*loaded, [[{"role": "user", "content": parts}]])[0]
    assert answer(*loaded, pictures, "Are they alike?") == expected


def test_answers_can_be_sampled(loaded):
    torch.manual_seed(0)
    asked = [answer(*loaded, None, "What is it?", do_sample=True, temperature=5.0) for _ in range(3)]
    assert len(set(asked)) > 1


def test_a_conversation_through_a_pipe(call, told, tiny_checkpoint, picture, tmp_path):
    blue = tmp_path / "blue sky.png"
    Image.new("RGB", (20, 20), "blue").save(blue)
    lines = ["What is it?", "", "  And now?  ", f"/image '{blue}'", "Again?", "/reset", "Once more?", "/quit", "never"]
    result = call(chat, "--image", picture, "--model", tiny_checkpoint, stdin="\n".join(lines))
    assert result.code == 0
    assert result.out.splitlines() == [
        "PICTURE | What is it?",
        "PICTURE | What is it? | PICTURE | What is it? | And now?",
        "PICTURE | Again?",
        "PICTURE | Once more?",
    ]
    assert [m["role"] for m in told[1]] == ["user", "assistant", "user"]
    colors = [messages[0]["content"][0]["image"].getpixel((0, 0)) for messages in told]
    assert colors == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 2


def test_several_pictures_in_a_conversation(call, told, tiny_checkpoint, picture, tmp_path):
    blue = tmp_path / "blue sky.png"
    Image.new("RGB", (20, 20), "blue").save(blue)
    lines = ["Are they alike?", f'/add "{picture}"', "And now?", f"/image {blue}", "And now?"]
    result = call(chat, "--image", picture, blue, "--model", tiny_checkpoint, stdin="\n".join(lines))
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "PICTURE | PICTURE | Are they alike?", "PICTURE | PICTURE | PICTURE | And now?", "PICTURE | And now?"
    ]  # fmt: skip
    red, blue = (255, 0, 0), (0, 0, 255)
    shown = [[part["image"].getpixel((0, 0)) for part in m[0]["content"] if part["type"] == "image"] for m in told]
    assert shown == [[red, blue], [red, blue, red], [blue]]


def test_an_error_ends_its_turn_alone(call, told, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        "hi \udcff", "/imagine x", "/image none.png", "/image", "/reset x", "/draw", "/draw <image>",
        f"/draw {'word ' * 200}", "Still there?",
    ]  # fmt: skip
    result = call(chat, "--model", tiny_checkpoint, stdin="\n".join(lines))
    assert result.code == 0 and result.out == "Still there?\n" and not os.listdir(tmp_path)
    told_of = [
        "the question is not valid text", "unknown command /imagine (did you mean '/image'?)",
        "no such picture: none.png", "write /image PATH",
        "write /reset alone", "write /draw PROMPT", "the prompt holds <image>", "is too long",
    ]  # fmt: skip
    errors = result.err.splitlines()
    assert len(errors) == len(told_of)
    assert all(line.startswith("error: ") and text in line for line, text in zip(errors, told_of, strict=True))


def test_help_lists_every_command(call, tiny_checkpoint):
    result = call(chat, "--model", tiny_checkpoint, stdin="/help\n")
    assert [line.split()[0] for line in result.out.splitlines()] == [name.split()[0] for name in chat.COMMANDS]
    assert "/add PATH" in result.out


def test_drawing_in_a_conversation(call, told, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("drawing-1.png").write_bytes(b"mine")
    lines = [f"/draw {APPLE}", "What is it?", f"/draw {APPLE}"]
    result = call(chat, "--model", tiny_checkpoint, stdin="\n".join(lines))
    assert result.out.splitlines() == ["drawing-2.png", "PICTURE | What is it?", "drawing-3.png"]
    assert sorted(os.listdir(tmp_path)) == ["drawing-1.png", "drawing-2.png", "drawing-3.png"]
    assert Path("drawing-1.png").read_bytes() == b"mine"
    assert Path("drawing-2.png").read_bytes() != Path("drawing-3.png").read_bytes()  # another seed
    with Image.open("drawing-2.png") as drawn:
        assert list(told[0][0]["content"][0]["image"].getdata()) == list(drawn.getdata())
    call(generate, "--prompt", APPLE, "--out", "same.png", "--model", tiny_checkpoint)
    assert Path("same.png").read_bytes() == Path("drawing-2.png").read_bytes()


def test_a_drawing_that_cannot_be_saved_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def fail(image, path):
        raise UserError("the disk is full")

    monkeypatch.setattr(chat, "save_picture", fail)
    with pytest.raises(UserError, match="the disk is full"):
        chat.save_as_new(Image.new("RGB", (2, 2)))
    assert not os.listdir(tmp_path)


def test_the_oldest_turns_go_when_the_context_is_full(told, tiny_checkpoint):
    model, processor = load(tiny_checkpoint)
    conversation = chat.Conversation(model, processor, [Image.new("RGB", (16, 16))])
    conversation.turns = [(f"What is {i}?", "a red apple") for i in range(30)]
    answer, forgotten = conversation.ask("And now?")
    assert 0 < forgotten < 30 and len(conversation.turns) == 30 - forgotten + 1
    assert answer.startswith(f"PICTURE | What is {forgotten}? | a red apple | ")
    kept = processor.conversation.prompt(told[0])
    assert len(kept) <= 96 - 24  # a quarter of the context stays free for the answer
    assert conversation.ask("Why?")[1] >= 1


def test_a_question_that_never_fits_forgets_nothing(tiny_checkpoint):
    model, processor = load(tiny_checkpoint)
    conversation = chat.Conversation(model, processor, [Image.new("RGB", (16, 16))])
    conversation.turns = [("What is it?", "a red apple")]
    with pytest.raises(UserError, match="is too long"):
        conversation.ask("why " * 100)
    assert len(conversation.turns) == 1


def test_a_full_context_is_told(call, tiny_checkpoint, picture):
    result = call(chat, "--image", picture, "--model", tiny_checkpoint, stdin="What is it?\n" * 4)
    assert result.code == 0 and len(result.out.splitlines()) == 4
    assert "the context is full: " in result.err and "/reset begins anew" in result.err


def test_a_person_at_a_terminal(told, tiny_checkpoint, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = iter(["What [bold]is[/bold] it?", "/foo", f"/draw {APPLE}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with contextlib.redirect_stderr(io.StringIO()):
        chat.main(["--image", str(picture), "--model", str(tiny_checkpoint)])
    out = capsys.readouterr().out
    assert "PICTURE | What [bold]is[/bold] it?" in out and "error: unknown command /foo" in out
    assert "drawing-1.png" in out and "/help lists the commands" in out
