"""`train/sft.py --data` from the command line: a LLaVA data set trained on, stopped, resumed bit for bit, loaded."""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import load_program
from llava_files import write_llava
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import unimllm
from unimllm.data.open_data import differences
from unimllm.data.sample_index import check_one_root
from unimllm.errors import UserError
from unimllm.training import checkpoint, language_model, language_options
from unimllm.training.presets import SFT_PRESETS

SFT = Path(__file__).parent.parent / "train" / "sft.py"
STEPS = 4
LORA_FILES = ("model.safetensors", "lora/adapter_model.safetensors", "lora/trained_in_full.safetensors")


def run_sft(*options, processes: int = 1) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(SFT), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=800)


def losses(result: subprocess.CompletedProcess) -> dict[int, float]:
    assert result.returncode == 0, result.stderr[-2000:]
    return {int(s): float(loss) for s, loss in re.findall(r"step (\d+)/\d+ loss (\S+)", result.stdout)}


@pytest.fixture(scope="module")
def command(tiny_checkpoint, tmp_path_factory) -> list:
    data = write_llava(tmp_path_factory.mktemp("mine"))
    return [
        "--init-from", tiny_checkpoint, "--data", data, "--image-root", data.parent / "images", "--ratios", "2:2:1",
        "--max_length", 80, "--max-steps", STEPS, "--train.batch_size", 4, "--train.compile", "false",
        "--train.precision", "fp32", "--train.save_minutes", 0, "--train.keep_checkpoints", STEPS,
        "--train.num_threads", 1,
    ]  # fmt: skip


@pytest.mark.timeout(900)
def test_a_llava_file_is_trained_on_and_resumed_bit_for_bit(command, tmp_path):
    straight = run_sft(*command, "--output-dir", tmp_path / "straight" / "sft")
    expected = losses(straight)
    assert list(expected) == [1, 2, 3, 4]
    assert "20 samples in 1 JSON file: 14 understanding, 5 drawing, 1 text" in straight.stdout
    assert "data.json, drawing: 5 samples" in straight.stdout and "40.0%" in straight.stdout
    folder = checkpoint.latest(tmp_path / "straight" / "sft")
    data = checkpoint.read_run(folder)["recipe"]["data"]
    assert data["samples"] == 20 and len(data["fingerprint"]) == 12
    assert data["sources"][0]["weight"] == 1 and (data["ratios"], data["codes"]) == ("2:2:1", None)

    stopped = tmp_path / "stopped" / "sft"
    shutil.copytree(tmp_path / "straight" / "sft", stopped)
    for step in (3, 4):
        shutil.rmtree(stopped / f"step-00000{step}")
    shutil.copy(command[3], tmp_path / "held_out.json")
    watching = ["--train.picture_every", 3, "--validation-data", tmp_path / "held_out.json"]
    begun = command[2:]  # --init-from is not needed any more
    resumed = run_sft(*begun, "--output-dir", stopped, *watching, "--train.num_workers", 1)  # none changes the run
    assert "resuming from step-000002" in resumed.stdout and "warning" not in resumed.stdout
    assert losses(resumed) == {3: expected[3], 4: expected[4]}
    weights = [(place / "model.safetensors").read_bytes() for place in (folder, checkpoint.latest(stopped))]
    assert weights[0] == weights[1]

    curves = EventAccumulator(str(stopped / "tensorboard")).Reload()
    assert [event.step for event in curves.Images("pictures")] == [3]
    parts = {f"validation/held_out.json/{part}" for part in ("text", "image")}
    assert {"loss", "grad_norm", "tokens_per_second", "waiting", "memory_gib"} | parts <= set(curves.Tags()["scalars"])
    assert (
        "rows with 20 of its samples" in resumed.stdout and "step 4/4 validation: held_out.json text" in resumed.stdout
    )

    model, processor = unimllm.load(folder, "cpu")
    assert unimllm.draw(model, processor, ["a photo of two dogs"])[0].size == (16, 16)


@pytest.mark.timeout(900)
def test_lora_is_trained_and_resumed_bit_for_bit(command, tmp_path):
    options = [*command, "--lora_rank", 2, "--train.learning_rate", 1e-2, "--train.weight_decay", 0]
    expected = losses(run_sft(*options, "--output-dir", tmp_path / "sft"))
    straight = [checkpoint.latest(tmp_path / "sft") / name for name in LORA_FILES]
    kept = [file.read_bytes() for file in straight]
    for step in (3, 4):
        shutil.rmtree(tmp_path / "sft" / f"step-00000{step}")
    resumed = run_sft(*options, "--output-dir", tmp_path / "sft")
    assert "resuming from step-000002" in resumed.stdout and losses(resumed) == {3: expected[3], 4: expected[4]}
    assert [file.read_bytes() for file in straight] == kept
    before = (tmp_path / "sft" / "step-000002" / LORA_FILES[1]).read_bytes()
    assert before != kept[1]


@pytest.mark.timeout(900)
def test_two_processes_go_on_where_one_stopped(command, tmp_path):
    expected = losses(run_sft(*command, "--output-dir", tmp_path / "sft"))
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "sft" / f"step-00000{step}")
    resumed = losses(run_sft(*command, "--output-dir", tmp_path / "sft", processes=2))
    assert list(resumed) == [2, 3, 4]
    for step, loss in resumed.items():
        assert loss == pytest.approx(expected[step], abs=2e-4)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"init_from": "a", "language_model": ""}, ""),
        ({"init_from": "b", "language_model": ""}, "began from b; a is not read: name a new --output-dir"),
        ({"init_from": None, "language_model": "c"}, "began from c; a is not read"),
    ],
)
def test_another_beginning_than_that_of_the_run_gone_on_with_is_told(before, told, capsys):
    checkpoint.warn_of_start(before, "a", Path("step-000001"))
    out = capsys.readouterr().out
    assert told in out and bool(told) == out.startswith("warning: ")
    checkpoint.warn_of_start(before, None, Path("step-000001"))  # nothing is named, or what is gone
    assert capsys.readouterr().out == ""


def begun(folder: Path, **recipe) -> Path:
    """A checkpoint of a run, as far as it tells what the run began from."""
    folder = folder / "step-000001"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"step": 1, "recipe": recipe}))
    return folder


def test_a_run_goes_on_from_its_own_checkpoint_whatever_became_of_its_beginning(tmp_path, capsys):
    found = begun(tmp_path, init_from="/gone", language_model="x", chat_template="y", model={"pixel_dim": 8})
    args = Namespace(init_from="/gone", image_tokenizer="/gone/too", language_model=None)
    recipe = Namespace(lora_rank=0, alignment_weight=0)
    assert language_model.go_on(args, recipe, found) == {"init_from": "/gone", "model": {"pixel_dim": 8}}
    assert (args.init_from, args.image_tokenizer) == (str(found), None)
    assert (recipe.language_model, recipe.chat_template) == ("x", "y") and "warning" not in capsys.readouterr().out
    found = begun(tmp_path / "b", init_from=None, image_tokenizer="/gone/too")
    args = Namespace(init_from=None, image_tokenizer=str(tmp_path), language_model=None)
    assert language_model.go_on(args, recipe, found) == {"init_from": None, "image_tokenizer": "/gone/too"}
    assert f"warning: --image-tokenizer {tmp_path} is not read: {found} has its own" in capsys.readouterr().out


def test_lora_goes_on_over_a_base_that_moved(tiny_checkpoint, tmp_path, capsys):
    found = begun(tmp_path, init_from="/gone")
    args = Namespace(init_from=tiny_checkpoint, image_tokenizer=None, language_model=None)
    about = language_model.go_on(args, Namespace(lora_rank=2), found)
    assert about == {"init_from": str(tiny_checkpoint.resolve())} and args.init_from == about["init_from"]
    assert f"began from is read from {about['init_from']}, no more from /gone" in capsys.readouterr().out
    assert not checkpoint.changes({"init_from": "/gone"}, about)
    args.init_from = None
    with pytest.raises(UserError, match="--init-from /gone: no such folder"):
        language_model.go_on(args, Namespace(lora_rank=2), found)


def test_what_differs_between_two_data_sets_is_named():
    def note(ratios: str | None = None, codes: str | None = None, **sources) -> dict:
        noted = [{"place": place, "weight": w, "samples": n, "files": f} for place, (w, n, f) in sources.items()]
        return {"sources": noted, "ratios": ratios, "image_root": None, "codes": codes}

    before = note("2:2:1", a=(3.0, 20, "f"), b=(1.0, 5, "g"), c=(1.0, 9, "h"))
    assert differences(before, before) == []
    assert differences(before, note(None, "codes", a=(1.0, 20, "f"), b=(1.0, 7, "i"), d=(1.0, 9, "h"))) == [
        "c is left out", "d is new", "a: weight 3 -> 1", "b: other files, 5 samples -> 7", "--ratios 2:2:1 -> none",
        "--codes none -> codes",
    ]  # fmt: skip
    assert differences({"sources": ["a"]}, before) == []  # of a version that named places alone


@pytest.mark.parametrize(("step", "told"), [(17, "x was stopped at step 17 of 400"), (400, "")])
def test_a_beginning_that_was_stopped_is_told(step, told, tmp_path, capsys):
    begin = tmp_path / "x"
    begin.mkdir()
    (begin / "run.json").write_text(json.dumps({"step": step, "recipe": {"train": {"max_steps": 400}}}))
    checkpoint.warn_of_stopped(str(begin))
    out = capsys.readouterr().out
    assert told in out and bool(told) == out.startswith("warning: --init-from ")


def test_no_drawings_under_zero_3_are_told(capsys):
    recipe = SFT_PRESETS["scenes_64"]()
    recipe.train.zero_stage = 3
    assert language_model.picture_drawer(None, None, recipe) is None
    assert capsys.readouterr().out.startswith("no drawings are shown (train.picture_every): ZeRO 3 would ")
    recipe.train.picture_every = 0
    assert language_model.picture_drawer(None, None, recipe) is None and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios", "1:1:1"], "--ratios is about --data"),
        (["--data", SFT, "--drawing_share", 0.5], "--drawing_share is about scenes, of which a run with --data has"),
        (["--data", SFT, "--drawing_share", 0.5], "none: --ratios U:D:T sets the shares of understanding, drawing and"),
        (["--data", SFT, "--num_scenes", 5], "--num_scenes is about scenes"),
        (["--data", SFT, "--world.image_size", 32], "--world.image_size is about scenes, of which a run with --data"),
        (["--data", SFT, "--format", "llava", "--image-root", "nowhere"], "--image-root nowhere: no such folder"),
        (["--data", "nowhere.json"], "--data nowhere.json: no such file or folder"),
        (["--data", "{000..009}.tar"], "--data {000..009}.tar: no such file or folder; a pattern is for the shell"),
        (["--validation-data", SFT, "--format", "llava"], "is about --data"),
        (
            ["--data", SFT, "--validation-data", "nowhere.json", "--format", "llava"],
            "--validation-data nowhere.json: no",
        ),
        (["--data", SFT, "--validation-data", SFT, "--format", "llava"], "is in --data too: "),
        (["--data", "some/body", "--validation-data", "some/body"], "is in --data too: some/body; hold out"),
        (["--data", SFT, "--format", "llava", "--train.validate_every", 5], "name them with --validation-data"),
        (["--data", SFT, "--format", "llava", "--text-tokenizer", "no/such"], "--text-tokenizer no/such: "),
    ],
)
def test_options_that_do_not_fit_end_with_one_line(options, message, tmp_path, monkeypatch):
    program = load_program("train/sft.py")
    monkeypatch.setattr(sys, "argv", ["sft.py", *map(str, options), "--output-dir", str(tmp_path / "out")])
    with pytest.raises(UserError) as caught:
        program.main()
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_codes_of_pictures_below_several_folders_are_refused(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text('{"image": "0.png", "caption": "a dog"}')
    program = load_program("train/sft.py")
    command = ["sft.py", "--output-dir", tmp_path / "out", "--codes", tmp_path / "codes", "--data", tmp_path / "a"]
    for more in (["--data", tmp_path / "b"], ["--validation-data", tmp_path / "b"]):
        monkeypatch.setattr(sys, "argv", [*map(str, command + more)])
        with pytest.raises(UserError, match=f"begin in {tmp_path}/a and in {tmp_path}/b here, .* with --image-root"):
            program.main()
    command += ["--data", tmp_path / "b", "--image-root", tmp_path]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(UserError) as told:  # something else: one root for all
        program.main()
    assert "begin in" not in str(told.value)
    check_one_root([tmp_path / "a" / name for name in ("x.jsonl", "y.json")])  # one folder


def test_validation_data_in_a_folder_that_is_trained_on_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine" / "more").mkdir(parents=True)
    for name in ("mine/a.json", "mine/more/b.json", "c.json"):
        (tmp_path / name).write_text("[]")
    (tmp_path / "link.json").symlink_to("mine/more/b.json")
    recipe = Namespace(train=Namespace(validate_every=1))

    def check(data: str, validation: str):
        args = Namespace(data=[data], validation_data=[validation], format=None, overrides={})
        language_options.check_validation(args, recipe, language_options.found_files(args))

    for data, validation in (
        (f"{tmp_path}/mine", f"{tmp_path}/link.json"), ("~/mine:2", "~/mine/more"), ("~/mine/more/b.json", "~/mine")
    ):  # fmt: skip
        with pytest.raises(
            UserError, match=f"^--validation-data {validation} is in --data too: {tmp_path}/mine/more/b"
        ):
            check(data, validation)
    check("~/mine", "~/c.json")
