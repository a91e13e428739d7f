"""How much of SemHiTok's codebooks a set of pictures uses: K semantic codes, m pixel codes under each."""

import numpy as np


def code_use(codes: np.ndarray, num_semantic_codes: int, num_pixel_codes: int) -> dict[str, float]:
    """Use of the codebooks by some codes. A small sample shows less use than there is: state its size beside it.

    Args:
        codes: (..., 2) int, semantic and pixel code of each position.
        num_semantic_codes: K.
        num_pixel_codes: m.

    Returns:
        `semantic_code_use`: share of the K semantic codes seen. `flat_code_use`: share of the K * m pairs seen.
        `sub_codebook_use_min`, `_median`, `_mean`: over the semantic codes that occur, the share of the m pixel codes
        seen under each. `semantic_perplexity`, `flat_perplexity`: exp of the entropy, the number of codes that would
        carry as much if all were equally frequent; `pixel_perplexity`: the same for the pixel code given the semantic.

    Raises:
        ValueError: no codes, or one outside the codebooks.
    """
    semantic, pixel = np.asarray(codes).reshape(-1, 2).T
    if not semantic.size:
        raise ValueError("there are no codes to count")
    sizes = (num_semantic_codes, num_pixel_codes)
    if semantic.min() < 0 or pixel.min() < 0 or semantic.max() >= sizes[0] or pixel.max() >= sizes[1]:
        raise ValueError(
            f"codes up to ({semantic.max()}, {pixel.max()}) lie outside codebooks of {sizes[0]} x {sizes[1]}"
        )
    counts = np.zeros(sizes, np.int64)  # (K, m)
    np.add.at(counts, (semantic, pixel), 1)
    per_semantic = counts.sum(1)  # (K,)
    shares = (counts[per_semantic > 0] > 0).mean(1)  # (semantic codes that occur,)
    semantic_perplexity, flat_perplexity = perplexity(per_semantic), perplexity(counts)
    return {
        "semantic_code_use": float((per_semantic > 0).mean()),
        "flat_code_use": float((counts > 0).mean()),
        "sub_codebook_use_min": float(shares.min()),
        "sub_codebook_use_median": float(np.median(shares)),
        "sub_codebook_use_mean": float(shares.mean()),
        "semantic_perplexity": semantic_perplexity,
        "flat_perplexity": flat_perplexity,
        "pixel_perplexity": flat_perplexity / semantic_perplexity,
    }


def tokenizer_code_use(tokenizer, codes: np.ndarray) -> dict[str, float]:
    """`num_positions`, how many codes were counted, and their use; empty for a tokenizer of latents, without codes.

    Args:
        tokenizer: that encoded pictures to `codes`.
    """
    sizes = [getattr(tokenizer.config, name, None) for name in ("num_semantic_codes", "num_pixel_codes")]
    return {"num_positions": codes[..., 0].size} | code_use(codes, *sizes) if all(sizes) else {}


def perplexity(counts: np.ndarray) -> float:
    """exp(entropy in nats) of a histogram of any shape; 1 if everything falls into one bin."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
