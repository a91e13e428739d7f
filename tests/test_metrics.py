"""Metrics by hand: GenEval's rules, POPE, PSNR and SSIM, code use, intervals."""

import numpy as np
import pytest

from unimllm.metrics import pope
from unimllm.metrics.codes import code_use, perplexity
from unimllm.metrics.geneval import TAGS, Detection, is_correct, relations, summarize
from unimllm.metrics.geneval import intervals as geneval_intervals
from unimllm.metrics.intervals import bootstrap, wilson
from unimllm.metrics.reconstruction import MOST, psnr, ssim, ssim_uniform


def at(x: float, y: float, side: float = 10.0) -> tuple[float, float, float, float]:
    """A square box by its centre."""
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


# ---- GenEval -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "other", "expected"),
    [
        (at(0, 0), at(20, 0), {"left of"}),
        (at(20, 0), at(0, 0), {"right of"}),
        (at(0, 0), at(0, 20), {"above"}),
        (at(0, 20), at(0, 0), {"below"}),
        (at(0, 0), at(0, 0), set()),
        (at(1.9, 0), at(0, 0), set()),  # within the margin: a tenth of 10 + 10
        (at(3.9, 0), at(0, 0), set()),  # 1.9 of 3.9 is left: less than half of the offset before shrinking
        (at(4.1, 0), at(0, 0), {"right of"}),  # 2.1 of 4.1: more than half
        (at(20, 20), at(0, 0), {"right of", "below"}),  # 18 of 28.3 on both axes
        (at(20, 12), at(0, 0), {"right of"}),  # below: 10 of 23.3 is less than half, though it is 10 of 20.6 shrunk
        (at(-20, -20), at(0, 0), {"left of", "above"}),
        ((0, 0, 40, 10), (50, 0, 60, 10), {"left of"}),  # centres 20 and 55, margin 5
    ],
)
def test_relations_follow_geneval(subject, other, expected):
    assert relations(subject, other) == expected


def prompt(tag: str, *include: dict, exclude: list[dict] | None = None) -> dict:
    return {"tag": tag, "include": list(include)} | ({"exclude": exclude} if exclude else {})


def test_single_object_needs_a_score_above_three_tenths():
    wanted = prompt("single_object", {"class": "dog", "count": 1})
    assert is_correct([Detection("dog", at(5, 5), 0.31)], wanted)
    assert not is_correct([Detection("dog", at(5, 5), 0.3)], wanted)  # above, not at
    assert not is_correct([Detection("cat", at(5, 5), 0.99)], wanted)
    assert not is_correct([], wanted)
    assert is_correct([Detection("dog", at(5 * i, 5), 0.9) for i in range(3)], wanted)  # more are allowed


def test_counting_is_exact_and_judged_at_nine_tenths():
    wanted = prompt("counting", {"class": "dog", "count": 2}, exclude=[{"class": "dog", "count": 3}])

    def dogs(*scores: float) -> list[Detection]:
        return [Detection("dog", at(20 * i, 0), score) for i, score in enumerate(scores)]

    assert is_correct(dogs(0.95, 0.91), wanted)
    assert not is_correct(dogs(0.95, 0.9), wanted)  # the second is not sure enough
    assert not is_correct(dogs(0.95, 0.92, 0.91), wanted)  # a third is excluded ...
    assert is_correct(dogs(0.95, 0.92, 0.89), wanted)  # ... unless it is unsure itself
    assert is_correct([*dogs(0.95, 0.92), Detection("cat", at(9, 9), 0.99)], wanted)  # others may be there


def test_exclude_counts_at_the_tag_s_own_threshold():
    wanted = prompt("single_object", {"class": "dog", "count": 1}, exclude=[{"class": "dog", "count": 2}])
    assert not is_correct([Detection("dog", at(0, 0), 0.9), Detection("dog", at(20, 0), 0.31)], wanted)


def test_colour_is_judged_on_the_surest_boxes():
    wanted = prompt("colors", {"class": "car", "count": 1, "color": "red"})
    red, blue = Detection("car", at(0, 0), 0.8, "red"), Detection("car", at(30, 0), 0.9, "blue")
    assert is_correct([red], wanted)
    assert not is_correct([red, blue], wanted)  # the surest car is blue
    assert not is_correct([Detection("car", at(0, 0), 0.9, None)], wanted)


def test_heterogeneous_clauses_must_all_hold():
    wanted = prompt(
        "color_attr",
        {"class": "car", "count": 1, "color": "red"},
        {"class": "dog", "count": 2, "color": "white"},
    )
    car = Detection("car", at(0, 0), 0.9, "red")
    dogs = [Detection("dog", at(30 * i, 30), 0.9, "white") for i in range(2)]
    assert is_correct([car, *dogs], wanted)
    assert not is_correct([car, dogs[0]], wanted)
    assert not is_correct([car, dogs[0], Detection("dog", at(60, 30), 0.8, "black")], wanted)
    assert not is_correct(dogs, wanted)


def test_position_holds_between_all_pairs_and_needs_its_target():
    wanted = prompt("position", {"class": "cup", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]})
    cup = Detection("cup", at(50, 50), 0.9)
    assert is_correct([cup, Detection("dog", at(20, 50), 0.9)], wanted)
    assert not is_correct([cup, Detection("dog", at(80, 50), 0.9)], wanted)
    assert not is_correct([cup, Detection("dog", at(49, 50), 0.9)], wanted)  # no relation at all
    assert not is_correct([Detection("dog", at(20, 50), 0.9)], wanted)  # no target
    # Judged on the surest dog alone: the other one may lie anywhere.
    assert is_correct([cup, Detection("dog", at(20, 50), 0.9), Detection("dog", at(80, 50), 0.5)], wanted)
    two = prompt("position", {"class": "cup", "count": 1}, {"class": "dog", "count": 2, "position": ["left of", 0]})
    assert not is_correct([cup, Detection("dog", at(20, 50), 0.9), Detection("dog", at(80, 50), 0.5)], two)


def test_a_target_whose_colour_fails_is_no_target():
    wanted = prompt(
        "position",
        {"class": "cup", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "position": ["left of", 0]},
    )
    dog = Detection("dog", at(20, 50), 0.9)
    assert is_correct([Detection("cup", at(50, 50), 0.9, "red"), dog], wanted)
    assert not is_correct([Detection("cup", at(50, 50), 0.9, "blue"), dog], wanted)


def test_at_most_sixteen_boxes_of_a_class_are_kept():
    wanted = prompt("single_object", {"class": "dog", "count": 17})
    assert not is_correct([Detection("dog", at(i, 0), 0.9) for i in range(20)], wanted)


def test_overall_is_the_mean_of_the_tags_not_of_the_pictures():
    tags = ["single_object"] * 4 + ["counting"]
    right = [True, True, True, False, False]
    some = {"single_object": 0.75, "counting": 0.0}
    assert summarize(tags, right) == some | {"overall": None}  # of a part of the tags there is no mean
    others = [tag for tag in TAGS if tag not in tags]
    scores = summarize(tags + others, right + [True] * 4)
    assert scores == some | dict.fromkeys(others, 1.0) | {"overall": 4.75 / 6}
    assert geneval_intervals(tags, right, range(5))["overall"] is None
    low, high = geneval_intervals(tags + others, right + [True] * 4, range(9))["overall"]
    assert low < 4.75 / 6 < high
    with pytest.raises(ValueError):
        summarize(tags, [True])


# ---- POPE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "official", "strict"),
    [
        ("yes", "yes", "yes"),
        ("no", "no", "no"),
        ("Yes.", "yes", "yes"),
        (" NO ", "yes", "no"),  # official parsing knows No and no only
        ("No, there is not.", "no", "other"),
        ("There is not, I think", "no", "other"),
        ("yes. no", "yes", "other"),  # only the first sentence is read
        ("nothing", "yes", "other"),
        ("a red apple", "yes", "other"),  # garbage counts as yes
        ("", "yes", "other"),
    ],
)
def test_pope_parsing(answer, official, strict):
    assert pope.parse_official(answer) == official
    assert pope.parse_strict(answer) == strict


def test_pope_by_hand():
    labels = ["yes", "yes", "yes", "no", "no", "no", "no", "no"]
    answers = ["yes", "Yes.", "no", "no", "no", "no", "yes", "an apple"]
    official = pope.score(labels, answers)
    # Two right yes, two wrong ones (the garbage counts), one missed.
    assert official["precision"] == 2 / 4 and official["recall"] == 2 / 3
    assert official["accuracy"] == 5 / 8
    assert official["f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert official["yes_ratio"] == 4 / 8  # of the predictions; 3 / 8 of the labels are yes
    assert official["other_ratio"] == 0
    strict = pope.score(labels, answers, "strict")
    assert strict["precision"] == 2 / 3 and strict["recall"] == 2 / 3 and strict["f1"] == pytest.approx(2 / 3)
    assert strict["accuracy"] == 5 / 8 and strict["yes_ratio"] == 3 / 8 and strict["other_ratio"] == 1 / 8


def test_pope_of_constant_answers():
    labels = ["yes", "no"] * 5
    always_yes = pope.score(labels, ["yes"] * 10)
    assert always_yes["f1"] == pytest.approx(2 / 3) and always_yes["yes_ratio"] == 1 and always_yes["accuracy"] == 0.5
    always_no = pope.score(labels, ["no"] * 10)
    assert always_no["f1"] == 0 and always_no["yes_ratio"] == 0 and always_no["accuracy"] == 0.5
    garbage = ["hm"] * 10
    assert pope.score(labels, garbage)["f1"] == pytest.approx(2 / 3)
    assert pope.score(labels, garbage, "strict")["f1"] == 0 == pope.score(labels, garbage, "strict")["accuracy"]


def test_pope_refuses_what_cannot_be_scored():
    with pytest.raises(ValueError, match="maybe"):
        pope.score(["maybe"], ["yes"])
    with pytest.raises(ValueError):
        pope.score(["yes", "no"], ["yes"])


# ---- reconstruction ------------------------------------------------------------------------------------------------


def plain(*values: int, side: int = 16) -> np.ndarray:
    """(n, side, side, 3) uint8 pictures of one grey each."""
    return np.stack([np.full((side, side, 3), v, np.uint8) for v in values])


def test_psnr_by_hand():
    first = plain(0, 100, 0, 7)
    second = plain(255, 110, 1, 7)
    values = psnr(first, second)
    assert values[0] == pytest.approx(0)  # the largest error there is
    assert values[1] == pytest.approx(10 * np.log10(255**2 / 100))
    assert values[2] == pytest.approx(48.1308, abs=1e-4)  # one step everywhere
    assert values[3] == MOST == 100.0  # equal
    nearly = plain(7, side=256)
    nearly[0, 0, 0, 0] += 1  # 101 dB without the limit
    assert psnr(plain(7, side=256), nearly)[0] == MOST
    half = plain(0)
    half[0, :8] = 10  # error 100 in half of the pixels: the mean is over pixels before the logarithm
    assert psnr(plain(0), half)[0] == pytest.approx(10 * np.log10(255**2 / 50))
    assert psnr(second, first)[1] == values[1]  # no wrap-around of uint8


def test_ssim_by_hand():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    assert ssim(noise, noise) == pytest.approx([1, 1])
    # Plain pictures have no variance: only the luminance term is left.
    c1 = (0.01 * 255) ** 2
    assert ssim(plain(100), plain(150)) == pytest.approx([(2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)])
    # A negative has the covariance's sign turned: far below zero.
    assert ssim(noise[:1], 255 - noise[:1])[0] < -0.8
    assert ssim(noise[:1], noise[1:])[0] == pytest.approx(ssim(noise[1:], noise[:1])[0])
    # The doubled data_range of some published code flatters.
    assert ssim(noise[:1], noise[1:], data_range=510)[0] > ssim(noise[:1], noise[1:])[0]


def test_ssim_of_one_window_by_hand():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 256, (2, 1, 11, 11, 3), dtype=np.uint8)  # 11 pixels: exactly one window
    g = np.exp(-(((np.arange(11) - 5) / 1.5) ** 2) / 2)
    weights = np.outer(g, g) / g.sum() ** 2
    values = []
    for channel in range(3):
        a, b = x[0, ..., channel].astype(float), y[0, ..., channel].astype(float)
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 2.55**2, 7.65**2
        values.append(
            (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    assert ssim(x, y)[0] == pytest.approx(np.mean(values))


def test_uniform_ssim_is_scikit_image_s():
    # structural_similarity(x, y, data_range=..., channel_axis=-1): windows of 7 x 7 in the interior, samples' moments
    x, y = np.random.default_rng(2).integers(0, 256, (2, 1, 9, 12, 3), dtype=np.uint8)
    windows = [np.lib.stride_tricks.sliding_window_view(p[0].astype(float), (7, 7), (0, 1)) for p in (x, y)]
    a, b = (w.reshape(3 * 6 * 3, 49) for w in windows)
    covariances = [np.cov(*pair) for pair in zip(a, b, strict=True)]  # divided by 48
    for data_range in (255, 510):
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        values = [
            (2 * m * n + c1) * (2 * c[0, 1] + c2) / ((m**2 + n**2 + c1) * (c[0, 0] + c[1, 1] + c2))
            for m, n, c in zip(a.mean(1), b.mean(1), covariances, strict=True)
        ]
        assert ssim_uniform(x, y, data_range)[0] == pytest.approx(np.mean(values))


def test_reconstruction_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match="uint8"):
        psnr(plain(1).astype(np.float32), plain(1))
    with pytest.raises(ValueError, match="shape"):
        ssim(plain(1), plain(1, 2))
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(plain(1, side=10), plain(1, side=10))


# ---- code use ------------------------------------------------------------------------------------------------------


def test_code_use_by_hand():
    # K = 4, m = 2. Code 0 with both pixel codes (twice each), code 2 with one (four times); 1 and 3 never.
    codes = np.array([[[0, 0], [0, 1], [0, 0], [0, 1]], [[2, 1], [2, 1], [2, 1], [2, 1]]])
    use = code_use(codes, 4, 2)
    assert use["semantic_code_use"] == 2 / 4
    assert use["flat_code_use"] == 3 / 8
    assert (use["sub_codebook_use_min"], use["sub_codebook_use_median"], use["sub_codebook_use_mean"]) == (
        0.5,
        0.75,
        0.75,
    )
    assert use["semantic_perplexity"] == pytest.approx(2)
    assert use["flat_perplexity"] == pytest.approx(2**1.5)  # shares 1/4, 1/4, 1/2: 1.5 bits
    assert use["pixel_perplexity"] == pytest.approx(2**0.5)


def test_code_use_at_its_ends():
    everything = np.stack(np.meshgrid(np.arange(3), np.arange(5), indexing="ij"), -1)
    use = code_use(everything, 3, 5)
    assert use["semantic_code_use"] == use["flat_code_use"] == use["sub_codebook_use_min"] == 1
    assert use["flat_perplexity"] == pytest.approx(15) and use["pixel_perplexity"] == pytest.approx(5)
    one = code_use(np.array([[2, 4]]), 3, 5)
    assert one["flat_code_use"] == 1 / 15 and one["semantic_perplexity"] == one["flat_perplexity"] == 1
    assert perplexity(np.array([0, 7, 0])) == 1


def test_codes_outside_the_codebooks_are_refused():
    with pytest.raises(ValueError, match="outside"):
        code_use(np.array([[0, 5]]), 3, 5)
    with pytest.raises(ValueError, match="no codes"):
        code_use(np.zeros((0, 2), int), 3, 5)


# ---- intervals -----------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    # Wilson 1927 at z = 1.96: 8 of 10 gives 0.490 .. 0.943; none and all keep a width.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_resamples_whole_clusters():
    values = np.repeat([0.0, 1.0], 200)

    def mean(picked: np.ndarray) -> float:
        return float(values[picked].mean())

    alone, repeated = bootstrap(mean, range(400)), bootstrap(mean, np.repeat(np.arange(40), 10))
    assert alone == pytest.approx((0.45, 0.55), abs=0.015)  # 0.5 +- 1.96 * 0.5 / sqrt(400)
    assert repeated == pytest.approx((0.345, 0.655), abs=0.04)  # 40 clusters: sqrt(10) times as wide
    assert bootstrap(mean, range(400)) == alone
