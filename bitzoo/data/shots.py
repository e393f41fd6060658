"""Few-shot subsets for features that are computed once: those of big_vision's few-shot probe.

`bitzoo.data.splits.choose` draws the subsets of fine-tuning runs. This is the draw of another
protocol, made as that makes it, so that the same seed means the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from bitzoo.data.problems import join_some


def draw_shots(
    labels: npt.ArrayLike, num_classes: int, shots: Iterable[int], seed: int
) -> dict[int, npt.NDArray[np.int64]]:
    """Choose so many examples of each class, or all of them if there are fewer.

    One generator permutes the positions of each class in turn, by number; a subset has the first of
    each permutation. So a subset of fewer shots lies in that of more, and a class has the same
    examples in all of them.

    The generator is NumPy's `default_rng`, whose streams stay the same within a feature release
    and may change with one (NEP 19).

    Args:
        labels: Class of each example, from 0 to num_classes - 1, in the order of the data set.
        num_classes: Number of classes, those without examples too.
        shots: How many examples per class.
        seed: Another seed makes another choice.

    Returns:
        shots -> positions, class by class.

    Source: google-research/big_vision, evaluators/fewshot_lsr.py, `compute_fewshot_metrics`.
    """
    found = np.asarray(labels, np.int64)
    members = np.split(
        np.argsort(found, kind="stable"), np.bincount(found, minlength=num_classes).cumsum()[:-1]
    )
    random = np.random.default_rng(seed)
    orders = [random.permutation(positions) for positions in members]
    return {count: np.concatenate([order[:count] for order in orders]) for count in shots}


def describe_short(labels: Iterable[int], classes: Sequence[str], per_class: int) -> str:
    """Return a sentence that names the classes with fewer examples; empty if there are none."""
    counts = Counter(labels)
    few = [f"{name} ({counts[k]})" for k, name in enumerate(classes) if counts[k] < per_class]
    return f"Classes with fewer than {per_class} images: {join_some(few)}." if few else ""
