"""The data on which a model's own task is evaluated, where its record says which these are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bitzoo.catalogue.evaluation_sets import TASK_SETS
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.data.readers import DataSource
from bitzoo.data.run_folders import RUN_NAME
from bitzoo.data.source_names import HF, VTAB, library_of
from bitzoo.data.vtab_data import TESTED
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.small_files import read_json

__all__ = ["OwnData", "own_data", "own_task"]

_VTAB_TASK = "vtab/"


@dataclass(frozen=True)
class OwnData:
    """Data that a model was made for.

    Attributes:
        source: The data.
        chosen: What they are, for the user, as a sentence.
        otherwise: What to give instead where they cannot be read, as a sentence.
    """

    source: DataSource
    chosen: str = ""
    otherwise: str = ""


def own_task(known: ModelInfo) -> DataSource | None:
    """Return the data that a model is evaluated on if none are named; None if none are known.

    Args:
        known: What is known about the model.
    """
    found = _of_run(known) if known.run else _of_release(known)
    return found.source if found else None


def own_data(known: ModelInfo, title: str) -> OwnData:
    """Return the data that a model is evaluated on if none are named.

    Args:
        known: What is known about the model.
        title: What to call the model in a message.

    Raises:
        UsageError: If it is not known on which, or the data of a run are not where they were.
    """
    found = _of_run(known) if known.run else _of_release(known)
    if found is not None:
        return found
    spec = known.spec
    made = f" The catalogue has no test images for its task, {spec.task}." if spec else ""
    raise UsageError(
        f"It is not known on which images {title} is to be evaluated.{made} Name labelled images "
        "with `data`."
    )


def _of_release(known: ModelInfo) -> OwnData | None:
    """Return the data of the task whose head a release has."""
    spec = known.spec
    if spec is None or known.num_classes != spec.num_classes:
        return None
    if spec.task.startswith(_VTAB_TASK):
        task = spec.task.removeprefix(_VTAB_TASK)
        return OwnData(
            f"{VTAB}{task}@{TESTED}",
            f"Evaluated on the test split of VTAB's task {task}, for which {spec.name} was "
            "fine-tuned.",
            "Or name other images of that task with `data`; if their classes are numbers, say "
            f'whose: `labels="{task}"`.',
        )
    data = TASK_SETS.get(spec.task)
    if data is None:
        return None
    return OwnData(
        data.sources[0],
        f"Evaluated on {data.sources[0]}: the images of {data.title}, the task of {spec.name}.",
        f"Or give {data.where} with `data`.",
    )


def _of_run(known: ModelInfo) -> OwnData | None:
    """Return the data of a run; None if its record does not say where they are.

    Raises:
        UsageError: If nothing is there now, or they were in memory.
    """
    if known.run is None or known.path is None:
        return None
    folder = Path(known.path).parent
    try:
        place = read_json(folder / RUN_NAME)["options"]["data"]
    except (CheckpointError, OSError, KeyError, TypeError):
        return None
    if not isinstance(place, str):
        raise UsageError(
            f"{folder} was trained on data that were in memory, which cannot be read again. Name "
            "labelled images with `data`."
        )
    path = place.removeprefix(HF)
    missing = os.path.isabs(path) and not os.path.exists(path)
    if missing or (library_of(place) is None and not os.path.exists(place)):
        raise UsageError(
            f"{folder} was trained on {place}, where nothing is now. Give its new place, or other "
            "labelled images, with `data`."
        )
    return OwnData(place, f"Evaluated on {place}, the data of the run.")
