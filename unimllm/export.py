"""Write a trained model as a small folder to ship: half-precision weights, no training state.

They are float16, or bfloat16 where the checkpoint's are, its image tokenizer aside.

python -m unimllm.export --model runs/scenes_64/sft --out-dir unimllm/default

--image-tokenizer takes the pixel decoder from another checkpoint with the same codes: one that was trained on beside or
after the language model (train/tokenizer.py --stage decoder).
"""

import json
import os
import shutil
from pathlib import Path

from unimllm.command_line import CommandLine, open_model, run
from unimllm.errors import UserError

WORKING_NAME = ".{}.partial"


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine("python -m unimllm.export", "Write a trained model as a small folder to ship.")
    parser.add_model_option()
    parser.add_argument("--out-dir", type=Path, help="folder to write; its other files stay")
    parser.add_argument("--image-tokenizer", help="take the pixel decoder from this SemHiTok checkpoint")
    args = parser.parse_args(argv)
    if args.out_dir is None:
        raise UserError("--out-dir is missing: the folder to write; see --help")
    model, processor = open_model(args.model, "cpu")
    if args.image_tokenizer:
        take_decoder(model, args.image_tokenizer)
    halve(model, args.model)
    written = write_half(model, processor, args.out_dir)
    print(f"{args.out_dir}: {', '.join(written)}")


def take_decoder(model, name: str) -> None:
    """Give a model the pixel decoder of another image tokenizer; UserError unless both make the same codes."""
    from semhitok.checkpoints import load_tokenizer
    from semhitok.configuration_semhitok import DECODER_SIZES
    from semhitok.fingerprint import fingerprint

    other, _ = load_tokenizer(name, "cpu", "--image-tokenizer")
    own = model.image_tokenizer
    if type(other) is not type(own):
        raise UserError(f"--image-tokenizer {name} is a {type(other).__name__}, the model's a {type(own).__name__}")
    if fingerprint(other) != fingerprint(own):
        raise UserError(
            f"--image-tokenizer {name} makes other codes ({fingerprint(other)}) than the model's ({fingerprint(own)}); "
            "take one that train/tokenizer.py --stage decoder made from it"
        )
    own.pixel.decoder = other.pixel.decoder
    for config in (own.config, model.config.image_tokenizer_config):
        for size in DECODER_SIZES:
            setattr(config, size, getattr(other.config, size))


def halve(model, name: str | None) -> None:
    """Give the weights 16 bits: those of float32 float16, those that the checkpoint has in bfloat16 that.

    Args:
        model: as `open_model` loads it, in float32; its image tokenizer is float32 in any checkpoint.
        name: of the checkpoint, as --model has it.

    Raises:
        UserError: a tensor holds numbers that float16 has not.
    """
    import torch

    is_bf16 = stored_dtype(name) == torch.bfloat16
    kept = {id(tensor) for tensor in (*model.image_tokenizer.parameters(), *model.image_tokenizer.buffers())}
    largest = torch.finfo(torch.float16).max
    for label, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        dtype = torch.bfloat16 if is_bf16 and id(tensor) not in kept else torch.float16
        most = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if dtype == torch.float16 and not most <= largest:
            raise UserError(
                f"no export in float16: {label} reaches {most:g}, beyond its {largest:g}; ship the checkpoint as it is"
            )
        tensor.data = tensor.data.to(dtype)


def stored_dtype(name: str | None):
    """The torch dtype that a checkpoint's config tells of its weights; of an adapter's, that of the model under it."""
    from transformers import AutoConfig

    from unimllm.inference import find_checkpoint

    if name is not None and (Path(name) / "adapter_config.json").is_file():
        from unimllm.discrete.lora import base_of

        return stored_dtype(base_of(Path(name)))
    return AutoConfig.from_pretrained(find_checkpoint(name), trust_remote_code=False).dtype


def write_half(model, processor, folder: Path) -> list[str]:
    """Save what `halve` made; the config says float32 for float16, so that a CPU computes in float32 after loading.

    Returns:
        The names of the written files.
    """
    partial = folder.parent / WORKING_NAME.format(folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        config = partial / "config.json"
        settings = _with_float32(json.loads(config.read_text(encoding="utf-8")))
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            (partial / name).chmod(0o644)
            os.replace(partial / name, folder / name)
    except OSError as error:
        raise UserError(f"cannot write to --out-dir {folder}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names


def _with_float32(value):
    """A config with every `dtype` of float16 float32."""
    if isinstance(value, dict):
        return {k: "float32" if k == "dtype" and v == "float16" else _with_float32(v) for k, v in value.items()}
    return value


if __name__ == "__main__":
    run(main)
