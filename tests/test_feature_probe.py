"""eval/features.py: what quantising costs a linear probe."""

import json

import numpy as np
import pytest
import torch
from conftest import load_program

from semhitok import SemHiTokModel
from unimllm.scenes import Renderer, World
from unimllm.scenes.sources import WorldConfig


@pytest.fixture(scope="module")
def program():
    return load_program("eval/features.py")


def test_the_probe_separates_what_a_line_separates(program):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (50, 9), generator=generator)
    centers = 5 * torch.eye(4, 8)
    features = centers[labels] + torch.randn(50, 9, 8, generator=generator) / 4
    classify = program.fit_probe(features, labels)
    assert (classify(features) == labels).all()
    assert (classify(centers) == torch.arange(4)).all()


def test_a_code_tells_what_it_showed_most(program):
    labels = torch.tensor([[0, 1, 2, 2], [0, 2, 2, 2]])  # 2 is the ground
    codes = torch.tensor([[5, 5, 5, 7], [5, 7, 7, 7]])
    classify = program.fit_table(codes, labels, 9)
    assert classify(torch.tensor([5, 7, 8])).tolist() == [0, 2, 2]  # 8 was never seen


def test_shares_and_their_difference(program):
    right = {"continuous": np.array([4, 2, 0]), "quantised": np.array([3, 2, 0]), "code": np.array([0, 2, 1])}
    results = program.summarize(right, np.array([4, 2, 2]))
    assert results["continuous"] == 6 / 8 and results["quantised"] == 5 / 8
    assert results["cost"] == 1 / 8 and results["code"] == 3 / 8
    low, high = results["intervals"]["cost"]
    assert 0 <= low <= 1 / 8 <= high <= 1 / 4
    alike = program.summarize(dict.fromkeys(right, right["continuous"]), np.array([4, 2, 2]))
    assert alike["cost"] == 0 and alike["intervals"]["cost"] == (0, 0)  # the same pictures are drawn for both


def test_the_program_runs(program, call, tokenizer_folder, fake_atlas, monkeypatch, tmp_path):
    size = SemHiTokModel.from_pretrained(tokenizer_folder).config.image_size
    opened = World(fake_atlas, size), Renderer(fake_atlas, size)
    monkeypatch.setattr(WorldConfig, "open", lambda self: opened)
    words = ("--model", tokenizer_folder, "--training", 20, "--limit", 10, "--batch-size", 8)
    ended = call(program, *words, "--json", tmp_path / "features.json")
    assert ended.code == 0 and "features from codes" in ended.out
    results = json.loads((tmp_path / "features.json").read_text())
    assert 0 <= results["quantised"] <= 1 and results["num_object_patches"] > 0 and results["split"] == "test"
    assert results["limited"] and results["num_samples"] == {"pictures": 10, "training pictures": 20}
    assert (results["image_size"], results["num_classes"]) == (size, 24) and len(results["classes_digest"]) == 16


def test_it_asks_for_a_model(program, call):
    assert "--model is missing" in call(program).refusal()
