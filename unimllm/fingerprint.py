"""What tells one checkpoint, file of answers or folder of pictures from another of its name."""

import hashlib
import json
from pathlib import Path

from unimllm.errors import UserError

DIGITS = 16  # hexadecimal, of a sha256


def fingerprint(*files: Path) -> str:
    """The first 16 hexadecimal digits of the sha256 over files, one after the other; UserError if one is unreadable."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:DIGITS]


def json_fingerprint(value) -> str:
    """The same of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def weights_fingerprint(checkpoint: str | Path) -> str | None:
    """`fingerprint` of a checkpoint's safetensors in the order of their names, None where there are none.

    Args:
        checkpoint: a folder (that of a LoRA adapter: of the adapter alone), or a hub id that was loaded before.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(str(checkpoint), local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    files = sorted(folder.glob("*.safetensors"))
    return fingerprint(*files) if files else None
