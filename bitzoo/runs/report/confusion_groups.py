"""Group classes that are confused with each other, so that a large confusion matrix can be read.

Classes are clustered by how many images of either were taken for the other: hierarchical clustering
with average linkage, by the nearest-neighbour chain (F. Murtagh, "A Survey of Recent Advances in
Hierarchical Clustering Algorithms", The Computer Journal 26 (1983), 354-359), which needs n**2 time
and memory. Clusters between which nothing was confused are not joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitzoo.inference.metrics import Confusion, Integers

__all__ = ["MAX_CLASSES", "MAX_GROUP", "Grouping", "group_confused"]

MAX_GROUP = 8
"""Most classes of a group: a matrix of these is readable with names on a telephone."""

MAX_CLASSES = 2000
"""Most classes to cluster, those with the most mistakes: 16 MB of similarities, and seconds."""


@dataclass(frozen=True)
class Grouping:
    """Classes in an order in which those that are confused stand together.

    Attributes:
        order: Every class that was clustered; then those without mistakes, in their own order. Not
            all of them if there are more than `MAX_CLASSES`.
        groups: Classes that are confused with each other, at most `MAX_GROUP`, in that order; the
            group with the most mistakes within it first.
        mistakes: Of each group, the number of mistakes within it.
    """

    order: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    mistakes: tuple[int, ...]


def group_confused(num_classes: int, confusions: Sequence[Confusion]) -> Grouping:
    """Group classes by their mistakes; the same for the same mistakes, whatever their order.

    Args:
        num_classes: Number of classes.
        confusions: Wrong pairs, as `Evaluation.confusions` returns them.
    """
    weight = np.zeros(num_classes, np.int64)
    for pair in confusions:
        weight[[pair.true, pair.predicted]] += pair.count
    heaviest = np.argsort(-weight, kind="stable")[:MAX_CLASSES]
    shown = np.sort(heaviest[weight[heaviest] > 0]).tolist()
    counts = _counts_between(shown, confusions)
    roots, parts = _cluster(counts)
    inner = {tuple(part): int(counts[np.ix_(part, part)].sum()) // 2 for part in parts}
    worst = sorted((part for part in inner if inner[part]), key=lambda p: (-inner[p], min(p)))
    roots.sort(key=lambda root: (-counts[np.ix_(root, root)].sum(), min(root)))
    order = [shown[position] for root in roots for position in root]
    place = {name: number for number, name in enumerate(order)}
    rest = [name for name in range(num_classes) if not weight[name]]
    return Grouping(
        order=(*order, *rest)[:MAX_CLASSES],
        groups=tuple(
            tuple(sorted((shown[position] for position in part), key=place.__getitem__))
            for part in worst
        ),
        mistakes=tuple(inner[part] for part in worst),
    )


def _counts_between(shown: Sequence[int], confusions: Sequence[Confusion]) -> Integers:
    """Return the mistakes between any two of the classes, in either direction; symmetric."""
    place = {name: number for number, name in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), np.int64)
    for pair in confusions:
        if pair.true in place and pair.predicted in place:
            one, other = place[pair.true], place[pair.predicted]
            counts[one, other] += pair.count
            counts[other, one] += pair.count
    return counts


def _cluster(counts: Integers) -> tuple[list[list[int]], list[list[int]]]:
    """Cluster by average linkage.

    Returns:
        The clusters between which nothing was confused, and the largest clusters of the tree that
        have at most `MAX_GROUP` members; each as a list of members, neighbours next to each other.
    """
    near: npt.NDArray[np.float64] = counts.astype(np.float64)
    np.fill_diagonal(near, -1)
    members: dict[int, list[int]] = {index: [index] for index in range(len(counts))}
    roots: list[list[int]] = []
    parts: list[list[int]] = []
    chain: list[int] = []
    while members:
        if not chain:
            chain.append(min(members))
        tip = chain[-1]
        best = int(near[tip].argmax())
        if len(chain) > 1 and near[tip, chain[-2]] == near[tip, best]:
            best = chain[-2]  # of equals the one that it came from, or it would go in circles
        if near[tip, best] <= 0:
            chain.pop()
            _retire(near, tip)
            root = members.pop(tip)
            roots.append(root)
            parts += [root] if len(root) <= MAX_GROUP else []
        elif len(chain) > 1 and best == chain[-2]:
            del chain[-2:]
            one, other = members[best], members.pop(tip)
            if len(one) + len(other) > MAX_GROUP:
                parts += [part for part in (one, other) if len(part) <= MAX_GROUP]
            _join(near, best, len(one), tip, len(other))
            members[best] = _laid(one, other, counts)
        else:
            chain.append(best)
    return roots, parts


def _join(near: npt.NDArray[np.float64], kept: int, size: int, gone: int, other: int) -> None:
    """Make row `kept` the mean over the members of both clusters, and take row `gone` out."""
    mean = (size * near[kept] + other * near[gone]) / (size + other)
    left = near[kept] >= 0
    near[kept, left] = near[left, kept] = mean[left]
    near[kept, kept] = -1
    _retire(near, gone)


def _retire(near: npt.NDArray[np.float64], gone: int) -> None:
    near[gone, :] = near[:, gone] = -1


def _laid(one: list[int], other: list[int], counts: Integers) -> list[int]:
    """Put two clusters end to end, so that the two members that meet are confused the most."""
    ways = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    first, second = max(ways, key=lambda way: counts[way[0][-1], way[1][0]])
    return first + second
