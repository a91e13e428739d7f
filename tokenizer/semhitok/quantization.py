"""The two quantisers of SemHiTok: an EMA codebook for meaning and, under each of its codes, a sub-codebook for pixels.

Shapes: M vectors, D channels, K semantic codes, m pixel codes under each.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import nn

GRACE = 2.0
"""A code begins with so many times the uses below which it restarts: 69 batches without any at a decay of 0.99."""
MAX_SCORES = 2**22
"""Similarities held at once while a codebook is searched: 16 MB, whatever the batch."""


def nearest_code(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Index of the nearest code of each vector on the unit sphere.

    Args:
        vectors: (..., D), l2-normalised.
        codebook: (K, D), l2-normalised: so the largest cosine is the smallest distance.

    Returns:
        (...) int64 in 0..K-1.
    """
    return best_match(vectors.reshape(-1, vectors.shape[-1]), codebook)[1].view(vectors.shape[:-1])


def best_match(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest cosine of each of (M, D) with the codes (K, D), and whose it is: (M,) float and (M,) int64."""
    parts = vectors.split(max(1, MAX_SCORES // len(codebook)))
    # On a CPU `max` finds value and index in two thirds of the time that `argmax` takes for the index alone.
    with in_full_precision(vectors):
        values, indices = zip(*((part @ codebook.T).max(-1) for part in parts), strict=True)
    return torch.cat(values), torch.cat(indices)


def in_full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast: cosines near 1 are 0.004 apart in bfloat16, and of equal ones the first code wins."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def straight_through(vectors: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized` in the forward pass, the gradient of `vectors` in the backward pass (arXiv 1711.00937, eq. 3)."""
    return vectors + (quantized - vectors).detach()


def normalize(x: torch.Tensor) -> torch.Tensor:
    """Project the last axis to the unit sphere, in float32 whatever the autocast."""
    return nn.functional.normalize(x.float(), dim=-1)


def kmeans(
    vectors: torch.Tensor, num_codes: int, num_iterations: int = 10, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Spherical k-means, (M, D) l2-normalised -> (num_codes, D) l2-normalised centres.

    Fewer vectors than codes are repeated with a little noise. An empty cluster restarts at the worst served vector.
    """
    if len(vectors) < num_codes:
        repeats = -(-num_codes // len(vectors))
        vectors = vectors.repeat(repeats, 1)
        noise = torch.randn(vectors.shape, generator=generator).to(vectors)
        vectors = normalize(vectors + 0.01 * noise)
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    centres = vectors[order[:num_codes]].clone()
    for _ in range(num_iterations):
        similarity, index = best_match(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, index, vectors)
        empty = torch.bincount(index, minlength=num_codes) == 0
        sums[empty] = vectors[similarity.argsort()[: int(empty.sum())]]
        centres = normalize(sums)
    return centres


def has_peers() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks in place; nothing where there is one process."""
    if has_peers():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """The first rank's numbers for all, in place: a GPU adds up in any order, so that equal sums differ a little."""
    if has_peers():
        dist.broadcast(tensor, src=0)
    return tensor


def gather_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """The (M, D) vectors of all ranks, in the order of the ranks; every rank must bring equally many."""
    if not has_peers():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


class EMACodebook(nn.Module):
    """K l2-normalised codes that follow the mean of the vectors that choose them (BEiT v2's VQ-KD, arXiv 2208.06366).

    Until `initialize` is called the vectors pass through unquantised: an encoder that has not spread out yet would
    collapse onto one code. A code that is chosen less than `restart_below` times a batch on average restarts at one of
    the batch's worst served vectors; where a batch has fewer vectors than there are codes, less than that share of the
    mean use.
    """

    def __init__(self, num_codes: int, dim: int, decay: float = 0.99, restart_below: float = 0.05):
        super().__init__()
        self.num_codes = num_codes
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("codes", normalize(torch.randn(num_codes, dim)))  # (K, D)
        self.register_buffer("counts", torch.ones(num_codes))  # (K,) EMA of uses per batch, or of the mean use
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.micro_batches = 1
        """Calls in training mode that make a batch, behind the last of which the codes move."""
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []  # vectors and codes of the calls before

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise; in training mode also update the codes.

        Args:
            vectors: (..., D) l2-normalised float32.

        Returns:
            quantized (..., D) with a straight-through gradient, index (...) int64, and the commitment loss (scalar,
            mean squared distance of the vectors to their codes: D times BEiT v2's, which is a mean over D too).
        """
        codes = self.codes.float()
        index = nearest_code(vectors.detach(), codes)
        quantized = codes[index]
        commit_loss = ((vectors - quantized) ** 2).sum(-1).mean()
        if not bool(self.initialized):
            return vectors, index, commit_loss * 0
        if self.training:
            self._waiting.append((vectors.detach().flatten(0, -2), index.flatten()))
            if len(self._waiting) >= self.micro_batches:
                waiting, self._waiting = self._waiting, []
                self._update(*map(torch.cat, zip(*waiting, strict=True)))
        return straight_through(vectors, quantized), index, commit_loss

    @torch.no_grad()
    def initialize(self, vectors: torch.Tensor) -> None:
        """Start at the k-means centres of all ranks' (M, D) l2-normalised vectors, and quantise from now on.

        Codes that have started already stay what they are: somebody may have learnt from them.
        """
        if bool(self.initialized):
            return
        generator = torch.Generator().manual_seed(0)
        self.codes.copy_(broadcast(kmeans(gather_vectors(vectors.float()), len(self.codes), generator=generator)))
        self.counts.fill_(GRACE * self.restart_below)
        self.initialized.fill_(True)

    @torch.no_grad()
    def _update(self, vectors: torch.Tensor, index: torch.Tensor) -> None:
        counts = all_reduce(torch.bincount(index, minlength=len(self.codes)).to(vectors))
        sums = all_reduce(torch.zeros_like(self.codes).index_add_(0, index, vectors))
        used = counts > 0
        means = normalize(sums)
        self.counts.lerp_(counts / (counts.sum() / len(counts)).clamp(max=1), 1 - self.decay)
        # Unused codes keep their place; used ones move along the sphere.
        moved = normalize(self.codes * self.decay + means * (1 - self.decay))
        self.codes[used] = moved[used]
        dead = (self.counts < self.restart_below).nonzero().flatten()
        if len(dead):
            everyone = gather_vectors(vectors)
            served = broadcast(best_match(everyone, self.codes)[0])  # so that every rank chooses the same
            worst = everyone[served.argsort()[: 4 * len(dead)]].unique(dim=0)
            chosen = worst[:: max(1, len(worst) // len(dead))][: len(dead)]
            dead = dead[: len(chosen)]  # too few vectors for all: the others wait for the next batch
            self.codes[dead] = chosen
            self.counts[dead] = GRACE * self.restart_below


class SubCodebooks(nn.Module):
    """Semantic-guided hierarchical codebook: K sub-codebooks of m codes; the semantic code selects one.

    A kind of them is a subclass in PIXEL_CODEBOOKS with the parameters that hold the codes, and

        codes()                all of them, (K, m, D) l2-normalised float32
        codes_under(semantic)  those under R semantic codes, (R,) int64 -> (R, m, D)
        reset_parameters()     untrained ones
        started()              the parameters that `start_at` writes
        start_at(centres)      start at m centres (m, D), the same under each semantic code

    Until `initialize` is called the vectors pass through unquantised.

    Args:
        num_semantic_codes: K.
        num_codes: m.
    """

    def __init__(self, num_semantic_codes: int, num_codes: int):
        super().__init__()
        self.num_semantic_codes, self.num_codes = num_semantic_codes, num_codes
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def codes(self) -> torch.Tensor:
        raise NotImplementedError

    def codes_under(self, semantic: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def started(self) -> list[nn.Parameter]:
        raise NotImplementedError

    def start_at(self, centres: torch.Tensor) -> None:
        raise NotImplementedError

    def select(self, semantic: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sub-codebooks that some positions need and which of them each needs.

        One sub-codebook per position is computed, or all K where there are more positions than that: never more than
        min(positions, K), and no shape depends on the codes (so nothing waits for a GPU).

        Args:
            semantic: (...) int64 in 0..K-1.

        Returns:
            codes (R, m, D) l2-normalised float32, and rows (...) int64 into them.
        """
        if semantic.numel() >= self.num_semantic_codes:
            return self.codes(), semantic
        rows = torch.arange(semantic.numel(), device=semantic.device).view(semantic.shape)
        return self.codes_under(semantic.flatten()), rows

    def lookup(self, semantic: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Code vectors (..., D) of semantic codes and of the indices under them, both (...) int64."""
        codes, rows = self.select(semantic)
        return codes[rows, index]

    @torch.no_grad()
    def initialize(self, vectors: torch.Tensor) -> None:
        """Start at the k-means centres of all ranks' (M, D) l2-normalised vectors, and quantise from now on.

        Codes that have started already stay, as in `EMACodebook.initialize`.
        """
        if bool(self.initialized):
            return
        generator = torch.Generator().manual_seed(0)
        self.start_at(broadcast(kmeans(gather_vectors(vectors.float()), self.num_codes, 20, generator)))
        self.initialized.fill_(True)

    def search(self, vectors: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code within the sub-codebook of each position's semantic code.

        Args:
            vectors: (..., D) l2-normalised.
            semantic: (...) int64 in 0..K-1.

        Returns:
            (...) int64 in 0..m-1.
        """
        return self._nearest(vectors, *self.select(semantic))

    @staticmethod
    def _nearest(vectors: torch.Tensor, codes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Which of the m codes of its row is nearest to each of (..., D): (...) int64."""
        if len(codes) == 1:  # the same m for all: no copy for every vector
            return nearest_code(vectors, codes[0])
        with in_full_precision(vectors):
            return (codes[rows] @ vectors.unsqueeze(-1)).squeeze(-1).argmax(-1)

    def forward(
        self, vectors: torch.Tensor, semantic: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise within the sub-codebooks.

        Returns:
            quantized (..., D) with a straight-through gradient, index (...) int64, and two scalars: codebook loss
            (moves codes to vectors) and commitment loss (moves vectors to codes), each a mean squared distance.
        """
        codes, rows = self.select(semantic)
        index = self._nearest(vectors.detach(), codes.detach(), rows)
        chosen = codes[rows, index]
        codebook_loss = ((vectors.detach() - chosen) ** 2).sum(-1).mean()
        commit_loss = ((vectors - chosen.detach()) ** 2).sum(-1).mean()
        if not bool(self.initialized):
            return vectors, index, codebook_loss * 0, commit_loss * 0
        return straight_through(vectors, chosen), index, codebook_loss, commit_loss


class PixelCodebook(SubCodebooks):
    """Sub-codebook k is `base A_k + b_k`, l2-normalised: a base of m codes that all share, bent by an affine map.

    So a semantic code that training met rarely, or never in some colour, keeps the base's codes for it, moved as its
    other codes moved. Free codes under each semantic code reconstruct training pictures a little better and forget
    whatever they have not met (docs/experiments.md). SimVQ (arXiv 2411.02038) has one such map for a flat codebook.
    """

    def __init__(self, num_semantic_codes: int, num_codes: int, dim: int):
        super().__init__(num_semantic_codes, num_codes)
        self.base = nn.Parameter(torch.empty(num_codes, dim))  # (m, D)
        self.bend = nn.Parameter(torch.empty(num_semantic_codes, dim, dim))  # (K, D, D), A_k - identity
        self.shift = nn.Parameter(torch.empty(num_semantic_codes, 1, dim))  # (K, 1, D), b_k
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.base.copy_(normalize(torch.randn(self.base.shape, dtype=torch.float32)))
        nn.init.zeros_(self.bend)
        nn.init.zeros_(self.shift)

    def codes(self) -> torch.Tensor:
        return self._bent(self.bend, self.shift)

    def codes_under(self, semantic: torch.Tensor) -> torch.Tensor:
        return self._bent(self.bend[semantic], self.shift[semantic])

    def _bent(self, bend: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """The base under R affine maps (R, D, D) and (R, 1, D): (R, m, D) l2-normalised float32."""
        base = self.base.float()
        with in_full_precision(base):
            return normalize(base + base @ bend.float() + shift.float())

    def started(self) -> list[nn.Parameter]:
        return [self.base]

    def start_at(self, centres: torch.Tensor) -> None:
        self.base.copy_(centres)


class FreePixelCodebook(SubCodebooks):
    """Sub-codebooks that share nothing, the paper's: K times m codes, each trained where its semantic code occurs."""

    def __init__(self, num_semantic_codes: int, num_codes: int, dim: int):
        super().__init__(num_semantic_codes, num_codes)
        self.table = nn.Parameter(torch.empty(num_semantic_codes, num_codes, dim))  # (K, m, D)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.table.copy_(normalize(torch.randn(self.table.shape, dtype=torch.float32)))

    def codes(self) -> torch.Tensor:
        return normalize(self.table)

    def codes_under(self, semantic: torch.Tensor) -> torch.Tensor:
        return normalize(self.table[semantic])

    def started(self) -> list[nn.Parameter]:
        return [self.table]

    def start_at(self, centres: torch.Tensor) -> None:
        self.table.copy_(centres.expand_as(self.table))


PIXEL_CODEBOOKS: dict[str, type[SubCodebooks]] = {"affine": PixelCodebook, "free": FreePixelCodebook}
"""By `config.pixel_codebook`: each is built with (K, m, D)."""
