"""The kinds of runs: what each does in its own way; all else they have in common (`one_run`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bitzoo.data.dataset import ImageSet
from bitzoo.data.validation import DataSummary
from bitzoo.errors import UsageError
from bitzoo.models.bit import BiT
from bitzoo.runs.config import Callbacks, RunConfig
from bitzoo.runs.job import Job
from bitzoo.runs.run_result import RunResult
from bitzoo.training.recipe import Recipe

KEY, FINETUNED = "kind", "finetune"
"""Key in `run.json`, and the kind of runs that do not have it."""
PROBED = "probe"
"""The kind of a folder that `bitzoo.probe` saved, which is complete when it is written."""


def _all(job: Job, images: ImageSet) -> ImageSet:
    return images


def _as_it_is(job: Job) -> Job:
    return job


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        config: The class of its options.
        result: The class of its result.
        create: Creates the network, with a head for the classes, and returns whether the head is
            that of its weights.
        plan: Makes the recipe; takes what `create` returned too.
        identity: More entries of `run.json` that determine the result.
        select: Chooses among the images of the data set, before they are checked.
        begin: Completes the job before the data are read.
        read: Reads and checks the data in the main process; None reads them as most runs do.
        expect: Makes the recipe as far as it says how images are resized, of a data set that is
            listed but not checked, and the height and width of its images. A guess: a wrong one
            costs time (`bitzoo.data.rows_while_checking`).
    """

    config: type[RunConfig]
    result: type[RunResult]
    create: Callable[[Job, ImageSet, Callbacks], tuple[BiT, bool]]
    plan: Callable[[Job, ImageSet, DataSummary, BiT, bool], Recipe]
    identity: Callable[[Job], Mapping[str, Any]]
    select: Callable[[Job, ImageSet], ImageSet] = _all
    begin: Callable[[Job], Job] = _as_it_is
    read: Callable[[Job, Callbacks], tuple[ImageSet, DataSummary]] | None = None
    expect: Callable[[Job, ImageSet, tuple[int, int]], Recipe] | None = None


_MODULES = {FINETUNED: "finetune", "pretrain": "pretrain", "distill": "distill"}
"""Kind -> the module of `bitzoo.runs` whose `KIND` it is, imported when it is needed."""


def find_kind(name: object) -> Kind:
    """Return the kind of run that has a name.

    Raises:
        UsageError: If there is none, as in a run of a later version.
    """
    if name == PROBED:
        raise UsageError(
            "The folder is a saved probe, whose head was solved in closed form: there is nothing "
            "to go on with. Save it again with `bitzoo probe --save`, or train from it with "
            "`bitzoo finetune`."
        )
    module = _MODULES.get(str(name))
    if module is None:
        raise UsageError(
            f"The run is of the kind {name!r:.40}, which this version of bitzoo does not know: "
            f"expected one of {', '.join(_MODULES)}. Use the version that started it."
        )
    kind: Kind = import_module(f"bitzoo.runs.{module}").KIND
    return kind
