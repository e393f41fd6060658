"""Keep the labels of stored records, which would otherwise be read anew with all their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

UNLABELLED = -1
"""The label of a record that has none."""


def cached_labels(
    folder: str, split: str, what: Sequence[str], read: Callable[[], Iterable[int]]
) -> list[int]:
    """Return the labels that `read` yields."""
    return list(read())
