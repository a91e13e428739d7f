"""Fixtures that several test files share. A fixture for one file lives in that file."""

import importlib.util
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports the hub: tests fetch nothing.
os.environ["HF_HUB_OFFLINE"] = "1"

SENTENCES = [
    "a photo of a red apple",
    "a photo of two dogs and a blue car",
    "a photo of a green cup left of a yellow banana",
    "What is in the picture?",
    "Is there a dog in the image? yes no",
    "What color is the apple? red green blue yellow",
]

# ---- a whole model, tiny and untrained ------------------------------------------------------------------------------


def write_tiny_checkpoint(folder: Path) -> Path:
    """A random unified model as `train/sft.py` saves it: model, text tokenizer, image processor.

    16 x 16 pixels in 4 positions, a context of 96 ids; needs neither font nor hub.
    """
    import torch

    from semhitok.image_processing_semhitok import for_size
    from unimllm import UniMLLMForConditionalGeneration, UniMLLMProcessor
    from unimllm.discrete.configuration_unimllm import tiny_config
    from unimllm.scenes.text import train_text_tokenizer

    tokenizer = train_text_tokenizer(SENTENCES, vocab_size=320)
    config = tiny_config()
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.max_position_embeddings = 96
    image = config.image_tokenizer_config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UniMLLMForConditionalGeneration(config)
    model.save_pretrained(folder)
    UniMLLMProcessor(for_size(image.image_size), tokenizer, num_positions=image.num_positions).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Folder of `write_tiny_checkpoint`. Do not write into it: tests that damage a checkpoint copy it first."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def write_tiny_cheers(folder: Path) -> Path:
    """The same of CHEERS: 16 x 16 pixels in 4 positions, a context of 96 ids. Its zero-initialised parts are open."""
    import torch

    from semhitok.image_processing_semhitok import for_size
    from unimllm import CheersForConditionalGeneration, CheersProcessor
    from unimllm.cheers.configuration_cheers import tiny_config
    from unimllm.scenes.text import train_text_tokenizer

    tokenizer = train_text_tokenizer(SENTENCES, vocab_size=320, image_tokens=CheersProcessor.image_tokens)
    config = tiny_config()
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), 96
    processor = CheersProcessor(for_size(config.image_size), tokenizer, num_positions=config.num_positions)
    for role in CheersProcessor.image_tokens:
        setattr(config, f"{role}_token_id", processor.conversation.ids[role])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CheersForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            if "adaLN_modulation" in name or "hi_gate" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.drawing["num_steps"] = 5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_cheers(tmp_path_factory) -> Path:
    """Folder of `write_tiny_cheers`; do not write into it."""
    return write_tiny_cheers(tmp_path_factory.mktemp("tiny_cheers") / "checkpoint")


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    """(model, processor): the tiny one with larger random weights, so that its answers differ from one another."""
    import torch

    from unimllm.inference import load

    model, processor = load(tiny_checkpoint, "cpu")
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        for weights in (p for p in model.language_model.parameters() if p.dim() > 1):
            weights.normal_(std=0.5, generator=rng)
    return model, processor


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """Folder of a random image tokenizer; do not write into it."""
    import torch

    from semhitok import SemHiTokModel
    from semhitok.configuration_semhitok import tiny_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SemHiTokModel(tiny_config())
    folder = tmp_path_factory.mktemp("tokenizer")
    model.semantic.codebook.initialized.fill_(True)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """Folder of a random CLIP with a text tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from unimllm.metrics.geneval_records import COLORS
    from unimllm.scenes.text import train_text_tokenizer

    tokenizer = train_text_tokenizer([f"a photo of a {color} apple object" for color in COLORS], vocab_size=320)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = tower | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- emoji scenes without the font ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fake_atlas():
    """Of `fake_glyphs.make_atlas`."""
    from fake_glyphs import make_atlas

    return make_atlas()


@pytest.fixture(scope="session")
def fake_world(fake_atlas):
    """A World of 64 pixels over `fake_atlas`."""
    from unimllm.scenes import World

    return World(fake_atlas, 64)


# ---- programs beside the package ------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]


def load_program(path: str):
    """A program such as "eval/pope.py" as a module; skips the test where it is not beside the tests."""
    place = ROOT / path
    if not place.is_file():
        pytest.skip(f"{path} is not beside the tests (they run on an installed package)")
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# ---- command lines, in this process ---------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command line ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line that told what the user has to mend; fails if it ended otherwise."""
        assert self.code == 2 and self.out == ""
        assert self.err.startswith("error: ") and self.err.count("\n") == 1
        return self.err


@pytest.fixture
def call(capsys, monkeypatch):
    """call(module, *words, stdin="") -> Ended: run the module's `main` as `python -m` does."""
    from unimllm.command_line import run

    def call(module, *words, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode(errors="surrogateescape"))))
        with pytest.raises(SystemExit) as ended:
            run(lambda: module.main([str(word) for word in words]))
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return call
