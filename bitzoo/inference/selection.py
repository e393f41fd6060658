"""Which images an evaluation counts, how they were chosen, and which of them were trained on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitzoo.data.dataset import Example, ImageSet, Listed
from bitzoo.data.kept_checks import KeptChecks
from bitzoo.data.problems import Problems, join_some
from bitzoo.data.split_record import (
    HELD_OUT,
    SPLIT_NAME,
    TRAIN,
    Entry,
    SplitRecord,
    read_split,
)
from bitzoo.data.validation import hash_contents
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.models.bit import BiT
from bitzoo.zoo.info import info

SPLITS = ("train", "val", "test", "all")
"""What can be asked for."""

_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """The images that an evaluation counts.

    Attributes:
        split: Their split; "all", or "new" for those of other data that were not trained on.
        chosen: What they are, as a phrase.
        trained_on: How many of those counted have content that the run, or a run that it began
            from, was trained on, by their records; None where that is unknown. What the weights
            were pre-trained on is not recorded and does not count.
        skipped: Kind of problem -> names of what was left out because of it.
        notes: What else was chosen or left out, as sentences.
    """

    split: str
    chosen: str
    trained_on: int | None = None
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as JSON-ready data."""
        return {
            "split": self.split,
            "chosen": self.chosen,
            "trained_on": self.trained_on,
            "skipped": {kind: list(names) for kind, names in self.skipped.items()},
            "notes": list(self.notes),
        }

    @property
    def sentences(self) -> list[str]:
        """What to say beside the figures."""
        return [
            *self.notes,
            *(
                f"Left out and not counted: {kind} ({len(names):,}): {join_some(names, _SHOWN)}."
                for kind, names in self.skipped.items()
            ),
        ]

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        known = "unknown"
        if self.trained_on is not None:
            known = f"{self.trained_on:,} of these images, by the record of the run"
        return [
            ("split", f"{self.split}: {self.chosen}"),
            ("trained on", known),
            *(("note", sentence) for sentence in self.sentences),
        ]


def skipped_by_kind(problems: Problems) -> dict[str, tuple[str, ...]]:
    """Return kind -> names of the items that were left out."""
    return {reason.title: tuple(map(str, problems.of(reason))) for reason in problems.reasons}


def record_of(network: BiT) -> SplitRecord | None:
    """Return what is recorded of the images that a network was trained on; None if nothing is.

    Raises:
        DatasetError: If the record is damaged.
    """
    known = info(network)
    record = read_split(Path(known.path).parent) if known.path else None
    if record is None or known.run is None:
        return record
    stated = known.run.split.get("train")
    return record if stated == len(record.of(TRAIN)) else None  # the file of another run


def select(
    listed: Listed,
    split: str | None,
    record: SplitRecord | None,
    title: str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    kept: KeptChecks | None = None,
) -> tuple[tuple[Example, ...], Selection]:
    """Choose the images to count.

    Data with a val or test split of their own: that split, whole; val, else test, if none is asked
    for. Other data: the images that the run held out, if all of them are there; else those whose
    content the run was not trained on; without a record of the run, all.

    Args:
        listed: The data set.
        split: One of `SPLITS`; None for the above.
        record: The images that the network was trained on, if that is known.
        title: Name of the network.
        workers: Threads that read; None for one per core.
        progress: Called while contents are compared.
        kept: Checks of earlier runs.

    Returns:
        The examples, and what they are. `Selection.trained_on` is not known yet: see `judged`.

    Raises:
        UsageError: If the split does not exist, or no image is left.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"`split` must be one of {', '.join(SPLITS)}, found {split!r}.")
    everything = tuple(example for examples in listed.splits.values() for example in examples)
    notes = listed.notes
    if record is None:
        notes += (
            f"It is unknown which images {title} was trained on: it has no {SPLIT_NAME} of its "
            "own, as runs of `bitzoo finetune` have.",
        )
    elif not record.can_compare(everything):
        kinds = ("files", "images in memory") if record.of_files else ("images in memory", "files")
        notes += (
            f"It is unknown which of these {kinds[1]} {title} was trained on: it was trained on "
            f"{kinds[0]}, and the contents of both cannot be compared.",
        )
        record = None
    whole = Selection("all", "all images of the data set", notes=notes)
    if split == "all":
        return everything, whole
    own = next((name for name in ("val", "test") if name in listed.splits), None)
    if own or (record is None and split in listed.splits):
        return _of_the_data(listed, split, split or str(own), notes)
    if record is not None:
        hashes = hash_contents(everything, workers=workers, progress=progress, kept=kept)
        examples = [replace(e, sha256=sha) for e, sha in zip(everything, hashes, strict=True)]
        return _by_record(listed.source, examples, split, record, title, notes)
    if split is not None:
        raise _no_split(listed.source, split, {name: len(e) for name, e in listed.splits.items()})
    return everything, whole


def _of_the_data(
    listed: Listed, asked: str | None, name: str, notes: tuple[str, ...]
) -> tuple[tuple[Example, ...], Selection]:
    """Choose one of the data set's own splits."""
    counts = {split: len(examples) for split, examples in listed.splits.items()}
    if name not in counts:
        raise _no_split(listed.source, name, counts)
    others = [f"{split} ({count:,})" for split, count in counts.items() if split != name]
    if others and asked is None:
        notes += (f"Not counted: {' and '.join(others)}; choose with `split`.",)
    return listed.splits[name], Selection(name, f"the data set's own {name} split", notes=notes)


def _by_record(
    source: str,
    examples: Sequence[Example],
    split: str | None,
    record: SplitRecord,
    title: str,
    notes: tuple[str, ...],
) -> tuple[tuple[Example, ...], Selection]:
    """Choose from images without val and test by what a run did with their contents."""
    held = record.of(HELD_OUT)
    own = {entry.sha256 for entry in record.of(TRAIN)}
    trained = [example for example in examples if example.sha256 in own]
    repeated, complete = _repeat(held, examples)
    if split in ("train", "test") or (split == "val" and not repeated):
        found = {"train": trained, "val": repeated}.get(split, [])
        if not found:
            there = {"train": len(trained), "val": len(repeated)}
            raise _no_split(source, split, there, f" of {title}")
        return tuple(found), Selection(
            split, f"the images that {title} was trained on", notes=notes
        )
    if split == "val" or complete:
        if not complete:
            count = len({entry.sha256 for entry in held})
            missing = count - len({example.sha256 for example in repeated})
            notes += (f"Not in the data: {missing:,} of the {count:,} held-out images.",)
        notes += _notes_on_rest(examples, repeated, record, title)
        return tuple(repeated), Selection("val", f"the images that {title} held out", notes=notes)
    new = [example for example in examples if example.sha256 not in record.trained]
    if not new:
        raise UsageError(
            f"{title} was trained on all {len(examples):,} images of {source}, so they cannot show "
            'how well it does on others. Give other images, or count these: `split="all"`.'
        )
    notes += _notes_on_rest(examples, new, record, title)
    return tuple(new), Selection("new", f"the images that {title} was not trained on", notes=notes)


def _repeat(held: Sequence[Entry], examples: Sequence[Example]) -> tuple[list[Example], bool]:
    """Return the held-out images among the examples, and whether all of them are there."""
    places = {(entry.path, entry.sha256) for entry in held}
    same = [example for example in examples if (example.key, example.sha256) in places]
    if held and len(same) == len(held):
        return same, True
    contents = {entry.sha256 for entry in held}
    found = [example for example in examples if example.sha256 in contents]
    return found, bool(held) and {example.sha256 for example in found} == contents


def _notes_on_rest(
    examples: Sequence[Example], counted: Sequence[Example], record: SplitRecord, title: str
) -> tuple[str, ...]:
    """Say what is not counted."""
    keys = {example.key for example in counted}
    rest = [example for example in examples if example.key not in keys]
    if not rest:
        return ()
    trained = [example.key for example in rest if example.sha256 in record.trained]
    names = f": {join_some(trained, _SHOWN)}" if trained else ""
    return (
        f"Not counted: {len(rest):,} of the {len(examples):,} images; {title} was trained on "
        f'{len(trained):,} of these{names}. Count them too with `split="all"`.',
    )


def _no_split(source: str, name: str, counts: Mapping[str, int], whose: str = "") -> UsageError:
    there = [f"{split} ({count:,} images)" for split, count in counts.items() if split and count]
    return UsageError(
        f"{source} has no {name} split{whose}; it has {' and '.join(there) or 'no splits'}. "
        'Choose one that exists, or `split="all"`.'
    )


def judged(
    selection: Selection,
    examples: Sequence[Example],
    trained: Collection[str] | None,
    title: str,
    skipped: Problems,
) -> Selection:
    """Complete a selection once the contents of its images are known.

    Args:
        selection: What was selected.
        examples: The images that are counted, with their SHA-256.
        trained: SHA-256 of the images that the network was trained on; None if unknown.
        title: Name of the network.
        skipped: What was left out.
    """
    selection = replace(selection, skipped=skipped_by_kind(skipped))
    if trained is None:
        return selection
    names = [example.key for example in examples if example.sha256 in trained]
    notes = selection.notes
    if names:
        notes += (
            f"{title} was trained on {len(names):,} of the {len(examples):,} images counted: "
            f"{join_some(names, _SHOWN)}. On images that are new to it, expect less.",
        )
    return replace(selection, trained_on=len(names), notes=notes)


def held_out_by(
    images: ImageSet, skipped: Problems, before: SplitRecord | None, model: str
) -> Selection | None:
    """Return what a fine-tuning run holds out; None if nothing.

    Args:
        images: The inspected data set.
        skipped: What was left out.
        before: The images that the model was trained on before this run, if that is known.
        model: Name of the model that the run starts from.
    """
    if images.val is None:
        return None
    selection = Selection("val", str(images.held_out), skipped=skipped_by_kind(skipped))
    if before is None:
        # without hashes it is unknown whether copies of them are trained on
        known = all(example.sha256 for example in images.val.examples[:1])
        return replace(selection, trained_on=0) if known else selection
    if not before.can_compare(images.val.examples):
        note = (
            f"It is unknown which of the held-out images {model} was trained on: one of the two "
            "data sets is of files and the other in memory, whose contents cannot be compared."
        )
        return replace(selection, notes=(*selection.notes, note))
    return judged(selection, images.val.examples, before.trained, model, skipped)
