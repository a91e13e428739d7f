"""`python -m unimllm.generate`, checkpoints, and what all command lines share, with a tiny random model."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from semhitok.checkpoints import choose_device
from semhitok.errors import first_line
from unimllm import chat, generate
from unimllm.command_line import CommandLine, nearest, open_model, out_of_memory_told, run
from unimllm.errors import UserError
from unimllm.inference import DEFAULT_MODEL, folder_of, load

APPLE, DOGS = "a photo of a red apple", "a photo of two dogs and a blue car"


# ---- generate ------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(call, tiny_checkpoint, tmp_path):
    def draw(name: str, *options) -> bytes:
        path = tmp_path / name
        result = call(generate, "--prompt", APPLE, "--out", path, "--model", tiny_checkpoint, *options)
        assert result.code == 0 and result.out == f"{path}\n" and "4/4" in result.err
        return path.read_bytes()

    first = draw("new/folder/a.png")
    assert draw("b.png", "--seed", 0) == first
    assert draw("c.png", "--seed", 1) != first
    assert draw("d.png", "--temperature", 0) == draw("e.png", "--temperature", 0, "--seed", 5)
    assert draw("f.png", "--top-k", 1) == draw("g.png", "--top-k", 1, "--seed", 5)
    assert draw("h.png", "--cfg-scale", 5) != draw("i.png", "--cfg-scale", 1)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (16, 16) and image.mode == "RGB"


def test_each_of_several_images_is_the_one_of_its_own_seed(call, tiny_checkpoint, tmp_path):
    common = ("--prompt", APPLE, "--model", tiny_checkpoint)
    result = call(generate, *common, "--out", tmp_path / "x.png", "--num-images", 3, "--seed", 7, "--batch-size", 2)
    assert result.out.split() == [str(tmp_path / f"x-{i}.png") for i in range(3)]
    for i in range(3):
        call(generate, *common, "--out", tmp_path / "alone.png", "--seed", 7 + i)
        assert (tmp_path / "alone.png").read_bytes() == (tmp_path / f"x-{i}.png").read_bytes()


def test_prompts_of_a_file_are_drawn_as_each_alone(call, tiny_checkpoint, tmp_path):
    metadata = {"tag": "two_object", "include": [{"class": "dog", "count": 2}], "prompt": DOGS}
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"\ufeff{json.dumps(metadata)}\r\n\n{json.dumps(APPLE)}\n", encoding="utf-8")
    out = tmp_path / "out"
    result = call(generate, "--prompts-file", file, "--out-dir", out, "--seed", 3, "--model", tiny_checkpoint)
    assert result.code == 0 and result.out.split() == [f"{out}/00000.png", f"{out}/00001.png"]
    assert sorted(os.listdir(out)) == ["00000.png", "00001.png", "index.jsonl"]
    index = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert index[0] == metadata | {"file": "00000.png", "seed": 3}
    assert index[1] == {"prompt": APPLE, "file": "00001.png", "seed": 3}
    for line in index:
        call(generate, "--prompt", line["prompt"], "--out", tmp_path / "a.png", "--seed", 3, "--model", tiny_checkpoint)
        assert (tmp_path / "a.png").read_bytes() == (out / line["file"]).read_bytes()


def test_a_drawing_broken_off_leaves_no_index_of_other_pictures(call, tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(APPLE)}\n{json.dumps(DOGS)}")
    options = ("--prompts-file", tmp_path / "p.jsonl", "--out-dir", tmp_path / "out", "--model", tiny_checkpoint)
    assert call(generate, *options).code == 0 and (tmp_path / "out" / "index.jsonl").exists()
    monkeypatch.setattr(generate, "draw_jobs", lambda *_: (_ for _ in ()).throw(UserError("not enough memory")))
    assert "not enough memory" in call(generate, *options).refusal()
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.png", "00001.png"]


def test_several_images_of_several_prompts(call, tiny_checkpoint, tmp_path):
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(APPLE)}\n{json.dumps(DOGS)}")
    options = ("--prompts-file", tmp_path / "p.jsonl", "--num-images", 2, "--model", tiny_checkpoint)
    for folder, batch_size in (("one", 1), ("three", 3)):
        assert call(generate, *options, "--out-dir", tmp_path / folder, "--batch-size", batch_size).code == 0
        assert sorted(os.listdir(tmp_path / folder)) == [
            "00000-0.png",
            "00000-1.png",
            "00001-0.png",
            "00001-1.png",
            "index.jsonl",
        ]
    for name in sorted(os.listdir(tmp_path / "one")):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--promt", "x"], "unknown option --promt (did you mean '--prompt'?)"),
        (["--cfg_scale=3"], "unknown option --cfg_scale (did you mean '--cfg-scale'?)"),
        (["--prompt", "a", "red", "apple", "--out", "a.png"], "unexpected 'red': put a text"),
        (["--out", "a.png"], "give either --prompt"),
        (["--prompt", "x", "--prompts-file", "p.jsonl"], "give either --prompt"),
        (["--prompt", "x"], "--prompt goes with --out"),
        (["--prompt", "x", "--out-dir", "d"], "--prompt goes with --out"),
        (["--prompts-file", "p.jsonl", "--out", "a.png"], "--prompts-file goes with --out-dir"),
        (["--prompt", " ", "--out", "a.png"], "--prompt is empty"),
        (["--prompt", "x", "--out", "a.xyz"], "the ending '.xyz'"),
        (["--prompt", "x", "--out", "file/a.png"], "cannot write file/a.png"),
        (["--prompt", "x", "--out", "folder.png"], "cannot write folder.png: it is a folder"),
        (["--prompt", "x", "--out"], "argument --out: expected one argument"),
        (["--prompt", "x", "--out", "a.png", "--seed", "-1"], "argument --seed: '-1' is not a whole number from 0"),
        (["--prompt", "x", "--out", "a.png", "--seed", "1.5"], "argument --seed: '1.5' is not a whole number"),
        (["--prompt", "x", "--out", "a.png", "--seed", str(2**63)], "is not a whole number from 0"),
        (["--prompt", "x", "--out", "a.png", "--seed", str(2**63 - 1), "--num-images", "2"], "goes beyond"),
        (["--prompt", "x", "--out", "a.png", "--num-images", "0"], "'0' is not a whole number of 1 or more"),
        (["--prompt", "x", "--out", "a.png", "--cfg-scale", "nan"], "'nan' is not a number from 0 to 1000"),
        (["--prompt", "x", "--out", "a.png", "--temperature", "inf"], "'inf' is not a number of 0 or more"),
        (["--prompt", "x", "--out", "a.png", "--temperature", "1e-30"], "too small to divide by"),
        (["--prompt", "x", "--out", "a.png", "--top-k", "many"], "'many' is not a whole number"),
        (["--prompts-file", "none.jsonl", "--out-dir", "d"], "no such file: --prompts-file none.jsonl"),
        (["--prompts-file", "folder.png", "--out-dir", "d"], "cannot read --prompts-file folder.png"),
        (["--prompts-file", "good.jsonl", "--out-dir", "file"], "cannot write file/index.jsonl"),
        (["--prompt", "x", "--out", "a.png", "--model", "./none"], "--model ./none: no such folder"),
        (["--prompt", "x", "--out", "a.png", "--model", "folder.png"], "no checkpoint in folder.png"),
        (["--prompt", "x", "--out", "a.png", "--model", "nobody/nothing"], "cannot load a model from nobody/nothing"),
    ],
)  # fmt: skip
def test_generate_refuses_before_it_draws(call, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.png").mkdir()
    Path("good.jsonl").write_text('"x"')
    assert message in call(generate, *options).refusal()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png", "good.jsonl"]


def test_a_line_may_bring_its_seed_and_bad_prompts_are_told_by_line(call, tiny_checkpoint, tmp_path):
    file, out = tmp_path / "p.jsonl", tmp_path / "out"
    file.write_text('{"prompt": "a dog", "seed": 7}\n\n"a dog"\n')
    options = ("--prompts-file", file, "--out-dir", out, "--model", tiny_checkpoint)
    assert call(generate, *options).code == 0
    assert [json.loads(line)["seed"] for line in (out / "index.jsonl").read_text().splitlines()] == [7, 0]
    assert (out / "00000.png").read_bytes() != (out / "00001.png").read_bytes()
    file.write_text('"a dog"\n\n"a <image>"\n')
    assert f"{file}, line 3: the prompt holds <image>" in call(generate, *options).refusal()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a red apple", "line 3: no JSON"),
        (b'{"prompt": "x"', "line 3: no JSON"),
        (b"[" * 100_000, "line 3: no JSON"),
        (b'["x"]', "line 3: expected a JSON object"),
        (b'{"text": "x"}', "line 3: expected a JSON object"),
        (b'{"prompt": 5}', "line 3: expected a JSON object"),
        (b'{"prompt": " "}', "line 3: the prompt is empty"),
        (b'"\xff"', "line 3: not UTF-8 (byte 2)"),
        (None, "holds no prompts"),
    ],
)
def test_bad_lines_of_a_prompts_file(call, tmp_path, line, message):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\n" if line is None else b'"good"\n\n' + line + b'\n"good"\n')
    text = call(generate, "--prompts-file", file, "--out-dir", tmp_path / "d").refusal()
    assert str(file) in text and message in text
    assert sorted(os.listdir(tmp_path)) == ["p.jsonl"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("word " * 200, "is too long: "),
        ("an <image> of me", "the prompt holds <image>"),
        ("<|end|>", "the prompt holds <|end|>"),
        ("bad \udcff byte", "is not valid text: character 5"),
    ],
)
def test_prompts_that_the_model_cannot_take(call, tiny_checkpoint, tmp_path, prompt, message):
    result = call(generate, "--prompt", prompt, "--out", tmp_path / "d" / "a.png", "--model", tiny_checkpoint)
    assert message in result.refusal() and not os.listdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(APPLE)}\n{json.dumps(prompt)}")
    options = ("--prompts-file", tmp_path / "p.jsonl", "--out-dir", tmp_path / "d", "--batch-size", 1)
    assert message in call(generate, *options, "--model", tiny_checkpoint).refusal()
    assert sorted(os.listdir(tmp_path)) == ["p.jsonl"]  # the good prompt was not drawn either


def test_the_index_never_overwrites_its_own_prompts(call, tmp_path):
    (tmp_path / "index.jsonl").write_text('"x"')
    text = call(generate, "--prompts-file", tmp_path / "index.jsonl", "--out-dir", tmp_path).refusal()
    assert "would be overwritten" in text and (tmp_path / "index.jsonl").read_text() == '"x"'


def test_too_little_memory_is_told(call, tiny_checkpoint, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(generate, "draw", fail)
    result = call(generate, "--prompt", APPLE, "--out", tmp_path / "a.png", "--model", tiny_checkpoint)
    assert result.code == 2 and result.out == "" and not os.listdir(tmp_path)
    assert "not enough memory for 1 pictures at once; choose a smaller --batch-size" in result.err


# ---- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
])  # fmt: skip
def test_checkpoints_that_lack_a_file_or_hold_half(call, tiny_checkpoint, tmp_path, name):
    damaged = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 2])
    options = ("--prompt", APPLE, "--out", tmp_path / "a.png", "--model", damaged)
    assert f"cannot load a model from {damaged}: " in call(generate, *options).refusal()
    (damaged / name).unlink()
    assert name in call(generate, *options).refusal()
    assert sorted(os.listdir(tmp_path)) == ["damaged"]


@pytest.mark.parametrize("family", ["tiny_checkpoint", "tiny_cheers"])
def test_weights_that_are_not_the_model_s_are_refused_with_their_names(family, request, tmp_path):
    from safetensors.torch import load_file, save_file

    damaged = shutil.copytree(request.getfixturevalue(family), tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    first, second = (f"language_model.model.layers.0.self_attn.{name}.bias" for name in ("k_proj", "q_proj"))
    (width,) = weights[first].shape
    wrong = {
        f"lacks 2 tensors: {first}, {second}; is it cut off?": {first: None, second: None},
        "has no place for 1 tensors: more": {"more": weights[first].clone()},
        f"has in another shape 1 tensors: {first} (1,) (not ({width},))": {first: weights[first][:1].clone()},
    }
    for told, changes in wrong.items():
        changed = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
        save_file(changed, damaged / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=f"^{re.escape(f'{damaged}: the checkpoint {told}')}$"):
            load(damaged)


@pytest.mark.parametrize("device", ["cudda", "meta", "cuda:99"])
def test_devices_that_are_not_there(call, tiny_checkpoint, tmp_path, device):
    options = ("--prompt", APPLE, "--out", tmp_path / "a.png", "--model", tiny_checkpoint, "--device", device)
    assert f"device {device!r} cannot be used here" in call(generate, *options).refusal()


def test_weights_are_of_the_dtype_that_is_asked_for(call, tiny_checkpoint, tmp_path):
    for dtype, expected in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model, _ = open_model(str(tiny_checkpoint), "cpu", dtype)
        assert model.language_model.dtype == expected and model.image_tokenizer.dtype == torch.float32
    options = ("--prompt", APPLE, "--out", tmp_path / "a.png", "--model", tiny_checkpoint, "--device", "cpu", "--dtype")
    assert "argument --dtype: invalid choice: 'float16'" in call(generate, *options, "float16").refusal()
    assert call(generate, *options, "bfloat16").code == 0


# ---- what both share -----------------------------------------------------------------------------------------------


def ends_with(main) -> int:
    with pytest.raises(SystemExit) as ended:
        run(main)
    return ended.value.code


def test_exit_codes(capsys, monkeypatch):
    def fail(error):
        raise error

    monkeypatch.setattr(sys, "stdin", None)  # as after <&-
    assert ends_with(lambda: None) == 0
    assert ends_with(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")
    assert ends_with(lambda: fail(UserError("two\nlines"))) == 2
    assert capsys.readouterr() == ("", "error: two lines\n")
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
        run(lambda: fail(ZeroDivisionError()))


SAYS = "from semhitok.command_line import run\nrun(lambda: print(1, flush=True))"
FILLS = "import os\nfrom semhitok.command_line import run\nrun(lambda: os.write(os.open('/dev/full', 1), b'x'))"


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_only_what_stdout_cannot_take_is_told_without_a_traceback(options):
    def start(code: str, stdout) -> subprocess.CompletedProcess:
        words = [sys.executable, *options, "-c", code]
        return subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100)

    with open("/dev/full", "w") as full:
        told = start(SAYS, full)
    assert (told.returncode, told.stderr) == (2, "error: [Errno 28] No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    told = start(SAYS, writer)
    os.close(writer)
    assert (told.returncode, told.stderr) == (1, "")
    told = start(FILLS, subprocess.PIPE)  # another file's disk is full
    assert told.returncode == 1 and "Traceback" in told.stderr and "in <lambda>" in told.stderr


def test_help_is_no_error(call):
    for program in (generate, chat):
        result = call(program, "--help")
        assert result.code == 0 and "--model" in result.out and f"python -m {program.__name__}" in result.out


def test_options_are_not_guessed():
    parser = CommandLine("python x.py", "One line.\n\n    and another")
    assert parser.format_help().startswith("usage: python x.py [-h]\n\nOne line.\n\n    and another\n")
    parser.add_argument("--prompt")
    with pytest.raises(UserError, match="unknown option --promp "):
        parser.parse_args(["--promp", "x"])
    assert nearest("nothing alike", ["--prompt"]) == ""


def command(*words, **kwargs) -> subprocess.CompletedProcess:
    """A real process, as a user starts it."""
    words = [sys.executable, "-m", *[str(word) for word in words]]
    return subprocess.run(words, capture_output=True, text=True, timeout=200, env=os.environ, **kwargs)


def test_real_processes_are_quiet(tiny_checkpoint, tmp_path):
    path = tmp_path / "apple.png"
    drawn = command("unimllm.generate", "--prompt", APPLE, "--out", path, "--model", tiny_checkpoint)
    assert drawn.returncode == 0 and drawn.stdout == f"{path}\n"
    assert all(
        line.strip().startswith("drawing:") for line in drawn.stderr.replace("\r", "\n").split("\n") if line.strip()
    )
    talk = command("unimllm.chat", "--image", path, "--model", tiny_checkpoint, input="What is it?\n/draw \n")
    assert talk.returncode == 0 and len(talk.stdout.splitlines()) == 1
    cut, error = talk.stderr.splitlines()
    assert cut.startswith("... (cut at 64 tokens") and error == "error: write /draw PROMPT"


def test_a_real_process_ends_with_2(tmp_path):
    refused = command("unimllm.generate", "--prompt", APPLE, "--out", tmp_path / "none" / "a.xyz")
    assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_models_that_ship_have_names_but_folders_go_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_of("scenes") == folder_of(Path("scenes")) == DEFAULT_MODEL
    assert folder_of("scenes-cheers") == DEFAULT_MODEL / "cheers"
    assert folder_of("runs/none") == Path("runs/none")
    Path("scenes").mkdir()
    assert folder_of("scenes") == Path("scenes")


def test_the_first_line_of_an_error_that_says_nothing_is_its_name():
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(OSError("  \n")) == "OSError"
    assert first_line(ImportError("\ninstall it:\n  pip install it")) == "install it: pip install it"
    assert first_line(NotImplementedError()) == "NotImplementedError"


def test_a_device_that_fails_without_a_word_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("torch.zeros", fail)
    with pytest.raises(UserError, match="^device 'odd' cannot be used here: NotImplementedError$"):
        choose_device("odd")


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory."), MemoryError()])
def test_a_full_memory_is_told_with_what_to_do(error):
    with pytest.raises(UserError, match="^not enough memory for 7 pictures at once; draw fewer$"):
        with out_of_memory_told(7, "draw fewer"):
            raise error
    with pytest.raises(RuntimeError, match="other"), out_of_memory_told(7):
        raise RuntimeError("other")
