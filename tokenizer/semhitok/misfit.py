"""Whether a checkpoint's tensors are those of its model: one sentence, whoever reads the checkpoint.

transformers goes on with random numbers for a tensor that is missing, in silence with one too many, and tells no name
of one in another shape. So models are loaded with LOADING, and `misfit_of_report` reads what it then returns.
"""

from collections.abc import Collection, Iterable, Mapping

Shape = tuple[int, ...]

SHOWN = 5  # names of each kind in a message
LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of `from_pretrained`, which then returns (model, report) and does not stop at a shape."""


def misfit(missing: Collection[str], unexpected: Collection[str], misshapen: Iterable[tuple[str, Shape, Shape]]) -> str:
    """What is wrong, to stand behind "the checkpoint": the first names of each kind and how many; "" for nothing.

    Args:
        misshapen: (name, shape found, shape wanted).
    """
    wrong = [f"{name} {tuple(found)} (not {tuple(wanted)})" for name, found, wanted in misshapen]
    kinds = [("lacks", missing), ("has no place for", unexpected), ("has in another shape", wrong)]
    return "; it ".join(
        f"{what} {len(names)} tensors: {', '.join(sorted(names)[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for what, names in kinds
        if names
    )


def misfit_of_shapes(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """`misfit` of all tensors of a checkpoint and of its model, by name."""
    both = [name for name in found if name in wanted and tuple(found[name]) != tuple(wanted[name])]
    misshapen = [(name, found[name], wanted[name]) for name in both]
    return misfit(wanted.keys() - found.keys(), found.keys() - wanted.keys(), misshapen)


def misfit_of_report(report: Mapping, is_whole: bool) -> str:
    """`misfit` of what transformers loaded; where tensors are missing and nothing else is wrong, it asks why.

    Args:
        report: of `from_pretrained` with LOADING. It leaves out what a model ignores by its class, and tied weights.
        is_whole: the checkpoint is a model of ours, which has all its tensors; others may hold more than is read.
    """
    unexpected = report["unexpected_keys"] if is_whole else ()
    told = misfit(report["missing_keys"], unexpected, report["mismatched_keys"])
    is_cut = report["missing_keys"] and not unexpected and not report["mismatched_keys"]
    return f"{told}; is it cut off?" if is_cut else told
