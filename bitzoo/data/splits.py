"""Choose held-out and few-shot examples: a pure function of the seed, labels and their order.

Every class draws from its own counter-based generator (NumPy's Philox, keyed by purpose, seed and
class name), so adding or removing a class does not change the choice in any other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_HOLD_OUT = "hold out"


def hold_out(
    labels: Sequence[int] | npt.NDArray[np.int64],
    classes: Sequence[str],
    fraction: float,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> tuple[int, ...]:
    """Choose a stratified fraction of the examples for evaluation.

    Each class holds out its fraction rounded down or up so that `round(fraction * len(labels))`
    examples are held out in total (largest remainders first, ties in seeded order), or as many as
    possible while each class keeps at least one.

    With `groups`, all examples of a group are on the same side. In the order in which their first
    members would be drawn, groups are held out while that brings the classes nearer to their
    numbers (sum of absolute differences); then, for each class that should hold out something and
    could not, the group that costs least. Groups of one each are drawn as without `groups`.

    Args:
        labels: Index into `classes` of each example.
        classes: The name of each class.
        fraction: Fraction to hold out, in 0..1.
        seed: Another seed makes another choice.
        groups: The group of each example. Only which are equal matters, not their values. None
            means that every example is its own group.

    Returns:
        Positions in `labels`, ascending. Empty if no group can be held out: `fraction` is too
        small, or each would take the last examples of some class from training.
    """
    members = _positions(labels, len(classes))
    limits = [max(len(positions) - 1, 0) for positions in members]
    exact = [fraction * len(positions) for positions in members]
    counts = [min(int(share), limit) for share, limit in zip(exact, limits, strict=True)]
    missing = round(fraction * len(labels)) - sum(counts)
    ties = [int(_keys("tie", seed, name, 1)[0]) for name in classes]
    for label in sorted(range(len(classes)), key=lambda c: (counts[c] - exact[c], ties[c])):
        if missing > 0 and counts[label] < limits[label]:
            counts[label] += 1
            missing -= 1
    if groups is None:
        return _draw(_HOLD_OUT, members, classes, counts, seed)
    keys = [0] * len(labels)
    for positions, name in zip(members, classes, strict=True):
        drawn = _keys(_HOLD_OUT, seed, name, len(positions))
        for position, key in zip(positions.tolist(), drawn.tolist(), strict=True):
            keys[position] = key
    gathered: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        gathered.setdefault(group, []).append(position)
    order = sorted(gathered.values(), key=lambda positions: keys[positions[0]])
    return _draw_groups(order, np.asarray(labels).tolist(), counts, limits)


def _draw_groups(
    order: Sequence[Sequence[int]],
    labels: Sequence[int],
    wanted: Sequence[int],
    limits: Sequence[int],
) -> tuple[int, ...]:
    """Hold out whole groups; see `hold_out`.

    Args:
        order: The positions of each group, in the order of the draw.
        labels: Class of each example.
        wanted: Number to hold out of each class.
        limits: Most to hold out of each class.
    """
    sizes: list[Mapping[int, int]] = [
        {labels[positions[0]]: 1}  # as most are; ten times faster
        if len(positions) == 1
        else Counter(labels[position] for position in positions)
        for positions in order
    ]
    draw = _Draw(sizes, wanted, limits, [0] * len(wanted))
    for group in range(len(order)):
        if (draw.cost(group) or 0) < 0:
            draw.take(group)
    for label, number in enumerate(wanted):
        if number and not draw.held[label]:
            draw.take_one_of(label)
    return tuple(sorted(position for group in draw.taken for position in order[group]))


@dataclass
class _Draw:
    """A draw of groups in progress.

    Attributes:
        sizes: Number of examples of each class in each group.
        wanted: Number to hold out of each class.
        limits: Most to hold out of each class.
        held: Number held out of each class so far.
        taken: The groups held out so far.
    """

    sizes: Sequence[Mapping[int, int]]
    wanted: Sequence[int]
    limits: Sequence[int]
    held: list[int]
    taken: list[int] = field(default_factory=list)

    def cost(self, group: int) -> int | None:
        """Return by how much the group takes the classes off their numbers; None if it may not."""
        change = 0
        for label, size in self.sizes[group].items():
            if self.held[label] + size > self.limits[label]:
                return None
            missing = self.wanted[label] - self.held[label]
            change += abs(missing - size) - abs(missing)
        return change

    def take(self, group: int) -> None:
        self.taken.append(group)
        for label, size in self.sizes[group].items():
            self.held[label] += size

    def take_one_of(self, label: int) -> None:
        """Hold out the group that costs least of those that have the class, if there is one."""
        costs = {group: self.cost(group) for group, size in enumerate(self.sizes) if label in size}
        possible = [(cost, group) for group, cost in costs.items() if cost is not None]
        if possible:
            self.take(min(possible)[1])


def draw_folds(
    labels: Sequence[int] | npt.NDArray[np.int64],
    classes: Sequence[str],
    folds: int,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> npt.NDArray[np.int64]:
    """Divide the examples into stratified folds of about the same size.

    Groups are dealt out one after the other, the largest first, those of one size in seeded order:
    each to the fold that has the fewest examples of its classes (the sum over its members), of
    several to the smallest, of several still to the first. So without groups, two folds differ by
    at most one example of any class.

    Args:
        labels: Index into `classes` of each example.
        classes: The name of each class.
        folds: Number of folds, at least 2.
        seed: Another seed makes other folds.
        groups: The group of each example; all of a group are in one fold. Only which are equal
            matters. None means that every example is its own group.

    Returns:
        The fold of each example, from 0 to `folds` - 1. With few groups, some may be empty.
    """
    known = np.asarray(labels, np.int64)
    keys = np.zeros(len(known), np.uint64)
    for positions, name in zip(_positions(known, len(classes)), classes, strict=True):
        keys[positions] = _keys("folds", seed, name, len(positions))
    gathered: dict[Hashable, list[int]] = {}
    for position, group in enumerate(range(len(known)) if groups is None else groups):
        gathered.setdefault(group, []).append(position)
    order = sorted(gathered.values(), key=lambda own: (-len(own), int(keys[own[0]])))
    held, fold_of = np.zeros((len(classes), folds), np.int64), np.zeros(len(known), np.int64)
    sizes = [0] * folds
    for own in order:
        of_own = held[known[own]].sum(axis=0).tolist()
        fold = min(zip(of_own, sizes, range(folds), strict=True))[2]
        np.add.at(held[:, fold], known[own], 1)
        sizes[fold] += len(own)
        fold_of[own] = fold
    return fold_of


def join_groups(*groupings: Sequence[Hashable]) -> tuple[int, ...]:
    """Return the finest grouping in which all that are equal in one of the groupings are together.

    Args:
        groupings: At least one; the group of each example, all of the same length.

    Returns:
        The group of each example: the position of its group's first member.
    """
    parent = list(range(len(groupings[0])))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for grouping in groupings:
        first: dict[Hashable, int] = {}
        for position, group in enumerate(grouping):
            here, there = root(position), root(first.setdefault(group, position))
            parent[max(here, there)] = min(here, there)
    return tuple(map(root, range(len(parent))))


def choose(
    labels: Sequence[int] | npt.NDArray[np.int64], classes: Sequence[str], per_class: int, seed: int
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
    members = _positions(labels, len(classes))
    return _draw("few shot", members, classes, [per_class] * len(classes), seed)


def _positions(
    labels: Sequence[int] | npt.NDArray[np.int64], num_classes: int
) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each class, ascending."""
    found = np.asarray(labels, np.int64)
    ends = np.bincount(found, minlength=num_classes).cumsum()
    return np.split(np.argsort(found, kind="stable"), ends[:-1]) if num_classes else []


def _draw(
    purpose: str,
    members: Iterable[npt.NDArray[np.int64]],
    classes: Sequence[str],
    counts: Sequence[int],
    seed: int,
) -> tuple[int, ...]:
    chosen = [np.empty(0, np.int64)]
    for positions, name, count in zip(members, classes, counts, strict=True):
        keys = _keys(purpose, seed, name, len(positions))
        chosen.append(positions[np.argsort(keys, kind="stable")[:count]])
    return tuple(np.sort(np.concatenate(chosen)).tolist())


def _keys(purpose: str, seed: int, name: str, count: int) -> npt.NDArray[np.uint64]:
    """Draw random 64-bit numbers. NumPy promises that raw streams never change across versions."""
    digest = hashlib.sha256(json.dumps([purpose, seed, name]).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    keys: npt.NDArray[np.uint64] = philox.random_raw(count)
    return keys
