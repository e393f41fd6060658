"""Recognise run folders, whose images are not data: a report's, or those of a run below a run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from bitzoo.errors import CheckpointError
from bitzoo.small_files import read_json

RUN_NAME = "run.json"
RUN_LOCK_NAME = ".bitzoo-run.lock"
FEWSHOT_NAME = "fewshot.json"
PROBE_NAME = "probe.json"
"""By any of these files a folder is known as a run folder."""

_KEYS = {RUN_NAME: "recipe", FEWSHOT_NAME: "trials", PROBE_NAME: "models"}
"""What tells such a file from one of the same name that is somebody else's."""


def holds_only_runs(entry: os.DirEntry[str], suffixes: Collection[str]) -> bool:
    """Whether it is a run folder, or a folder with run folders and no images below it.

    Args:
        entry: A folder.
        suffixes: Those of images, in lower case.
    """
    try:
        if not entry.is_dir(follow_symlinks=False):
            return False
        if _is_run(Path(entry.path)):
            return True
        found = False
        with os.scandir(entry.path) as inside:
            for child in inside:
                if child.is_dir():
                    if not holds_only_runs(child, suffixes):
                        return False
                    found = True
                elif Path(child.name).suffix.lower() in suffixes:
                    return False
        return found
    except OSError:  # reported where it is listed
        return False


def _is_run(folder: Path) -> bool:
    """Whether a run has written there, or is about to."""
    if (folder / RUN_LOCK_NAME).exists():
        return True
    for name, key in _KEYS.items():
        try:
            if (folder / name).is_file() and key in read_json(folder / name):
                return True
        except CheckpointError:  # of somebody else, or damaged
            continue
    return False
