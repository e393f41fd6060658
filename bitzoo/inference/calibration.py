"""Images to calibrate an int8 file on, and others to judge it on, which are never the same.

Where the data have a val or test split, or the model is a run that held images out, these are
judged, and the calibration images are of those that are trained on. Otherwise both are drawn.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bitzoo.data.dataset import DataSource, Example, ImageSet, Listed, Split, list_splits
from bitzoo.data.label_space import output_space
from bitzoo.data.problems import DatasetError
from bitzoo.data.splits import choose, hold_out
from bitzoo.data.unlabelled import NO_LABEL, read_unlabelled
from bitzoo.data.validation import hash_contents, inspect
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.inference.selection import record_of, select
from bitzoo.inference.truth import Truth, find_truth, task_of
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.zoo.info import create_transform, info

TO_CALIBRATE, TO_JUDGE = "train", "val"
_LEAST_JUDGED = 0.5
"""Of images that are divided here, at least this share is judged on."""


@dataclass(frozen=True)
class ChosenImages:
    """What an int8 file is calibrated on and judged on.

    Attributes:
        calibration: Its examples, with their SHA-256.
        judged: The others, with theirs.
        transform: How the network wants them prepared.
        truth: What is right; None if no class of the data is known to be an output's.
        chosen: What the judged images are, as a phrase.
        notes: What was chosen and left out, as sentences.
    """

    calibration: Split
    judged: Split
    transform: EvalTransform
    truth: Truth | None
    chosen: str
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted SHA-256 of the calibration images, a line each."""
        return fingerprint_of(self.calibration)


def fingerprint_of(split: Split) -> str:
    """Return the SHA-256 over the sorted SHA-256 (hexadecimal) of the images, a line each."""
    lines = sorted(f"{example.sha256}\n" for example in split.examples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def choose_images(
    network: BiT,
    title: str,
    source: DataSource,
    *,
    to_calibrate: int,
    to_judge: int,
    seed: int,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> ChosenImages:
    """Choose the images for an int8 file: a pure function of the data, the model and the seed.

    Args:
        network: The network.
        title: What to call it.
        source: As for `bitzoo.data.dataset.read_dataset`, labelled or not.
        to_calibrate: How many images to calibrate on, at most; as many of each class as there are.
        to_judge: How many to judge on, at most.
        seed: Another seed makes another choice.
        skip_bad: Whether to leave out images that cannot be read.
        progress: As for `bitzoo.evaluate`.

    Raises:
        UsageError: If there are not two different images.
        DatasetError: If an image cannot be read, or the source has no known form.
    """
    listed, truth, notes = _list(network, source, skip_bad, progress)
    record = record_of(network)
    if record is None:
        notes += (
            f"It is unknown which images {title} was trained on, so it may have been on those that "
            "are judged: this changes both accuracies, not what is compared.",
        )
    try:
        found, selection = select(listed, None, record, title, progress=progress)
    except UsageError as error:  # whose advice is for an evaluation
        raise UsageError(
            f"{title} was trained on all images of {listed.source}, so what int8 loses on others "
            "cannot be judged. Give images with `calibrate` that it has not seen, too."
        ) from error
    judged = tuple(truth.judgeable(found) if truth else found)
    pool = _pool(listed, judged)
    chosen = selection.chosen
    if selection.split in ("all", "new") and len(pool) < to_calibrate:
        few = _some(judged, to_calibrate + to_judge, seed)
        drawn, judged = _divide(few, listed.classes, to_calibrate, seed, progress)
        pool, chosen = (*pool, *drawn), f"drawn with seed {seed} from {chosen}"
    calibration = balanced(pool, listed.classes, to_calibrate, seed)
    if len(judged) > to_judge:
        notes += (f"Judged are {to_judge:,} of {len(judged):,} images, drawn with seed {seed}.",)
        judged = _some(judged, to_judge, seed)
    transform = create_transform(network)
    images, summary = inspect(
        ImageSet(
            listed.classes,
            Split(TO_CALIBRATE, calibration),
            Split(TO_JUDGE, judged),
            listed.source,
            problems=listed.problems,
        ),
        skip_bad=skip_bad,
        training=False,
        bit_depth=transform.bit_depth,
        progress=progress,
    )
    held = images.val or Split(TO_JUDGE, ())
    own, copies = _without_copies(images.train, held)
    if copies:
        notes += (f"Not calibrated on: {copies:,} images whose copies are judged.",)
    if not own or not held.examples:
        raise UsageError(
            f"An int8 file needs images to calibrate on and others to judge it on, found "
            f"{len(own):,} and {len(held):,} in {listed.source}. Give more images with `calibrate`."
        )
    if len(own) < to_calibrate:
        notes += (f"Calibrated on {len(own):,} images; {to_calibrate:,} were asked for.",)
    return ChosenImages(
        replace(images.train, examples=own),
        held,
        replace(transform, bit_depth=summary.bit_depth),
        truth,
        chosen,
        (*notes, *summary.notes),
    )


def _list(
    network: BiT, source: DataSource, skip_bad: bool, progress: Progress | None
) -> tuple[Listed, Truth | None, tuple[str, ...]]:
    """List the data with the network's labels; without labels if they are not the network's."""
    space = output_space(info(network))
    try:
        listed = list_splits(source, space.names or (), progress=progress)
        truth = find_truth(listed, space, task_of(source), skip_unknown=skip_bad)
    except DatasetError as error:
        images = read_unlabelled(source, progress=progress)
        reason = " ".join(str(error).split())
        note = f"Accuracy cannot be judged, only agreement with the float32 file: {reason}"
        plain = {"": tuple(images.train.examples)}
        return Listed(plain, (NO_LABEL,), images.source, problems=images.problems), None, (note,)
    notes = (*listed.notes, *truth.notes)
    if truth.how:
        notes = (truth.how, *notes)
    return listed.with_targets(truth.names, truth.target), truth, notes


def _pool(listed: Listed, judged: Sequence[Example]) -> tuple[Example, ...]:
    """Return what may be calibrated on: all that is neither judged nor another held-out split."""
    keys = {example.key for example in judged}
    return tuple(
        example
        for name in ("train", "")
        for example in listed.splits.get(name, ())
        if example.key not in keys
    )


def _divide(
    examples: Sequence[Example],
    classes: Sequence[str],
    to_calibrate: int,
    seed: int,
    progress: Progress | None,
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide images by class into those to calibrate on and those to judge, copies together."""
    known = [example.sha256 for example in examples]
    if not all(known):
        known = hash_contents(examples, progress=progress)
    share = max(_LEAST_JUDGED, 1 - to_calibrate / max(1, len(examples)))
    labels = [example.label for example in examples]
    held = hold_out(labels, classes, share, seed, known)
    if not held:  # an image of each class: then they are drawn as if of one
        held = hold_out([0] * len(examples), ["all"], share, seed, known)
    rest = sorted(set(range(len(examples))) - set(held))
    return tuple(examples[place] for place in rest), tuple(examples[place] for place in held)


def balanced(
    examples: Sequence[Example], classes: Sequence[str], count: int, seed: int
) -> tuple[Example, ...]:
    """Choose examples, as many of each class as possible: a pure function of the arguments.

    Args:
        examples: To choose from.
        classes: The names of their classes.
        count: How many, at most. A class of fewer images than its share leaves room for others.
        seed: Another seed makes another choice.
    """
    labels = np.asarray([example.label for example in examples], np.int64)
    most = int(np.bincount(labels).max(initial=0)) if len(labels) else 0
    low, high = 0, most
    while low < high:  # the largest number of each class for which there is room
        middle = (low + high + 1) // 2
        if len(choose(labels, classes, middle, seed)) <= count:
            low = middle
        else:
            high = middle - 1
    taken = choose(labels, classes, low, seed) if low else ()
    next_ones = set(choose(labels, classes, low + 1, seed)) - set(taken)
    more = _in_seeded_order(examples, next_ones, seed)[: max(0, count - len(taken))]
    return tuple(examples[place] for place in sorted({*taken, *more}))


def _some(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Choose `count` examples by their keys, in their order: a pure function of key and seed."""
    places = _in_seeded_order(examples, range(len(examples)), seed)[:count]
    return tuple(examples[place] for place in sorted(places))


def _in_seeded_order(examples: Sequence[Example], places: Iterable[int], seed: int) -> list[int]:
    def order(place: int) -> bytes:
        return hashlib.sha256(f"{seed}\n{examples[place].key}".encode()).digest()

    return sorted(places, key=order)


def _without_copies(calibration: Split, judged: Split) -> tuple[tuple[Example, ...], int]:
    """Return the calibration images whose content is not judged, and how many others there were."""
    contents = {example.sha256 for example in judged.examples}
    kept = tuple(example for example in calibration.examples if example.sha256 not in contents)
    return kept, len(calibration) - len(kept)


def counts_by_class(split: Split) -> tuple[int, int]:
    """Return the least and most images of the classes that have any."""
    counts = Counter(example.label for example in split.examples).values()
    return (min(counts), max(counts)) if counts else (0, 0)
