"""The quantisers by hand-made numbers: a 4 x 5 codebook, one EMA step, one restart, sub-codebooks against a loop."""

import pytest
import torch

from semhitok import quantization
from semhitok.quantization import (
    PIXEL_CODEBOOKS,
    EMACodebook,
    FreePixelCodebook,
    PixelCodebook,
    SubCodebooks,
    best_match,
    kmeans,
    nearest_code,
    normalize,
    straight_through,
)
from semhitok.stages import confuse

# Four codes of five channels, already of unit length.
CODEBOOK = torch.tensor(
    [[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 0.6, 0.8, 0], [0, 0, 0, 0, -1.0]],
)


def test_nearest_code_by_hand():
    vectors = normalize(
        torch.tensor([[0.9, 0.1, 0, 0, 0], [0, 0, 1.0, 1.0, 0.1], [0, 0.2, 0, 0, -3.0], [0.4, 0.5, 0, 0, 0]])
    )
    assert nearest_code(vectors, CODEBOOK).tolist() == [0, 2, 3, 1]


@pytest.mark.parametrize("num_positions", [3, 64])  # fewer positions than semantic codes, and more
def test_codes_are_the_same_under_autocast(num_positions):
    torch.manual_seed(0)
    codebook, pixel = normalize(torch.randn(2048, 8)), PixelCodebook(32, 16, 8)
    torch.nn.init.normal_(pixel.bend, std=0.3)
    vectors, semantic = normalize(torch.randn(num_positions, 8)), torch.randint(32, (num_positions,))
    expected = nearest_code(vectors, codebook), pixel.search(vectors, semantic), confuse(semantic[None], codebook, 1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        found = (
            nearest_code(vectors, codebook),
            pixel.search(vectors, semantic),
            confuse(semantic[None], codebook, 1e-9),
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(found[2], semantic[None])  # each code is its own nearest


def test_straight_through_gives_the_code_forward_and_the_vectors_gradient_backward():
    vectors = torch.tensor([[0.9, 0.1, 0, 0, 0]], requires_grad=True)
    out = straight_through(vectors, CODEBOOK[:1])
    assert torch.equal(out, CODEBOOK[:1])
    (out * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    assert vectors.grad.tolist() == [[1, 2, 3, 4, 5]]


def test_a_batch_in_parts_moves_the_codes_as_the_whole_does():
    torch.manual_seed(0)
    batches = normalize(torch.randn(20, 12, 5))
    whole, parts = make_codebook(), make_codebook()
    parts.micro_batches = 3
    for batch in batches:
        whole(batch)
        before = parts.codes.clone()
        for part in batch.split([2, 6, 4]):
            assert torch.equal(parts.codes, before)
            parts(part)
    assert not torch.equal(whole.codes, CODEBOOK)
    torch.testing.assert_close(parts.codes, whole.codes)
    torch.testing.assert_close(parts.counts, whole.counts)


def make_codebook(decay: float = 0.9) -> EMACodebook:
    codebook = EMACodebook(4, 5, decay=decay, restart_below=0.05)
    codebook.codes.copy_(CODEBOOK)
    codebook.initialized.fill_(True)
    return codebook.train()


def test_ema_moves_a_used_code_and_leaves_an_unused_one():
    codebook = make_codebook()
    vectors = normalize(torch.tensor([[0.8, 0.6, 0, 0, 0], [1.0, 0, 0, 0, 0]]))
    _, index, commit = codebook(vectors)
    assert index.tolist() == [0, 0]
    # distances to code 0: (0.2^2 + 0.6^2) and 0, so the mean is 0.2
    torch.testing.assert_close(commit, torch.tensor(0.2))
    mean = normalize(torch.tensor([1.8, 0.6, 0, 0, 0]))
    torch.testing.assert_close(codebook.codes[0], normalize(0.9 * CODEBOOK[0] + 0.1 * mean))
    assert torch.equal(codebook.codes[1:], CODEBOOK[1:])
    torch.testing.assert_close(codebook.counts, torch.tensor([0.9 + 0.1 * 2 / (2 / 4), 0.9, 0.9, 0.9]))


def test_a_dead_code_restarts_at_the_worst_served_vector():
    codebook = make_codebook()
    codebook.counts.copy_(torch.tensor([1.0, 1.0, 0.01, 1.0]))
    vectors = normalize(torch.tensor([[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [-1.0, -1.0, 0, 0, -0.3]]))
    codebook(vectors)
    torch.testing.assert_close(codebook.codes[2], vectors[2])
    assert codebook.counts[2] == pytest.approx(2 * 0.05)


def test_many_dead_codes_restart_at_different_vectors():
    codebook = EMACodebook(64, 5).train()
    codebook.initialize(normalize(torch.randn(200, 5)))
    codebook.counts[:30] = 0
    codebook(normalize(torch.randn(20, 5)).repeat(2, 1))  # forty vectors, twenty of which differ
    assert len(codebook.codes[:30].unique(dim=0)) == 30


def test_a_code_without_uses_restarts_soon_however_many_codes_there_are():
    codebook = EMACodebook(1000, 5).train()
    vectors = normalize(torch.randn(100, 5))
    codebook.initialize(vectors.repeat(10, 1))
    codebook.codes[7] = normalize(-vectors.mean(0)) * 0.5  # nothing is nearest to it
    steps = next(n for n in range(1, 500) if codebook(vectors) and codebook.codes[7].norm() > 0.9)
    assert steps == 69  # 0.99^69 < 1 / 2


def test_evaluation_changes_nothing():
    codebook = make_codebook().eval()
    before = {k: v.clone() for k, v in codebook.state_dict().items()}
    codebook(normalize(torch.randn(7, 5)))
    assert all(torch.equal(before[k], v) for k, v in codebook.state_dict().items())


def test_vectors_pass_unquantised_until_the_codebook_starts():
    codebook = EMACodebook(4, 5).train()
    vectors = normalize(torch.randn(6, 5))
    quantized, _, commit = codebook(vectors)
    assert torch.equal(quantized, vectors) and commit == 0
    codebook.initialize(vectors)
    quantized, index, _ = codebook(vectors)
    assert not torch.equal(quantized, vectors) and len(index.unique()) == 4


def test_codes_that_have_started_stay():
    """A stage trained further goes on with the codes that others may have learnt from."""
    vectors = normalize(torch.randn(64, 4))
    for codebook in (EMACodebook(8, 4), PixelCodebook(3, 8, 4), FreePixelCodebook(3, 8, 4)):
        codebook.initialize(vectors)
        before = {name: value.clone() for name, value in codebook.state_dict().items()}
        codebook.initialize(-vectors)
        assert all(torch.equal(before[name], value) for name, value in codebook.state_dict().items())


def test_kmeans_finds_separate_clusters_and_bears_too_few_vectors():
    centres = normalize(torch.eye(3))
    vectors = normalize(centres.repeat_interleave(50, 0) + 0.01 * torch.randn(150, 3))
    found = kmeans(vectors, 3, generator=torch.Generator().manual_seed(0))
    assert (found @ centres.T).amax(0).min() > 0.99
    assert kmeans(vectors[:2], 5).shape == (5, 3)


def random_codebook(kind: str, num_semantic_codes: int, num_codes: int, dim: int) -> SubCodebooks:
    """Started sub-codebooks of a kind, each unlike the others."""
    torch.manual_seed(0)
    codebook = PIXEL_CODEBOOKS[kind](num_semantic_codes, num_codes, dim)
    for parameter in codebook.parameters():
        parameter.data.normal_()
    codebook.initialized.fill_(True)
    return codebook


@pytest.mark.parametrize("kind", PIXEL_CODEBOOKS)
def test_pixel_code_is_searched_in_the_sub_codebook_of_its_semantic_code_and_nowhere_else(kind):
    codebook = random_codebook(kind, 6, 4, 3)
    vectors, semantic = normalize(torch.randn(50, 3)), torch.randint(6, (50,))
    quantized, index, _, _ = codebook(vectors, semantic)
    codes = codebook.codes()
    for vector, k, found, out in zip(vectors, semantic, index, quantized, strict=True):
        distances = [float(((vector - codes[k, j]) ** 2).sum()) for j in range(4)]
        assert int(found) == distances.index(min(distances))
        torch.testing.assert_close(out, codes[k, found])


def test_every_sub_codebook_moves_with_the_shared_base_even_if_its_code_is_never_met():
    codebook = PixelCodebook(num_semantic_codes=2, num_codes=3, dim=4)
    codebook.initialized.fill_(True)
    before = codebook.codes().detach().clone()
    optimizer = torch.optim.SGD(codebook.parameters(), lr=0.5)
    vectors = normalize(torch.randn(20, 4))
    loss = codebook(vectors, torch.zeros(20, dtype=torch.long))[2]
    loss.backward()
    optimizer.step()
    assert not torch.equal(codebook.codes()[1], before[1])


def test_a_sub_codebook_is_the_base_bent_by_its_own_affine_map():
    codebook = PixelCodebook(num_semantic_codes=2, num_codes=3, dim=2)
    codebook.base.data = torch.tensor([[1.0, 0], [0, 1.0], [0.6, 0.8]])
    codebook.bend.data[1] = torch.tensor([[-1.0, 2], [0, 0]])  # the first axis becomes twice the second
    codebook.shift.data[1] = torch.tensor([[0.0, 1]])
    torch.testing.assert_close(codebook.codes()[0], codebook.base)
    torch.testing.assert_close(codebook.codes()[1], torch.tensor([[0.0, 1.0]] * 3))


def test_free_sub_codebooks_start_alike_and_only_those_that_are_met_move():
    codebook = FreePixelCodebook(num_semantic_codes=2, num_codes=3, dim=4)
    vectors = normalize(torch.randn(20, 4))
    codebook.initialize(vectors)
    before = codebook.codes().detach().clone()
    torch.testing.assert_close(before[0], before[1])
    optimizer = torch.optim.SGD(codebook.parameters(), lr=0.5)
    codebook(-vectors, torch.zeros(20, dtype=torch.long))[2].backward()
    optimizer.step()
    assert torch.equal(codebook.codes()[1], before[1]) and not torch.equal(codebook.codes()[0], before[0])


def count_sub_codebooks(codebook: SubCodebooks) -> list[int]:
    """How many sub-codebooks each later call computes."""
    counts = []

    def counting(name: str) -> None:
        inner = getattr(codebook, name)

        def counted(*args: torch.Tensor) -> torch.Tensor:
            codes = inner(*args)
            counts.append(len(codes))
            return codes

        setattr(codebook, name, counted)

    counting("codes"), counting("codes_under")
    return counts


@pytest.mark.parametrize("kind", PIXEL_CODEBOOKS)
@pytest.mark.parametrize("num_positions", [1, 5, 40, 41, 200])
def test_searching_the_selected_sub_codebooks_equals_searching_by_brute_force(num_positions, kind):
    codebook = random_codebook(kind, 40, 6, 4)
    vectors = normalize(torch.randn(num_positions, 4))
    semantic = torch.randint(7, (num_positions,)) * 5  # several positions share a code
    every = codebook.codes()  # (K, m, D)
    expected = (every[semantic] * vectors[:, None]).sum(-1).argmax(-1)
    counts = count_sub_codebooks(codebook)
    index = codebook.search(vectors, semantic)
    assert torch.equal(index, expected)
    assert torch.equal(codebook.lookup(semantic, index), every[semantic, index])
    assert counts == [min(num_positions, 40)] * 2
    # any leading axes
    assert torch.equal(codebook.search(vectors[None], semantic[None]), expected[None])


@pytest.mark.parametrize("kind", PIXEL_CODEBOOKS)
@pytest.mark.parametrize("num_positions", [3, 30])
def test_gradients_reach_the_chosen_codes_alone(num_positions, kind):
    """As through the table of all codes, whichever way the sub-codebooks are computed."""
    codebook = random_codebook(kind, 8, 4, 3)
    vectors, semantic = normalize(torch.randn(num_positions, 3)), torch.arange(num_positions) % 3 * 2
    _, index, codebook_loss, _ = codebook(vectors, semantic)
    codebook_loss.backward()
    found = [parameter.grad.clone() for parameter in codebook.parameters()]
    codebook.zero_grad()
    ((vectors - codebook.codes()[semantic, index]) ** 2).sum(-1).mean().backward()
    for grad, parameter in zip(found, codebook.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)
    under = found[-1]  # of what belongs to each semantic code
    assert under[[0, 2, 4]].abs().sum() > 0 and under[[1, 3, 5, 6, 7]].abs().sum() == 0


def test_a_large_codebook_is_searched_in_parts_with_the_same_result(monkeypatch):
    vectors, codes = normalize(torch.randn(2, 50, 6)), normalize(torch.randn(30, 6))
    whole = (vectors @ codes.T).argmax(-1)
    largest = []
    monkeypatch.setattr(quantization, "MAX_SCORES", 7 * 30)
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda x, size: largest.append(size) or split(x, size))
    assert torch.equal(nearest_code(vectors, codes), whole) and largest == [7]
    assert nearest_code(vectors[:, :0], codes).shape == (2, 0)
    similarity, index = best_match(vectors[0], codes)
    assert torch.equal(index, whole[0])
    torch.testing.assert_close(similarity, (vectors[0] @ codes.T).amax(-1))
