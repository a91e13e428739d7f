"""eval/compare.py on made-up results, and scripts/ablate_tokenizer.sh with nothing behind it that trains."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import load_program

from unimllm.report import write_json
from unimllm.training.presets import (
    DECODER_PRESETS,
    JOINT_PRESETS,
    PIXEL_PRESETS,
    SEMANTIC_PRESETS,
    SFT_PRESETS,
    TEACHER_PRESETS,
)

ROOT = Path(__file__).parents[1]
PROGRAM, SCRIPT = ROOT / "eval" / "compare.py", ROOT / "scripts" / "ablate_tokenizer.sh"

pytestmark = pytest.mark.skipif(
    not PROGRAM.is_file(), reason="eval/compare.py is not beside the tests (they run on an installed package)"
)


@pytest.fixture(scope="module")
def program():
    return load_program("eval/compare.py")


def write(folder: Path, variant: str, seed: int, psnr: float | None = None, right: float | None = None, **more) -> None:
    """Results of one run; a number that is None leaves its file out."""
    place = folder / variant / f"seed-{seed}"
    place.mkdir(parents=True)
    if psnr is not None:
        tokenizer = {"data": "scenes", "split": "validation", "limit": None, "num_pictures": 1000, "resolution": 64,
                     "psnr": psnr, "ssim": 0.9, "semantic_code_use": 1.0, "flat_code_use": 0.5,
                     "frechet": {"FD(own SigLIP)": {"distance": 3.14159}}}  # fmt: skip
        (place / "tokenizer.json").write_text(json.dumps(tokenizer | more))
        features = {"split": "validation", "seed": 0, "num_pictures": 1000, "num_training_pictures": 4000, "code": 0.75}
        (place / "features.json").write_text(json.dumps(features))
    if right is not None:
        understanding = {"split": "validation", "seed": 0, "limit": None, "num_questions": 2000, "reader": "r",
                         "num_pope_questions": 600, "question_accuracy": right, "pope_f1": 0.8}  # fmt: skip
        (place / "understanding.json").write_text(json.dumps(understanding | more))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_mean_spread_and_missing_runs(program, tmp_path, capsys):
    for seed, (psnr, right) in enumerate([(27.0, 0.60), (28.0, 0.62), (30.0, None)]):
        write(tmp_path, "phased", seed, psnr, right)
    write(tmp_path, "joint", 0, 26.5, 0.5)
    write(tmp_path, "joint", 1)
    write(tmp_path, "flat", 0, right=0.55, geneval={"overall": 0.25})
    program.main([str(tmp_path), "--json", str(tmp_path / "table.json")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "| Tokenizers of 4,096 ids | PSNR, dB | SSIM | FD(own SigLIP) | semantic codes used | all codes used | "
        "objects told by one code | questions right | POPE F1 |"
    )
    assert lines[1] == "| --- |" + " ---: |" * 8
    # 27, 28, 30: mean 28.33, squared deviations 1.78 + 0.11 + 2.78 = 4.67, / 2, root 1.53
    phased = next(line for line in lines if line.startswith("| SemHiTok, trained in phases"))
    assert phased.startswith(
        "| SemHiTok, trained in phases | 28.33 +- 1.53 (3) | 0.900 +- 0.000 (3) | 3.14 +- 0.00 (3) |"
    )
    assert phased.endswith("| 0.610 +- 0.014 (2) | 0.800 +- 0.000 (2) |")
    assert "| SemHiTok, trained jointly | 26.50 | 0.900 | 3.14 | 1.000 | 0.500 | 0.750 | 0.500 | 0.800 |" in lines
    assert "| pixel-only VQ |  |  |  |  |  |  |  |  |" in lines
    assert any(line.startswith("| m = 16 | 28.33 +- 1.53 (3)") for line in lines)
    heads = lines.index("| Image head (SemHiTok in phases; models that draw, too) | questions right | POPE F1 | "
                        "GenEval-style drawing |")  # fmt: skip
    assert lines[heads + 2 : heads + 4] == ["| flat | 0.550 | 0.800 | 0.250 |", "| factorised |  |  |  |"]
    missing = lines[-1]
    assert missing.startswith("Missing: ") and missing.endswith("factorised: not started.")
    for what in (
        "phased, seed 2: understanding.json;", "joint, seed 1: tokenizer.json;", "joint, seed 1: understanding.json;",
        "pixel_only: not started;", "m8: not started;", "enhanced: not started;",
    ):  # fmt: skip
        assert what in missing
    assert "phased, seed 0" not in missing and "flat" not in missing
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["variants"]["phased"]["PSNR, dB"]["values"] == [27.0, 28.0, 30.0]
    assert table["variants"]["joint"]["PSNR, dB"] == {"mean": 26.5, "spread": None, "values": [26.5]}


def test_the_state_of_the_code_stands_below_the_tables(program, call, tmp_path):
    write(tmp_path, "phased", 0, right=0.5, commit="0123456789abcdef")
    assert call(program, tmp_path).out.split("\n\n")[-2] == "commits: 0123456"
    write(tmp_path, "joint", 0, right=0.5, commit="0123456789abcdef-dirty")
    write(tmp_path, "m1", 0, right=0.5)
    told = call(program, tmp_path, "--json", tmp_path / "table.json").out
    assert "\ncommits: 0123456, 0123456 with changes, unknown\nNote: measured by more than one state of" in told
    commits = json.loads((tmp_path / "table.json").read_text())["commits"]
    assert commits == ["0123456", "0123456 with changes", "unknown"]


def test_what_was_measured_stands_below_the_tables(program, call, tmp_path):
    write(tmp_path, "phased", 0, 27.0, 0.5)
    told = call(program, tmp_path, "--json", tmp_path / "table.json").out.split("\n\n")[-3]
    assert told.splitlines() == [
        "tokenizer.json: validation split, limit none, 1,000 pictures",
        "features.json: validation split, 1,000 pictures, 4,000 training pictures",
        "understanding.json: validation split, limit none, 2,000 questions, 600 pope questions",
    ]
    change(tmp_path / "phased" / "seed-0" / "features.json", limit=8, num_pictures=8)
    assert "\nfeatures.json: validation split, limit 8, 8 pictures, " in call(program, tmp_path).out
    measured_on = json.loads((tmp_path / "table.json").read_text())["measured_on"]
    assert measured_on["understanding.json"]["split"] == "validation"


def test_a_file_of_another_program_or_of_another_run_s_model_is_refused(program, call, tmp_path):
    write(tmp_path, "flat", 0, right=0.5, fingerprint="aa", program="eval/scenes.py")
    write(tmp_path, "factorised", 0, right=0.5, fingerprint="aa")
    told = call(program, tmp_path).refusal()
    assert "factorised/seed-0/understanding.json and flat/seed-0/understanding.json are of the same weights, aa" in told
    write(tmp_path, "factorised", 1, right=0.5, fingerprint="bb", program="eval/pope.py")
    (tmp_path / "factorised" / "seed-0" / "understanding.json").unlink()
    told = call(program, tmp_path).refusal()
    assert "factorised/seed-1/understanding.json is of 'eval/pope.py', not of eval/scenes.py; remove it" in told


def test_a_value_that_is_null_is_named(program, call, tmp_path):
    write(tmp_path, "phased", 0, 27.0)
    write(tmp_path, "phased", 1, 27.0)
    change(tmp_path / "phased" / "seed-1" / "tokenizer.json", psnr=None)
    told = call(program, tmp_path).out
    assert "phased, seed 1: PSNR, dB (null in tokenizer.json, as infinite values are)" in told
    assert "| SemHiTok, trained in phases | 27.00 | 0.900 +- 0.000 (2) |" in told
    write(tmp_path, "flat", 0, right=0.5, geneval={"overall": None})
    told = call(program, tmp_path).out
    assert "flat, seed 0: GenEval-style drawing (null in understanding.json, as means of a part are)" in told


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"psnr": "x"}, "phased/seed-0/tokenizer.json: PSNR, dB is 'x', no number"),
        ({"ssim": True}, "SSIM is True, no number"),
        ({"frechet": None}, "phased/seed-0/tokenizer.json is damaged: 'frechet' is None"),
        ({"frechet": {"FD": 3}}, "'frechet' is {'FD': 3}"),
        ({"frechet": {"FD": {"distance": [], "library": None}}}, "FD is [], no number"),
    ],
)
def test_a_damaged_value_is_one_line(program, call, tmp_path, values, message):
    write(tmp_path, "phased", 0, 27.0)
    change(tmp_path / "phased" / "seed-0" / "tokenizer.json", **values)
    assert message in call(program, tmp_path).refusal()


def test_a_damaged_score_of_drawings_is_one_line(program, call, tmp_path):
    write(tmp_path, "flat", 0, right=0.5, geneval=None)
    assert "flat/seed-0/understanding.json is damaged: no GenEval-style" in call(program, tmp_path).refusal()


def test_the_results_in_the_repository_can_be_compared(program, call):
    ended = call(program, ROOT / "docs" / "ablation" / "results")
    assert ended.code == 0 and "\ncommits: " in ended.out and "Note:" not in ended.out


def test_what_cannot_be_compared_is_refused(program, call, tmp_path):
    assert "no results in" in call(program, tmp_path).refusal()
    write(tmp_path, "phased", 0, 27.0)
    write(tmp_path, "joint", 0, 27.0, split="test")
    refusal = call(program, tmp_path).refusal()
    assert "phased/seed-0/tokenizer.json has split 'validation' and joint/seed-0/tokenizer.json 'test'" in refusal
    change(tmp_path / "joint" / "seed-0" / "tokenizer.json", split="validation")
    for file, values in (("tokenizer", {"classes_digest": "aa"}), ("features", {"image_size": 32}),
                         ("tokenizer", {"glyphs_digest": "bb"})):  # fmt: skip
        change(tmp_path / "joint" / "seed-0" / f"{file}.json", **values)
        assert call(program, tmp_path).code == 0  # the other file is of an earlier version, which did not tell
        ((key, value),) = values.items()
        change(tmp_path / "phased" / "seed-0" / f"{file}.json", **{key: "other"})
        told = f"phased/seed-0/{file}.json has {key} 'other' and joint/seed-0/{file}.json {value!r}"
        assert told in call(program, tmp_path).refusal()
        change(tmp_path / "phased" / "seed-0" / f"{file}.json", **values)
    (tmp_path / "joint" / "seed-0" / "tokenizer.json").write_text("{")
    assert "joint/seed-0/tokenizer.json cannot be read" in call(program, tmp_path).refusal()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "phased,vila"], "error: unknown variant vila; choose of: phased joint"),
        (["--seeds", "0,one"], "error: seed one is no whole number"),
        (["--seed", "0"], "error: unknown option --seed; "),
        (["--out"], "error: --out needs a value"),
    ],
)
def test_the_script_refuses_in_one_line(options, message):
    ended = subprocess.run(["bash", str(SCRIPT), *options], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith(message) and ended.stderr.count("\n") == 1


STUB = """
ROOT="$PWD" VENV_PYTHON=measuring
die() { echo "error: $*" >&2; exit 2; }
begin() { :; }
took() { :; }
install_package() { :; }
launch() { echo "launch $*"; mkdir -p "$3"; [ ! -e stop ]; }
measuring() { echo "python $*"; [ "$2" != --json ] || echo '{}' > "$3"; }
"""
PRESETS = {
    "semantic": SEMANTIC_PRESETS, "pixel": PIXEL_PRESETS, "decoder": DECODER_PRESETS, "joint": JOINT_PRESETS,
    "train/teacher.py": TEACHER_PRESETS, "train/sft.py": SFT_PRESETS,
}  # fmt: skip


def plan(place: Path, *options: str, fails: bool = False) -> list[list[str]]:
    """The commands that the script would have run in a folder."""
    ended = run_script(place, *options)
    assert (ended.returncode != 0) == fails and not ended.stderr, ended.stderr
    return [line.split() for line in ended.stdout.splitlines()]


def run_script(place: Path, *options: str) -> subprocess.CompletedProcess:
    (place / "scripts").mkdir(exist_ok=True)
    (place / "scripts" / "install.sh").write_text(STUB)
    for script in (SCRIPT, SCRIPT.with_name("ablation.sh")):
        (place / "scripts" / script.name).write_bytes(script.read_bytes())
    words = ["bash", str(place / "scripts" / SCRIPT.name), *options]
    return subprocess.run(words, capture_output=True, text=True, cwd=place)


def refusal(place: Path, *options: str) -> str:
    """The one line of a script that refuses before it does anything."""
    ended = run_script(place, *options)
    assert ended.returncode == 2 and not ended.stdout and ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def after(command: list[str], option: str) -> str | None:
    """The value of an option, None without it."""
    return command[command.index(option) + 1] if option in command else None


def test_everything_is_trained_once_in_order_and_measured(program, tmp_path):
    commands = plan(tmp_path)
    outputs = [after(command, "--output-dir") for command in commands if command[0] == "launch"]
    # a teacher; seed 0: 13 tokenizers, 3 semantic stages before them, 13 models; seeds 1 and 2: 2, 1 and 2 each
    assert len(outputs) == len(set(outputs)) == 1 + (13 + 3 + 13) + 2 * (2 + 1 + 2)
    for command in commands[:-1]:
        if command[0] == "launch":
            assert after(command, "--preset") in PRESETS[after(command, "--stage") or command[1]]
        made = outputs[: outputs.index(after(command, "--output-dir"))] if command[0] == "launch" else outputs
        for option in ("--teacher", "--init-from", "--image-tokenizer", "--model"):
            assert after(command, option) in (None, *made)
    measured = {tuple(Path(after(command, "--json")).parts[-3:]) for command in commands[:-1] if "--json" in command}
    wanted = {(name, file) for group in program.GROUPS.values() for name, (_, files) in group.items() for file in files}
    assert {(name, file) for name, seed, file in measured if seed == "seed-0"} == wanted
    rest = {(name, seed) for name, seed, _ in measured if seed != "seed-0"}
    assert rest == {(name, seed) for name in ("phased", "joint") for seed in ("seed-1", "seed-2")}
    assert commands[-1][:3] == ["python", "eval/compare.py", "runs/ablation/results"]
    assert plan(tmp_path) == commands[-1:]  # run again, it finds all finished


def test_a_broken_run_goes_on_where_it_was(tmp_path):
    (tmp_path / "stop").touch()
    options = ("--only", "m4", "--seeds", "5", "--teacher", "T", "--tokenizers-only", "--out", "here")
    (first,) = plan(tmp_path, *options, fails=True)
    assert after(first, "--output-dir") == "here/seed-5/semantic" and after(first, "--train.seed") == "5"
    (tmp_path / "stop").unlink()
    commands = plan(tmp_path, *options)
    assert commands[0] == first and after(commands[1], "--model.num_pixel_codes") == "4"
    assert [command[1] for command in commands[2:]] == ["eval/reconstruction.py", "eval/features.py", "eval/compare.py"]


def test_results_alone_are_enough_to_go_on_elsewhere(tmp_path):
    plan(tmp_path, "--only", "joint,flat", "--teacher", "T")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "ablation" / "results").rename(tmp_path / "elsewhere" / "results")
    (again,) = plan(tmp_path, "--only", "joint,flat", "--teacher", "T", "--out", "elsewhere")
    assert again[1] == "eval/compare.py"
    (tmp_path / "elsewhere" / "results" / "joint" / "seed-0" / "understanding.json").unlink()
    commands = plan(tmp_path, "--only", "joint,flat", "--teacher", "T", "--out", "elsewhere")
    assert [command[1] for command in commands] == [
        "train/tokenizer.py", "train/sft.py", "eval/scenes.py", "eval/compare.py",
    ]  # fmt: skip


def test_what_was_measured_otherwise_is_not_passed_over(tmp_path):
    options = ("--only", "phased,m4", "--teacher", "T", "--out", "here")
    plan(tmp_path, *options)
    file = tmp_path / "here" / "results" / "m4" / "seed-0" / "features.json"
    write_json(file, {"split": "validation", "limit": None})
    (again,) = plan(tmp_path, *options)
    assert again[1] == "eval/compare.py"
    told = refusal(tmp_path, *options, "--split", "test")
    name = "here/results/m4/seed-0/features.json"
    assert told.startswith(f'error: {name} was measured with split "validation", asked for is "test": choose another')
    write_json(file, {"split": "validation", "limit": 8})
    assert f"{name} was measured with limit 8, asked for is null" in refusal(tmp_path, *options)


def test_what_was_trained_otherwise_is_not_passed_over(tmp_path):
    options = ("--only", "m4", "--out")
    plan(tmp_path, *options, "here", "--teacher", "T")
    (tmp_path / "here").rename(tmp_path / "there")
    (again,) = plan(tmp_path, *options, "there", "--teacher", "T")
    assert again[1] == "eval/compare.py"
    told = refusal(tmp_path, *options, "there", "--teacher", "U")
    assert "error: there/seed-0/semantic was trained by `train/tokenizer.py --train.seed 0 --preset ablation" in told
    assert "--teacher T`, asked for is `train/tokenizer.py" in told
    for mark in (tmp_path / "there").rglob("finished"):
        mark.write_text("")  # of an earlier version, which did not keep the command
    assert len(plan(tmp_path, *options, "there", "--teacher", "U")) == 1
