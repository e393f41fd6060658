"""What all attacks on checkpoints share: undamaged files, how they are read, and the comparison.

A *part* holds a few tensors of a network, some kilobytes: it can be read tensor by tensor, and
everything that a reader does is done to it. A *whole* network (the smallest has 8 MB) goes all the
way that a user's file goes, and is damaged less often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from attacks.engine import READ
from attacks.judges import Arrays, Judge
from attacks.mutations import Ranges, damage
from checkpoints import as_timm, make_checkpoint
from numpy.typing import NDArray

from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.converters.state_dict import read_arrays
from bitzoo.errors import TensorMismatchError

CLASSES = 3
WHOLE = make_checkpoint(num_classes=CLASSES, seed=11)
"""The smallest network that there is."""
PART = {
    name: WHOLE[name]
    for name in (
        "resnet/root_block/standardized_conv2d/kernel",
        "resnet/block1/unit01/a/group_norm/gamma",
        "resnet/block1/unit01/a/group_norm/beta",
        "resnet/block1/unit01/a/standardized_conv2d/kernel",
        "resnet/group_norm/gamma",
        "resnet/head/conv2d/kernel",
        "resnet/head/conv2d/bias",
    )
}
_ORDERS = {4: ((0, 1, 2, 3), (3, 2, 0, 1)), 2: ((0, 1), (1, 0)), 1: ((0,),)}
_HEAD = "head.fc.weight"

Tensor = NDArray[Any]


@dataclass
class Base:
    """An undamaged checkpoint.

    Attributes:
        name: What it is called.
        files: Its files by relative path.
        entry: The path to open; empty for the folder itself.
        whole: Whether it is a whole network.
        hot: File -> where its structure is, as opposed to its numbers.
        make: For attacks that need more than the bytes: whatever the file was made from.
        pairs: Our name -> the judge's, and the order of axes that makes it ours.
        shapes: Our name -> its shape.
    """

    name: str
    files: dict[str, bytes]
    entry: str = ""
    whole: bool = False
    hot: Mapping[str, Ranges] = field(default_factory=dict)
    make: Any = None
    pairs: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def write(self, place: Path, changed: Mapping[str, bytes] | None = None) -> Path:
        """Write its files below `place`, some changed; returns the path to open."""
        for name, data in (self.files | dict(changed or {})).items():
            path = place / "input-folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return place / "input-folder" / self.entry


@dataclass
class Attacked:
    """One damaged checkpoint."""

    path: Path
    label: str
    base: Base
    place: Path


Structured = Callable[[Base, random.Random, Path], "tuple[Path, str]"]
"""Writes a checkpoint that is damaged in the terms of its format: the path and what was done."""


@dataclass
class CheckpointTarget:
    """A format of checkpoints under attack.

    Attributes:
        name: Of the format.
        make_bases: Makes the undamaged files; given a folder for them.
        structured: Damages one in the terms of its format.
        judge: Name of the independent reader, if it has to be apart.
        judge_here: The independent reader, if it cannot crash.
        whole_share: How many inputs are of whole networks.
        bytes_share: How many are damaged without regard to their format.
        also_there: Whether the judge's tensors that ours lack are no finding.
    """

    name: str
    make_bases: Callable[[Path], list[Base]]
    structured: Structured
    judge: str = ""
    judge_here: Callable[[Path], Arrays] | None = None
    whole_share: float = 0.06
    bytes_share: float = 0.45
    judged_path: Callable[[Path], Path] = lambda path: path
    bases: list[Base] = field(default_factory=list)

    def prepare(self, folder: Path, judge: Judge | None) -> None:
        if self.bases:
            return
        self.bases = self.make_bases(folder)
        for base in self.bases:
            place = folder / "prepared" / base.name
            place.mkdir(parents=True)
            case = Attacked(base.write(place), "", base, place)
            theirs = self._judged(case, judge)
            if base.whole:
                base.pairs = _pair(as_timm(WHOLE), theirs)
                ours = self.read(case)
                assert base.pairs.keys() == ours.keys(), (
                    self.name,
                    base.name,
                    set(ours) ^ set(base.pairs),
                )
            else:
                ours = self._read_part(case, None)
                base.shapes = {name: array.shape for name, array in ours.items()}
                base.pairs = _pair(ours, theirs)
                assert len(base.pairs) == len(ours), (self.name, base.name)
            outcome = self.differs(case, ours, judge)
            assert outcome == (READ, ""), (self.name, base.name, outcome)

    def attack(self, rng: random.Random, place: Path) -> Attacked:
        whole = rng.random() < self.whole_share
        base = rng.choice([b for b in self.bases if b.whole == whole] or self.bases)
        kind = rng.random()
        if kind < self.bytes_share:
            path, label = self._bytes(base, rng, place)
        else:
            path, label = self.structured(base, rng, place)
        return Attacked(path, f"{base.name}: {label}", base, place)

    def _bytes(self, base: Base, rng: random.Random, place: Path) -> tuple[Path, str]:
        name = rng.choice(list(base.files))
        others = [b.files[name] for b in self.bases if b is not base and name in b.files]
        other = rng.choice(others) if others else b""
        changed, label = damage(base.files[name], rng, base.hot.get(name, ()), other)
        return base.write(place, {name: changed}), label

    def read(self, case: Attacked) -> Arrays:
        if not case.base.whole:
            return self._read_part(case, case.base.shapes)
        with open_source(case.path) as source:
            return read_arrays(source, identify(source))

    def _read_part(self, case: Attacked, shapes: Mapping[str, tuple[int, ...]] | None) -> Arrays:
        """Read every tensor of a part, if they are those that it had, as of a network."""
        with open_source(case.path) as source:
            found = {name: tensor.shape for name, tensor in source.tensors.items() if tensor.shape}
            try:
                identify(source)
            except TensorMismatchError as error:  # as it must: a part is no network
                if shapes is not None and (found != shapes or len(found) != len(source.tensors)):
                    raise
                if "do not fit it" not in str(error):
                    raise
            source.sha256()
            return {name: np.array(source.tensors[name].read()) for name in found}

    def _judged(self, case: Attacked, judge: Judge | None) -> Arrays:
        path = self.judged_path(case.path)
        if judge is not None:
            return judge(path, case.place / "judged")
        assert self.judge_here is not None
        return self.judge_here(path)

    def differs(self, case: Attacked, ours: Arrays, judge: Judge | None) -> tuple[str, str]:
        try:
            theirs = self._judged(case, judge)
        except Exception as error:
            return "unread", f"{type(error).__name__}: {str(error)[:200]}"
        for name, array in ours.items():
            raw, order = case.base.pairs.get(name, (name, None))
            # under another name, as after a splice, any tensor with these numbers will do
            others = {raw: theirs[raw]} if raw in theirs else theirs
            found = (
                _ordered(other, way, array.shape)
                for other in others.values()
                for way in ((order,) if order is not None else _ORDERS.get(other.ndim, ()))
            )
            if not any(one is not None and _same(array, one) for one in found):
                what = f"other numbers than {raw}" if raw in theirs else f"nobody else has {raw}"
                return "different", f"{name} {array.shape}: {what}"
        return READ, ""


def _pair(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Find the judge's name of each of our tensors by its numbers, which no two share."""
    pairs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, array in ours.items():
        for raw, other in theirs.items():
            if array.size != other.size:
                continue
            for order in _ORDERS.get(other.ndim, ()):
                turned = _ordered(other, order, array.shape)
                if turned is not None and _near(array, turned):
                    pairs.setdefault(name, (raw, order))
    return pairs


def _ordered(array: Tensor, order: tuple[int, ...], shape: tuple[int, ...]) -> Tensor | None:
    """The judge's tensor as ours: axes in order, and a dense head as a convolution."""
    if array.ndim != len(order):
        return None
    turned = array.transpose(order)
    return turned.reshape(shape) if turned.size == np.prod(shape, dtype=object) else None


def _near(one: Tensor, other: Tensor) -> bool:
    return np.allclose(np.asarray(one, float), np.asarray(other, float), rtol=0.02, atol=0.01)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether every bit is equal, after the same widening or rounding."""
    with np.errstate(all="ignore"):
        other = np.ascontiguousarray(other.astype(one.dtype.newbyteorder("=")))
    one = np.ascontiguousarray(one.astype(one.dtype.newbyteorder("=")))
    code = f"u{one.dtype.itemsize}"
    return one.shape == other.shape and np.array_equal(one.view(code), other.view(code))
