"""Read images without their classes, for training that needs no labels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bitzoo.data.dataset import Example, ImageSet, Split, fingerprint
from bitzoo.data.folder_scan import FolderScan, in_words
from bitzoo.data.problems import DatasetError, Problem, Reason, printable
from bitzoo.data.readers import DataSource, read_listing
from bitzoo.data.source_names import library_of, parts_of
from bitzoo.files import Progress

NO_LABEL = "no label"
"""The one class of unlabelled images, for displays."""


def read_unlabelled(source: DataSource, *, progress: Progress | None = None) -> ImageSet:
    """List the images of a source to train on; nothing is held out, as nothing could be judged.

    Args:
        source: A folder, of which every image counts, in whatever folders below it; or any other
            source of `bitzoo.data.dataset.read_dataset`, of which the training split counts.
        progress: As for `read_dataset`.

    Returns:
        A data set whose only class is `NO_LABEL`.

    Raises:
        DatasetError: If there are no images, or the source has no known form.
    """
    found = _folder(source)
    images = _of_folder(found) if found else _of_listing(source, progress)
    if not len(images.train):
        raise DatasetError(
            f"{images.source} must have images to train on, found none. Check the path."
        )
    return replace(images, fingerprint=fingerprint(images))


def _folder(source: DataSource) -> Path | None:
    if isinstance(source, str) and (library_of(source) or parts_of(source)):
        return None
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return Path(source)
    return None


def _of_folder(root: Path) -> ImageSet:
    scan = FolderScan(root)
    paths = scan.images_below(root, set())
    examples = tuple(Example(0, path, key=scan.key(path)) for path in paths)
    problems = tuple(
        Problem(Reason.FOLDER, scan.key(folder), why) for folder, why in scan.unreadable
    )
    note = (
        f"Every image in the folder is trained on ({in_words(len(paths))}), whatever the names of "
        "the folders in it mean; classes and splits are not read."
    )
    name = repr(printable(root.as_posix()))
    train = Split("train", examples)
    return ImageSet((NO_LABEL,), train, None, name, notes=(note, *scan.notes()), problems=problems)


def _of_listing(source: DataSource, progress: Progress | None) -> ImageSet:
    listing = read_listing(source, progress=progress)
    rows = (*listing.rows, *(row for row in listing.unlabelled if row.split == "train"))
    used = [row for row in rows if row.split in ("", "train")]
    examples = tuple(Example(0, row.path, row.load, row.key, group=row.group) for row in used)
    left = len(rows) - len(used)
    notes = (f"Not used: {in_words(left)} of the other splits.",) if left else ()
    return ImageSet(
        (NO_LABEL,),
        Split("train", examples),
        None,
        listing.source,
        notes=(*listing.notes, *notes, "The classes of the data set are not used."),
        problems=listing.problems,
        label_changing=(),
    )
