"""Find near-duplicates: images that show the same, resized, recompressed, brightened or trimmed.

Every image gets a signature of two parts when it is decoded to be checked:

- 255 bits that compare the lowest frequencies of its grey levels with their median: the perceptual
  hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010),
  with 16 x 16 instead of 8 x 8 coefficients. With 64 bits, photographs of one kind of object on
  one background are as near to each other as copies of one of them are.
- the mean colours of 8 x 8 fields, which tell apart what the bits cannot: the same shapes in other
  colours.

Two images are near-duplicates if at most `DISTANCE` bits differ and the colours correlate by at
least `CORRELATION`. Mirrored, turned and strongly cropped copies are not found. The measurements
that both limits come from are in docs/explanation/held-out.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bitzoo.data.dataset import Example
from bitzoo.data.groups import NEAR_DUPLICATES
from bitzoo.data.problems import join_some
from bitzoo.errors import UsageError
from bitzoo.files import Progress

TASK = "comparing images"
"""The task that `progress` is called with."""

DISTANCE = 44
"""Most bits, of 255, that differ between near-duplicates. Of 2,062 photographs of hand signs,
99.9 % were within 44 bits of a copy trimmed by 2 % at each edge, and none was of another photograph
that correlates by `CORRELATION` (2.1 million pairs)."""
CORRELATION = 0.96
"""Least correlation of the colours of near-duplicates. The lowest of any copy above was 0.97."""

_SIDE, _KEPT, _FIELDS = 32, 16, 8
_HASH_BYTES = _KEPT * _KEPT // 8
_SAMPLED = 512
"""Longer edges are sampled: each of 32 x 32 cells still has 256 pixels, in a tenth of the time."""
_FLAT = 2.0
"""Standard deviation of the grey levels below which there is nothing to compare but noise."""
_BLOCK = 2048
_WORTH_KEEPING = 10**7
"""Comparisons, which take a tenth of a second, from which on their result is kept."""

T = TypeVar("T")
_Floats: TypeAlias = "npt.NDArray[np.float32]"
_Arrays: TypeAlias = "dict[str, npt.NDArray[Any]]"
Kept: TypeAlias = "Callable[[str, Iterable[bytes], Callable[[], _Arrays]], _Arrays]"
"""Returns the result of a comparison, kept or made: `bitzoo.data.kept_checks.KeptChecks.compared`.
"""


def _cosines() -> npt.NDArray[np.float64]:
    """Return the lowest rows of the DCT, as integers: every sum is exact, on every machine."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    exact = 1024 * np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE))
    rounded: npt.NDArray[np.float64] = np.round(exact)
    return rounded


_COSINES = _cosines()


def signature_of(rgb: Image.Image) -> bytes:
    """Return what near-duplicates are found by.

    Args:
        rgb: A decoded, upright image of mode RGB.

    Returns:
        224 bytes: the hash, then the colours; b"" if the image is of one colour, near enough, and
        cannot be compared.
    """
    if max(rgb.size) > _SAMPLED:
        size = min(rgb.width, _SAMPLED), min(rgb.height, _SAMPLED)
        rgb = rgb.resize(size, Image.Resampling.NEAREST)
    small = rgb.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small.convert("L"), dtype=np.float64)
    if grey.std() < _FLAT:
        return b""
    waves = (_COSINES @ grey @ _COSINES.T).ravel()
    waves[0] = 0  # the mean: brightness
    middle = np.partition(waves[1:], _KEPT * _KEPT // 2 - 1)[_KEPT * _KEPT // 2 - 1]
    bits = waves > middle
    bits[0] = False
    return np.packbits(bits).tobytes() + small.reduce(_SIDE // _FIELDS).tobytes()


@dataclass(frozen=True)
class Pair:
    """A training image and the held-out image that it is nearest to.

    Attributes:
        train: The training image.
        held_out: The held-out image.
        distance: Number of bits that differ, 0..`DISTANCE`.
    """

    train: Example
    held_out: Example
    distance: int


@dataclass(frozen=True)
class NearDuplicates:
    """The near-duplicates across the two splits of a data set.

    Attributes:
        pairs: Each training image that is a near-duplicate of held-out ones, with the nearest of
            them; nearest pairs first.
        held_out: The held-out images that have near-duplicates in train, by key.
        dropped: Whether these training images were dropped.
    """

    pairs: tuple[Pair, ...] = ()
    held_out: tuple[str, ...] = ()
    dropped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON-ready data."""
        return {
            "held_out_images": len(self.held_out),
            "train_images": len(self.pairs),
            "dropped_from_train": self.dropped,
            "most_bits_that_differ": DISTANCE,
            "least_correlation": CORRELATION,
        }

    def note(self) -> str:
        """Return what was found, as a remark; empty if there is nothing to say."""
        if not self.pairs:
            return ""
        nearest = self.pairs[0]
        train = _count(len(self.pairs), "training image")
        held_out = _count(len(self.held_out), "held-out image")
        example = f"({nearest.train.key} ~ {nearest.held_out.key}, for example)"
        if self.dropped:
            return f"Dropped from train: {train}, near-duplicates of {held_out} {example}."
        return (
            f"Near-duplicates across the splits: {train} of {held_out} {example}, so "
            "the accuracy is partly that of recognizing images again. `drop_near_duplicates` "
            "drops them from train; `group_by` keeps groups of images in one split."
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def find_near_duplicates(
    train: Sequence[tuple[Example, bytes]],
    held_out: Sequence[tuple[Example, bytes]],
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> NearDuplicates:
    """Find the training images that are near-duplicates of held-out ones.

    All pairs are compared, by products of matrices of signs: for 45,000 and 5,000 images some
    seconds on one core. The result does not depend on the order of the images.

    Args:
        train: Training images and their signatures.
        held_out: Held-out images and theirs.
        progress: Called with the task, the number of comparisons done and their total.
        kept: Returns the result that was kept, or makes it.
    """
    # by key, so that of equally near images the first by key counts
    ours = sorted((pair for pair in train if pair[1]), key=lambda pair: pair[0].key)
    theirs = sorted((pair for pair in held_out if pair[1]), key=lambda pair: pair[0].key)
    left, right = [data for _, data in ours], [data for _, data in theirs]
    found = _compare(kept, "near", [left, right], lambda: _nearest_of(left, right, progress))
    nearest, whose = found["nearest"], found["whose"]
    pairs = [
        Pair(ours[row][0], theirs[whose[row]][0], int(nearest[row]))
        for row in np.flatnonzero(nearest <= DISTANCE)
    ]
    pairs.sort(key=lambda pair: (pair.distance, pair.held_out.key, pair.train.key))
    affected = tuple(theirs[column][0].key for column in found["affected"].tolist())
    return NearDuplicates(tuple(pairs), affected)


def _compare(
    kept: Kept | None,
    kind: str,
    signatures: Sequence[Sequence[bytes]],
    make: Callable[[], _Arrays],
) -> _Arrays:
    """Return the result of a comparison; of many images, it is kept."""
    if kept is None or np.prod([len(part) for part in signatures], dtype=float) < _WORTH_KEEPING:
        return make()
    about = [b"".join(part) for part in signatures]
    return kept(kind, [f"{DISTANCE} {CORRELATION}".encode(), *about], make)


def _nearest_of(
    left: Sequence[bytes], right: Sequence[bytes], progress: Progress | None
) -> _Arrays:
    """Return for each image the distance of the nearest and which that is, and all affected."""
    nearest = np.full(len(left), DISTANCE + 1, dtype=np.int16)
    whose = np.zeros(len(left), dtype=np.int64)
    affected = np.zeros(len(right), dtype=bool)
    for rows, columns, distances in _near_blocks(left, right, progress):
        best = distances.argmin(1)
        least = distances[np.arange(len(distances)), best]
        closer = least < nearest[rows]
        nearest[rows[closer]], whose[rows[closer]] = least[closer], best[closer] + columns.start
        affected[columns] |= (distances <= DISTANCE).any(0)
    return {"nearest": nearest, "whose": whose, "affected": np.flatnonzero(affected)}


def drop_from(
    found: NearDuplicates, train: Sequence[tuple[Example, T]], classes: Sequence[str]
) -> tuple[NearDuplicates, list[tuple[Example, T]]]:
    """Return the near-duplicates marked as dropped, and `train` without them.

    Args:
        found: The near-duplicates.
        train: All training images, with anything.
        classes: The name of each class.

    Raises:
        UsageError: If a class would lose all its training images.
    """
    dropped = {pair.train for pair in found.pairs}
    left = [pair for pair in train if pair[0] not in dropped]
    lost = {example.label for example in dropped} - {example.label for example, _ in left}
    if lost:
        raise UsageError(
            "`drop_near_duplicates` must leave training images of every class, but all those of "
            f"{join_some([classes[label] for label in sorted(lost)])} are near-duplicates of "
            "held-out images. Keep near-duplicates in one split instead, "
            f"`group_by={NEAR_DUPLICATES!r}`, or add other images."
        )
    return replace(found, dropped=True), left


def near_groups(
    signatures: Sequence[bytes],
    progress: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[int, ...]:
    """Group images that are linked by near-duplicates, directly or through others.

    Args:
        signatures: Of each image; those that cannot be compared (b"") are groups of one.
        progress: Called with the task, the number of comparisons done and their total.
        kept: Returns the result that was kept, or makes it.

    Returns:
        The group of each image: the position of its group's first member.
    """
    compared = np.array([index for index, data in enumerate(signatures) if data], dtype=np.int64)
    data = [signatures[index] for index in compared]
    own = _compare(kept, "groups", [data, data], lambda: {"group": _groups_of(data, progress)})
    group = np.arange(len(signatures))
    group[compared] = compared[own["group"]]
    return tuple(group.tolist())


def _groups_of(data: Sequence[bytes], progress: Progress | None) -> npt.NDArray[np.int64]:
    group = np.arange(len(data), dtype=np.int64)
    for rows, columns, distances in _near_blocks(data, data, progress, once=True):
        for row, near in zip(rows, distances <= DISTANCE, strict=True):
            linked = np.union1d(np.unique(group[columns][near]), group[row])
            if len(linked) > 1:
                group[np.isin(group, linked[1:])] = linked[0]
    return group


def _near_blocks(
    left: Sequence[bytes],
    right: Sequence[bytes],
    progress: Progress | None,
    *,
    once: bool = False,
) -> Iterator[tuple[npt.NDArray[np.int64], slice, npt.NDArray[np.int16]]]:
    """Compare all with all, block by block; with `once`, where both are the same, half of them.

    Yields:
        For each block with near-duplicates: the positions in `left` that have any, the block of
        `right`, and their distances, `DISTANCE` + 1 where the two are no near-duplicates.
    """
    total, done = len(left) * len(right), 0
    for top in range(0, len(left), _BLOCK):
        signs, colours = _unpack(left[top : top + _BLOCK])
        first = top if once else 0
        done += len(signs) * first
        for start in range(first, len(right), _BLOCK):
            other_signs, other_colours = _unpack(right[start : start + _BLOCK])
            agreeing = signs @ other_signs.T  # equal bits minus different ones: whole numbers
            near = agreeing >= signs.shape[1] - 2 * DISTANCE
            inside = np.flatnonzero(near.any(1))
            if len(inside):
                near = near[inside] & (colours[inside] @ other_colours.T >= CORRELATION)
                differing = ((signs.shape[1] - agreeing[inside]) / 2).astype(np.int16)
                distances = np.where(near, differing, np.int16(DISTANCE + 1))
                some = near.any(1)
                if some.any():
                    columns = slice(start, start + len(other_signs))
                    yield top + inside[some], columns, distances[some]
            done += len(signs) * len(other_signs)
            if progress is not None:
                progress(TASK, done, total)


def _unpack(signatures: Sequence[bytes]) -> tuple[_Floats, _Floats]:
    """Return the bits as -1 and 1, and the colours with mean 0 and length 1."""
    table = np.frombuffer(b"".join(signatures), dtype=np.uint8).reshape(len(signatures), -1)
    signs = np.unpackbits(table[:, :_HASH_BYTES], axis=1).astype(np.float32) * 2 - 1
    colours = table[:, _HASH_BYTES:].astype(np.float32)
    colours -= colours.mean(1, keepdims=True)
    colours /= np.linalg.norm(colours, axis=1, keepdims=True) + np.float32(1e-6)
    return signs, colours
