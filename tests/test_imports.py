"""Imports point down only: semhitok knows no language model, the library no program, and nothing loads torchvision."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "tokenizer/semhitok": {"unimllm", "train", "eval", "torchvision"},
    "unimllm/scenes": {"unimllm.discrete", "unimllm.cheers", "unimllm.inference", "torchvision", "train", "eval"},
    "unimllm/metrics": {"unimllm.discrete", "unimllm.cheers", "unimllm.scenes", "unimllm.training", "torchvision"},
    "unimllm/data": {"unimllm.training", "unimllm.discrete", "unimllm.cheers", "torchvision", "train", "eval"},
    "unimllm/discrete": {"unimllm.cheers"},
    "unimllm/cheers": {"unimllm.discrete", "unimllm.training", "unimllm.data", "unimllm.inference"},
    "unimllm": {"train", "eval", "torchvision", "tests"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_file_imports_upwards(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            above = [f for f in FORBIDDEN[folder] if name == f or name.startswith(f + ".")]
            assert not above, f"{path.relative_to(ROOT)} imports {name}"


def test_programs_are_no_packages_and_nobody_imports_them():
    for folder in ("train", "eval"):
        assert not (ROOT / folder / "__init__.py").exists()
        assert not {p.stem for p in (ROOT / folder).glob("*.py")} & {"datasets", "tokenizers", "evaluate", "deepspeed"}


@pytest.mark.parametrize("module", ["unimllm", "semhitok.teacher", "unimllm.generate", "unimllm.chat"])
def test_importing_does_not_load_torchvision_or_deepspeed(module):
    code = f"import sys, {module}; print([m for m in ('torchvision', 'deepspeed') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_tokenizer_alone_does_not_load_unimllm():
    code = "import sys, semhitok; print('unimllm' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    "program", ["semhitok.__main__", "semhitok.encode", "unimllm.generate", "unimllm.chat", "unimllm.encode"]
)
def test_a_command_line_does_not_load_torch_before_it_has_read_its_options(program):
    assert located(program, f"import {program}; print('torch' in sys.modules)") == "False"


def test_another_package_s_command_line_has_the_classes():
    assert located("service.server", "import unimllm; print('unimllm.auto' in sys.modules)") == "True"


def located(program: str, code: str) -> str:
    """What some code prints while `python -m PROGRAM` is being located."""
    code = f"import sys; sys.argv, sys.orig_argv = ['-m'], ['python', '-m', {program!r}]; {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
