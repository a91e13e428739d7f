"""What Windows, macOS and older GPUs lack: where a part is missing the rest goes on, or one line says what is needed.

The systems are put in the tests' way by hiding what they do not have.
"""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, load_program
from PIL import Image

from semhitok import checkpoints, export
from unimllm import report
from unimllm.errors import UserError
from unimllm.metrics.clip_score import ClipScorer
from unimllm.training import config, start_model, step_log, throughput

WINDOWS = """
import builtins, importlib, os, pkgutil, runpy, signal, sys
true_import = builtins.__import__
def import_as_there(name, globals=None, *others, **more):
    importer = (globals or {}).get("__name__", "").partition(".")[0]
    if importer in ("semhitok", "unimllm", "__main__") and name in ("resource", "fcntl", "deepspeed", "bitsandbytes"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return true_import(name, globals, *others, **more)
builtins.__import__ = import_as_there
for module, names in ((os, ("getloadavg", "sched_getaffinity")), (signal, ("alarm", "SIGALRM"))):
    for name in names:
        delattr(module, name)

import semhitok, unimllm
for package in (semhitok, unimllm):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.startswith("unimllm.lmms_eval") and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
for program in sys.argv[1:]:
    sys.argv, sys.path[0] = [program, "--help"], os.path.dirname(program)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, program
"""
"""Imports everything and asks programs for their options where what Windows lacks is hidden from this package."""


def test_everything_is_imported_on_windows_and_programs_tell_their_options():
    programs = [path for folder in ("train", "eval") for path in sorted((ROOT / folder).glob("*.py"))]
    programs = [str(path) for path in programs if "__main__" in path.read_text(encoding="utf-8")]
    told = subprocess.run([sys.executable, "-c", WINDOWS, *programs], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


# ---- figures of the machine ----------------------------------------------------------------------------------------


@pytest.fixture
def speed(monkeypatch):
    """eval/speed.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "eval")  # what it imports lies beside it
    return load_program("eval/speed.py")


@pytest.fixture
def no_memory_told(monkeypatch, tmp_path):
    """A system that does not tell how much memory a process has held."""
    monkeypatch.setattr(throughput, "resource", None)
    monkeypatch.setattr(throughput, "Path", lambda _: tmp_path / "status")


def test_a_machine_without_a_load_average_is_described(monkeypatch):
    assert report.describe_machine(__file__)["load_average"] >= 0
    monkeypatch.delattr(os, "getloadavg")
    assert report.describe_machine(__file__)["load_average"] is None


def test_the_table_of_speeds_leaves_out_a_load_that_is_not_known(speed):
    where = {"processor": "a CPU", "versions": {"torch": "2.13.0"}, "load_average": None}
    assert speed.make_table({}, where).title == "a CPU, torch 2.13.0, one thread"
    assert speed.make_table({}, where | {"load_average": 0.5}).title.endswith("one thread, load average 0.5")


def test_memory_that_is_not_told_is_left_out_of_the_log(no_memory_told):
    assert throughput.peak_memory() is None and throughput.memory_gib(torch.device("cpu")) is None
    values = step_log.Speed(torch.device("cpu"), 1).values({"waited": 0.5}, 2.0)
    assert values == {"waiting": 0.25} and step_log.in_words(values) == "data 25.0%"


def test_memory_is_told_in_bytes_by_both_ways(monkeypatch, tmp_path):
    by_status = throughput.peak_memory()
    monkeypatch.setattr(throughput, "Path", lambda _: tmp_path / "status")
    assert 2**25 < throughput.peak_memory() < 2**40 and 2**25 < by_status < 2**40
    (tmp_path / "status").write_text("VmRSS:\t 1 kB\n", encoding="utf-8")  # a kernel that does not know the peak
    assert throughput.peak_memory() > 2**25


def test_memory_is_not_measured_where_it_is_not_told(no_memory_told, speed):
    with pytest.raises(ValueError, match="^--only memory: this system does not tell"):
        speed.parse_args(["--only", "quantize,memory"])
    assert speed.parse_args(["--only", "quantize"]).only == ["quantize"]


# ---- training without DeepSpeed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["teacher", "tokenizer", "pretrain", "sft"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_training_without_deepspeed_is_one_line_and_leaves_nothing(program, system, monkeypatch, tmp_path):
    module = load_program(f"train/{program}.py")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    words = ["--stage", "semantic"] if program == "tokenizer" else []
    words += ["--preset", "llava15_vicuna7b_pretrain"] if program == "pretrain" else []
    monkeypatch.setattr(sys, "argv", [f"train/{program}.py", *words, "--output-dir", str(tmp_path / "run")])
    monkeypatch.setattr(sys, "platform", system)
    remedy = "install it: pip install deepspeed" if system == "linux" else "which is installed on Linux alone"
    remedy += "" if program == "teacher" else "; --dry-run works without it"
    with pytest.raises(UserError, match=f"^training needs DeepSpeed, {remedy}$"):
        module.main()
    assert not any(tmp_path.iterdir())


def test_a_plan_is_made_without_deepspeed(monkeypatch, capsys, tmp_path):
    module = load_program("train/tokenizer.py")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    words = ["--stage", "decoder", "--preset", "scenes_64", "--init-from", str(tmp_path), "--dry-run", "2"]
    monkeypatch.setattr(sys, "argv", ["train/tokenizer.py", *words])
    module.main()
    assert "memory per GPU" in capsys.readouterr().out


# ---- devices --------------------------------------------------------------------------------------------------------


@pytest.fixture
def odd_gpu(monkeypatch):
    """odd_gpu(error): a machine with a GPU on which that happens to whoever computes; None: nothing happens."""

    def make(error: Exception | None) -> None:
        true_zeros = torch.zeros

        def zeros(*size, device):
            if error and device == "cuda":
                raise error
            return true_zeros(*size)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "zeros", zeros)

    checkpoints._gpu_or_cpu.cache_clear()
    yield make
    checkpoints._gpu_or_cpu.cache_clear()


NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors ...")


def test_a_gpu_that_torch_was_not_built_for_is_noted_once_and_passed_over(odd_gpu, capsys):
    odd_gpu(NO_KERNEL)
    assert [checkpoints.choose_device(device) for device in (None, None, "cpu")] == ["cpu"] * 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("note: the GPU cannot be used, the CPU is: CUDA error: no kernel")
    assert "cu126" in told and "--device cpu" in told


def test_a_gpu_that_was_named_is_refused_where_it_cannot_be_used(odd_gpu):
    odd_gpu(NO_KERNEL)
    with pytest.raises(UserError, match="^device 'cuda' cannot be used here: CUDA error: no kernel"):
        checkpoints.choose_device("cuda")


def test_a_gpu_that_is_full_is_refused(odd_gpu):
    odd_gpu(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(UserError, match="^the GPU cannot be used now: CUDA out of memory"):
        checkpoints.choose_device(None)


def test_a_gpu_that_can_be_used_is_taken(odd_gpu, capsys):
    odd_gpu(None)
    assert checkpoints.choose_device(None) == "cuda" and not capsys.readouterr().err


def test_scores_are_float64_of_what_came_from_the_device_in_float32(clip, monkeypatch):
    scorer = ClipScorer.load(str(clip), "cpu")
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    expected = scorer.score(pictures, ["a red apple", "a blue apple"])
    true_double = torch.Tensor.double

    def double(tensor):  # what mps refuses is refused for all that was not copied to the CPU
        assert tensor.data_ptr() in copied
        return true_double(tensor)

    copied, true_cpu = set(), torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (copied.add(tensor.data_ptr()), true_cpu(tensor))[1])
    monkeypatch.setattr(torch.Tensor, "double", double)
    assert expected.dtype == np.float64
    assert np.array_equal(scorer.score(pictures, ["a red apple", "a blue apple"]), expected)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_times_are_of_work_that_a_gpu_has_done(kind, monkeypatch):
    program, waited = load_program("eval/reconstruction.py"), []
    for other in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, other), "synchronize", lambda *_, other=other: waited.append(other))
    program.synchronize(torch.device(kind))
    program.synchronize(torch.device("cpu"))
    assert waited == [kind]


# ---- hardware without bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has, is_fast", [({"amx_tile": True}, True), ({"avx512_bf16": True}, True), ({}, False)])
def test_what_a_cpu_can_is_asked_of_torch_s_public_function(has, is_fast, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"} | has, raising=False)
    assert config.has_fast_bf16() == is_fast


def test_an_older_torch_is_asked_what_a_cpu_can(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert config.has_fast_bf16()


@pytest.mark.parametrize("precision, is_fast", [("auto", False), ("bf16", False), ("auto", True)])
def test_four_bits_without_hardware_for_bf16_are_warned_of_once(precision, is_fast, monkeypatch, capsys):
    for module in (config, start_model):
        monkeypatch.setattr(module, "has_fast_bf16", lambda: is_fast)
    start_model.warn_of_slow_bits(config.TrainConfig(precision=precision))
    said = precision == "auto" and not is_fast  # of bf16 the loop warns
    assert capsys.readouterr().out.startswith("warning: --quantize_base computes in bf16") == said


# ---- names and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["C:/model", "c:\\models\\mine", "models\\mine/step", "D:\\a/b"])
def test_a_path_of_windows_is_no_hub_id(name):
    assert not checkpoints.may_be_hub_id(name) and checkpoints.may_be_hub_id("owner/name-1.5_b")


def test_a_tokenizer_is_exported_into_a_folder_that_is_there_and_empty(tmp_path, monkeypatch):
    part, true_replace = SimpleNamespace(save_pretrained=lambda folder: (folder / "config.json").touch()), os.replace

    def replace(source, target):  # as Windows does
        if os.path.isdir(target):
            raise PermissionError(13, "Access is denied")
        true_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "shared").mkdir()
    assert export.write(part, part, "a card", tmp_path / "shared") == ["README.md", "config.json"]
    assert (tmp_path / "shared" / "README.md").is_file() and len(list(tmp_path.iterdir())) == 1


def test_text_files_are_read_and_written_in_utf_8_everywhere():
    """What is told no encoding takes the system's, on Windows no UTF-8."""
    folders = [path for path in ("unimllm", "tokenizer", "train", "eval") if (ROOT / path).is_dir()]
    if len(folders) < 4:
        pytest.skip("the sources are not beside the tests (they run on an installed package)")
    rule = ["--isolated", "--preview", "--select", "PLW1514", "--output-format", "concise"]
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rule, *folders], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():  # of what the rule does not know to be a path
            calls = re.findall(r"\.(?:read_text\(\)|write_text\(.*)", line)
            assert all("encoding=" in call for call in calls), f"{path}: {line}"


def test_scripts_expand_arrays_that_may_be_empty_as_an_old_bash_can():
    scripts = sorted((ROOT / "scripts").glob("*.sh"))
    if not scripts:
        pytest.skip("scripts/ is not beside the tests (they run on an installed package)")
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\b(\w+)=\(\)", text):
            safe = f'${{{name}[@]+"${{{name}[@]}}"}}'
            assert f'"${{{name}[@]}}"' not in text.replace(safe, ""), f"{path.name}: {name}"
            assert safe in text
