"""Carry out the protocol of a published figure: one function per kind of protocol."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitzoo.catalogue.protocols import Action, Claim, Protocol
from bitzoo.catalogue.vtab_tasks import GROUPS, TASKS
from bitzoo.data.dataset import DataSource
from bitzoo.data.problems import DatasetError
from bitzoo.data.source_names import TFDS, library_of, parse
from bitzoo.data.tfds_datasets import source_of, tfds_version
from bitzoo.data.vtab_data import task_source
from bitzoo.files import Progress
from bitzoo.inference.evaluate import evaluate
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.config import Callbacks
from bitzoo.runs.finetune import finetune


@dataclass(frozen=True)
class Measured:
    """What was measured, in percent.

    Attributes:
        value: The figure; of several runs the median.
        lowest, highest: The interval in which it is known to lie; None if there is none.
        interval: What the interval is, as a phrase.
        runs: The figure of each run, in the order of their seeds.
        images: Number of images that were judged in each run; None if that differs.
        parts: Other means, by name.
        call: What was run, as Python code.
        versions: TFDS data set -> the prepared version that was used.
        departures: What turned out to differ from the protocol, as sentences.
        notes: What else is to be known, as sentences.
    """

    value: float
    lowest: float | None
    highest: float | None
    interval: str
    runs: tuple[float, ...]
    images: int | None
    call: str
    parts: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """The figure with its interval."""
        if self.lowest is None or self.highest is None:
            return f"{self.value:.2f} % ({self.interval})"
        return f"{self.value:.2f} % ({self.lowest:.2f} to {self.highest:.2f}, {self.interval})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "value": self.value,
            "lowest": self.lowest,
            "highest": self.highest,
            "interval": self.interval,
            "runs": list(self.runs),
            "images": self.images,
            "parts": dict(self.parts),
            "call": self.call,
            "versions": dict(self.versions),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Setting:
    """What is to be measured, and how much of it follows the protocol.

    Attributes:
        model: The weights, as the user named them.
        release: The catalogue name of the weights.
        claim: The published figure.
        protocol: Its protocol.
        folder: Where runs are written; None if nothing is.
        chosen: The options that the user gave of those that depart from the protocol, by name.
        seed: Seed of the first run.
        dtype: Compute dtype.
        device: Where to compute; None chooses.
        cache_gb: Most disk space for decoded images.
        workers: Processes that decode; None for one per core.
        skip_bad: Whether images that cannot be used are left out.
        progress: Called with a task, how much of it is done, and how much there is.
        say: Called with sentences for the user.
    """

    model: str
    release: str
    claim: Claim
    protocol: Protocol
    folder: Path | None
    chosen: Mapping[str, Any]
    seed: int
    dtype: str
    device: str | None
    cache_gb: float
    workers: int | None
    skip_bad: bool
    progress: Progress | None
    say: Callable[[str], None]

    @property
    def data(self) -> DataSource | None:
        """The images: those of the user or those of the figure."""
        return self.chosen.get("data", self.protocol.data)

    @property
    def runs(self) -> int:
        """How many runs are made."""
        return int(self.chosen.get("runs", self.protocol.runs))

    @property
    def common(self) -> dict[str, Any]:
        """Options that every function takes."""
        return {
            "dtype": self.dtype,
            "device": self.device,
            "cache_gb": self.cache_gb,
            "workers": self.workers,
            "skip_bad": self.skip_bad,
        }

    @property
    def training(self) -> dict[str, Any]:
        """Options of training: the protocol's, and those that the user gave instead."""
        own = {key: self.chosen[key] for key in _TRAINING if key in self.chosen}
        return {**self.common, **self.protocol.options, "seed": self.seed, **own}

    def versions(self) -> dict[str, str]:
        """Return the versions of the TFDS data sets that are used, by name."""
        data = self.data
        sources = data.values() if isinstance(data, Mapping) else [data]
        found = {}
        for source in sources:
            if isinstance(source, str) and library_of(source) == TFDS:
                records = source_of(parse(source))
                found[records.name] = tfds_version(records)
        return found

    def departures(self) -> Iterator[str]:
        """Yield what the user chose that is not the protocol, as sentences."""
        chosen, protocol = self.chosen, self.protocol
        if "data" in chosen and not protocol.needs:
            yield f"Data: {chosen['data']!r:.200} instead of {protocol.data_in_words}."
        if self.runs != protocol.runs:
            yield f"{_runs(self.runs)} instead of {protocol.runs}."
        if "steps" in chosen:
            yield f"{chosen['steps']:,} steps per run instead of the rule's."
        if "freeze" in chosen:
            yield "Only the head was trained, on fixed features, instead of the whole network."
        edition = protocol.options.get("edition", "paper")
        if chosen.get("edition", edition) != edition:
            yield f"HyperRule's edition {chosen['edition']!r} instead of {edition!r}."
        if "tasks" in chosen:
            yield f"Only the tasks {', '.join(chosen['tasks'])}, so the mean is of other tasks."
        if self.dtype != "float32":
            yield f"Computed in {self.dtype}."

    def drifted(self, versions: Mapping[str, str]) -> tuple[str, ...]:
        """Return data sets whose version is not that of the figure, as sentences."""
        wanted = self.protocol.versions
        if not wanted or "data" in self.chosen:
            return ()
        return tuple(
            f"Version {version} of {name}, whose images are not those of version {wanted}*."
            for name, version in versions.items()
            if not version.startswith(wanted)
        )


_TRAINING = ("steps", "freeze", "edition", "micro_batch", "overwrite")


def _evaluate(setting: Setting) -> Measured:
    """Evaluate the weights themselves."""
    options = {**setting.common, **setting.protocol.options}
    versions = setting.versions()
    found = evaluate(setting.model, setting.data, **options, progress=setting.progress)
    return _judged(
        setting,
        [found],
        _call("evaluate", setting.model, setting.data, **options),
        versions,
    )


def _finetune(setting: Setting) -> Measured | None:
    """Fine-tune on all images; None if it was stopped."""
    assert setting.folder is not None
    options = {**setting.training, "repeats": setting.runs}
    again = {"resume": not options.get("overwrite")}
    versions = setting.versions()
    callbacks = Callbacks(say=setting.say, progress=setting.progress)
    result = finetune(
        setting.model, setting.data, setting.folder, **options, **again, callbacks=callbacks
    )
    if result.stopped:
        return None
    runs = result.repeats or (result,)
    call = _call("finetune", setting.model, setting.data, str(setting.folder), **options)
    found = [run.evaluation for run in runs if run.evaluation]
    return _judged(setting, found, call, versions)


def _judged(
    setting: Setting, found: Sequence[Evaluation], call: str, versions: Mapping[str, str]
) -> Measured:
    """Return the figure of one or several evaluations."""
    top5 = setting.claim.metric == "top-5"
    shares = [100 * (one.top5 if top5 else one.top1) for one in found]
    selection, notes = found[0].selection, list[str]()
    departures = list(setting.drifted(versions))
    for figure in found[0].published:
        if (figure.name, figure.dataset, figure.value) == setting.claim.key:
            departures += figure.differs
    if selection is not None:
        notes += selection.sentences
        if skipped := sum(map(len, selection.skipped.values())):
            departures.append(f"{skipped:,} images were left out, because they cannot be used.")
    count = found[0].count
    if len(found) == 1:
        low, high = found[0].interval_top5 if top5 else found[0].interval
        interval = (100 * low, 100 * high, f"95 % interval, {count:,} images")
    else:
        interval = (min(shares), max(shares), f"lowest and highest of {_runs(len(found))}")
    return Measured(
        statistics.median(shares),
        *interval,
        runs=tuple(shares),
        images=count,
        call=call,
        versions=versions,
        departures=tuple(departures),
        notes=tuple(notes),
    )


def _fewshot(setting: Setting) -> Measured | None:
    """Fine-tune on a few images per class, several times; None if it was stopped."""
    from bitzoo.runs.fewshot import fewshot

    assert setting.folder is not None
    options = {**setting.training, "runs": setting.runs}
    versions = setting.versions()
    result = fewshot(
        setting.model,
        setting.data,
        setting.folder,
        **options,
        progress=setting.progress,
        say=setting.say,
    )
    (shots,) = options["shots"]
    shares = [100 * top1 for top1 in result.scores[shots]]
    return Measured(
        statistics.median(shares),
        min(shares),
        max(shares),
        f"lowest and highest of {_runs(len(shares))}",
        tuple(shares),
        None,
        _call("fewshot", setting.model, setting.data, str(setting.folder), **options),
        versions=versions,
        departures=setting.drifted(versions),
    )


def _vtab(setting: Setting) -> Measured | None:
    """Fine-tune on each task of VTAB-1k, several times; None if it was stopped."""
    from bitzoo.runs.vtab import vtab

    assert setting.folder is not None
    options = {**setting.training, "runs": setting.runs}
    if "tasks" in setting.chosen:
        options["tasks"] = setting.chosen["tasks"]
    result = vtab(
        setting.model, setting.folder, **options, progress=setting.progress, say=setting.say
    )
    raise NotImplementedError


def _vtab_released(setting: Setting) -> Measured:
    """Evaluate the checkpoints that were fine-tuned on the tasks of VTAB-1k."""
    wanted = setting.chosen.get("tasks", tuple(TASKS))
    scores: dict[str, tuple[float, ...]] = {}
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for task in wanted:
        names = [f"{setting.release}-run{run}-{task}" for run in range(setting.runs)]
        source = task_source(task, "test")
        try:
            versions[source.name] = tfds_version(source)
        except DatasetError as error:
            skipped[task] = str(error)
            setting.say(f"Skipped {task}: {error}")
            continue
        found = [evaluate(name, **setting.common, progress=setting.progress).top1 for name in names]
        scores[task] = tuple(100 * top1 for top1 in found)
        setting.say(f"{task}: {statistics.median(scores[task]):.2f} %")
    call = f"bitzoo.evaluate({setting.release + '-runRUN-TASK'!r}) for each run and task"
    return _of_tasks(setting, scores, skipped, versions, call)


def _of_tasks(
    setting: Setting,
    scores: Mapping[str, Sequence[float]],
    skipped: Mapping[str, str],
    versions: Mapping[str, str],
    call: str,
) -> Measured:
    """Return the mean of tasks and of their groups, from the runs of each task in percent.

    Of each task counts the median. The interval is that of the means of each run.
    """
    if not scores:
        raise DatasetError(
            "None of the tasks is prepared, so there is nothing to measure. "
            + " ".join(skipped.values())
        )
    medians = {task: statistics.median(runs) for task, runs in scores.items()}
    groups = {
        group: statistics.fmean(medians[task] for task in medians if TASKS[task].group == group)
        for group in GROUPS
        if any(TASKS[task].group == group for task in medians)
    }
    means = [statistics.fmean(runs) for runs in zip(*scores.values(), strict=True)]
    several = len(means) > 1
    departures = []
    if skipped:
        departures.append(
            f"{len(skipped)} of the tasks are not prepared and were left out, so the mean is of "
            f"other tasks: {', '.join(skipped)}."
        )
    return Measured(
        statistics.fmean(medians.values()),
        min(means) if several else None,
        max(means) if several else None,
        f"means of {_runs(len(means))}" if several else "one run, so there is no interval",
        tuple(means),
        None,
        call,
        parts={**groups, **medians},
        versions=versions,
        departures=tuple(departures),
    )


MEASURES: Mapping[Action, Callable[[Setting], Measured | None]] = {
    "evaluate": _evaluate,
    "finetune": _finetune,
    "fewshot": _fewshot,
    "vtab": _vtab,
    "vtab-released": _vtab_released,
}


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _call(function: str, *arguments: object, **options: object) -> str:
    """Return a call of the package as Python code."""
    words = [repr(argument) for argument in arguments]
    words += [f"{name}={value!r}" for name, value in options.items()]
    return f"bitzoo.{function}({', '.join(words)})"
