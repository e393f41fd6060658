"""Keep the labels of stored records, which cannot be read without the images beside them.

A file for each split of a prepared data set holds the label of every record, or that it has not
been read yet: a slice of 800 of a million records is read once, and the rest when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitzoo.data.array_files import read_arrays, write_arrays
from bitzoo.files import Progress, cache_dir
from bitzoo.locks import file_lock

Labels = npt.NDArray[np.int32]

_NAME = "labels"
_UNREAD = np.iinfo(np.int32).min
_FORMAT = 2
"""Part of the names of the files; to change with their form."""
TASK = "reading labels"
"""The task that `progress` is called with."""
_OFTEN = 64
_log = logging.getLogger(__name__)


def identity_of_files(folder: str) -> str:
    """Return a digest of the names, sizes and times of the files in a folder.

    Another preparation of a data set has another one; a copy that keeps the times has the same.
    """
    digest = hashlib.sha256()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            status = entry.stat()
            digest.update(json.dumps([entry.name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


class LabelCache:
    """Labels of the records of a prepared data set, by one way to label them.

    Args:
        identity: What tells the data set, its preparation and the way to label from all others;
            () keeps nothing.
    """

    def __init__(self, identity: Sequence[str]) -> None:
        self._identity = identity

    def labels(
        self,
        split: str,
        count: int,
        wanted: range,
        read: Callable[[int], int],
        progress: Progress | None = None,
    ) -> Labels:
        """Return labels of a split, reading those that are not known.

        Args:
            split: Its name.
            count: How many records it has.
            wanted: Numbers of records.
            read: Returns the label of a record by its number.
            progress: Called with `TASK`, how many labels are read, and how many will be.
        """
        path = self._path(split)
        known = _load(path, count)
        missing = [number for number in wanted if known[number] == _UNREAD]
        try:
            for done, number in enumerate(missing, start=1):
                known[number] = read(number)
                if progress is not None and (done % _OFTEN == 0 or done == len(missing)):
                    progress(TASK, done, len(missing))
        finally:  # an interrupted reading goes on from here
            if missing and path is not None:
                _save(path, known, count)
        return known[wanted.start : wanted.stop]

    def _path(self, split: str) -> Path | None:
        if not self._identity:
            return None
        text = json.dumps([_FORMAT, *self._identity, split])
        try:
            folder = cache_dir() / "labels"
        except OSError:
            return None
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.labels"


def _load(path: Path | None, count: int) -> Labels:
    """Return the labels in a file, `_UNREAD` where they are unknown or the file is none."""
    kept = read_arrays(path) if path is not None else None
    found = kept[1].get(_NAME) if kept else None
    if found is None or found.dtype != np.int32 or len(found) != count:
        return np.full(count, _UNREAD, np.int32)  # none yet, or damaged: they are read again
    return np.array(found)


def _save(path: Path, known: Labels, count: int) -> None:
    """Add labels to a file, beside those that another process has saved in between."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path):
            merged = np.where(known == _UNREAD, _load(path, count), known)
            write_arrays(path, {}, {_NAME: [merged]})
    except OSError as error:
        _log.warning(
            "The labels are read again the next time: %s cannot be written: %s", path, error
        )
