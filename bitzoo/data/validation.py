"""Every problem of a data set at once, before the first step.

One pass decodes each image in full, by the function that decodes it for training (only so a file
that was cut off is found), and takes the SHA-256 of its file, which finds copies across splits and
is the key of the pixel cache.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bitzoo.data.dataset import Example, ImageSet, Split, fingerprint
from bitzoo.data.problems import Problem, Problems, Reason, join_some

if TYPE_CHECKING:
    from bitzoo.files import Progress

import hashlib
import stat
import struct
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from bitzoo.data.problems import printable
from bitzoo.errors import UsageError
from bitzoo.files import sha256_of
from bitzoo.models.preprocessing import read_rgb

TASK = "checking images"
"""What `progress` is told that is done."""

_SLICE = 256
"""So many images are handed to the threads at once; an interrupt waits for no more than these."""


@dataclass(frozen=True)
class DataSummary:
    """What an inspected data set is like, without what was skipped.

    Attributes:
        counts: Split -> number of images.
        class_counts: Split -> number of images of each class, in the order of the classes.
        resolution: Median height and median width of the images to train on (of all, if there are
            none), upright, halves rounded down.
        traits: What is special and taken care of -> number of images.
        notes: What people should know and need not act upon.
        findings: What was skipped.
    """

    counts: dict[str, int]
    class_counts: dict[str, tuple[int, ...]]
    resolution: tuple[int, int]
    traits: dict[str, int]
    notes: tuple[str, ...]
    findings: Problems


def inspect(
    imageset: ImageSet,
    *,
    skip_bad: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    training: bool = True,
) -> tuple[ImageSet, DataSummary]:
    """Decode every image and judge the data set as a whole.

    Args:
        imageset: A data set as read.
        skip_bad: Go on without images that cannot be used, without images of train that val has
            too, and whatever else `Reason.can_skip` allows.
        workers: Threads that decode; as many as this process may use cores if None.
        progress: Called with the task, how many images are done and how many there are.
        training: Whether it is to be trained on. False asks only that the images can be read.

    Returns:
        The data set without what was skipped, each example with its `sha256`, the fingerprint over
        the contents; and what it is like.

    Raises:
        DatasetError: If anything is wrong that may not be skipped; the message lists all of it.
    """
    judged = _judge_all(imageset, workers, progress)
    problems = [*imageset.problems]
    for split in imageset.splits:
        problems += [
            Problem(check.reason, example.key, check.detail)
            for example, check in judged[split.name]
            if check.reason is not None
        ]
    kept = {
        name: [pair for pair in pairs if pair[1].reason is None] for name, pairs in judged.items()
    }
    if training:
        copies = _copies(kept)
        problems += copies.values()
        if skip_bad:
            kept["train"] = [pair for pair in kept["train"] if pair[0] not in copies]
        problems += _class_problems(imageset, kept)
    problems.sort(key=lambda problem: list(Reason).index(problem.reason))
    findings = Problems(imageset.source, tuple(problems))
    if problems and not (skip_bad and findings.can_skip):
        raise findings.error(skipping=skip_bad)
    inspected = _without_the_rest(imageset, kept)
    return inspected, _summarize(inspected, kept, findings)


def _judge_all(
    imageset: ImageSet, workers: int | None, progress: Progress | None
) -> dict[str, list[tuple[Example, ImageCheck]]]:
    """Split -> its examples with their checks; the SHA-256 of each is in the example."""
    total, done = sum(map(len, imageset.splits)), 0
    judged: dict[str, list[tuple[Example, ImageCheck]]] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or _count_cores()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of broken EXIF data and of large images
        for split in imageset.splits:
            pairs = judged[split.name] = []
            for start in range(0, len(split), _SLICE):
                examples = split.examples[start : start + _SLICE]
                for example, check in zip(examples, pool.map(check_image, examples), strict=True):
                    pairs.append((replace(example, sha256=check.sha256), check))
                    done += 1
                    if progress is not None:
                        progress(TASK, done, total)
    return judged


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_Kept: TypeAlias = "dict[str, list[tuple[Example, ImageCheck]]]"


def _copies(kept: _Kept) -> dict[Example, Problem]:
    """The examples of train whose content is in val too."""
    held_out = {example.sha256: example.key for example, _ in reversed(kept.get("val", []))}
    return {
        example: Problem(Reason.DUPLICATE, example.key, f"same as {held_out[example.sha256]}")
        for example, _ in kept["train"]
        if example.sha256 in held_out
    }


def _class_problems(imageset: ImageSet, kept: _Kept) -> Iterator[Problem]:
    if len(imageset.classes) < 2:
        yield Problem(Reason.FEW_CLASSES, f"only {join_some(imageset.classes)}")
    usable = Counter(example.label for example, _ in kept["train"])
    listed = Counter(example.label for example in imageset.train.examples)
    reported = {p.subject for p in imageset.problems if p.reason is Reason.ONLY_IN_VAL}
    for label, name in enumerate(imageset.classes):
        if not usable[label] and name not in reported:
            count = listed[label]
            yield Problem(
                Reason.EMPTY_CLASS, name, f"none of its {count} can be used" if count else ""
            )
    if imageset.val is not None and not kept["val"]:
        yield Problem(Reason.EMPTY_SPLIT, "val", f"none of its {len(imageset.val)} can be used")


def _without_the_rest(imageset: ImageSet, kept: _Kept) -> ImageSet:
    splits = {
        name: Split(name, tuple(example for example, _ in pairs)) for name, pairs in kept.items()
    }
    images = replace(imageset, train=splits["train"], val=splits.get("val"), problems=())
    return replace(images, fingerprint=fingerprint(images))


def _summarize(imageset: ImageSet, kept: _Kept, findings: Problems) -> DataSummary:
    class_counts = {}
    for split in imageset.splits:
        counts = Counter(example.label for example in split.examples)
        class_counts[split.name] = tuple(counts[k] for k in range(len(imageset.classes)))
    measured = kept["train"] or kept.get("val", [])
    sizes = np.array([check.size for _, check in measured] or [(0, 0)])
    height, width = np.median(sizes, axis=0)
    traits = Counter(t for pairs in kept.values() for _, check in pairs for t in check.traits)
    return DataSummary(
        counts={split.name: len(split) for split in imageset.splits},
        class_counts=class_counts,
        resolution=(int(height), int(width)),
        traits=dict(sorted(traits.items())),
        notes=imageset.notes + tuple(_notes_on_repeats(imageset)),
        findings=findings,
    )


def _notes_on_repeats(imageset: ImageSet) -> Iterator[str]:
    groups: dict[str, list[Example]] = {}
    for example in imageset.train.examples:
        groups.setdefault(example.sha256, []).append(example)
    repeats = [group for group in groups.values() if len(group) > 1]
    if repeats:
        shown = join_some([_equation(group) for group in repeats], 3)
        yield f"Images that train has more than once ({len(repeats)}): {shown}."
    torn = [group for group in repeats if len({example.label for example in group}) > 1]
    if torn:
        shown = join_some([_equation(group) for group in torn], 3)
        yield f"Of these, with different labels ({len(torn)}): {shown}."


def _equation(group: Sequence[Example]) -> str:
    return " = ".join(example.key for example in group[:3]) + (" = ..." if group[3:] else "")


# --- one image -----------------------------------------------------------------------------------

_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class ImageCheck:
    """What became of decoding one picture.

    Attributes:
        reason: What is wrong with it, None if it is fine.
        detail: What was found, where the reason does not say it all.
        sha256: See `Example.sha256`; "" if it is not fine.
        size: Height and width, upright.
        traits: What is special about it and taken care of, such as "grayscale".
    """

    reason: Reason | None = None
    detail: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    traits: tuple[str, ...] = ()


def check_image(example: Example) -> ImageCheck:
    """Decode one picture as training does, and say what is wrong or special about it.

    Fine is what `read_rgb` reads, except for animations and files of several pages: which of the
    images is meant, only their owner knows.
    """
    try:
        if example.path is None:
            return _examine(example.load_picture())
        wrong = _refuse_file(example.path)
        if wrong is not None:
            return wrong
        digest = sha256_of(example.path)
        with Image.open(example.path) as image:
            return _examine(image, digest)
    except Exception as error:  # a damaged file makes Pillow's decoders raise nearly anything
        return _explain(error, example)


def _refuse_file(path: Path) -> ImageCheck | None:
    """What is wrong with a file that must not even be opened; a pipe would wait for its writer."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return ImageCheck(Reason.UNREADABLE, "not a regular file")
    if status.st_size == 0:
        return ImageCheck(Reason.NO_BYTES)
    return None


def _examine(image: Image.Image, digest: str = "") -> ImageCheck:
    traits = tuple(_traits(image))
    rgb = read_rgb(image)
    frames = 1 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1)
    if frames > 1:
        return ImageCheck(Reason.ANIMATED, f"{image.format} of {frames} frames or pages")
    if not digest:
        digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode() + rgb.tobytes()).hexdigest()
    return ImageCheck(None, "", digest, (rgb.height, rgb.width), traits)


def _traits(image: Image.Image) -> Iterator[str]:
    """What `read_rgb` will take care of."""
    if image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I"):
        yield "grayscale"
    if image.mode == "CMYK":
        yield "CMYK"
    # 16-bit colour has mode RGB: only the decoder's tiles name what is stored
    stored = str(getattr(image, "tile", ""))
    if image.mode.startswith("I") or (";16" in stored and "BGR;16" not in stored):
        yield "16 bits a channel"
    if image.mode in ("P", "PA"):
        yield "palette"
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        yield "alpha"
    if _is_turned(image):
        yield "EXIF-rotated"
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        yield f"more than {limit / 1e6:.0f} megapixels"


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION_TAG) in range(2, 9)
    except (SyntaxError, ValueError, struct.error):
        return False


def _explain(error: Exception, example: Example) -> ImageCheck:
    reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.DAMAGED)
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
        detail = error.strerror or str(error)
        return ImageCheck(reason if reason is Reason.MISSING else Reason.UNREADABLE, detail)
    if reason is Reason.NO_IMAGE:
        return ImageCheck(reason, _first_bytes(example))
    return ImageCheck(reason, printable(str(error) or type(error).__name__))


def _first_bytes(example: Example) -> str:
    if example.path is None:
        return ""
    with example.path.open("rb") as file:
        return f"begins with {file.read(16)!r}"


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (Image.DecompressionBombError, Reason.HUGE),
    (MemoryError, Reason.HUGE),
    (UnidentifiedImageError, Reason.NO_IMAGE),
    (UsageError, Reason.NO_8_BIT),
    (FileNotFoundError, Reason.MISSING),
    (NotADirectoryError, Reason.MISSING),
)
"""The first that fits decides; any other error means a damaged file."""

_ONE_PICTURE = ("MPO",)
"""Formats whose further frames are no pictures of their own: cameras and phones write depth maps,
gain maps and previews behind the first."""
