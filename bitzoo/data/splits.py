"""Choose held-out and few-shot examples: a pure function of the seed, labels and their order.

Every class draws from its own counter-based generator (NumPy's Philox, keyed by purpose, seed and
class name), so adding or removing a class does not change the choice in any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np


def hold_out(
    labels: Sequence[int], classes: Sequence[str], fraction: float, seed: int
) -> tuple[int, ...]:
    """Choose a stratified fraction of the examples for evaluation.

    Each class holds out its fraction rounded down or up so that `round(fraction * len(labels))`
    examples are held out in total (largest remainders first, ties in seeded order), or as many as
    possible while each class keeps at least one.

    Args:
        labels: Index into `classes` of each example.
        classes: The name of each class.
        fraction: Fraction to hold out, in 0..1.
        seed: Another seed makes another choice.

    Returns:
        Positions in `labels`, ascending.
    """
    groups = _positions(labels, len(classes))
    limits = [max(len(group) - 1, 0) for group in groups]
    exact = [fraction * len(group) for group in groups]
    counts = [min(int(share), limit) for share, limit in zip(exact, limits, strict=True)]
    missing = round(fraction * len(labels)) - sum(counts)
    ties = [_keys("tie", seed, name, 1)[0] for name in classes]
    for label in sorted(range(len(classes)), key=lambda c: (counts[c] - exact[c], ties[c])):
        if missing > 0 and counts[label] < limits[label]:
            counts[label] += 1
            missing -= 1
    return _draw("hold out", groups, classes, counts, seed)


def choose(
    labels: Sequence[int], classes: Sequence[str], per_class: int, seed: int
) -> tuple[int, ...]:
    """Choose `per_class` examples of each class, or all of them if there are fewer.

    The choice for a smaller `per_class` is a subset of the choice for a larger one.

    Args:
        labels: Index into `classes` of each example.
        classes: The name of each class.
        per_class: How many to keep per class.
        seed: Another seed makes another choice.

    Returns:
        Positions in `labels`, ascending.
    """
    groups = _positions(labels, len(classes))
    return _draw("few shot", groups, classes, [per_class] * len(classes), seed)


def _positions(labels: Sequence[int], num_classes: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(num_classes)]
    for position, label in enumerate(labels):
        groups[label].append(position)
    return groups


def _draw(
    purpose: str,
    groups: Sequence[Sequence[int]],
    classes: Sequence[str],
    counts: Sequence[int],
    seed: int,
) -> tuple[int, ...]:
    chosen: list[int] = []
    for group, name, count in zip(groups, classes, counts, strict=True):
        keys = _keys(purpose, seed, name, len(group))
        order = sorted(range(len(group)), key=keys.__getitem__)
        chosen += [group[index] for index in order[:count]]
    return tuple(sorted(chosen))


def _keys(purpose: str, seed: int, name: str, count: int) -> list[int]:
    """Draw random 64-bit numbers. NumPy promises that raw streams never change across versions."""
    digest = hashlib.sha256(json.dumps([purpose, seed, name]).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return [int(key) for key in philox.random_raw(count)]
