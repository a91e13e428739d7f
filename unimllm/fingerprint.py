"""What tells one checkpoint, file of answers, folder of pictures or state of the code from another of its name."""

import hashlib
import json
import subprocess
from pathlib import Path

import semhitok
from semhitok.checkpoints import DIGITS, files_digest


def fingerprint(*files: Path) -> str:
    """`semhitok.checkpoints.files_digest`: of files, one after the other; UserError if one is unreadable."""
    return files_digest(*files)


def commit_of(program: str) -> str | None:
    """The git commit of a program's file, `-dirty` where files of it have changed since; None where git knows none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=Path(program).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return told.stdout.strip() or None


def code_fingerprint() -> str:
    """`fingerprint` of the Python files of unimllm and semhitok, which tells two edits of one commit apart."""
    folders = (Path(__file__).parent, Path(semhitok.__file__).parent)
    return fingerprint(*(path for folder in folders for path in sorted(folder.rglob("*.py"))))


def json_fingerprint(value) -> str:
    """The same of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def weights_fingerprint(checkpoint: str | Path) -> str | None:
    """`fingerprint` of a checkpoint's safetensors in the order of their names, None where there are none.

    Args:
        checkpoint: a folder (that of a LoRA adapter: of the model that it belongs over, too), or a hub id that was
            loaded before.
    """
    files = _files_of(checkpoint, (".safetensors",))
    return fingerprint(*files) if files else None


def settings_fingerprint(checkpoint: str | Path) -> str:
    """The same of a checkpoint's configs, chat template and text tokenizer."""
    return fingerprint(*_files_of(checkpoint, (".json", ".jinja", ".model", ".txt")))


def _files_of(checkpoint: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """A checkpoint's files of some kinds in the order of their names; none where it is not on this machine.

    Those of a LoRA adapter follow those of the model that it belongs over.
    """
    folder, below = Path(checkpoint), []
    if (folder / "adapter_config.json").is_file():
        from unimllm.discrete.lora import base_of
        from unimllm.inference import checkpoint_of

        below = _files_of(checkpoint_of(base_of(folder)), suffixes)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(str(checkpoint), local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return []
    return below + sorted(path for path in folder.iterdir() if path.suffix in suffixes)
