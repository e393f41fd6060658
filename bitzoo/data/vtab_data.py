"""The data of VTAB's tasks, as slices of data sets that TFDS has prepared: `vtab:dtd@val200`.

Without a part, `vtab:TASK` is what VTAB-1k trains on (``train800val200``) and what it tests on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from bitzoo.catalogue.vtab_tasks import DRIFT, PARTS, TASKS, VtabTask
from bitzoo.data.derived_labels import RULES
from bitzoo.data.folder import Listing
from bitzoo.data.problems import DatasetError, printable
from bitzoo.data.source_names import VTAB
from bitzoo.data.tfds_datasets import TfdsSource, tfds_splits, tfds_version
from bitzoo.data.tfds_prepared import preparation_command

TRAINED, TESTED = "train800val200", "test"
"""The parts of VTAB-1k, in the paper's protocol."""


def find_task(name: str) -> VtabTask:
    """Return a task by its name.

    Raises:
        DatasetError: If there is no such task.
    """
    if name not in TASKS:
        parts = [task for task in TASKS if name and name in task]
        near = parts or difflib.get_close_matches(name, TASKS, n=3)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DatasetError(
            f"VTAB has no task {printable(name)!r}.{meant} Its tasks are "
            f"{', '.join(sorted(TASKS))}."
        )
    return TASKS[name]


def task_source(task: str | VtabTask, part: str) -> TfdsSource:
    """Return a part of a task's data, as google-research/task_adaptation slices it.

    Args:
        task: The task, or its name.
        part: One of `bitzoo.catalogue.vtab_tasks.PARTS`.

    Raises:
        DatasetError: If there is no such task or part; or the part depends on how many records
            the data set has, and it is not prepared.
        MissingExtraError: If it does, and TFDS is not installed.
    """
    task = find_task(task) if isinstance(task, str) else task
    if part not in PARTS:
        raise DatasetError(
            f"A VTAB task has no part {printable(part)!r}. Choose one of {', '.join(PARTS)}."
        )
    known, layout = part, task.layout
    records = _records(task) if layout.needs_count(known) else None
    return replace(_whole(task), split=layout.slices(known, records))


def task_splits(task: VtabTask) -> dict[str, TfdsSource]:
    """Return what VTAB-1k trains on and tests on.

    Raises:
        DatasetError: As `task_source`.
        MissingExtraError: As `task_source`.
    """
    return {"train": task_source(task, TRAINED), "test": task_source(task, TESTED)}


def task_version(task: VtabTask) -> str:
    """Return the version of a task's data set that is prepared and used.

    Raises:
        DatasetError: If none of the accepted versions is prepared.
        MissingExtraError: If TFDS is not installed.
    """
    return tfds_version(_whole(task))


def preparing(task: VtabTask) -> str:
    """Return the shell command that prepares a task's data set."""
    return preparation_command(task.tfds, task.versions)


_IN_FULL = 3
"""Most tasks of which it is said in full what prepares them."""


def none_prepared(reasons: Mapping[str, str]) -> DatasetError:
    """Return the error for tasks of which none is prepared.

    Args:
        reasons: Task -> what it needs, as an error said.
    """
    names = list(reasons)
    shown = names if len(names) <= _IN_FULL else names[:1]
    lines = ["None of the tasks is prepared.", *(f"{name}: {reasons[name]}" for name in shown)]
    if len(shown) < len(names):
        more = names[len(shown) :]
        lines.append(
            f"To see what another needs, name it alone in `tasks` ({len(more)}): {', '.join(more)}."
        )
    return DatasetError("\n".join(lines))


def describe_drift(task: VtabTask) -> tuple[str, ...]:
    """Say how the prepared data differ from those that the published scores were made with.

    Returns:
        Sentences; none if nothing is known to differ.

    Raises:
        DatasetError: If the task is not prepared.
        MissingExtraError: If TFDS is not installed.
    """
    version, name = task_version(task), task.tfds.partition("/")[0]
    found = []
    if (name, version) in DRIFT:
        found.append(
            f"{name} {version} is not the version of the published scores, {task.versions[0]}: "
            f"{DRIFT[name, version]}."
        )
    sizes, usual = tfds_splits(_whole(task)), _usual_records(task)
    if sizes and sizes["train"] != usual:
        found.append(
            f"The train split of {name} {version} has {sizes['train']:,} records, and that of the "
            f"published scores {usual:,}; the slices are cut as the reference code cuts them."
        )
    return tuple(found)


def task_title(task: VtabTask, part: str | None = None) -> str:
    """Return the display name of a task's data, which says the version that is used.

    Raises:
        DatasetError: If the task is not prepared.
        MissingExtraError: If TFDS is not installed.
    """
    what = f"{VTAB}{task.name}{f'@{part}' if part else ''}"
    return f"{what} ({task.tfds}:{task_version(task)})"


def as_task(listing: Listing, task: VtabTask, part: str | None) -> Listing:
    """Return a listing of a task's records that says what task it is.

    Args:
        listing: The records.
        task: The task.
        part: The part of it; None for what it trains on and tests on.
    """
    untouched = (("flip", task.flip), ("crop", task.crop))
    return replace(
        listing,
        source=task_title(task, part),
        notes=(*describe_drift(task), *listing.notes),
        label_changing=tuple(name for name, is_usual in untouched if not is_usual),
    )


def _whole(task: VtabTask) -> TfdsSource:
    return TfdsSource(
        task.tfds,
        None,
        task.versions,
        rule=RULES[task.rule] if task.rule else None,
        image="image",
        label=None if task.rule else "label",
        scale=task.scale,
    )


def _records(task: VtabTask) -> int:
    """Return the number of records of the train split; the usual one where it is not known."""
    return tfds_splits(_whole(task)).get("train", _usual_records(task))


def _usual_records(task: VtabTask) -> int:
    """Return how many records the train split has in the reference versions."""
    (train, val, test), layout = task.counts, task.layout
    parts = ((layout.train, train), (layout.val, val), (layout.test, test))
    return sum(count for slices, count in parts if slices.startswith("train"))
