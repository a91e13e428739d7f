"""scripts/ablate_cheers.sh with nothing behind it that trains, and eval/cheers_gate.py on a tiny random model."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, load_program
from transformers import BatchFeature

from unimllm import CheersForConditionalGeneration
from unimllm.cheers.configuration_cheers import tiny_config
from unimllm.errors import UserError
from unimllm.report import write_json

ROOT = Path(__file__).parents[1]
PROGRAM, SCRIPT = ROOT / "eval" / "cheers_gate.py", ROOT / "scripts" / "ablate_cheers.sh"

pytestmark = pytest.mark.skipif(
    not PROGRAM.is_file(), reason="eval/cheers_gate.py is not beside the tests (they run on an installed package)"
)

# ---- the script -----------------------------------------------------------------------------------------------------

STUB = """
ROOT="$PWD" VENV_PYTHON=measuring
die() { echo "error: $*" >&2; exit 2; }
begin() { :; }
took() { :; }
install_package() { :; }
launch() { echo "launch $*"; mkdir -p "$3"; }
measuring() { echo "python $*"; echo '{}' > "$3"; }
"""


def plan(place: Path, *options: str) -> list[list[str]]:
    """The commands that the script would have run in a folder."""
    ended = run_script(place, *options)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    return [line.split() for line in ended.stdout.splitlines() if line.startswith(("launch", "python"))]


def run_script(place: Path, *options: str) -> subprocess.CompletedProcess:
    (place / "scripts").mkdir(exist_ok=True)
    (place / "scripts" / "install.sh").write_text(STUB)
    for script in (SCRIPT, SCRIPT.with_name("ablation.sh")):
        (place / "scripts" / script.name).write_bytes(script.read_bytes())
    words = ["bash", str(place / "scripts" / SCRIPT.name), *options]
    return subprocess.run(words, capture_output=True, text=True, cwd=place)


def after(command: list[str], option: str) -> str | None:
    return command[command.index(option) + 1] if option in command else None


def test_every_variant_is_trained_once_over_one_autoencoder_and_measured(tmp_path):
    commands = plan(tmp_path)
    trained = [c for c in commands if c[0] == "launch"]
    assert [c[1] for c in trained] == ["train/teacher.py", "train/tokenizer.py"] + ["train/sft.py"] * 6
    assert {after(c, "--image-tokenizer") for c in trained[2:]} == {"runs/scenes_64_cheers/vae"}
    assert {after(c, "--teacher") for c in trained[1:]} == {"runs/scenes_64/teacher"}
    assert [after(c, "--train.seed") for c in trained[2:]] == ["0"] * 4 + ["1"] * 2
    assert {after(c, "--train.max_steps") for c in trained[2:]} == {"1200"}
    parts = [(after(c, "--model.inject_details"), after(c, "--model.decode_before_siglip"), after(c, "--drawing_share"))
             for c in trained[2:6]]  # fmt: skip
    assert parts == [(None,) * 3, ("false", None, None), (None, "false", None), (None, None, "0")]
    measured = [c for c in commands if c[0] == "python"]
    assert [c[1] for c in measured].count("eval/scenes.py") == 6
    assert ["--no-drawing" in c for c in measured].count(True) == 1
    assert [after(c, "--plot") for c in measured if c[1] == "eval/cheers_gate.py"] == [
        f"runs/ablation_cheers/results/cheers/seed-{seed}/gate.svg" for seed in (0, 1)
    ]
    assert plan(tmp_path) == []  # run again, it finds all finished


def test_some_variants_alone(tmp_path):
    options = ("--only", "no_decoder", "--seeds", "3,4", "--teacher", "T", "--vae", "V", "--out", "here", "--smoke")
    commands = plan(tmp_path, *options, "--steps", "30")
    assert after(commands[0], "--train.max_steps") == "30"
    assert [after(c, "--output-dir") for c in commands if c[0] == "launch"] == [
        "here/seed-3/no_decoder", "here/seed-4/no_decoder",
    ]  # fmt: skip
    assert after(commands[0], "--max-steps") == "20" and after(commands[1], "--limit") == "8" and len(commands) == 4


def test_a_smoke_test_leaves_nothing_that_the_real_thing_would_go_on_over(tmp_path):
    commands = plan(tmp_path, "--smoke", "--only", "cheers")
    folders = [after(c, "--output-dir") for c in commands if c[0] == "launch"]
    out = "runs/ablation_cheers_smoke"
    assert folders == [f"{out}/scenes_64/teacher", f"{out}/scenes_64_cheers/vae", f"{out}/seed-0/cheers"]
    assert after(commands[2], "--teacher") == folders[0] and after(commands[2], "--image-tokenizer") == folders[1]
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["ablation_cheers_smoke"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "600"), "here/seed-0/no_decoder was trained by `train/sft.py"),
        (
            ("--batch-size", "8"),
            "--train.batch_size 48 --model.decode_before_siglip false`, asked for is `train",
        ),
        (("--split", "test"), 'understanding.json was measured with split "validation", asked for is "test"'),
    ],
)
def test_other_options_over_an_earlier_run_are_refused(tmp_path, options, message):
    earlier = ("--only", "no_decoder", "--teacher", "T", "--vae", "V", "--out", "here")
    plan(tmp_path, *earlier)
    file = tmp_path / "here" / "results" / "no_decoder" / "seed-0" / "understanding.json"
    write_json(file, {"split": "validation", "limit": None})
    assert plan(tmp_path, *earlier) == []
    ended = run_script(tmp_path, *earlier, *options)
    assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "cheer"], "error: unknown variant cheer; choose of: cheers no_injection"),
        (["--seeds", "x"], "error: seed x is no whole number"),
        (["--vae"], "error: --vae needs a value"),
        (["--steps", "0"], "error: --steps 0 is no number of steps"),
        (["--fast"], "error: unknown option --fast"),
    ],
)
def test_mistakes_of_the_script_are_one_line(options, message):
    ended = subprocess.run(["bash", str(SCRIPT), *options], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith(message) and ended.stderr.count("\n") == 1


# ---- the gate -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program():
    return load_program("eval/cheers_gate.py")


class FakeProcessor:
    """Prompts that begin with another id each."""

    def for_drawing(self, prompts: list[str]) -> BatchFeature:
        ids = torch.tensor([[9 + i, 4] for i in range(len(prompts))])
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def tiny_model(**changes) -> CheersForConditionalGeneration:
    torch.manual_seed(0)
    return CheersForConditionalGeneration(tiny_config(**changes)).eval()


def options(num_steps: int, guidance_scale: float, time_shift: float = 1.0) -> dict[str, float]:
    return {"num_steps": num_steps, "guidance_scale": guidance_scale, "time_shift": time_shift}


def test_a_closed_gate_is_zero_and_an_open_one_is_its_mean(program):
    model = tiny_model()
    curve = program.measure(model, FakeProcessor(), SENTENCES[:2], options(4, 2.0))
    assert curve == [(0.0, 0.0), (0.25, 0.0), (0.5, 0.0), (0.75, 0.0)]
    torch.nn.init.constant_(model.flow_head.hi_gate.gate[-1].bias, -0.5)
    curve = program.measure(model, FakeProcessor(), SENTENCES[:2], options(2, 1.0, time_shift=0.5))
    assert curve == [(0.0, 0.5), (pytest.approx(1 / 3), 0.5)]
    assert not model.flow_head.hi_gate.gate._forward_hooks
    with pytest.raises(UserError, match="has no gate: it is a cheers, or"):
        program.measure(tiny_model(inject_details=False), FakeProcessor(), SENTENCES[:1], options(2, 1.0))


def test_the_curve_is_plotted_and_written(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "open_model", lambda *_: (tiny_model(), FakeProcessor()))
    program.main(["--num-steps", "3", "--plot", str(tmp_path / "gate.svg"), "--json", str(tmp_path / "gate.json")])
    results = json.loads((tmp_path / "gate.json").read_text())
    assert len(results["t"]) == len(results["intensity"]) == 3 and results["drawing"] == options(3, 3.0)
    assert capsys.readouterr().out.count("|g| 0.0000") == 3
    svg = program.plot([(0.0, 0.0), (1.0, 0.5)])
    assert 'points="48.0,252.0 432.0,48.0"' in svg and svg.startswith("<svg") and ">0.5</text>" in svg
    assert (tmp_path / "gate.svg").read_text().count("<polyline") == 1
    with pytest.raises(UserError, match="the curve is written as .svg"):
        program.main(["--plot", str(tmp_path / "gate.png")])
