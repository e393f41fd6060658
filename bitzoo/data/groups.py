"""Groups of images that belong together: a person, a scene, a device, a burst.

A model recognizes them again, so an accuracy on images whose group was trained on says little about
other groups. A group's name comes from a column of the source or from the image's key.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace

from bitzoo.data.folder import Listing, Row
from bitzoo.data.problems import DatasetError, join_some, printable
from bitzoo.errors import UsageError

NEAR_DUPLICATES = "near-duplicates"
"""Value of `group_by` that groups by what the images show; see `near_duplicates.near_groups`."""

_EXAMPLES = 3


def with_groups(listing: Listing, group_by: str | None) -> Listing:
    """Return the listing with each row's `group` set.

    Args:
        listing: A source as listed.
        group_by: The name of a column of the source; or a regular expression that must be found in
            the key of every image, where its first group (without groups, all that it matches)
            names the image's group. None and `NEAR_DUPLICATES` leave the rows as they are.

    Raises:
        DatasetError: If an image has no group.
        UsageError: If it is neither a column nor a valid regular expression, or there is only one
            group.
    """
    if group_by is None or group_by == NEAR_DUPLICATES or not listing.rows:
        return listing
    columns = {column for row in listing.rows for column in row.extra}
    column = group_by if group_by in columns else group_by.strip().lower()
    if column in columns:
        rows = _by_column(listing, column)
    else:
        rows = _by_expression(listing, group_by, columns)
    if len({row.group for row in rows}) == 1:
        raise UsageError(
            f"`group_by` must name at least two groups, because images of one group stay in one "
            f"split; by {group_by!r} all {len(rows):,} images of {listing.source} are in the group "
            f"{rows[0].group!r}. Choose another column or expression."
        )
    return replace(listing, rows=rows)


def _by_column(listing: Listing, column: str) -> tuple[Row, ...]:
    named = [
        replace(row, group=printable(row.extra.get(column, "").strip())) for row in listing.rows
    ]
    missing = [row.key for row in named if not row.group]
    if missing:
        raise DatasetError(
            f"In the data set {listing.source}, every image must have a value in the column "
            f"{column!r}, by which they are grouped; found none for {len(missing):,} of "
            f"{len(named):,}: {join_some(missing, _EXAMPLES)}. Fill in the column; an image that "
            "belongs to no other gets a value of its own."
        )
    return tuple(named)


def _by_expression(listing: Listing, text: str, columns: set[str]) -> tuple[Row, ...]:
    has = f"has the columns {join_some(sorted(columns))}" if columns else "has no columns for it"
    try:
        expression = re.compile(text)
    except re.error as error:
        raise UsageError(
            f"`group_by` must be a column of the data set or a regular expression, found {text!r}: "
            f"{listing.source} {has}, and as an expression it is invalid: {error}. Correct it."
        ) from error
    named, missing = [], []
    for row in listing.rows:
        name = _first(expression.search(row.key))
        named.append(replace(row, group=name))
        if not name:
            missing.append(row.key)
    if missing:
        raise DatasetError(
            f"`group_by` must name the group of every image, but {text!r} finds nothing in "
            f"{len(missing):,} of {len(named):,} images of {listing.source}: "
            f"{join_some([repr(key) for key in missing], _EXAMPLES)}. It is a regular expression, "
            f"because the data set {has}. Correct it, or list the images in a CSV file with "
            "the columns path,label,group."
        )
    return tuple(named)


def _first(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    return match[0] if match.re.groups == 0 else next(filter(None, match.groups()), "")


def notes_on_groups(
    train: Sequence[Hashable], held_out: Sequence[Hashable], group_by: str
) -> tuple[str, ...]:
    """Return what is worth knowing about groups of which none is in both splits.

    Args:
        train: Group of each training image.
        held_out: Group of each held-out image.
        group_by: What they are grouped by.
    """
    groups, images = len(set(train)) + len(set(held_out)), len(train) + len(held_out)
    if groups == images:
        return (
            f"By {group_by!r}, every image is a group of its own, so grouping changes nothing.",
        )
    return (
        f"Groups by {group_by!r}, each in one split only: {groups:,}, of which "
        f"{len(set(held_out)):,} with {len(held_out):,} of {images:,} images are held out.",
    )
