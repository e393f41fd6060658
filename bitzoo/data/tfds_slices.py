"""What a slice of a prepared data set consists of, in TFDS's language: `train[:80]+test[90%:]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitzoo.data.problems import DatasetError, printable
from bitzoo.data.tfds_prepared import Prepared, tfds_library


@dataclass(frozen=True)
class Part:
    """Records of one split: its name, how many it has in all, and the numbers of those meant."""

    split: str
    count: int
    numbers: range


def parts_of_slice(found: Prepared, split: str) -> list[Part]:
    """Return what a slice consists of, in order; nothing for a builder without files.

    Raises:
        DatasetError: If there is no such split or slice.
    """
    if not found.folder:
        return []
    splits = found.builder.info.splits
    counts = {name: splits[name].num_examples for name in splits}
    try:
        parts = tfds_library().core.ReadInstruction.from_spec(split).to_absolute(splits)
    except Exception as error:  # of several kinds, for what a user wrote
        raise _no_slice(found, split, counts, _said(error)) from error
    meant = []
    for part in parts:
        stop = counts[part.splitname] if part.to is None else part.to
        numbers = range(part.from_ or 0, stop)
        if not numbers:
            raise _no_slice(found, split, counts, f"no record of {part.splitname} is in the slice")
        meant.append(Part(part.splitname, counts[part.splitname], numbers))
    return meant


def _said(error: Exception) -> str:
    """Return TFDS's reason, without the pages around it."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.split(" See format at")[0].rstrip(". ")


def _no_slice(found: Prepared, split: str, counts: Mapping[str, int], why: str) -> DatasetError:
    there = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    return DatasetError(
        f"{found.shown} has the splits {there}, and slices of them in TFDS's language, such as "
        f"train[:800]+train[90%:]; it has no {printable(split)!r}: {why}. Correct what stands "
        "after @."
    )
