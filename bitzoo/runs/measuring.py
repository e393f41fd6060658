"""Carry out the protocol of a published figure: one function per kind of protocol."""

from __future__ import annotations

import math
import os
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
from bitzoo.data.vtab_data import describe_drift, none_prepared, task_version
from bitzoo.files import Progress
from bitzoo.inference.evaluate import evaluate
from bitzoo.inference.intervals import Z_95, wilson
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.config import Callbacks
from bitzoo.runs.fewshot import fewshot
from bitzoo.runs.finetune import finetune
from bitzoo.runs.vtab import chosen_tasks, vtab


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
        data: DataSource | None = self.chosen.get("data", self.protocol.data)
        return data

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
            yield f"Data: {_named(chosen['data'])} instead of {protocol.data_in_words}."
        if self.runs != protocol.runs:
            yield f"{_runs(self.runs)} instead of {protocol.runs}."
        if "steps" in chosen:
            steps = chosen["steps"]
            yield f"{steps:,} step{'s' * (steps != 1)} per run instead of the rule's."
        if "freeze" in chosen:
            yield "Only the head was trained, on fixed features, instead of the whole network."
        edition = protocol.options.get("edition", "paper")
        if chosen.get("edition", edition) != edition:
            yield f"HyperRule's edition {chosen['edition']!r} instead of {edition!r}."
        if "tasks" in chosen:
            yield f"Only the tasks {', '.join(chosen['tasks'])}."
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
    if "data" not in setting.chosen:
        options["fixed_split"] = True
    again: dict[str, Any] = {"resume": not options.get("overwrite")}
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
    """Return the figure of one or several evaluations of the same images."""
    top5 = setting.claim.metric == "top-5"
    one = found[0]
    notes = [one.matched] if one.matched else []
    departures = [
        text
        for figure in one.published
        if (figure.name, figure.dataset, figure.value) == setting.claim.key
        for text in figure.differs
        if not text.startswith(f"It is of {setting.release};")  # said of the weights already
    ]
    if one.selection is not None:
        notes += one.selection.sentences
        if skipped := sum(map(len, one.selection.skipped.values())):
            departures.append(f"{skipped:,} images were left out, because they cannot be used.")
    counted = [(each.correct_top5 if top5 else each.correct, each.count) for each in found]
    return _of_counts(setting, counted, call, versions, departures, notes)


def _of_counts(
    setting: Setting,
    counted: Sequence[tuple[int, int]],
    call: str,
    versions: Mapping[str, str],
    departures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Measured:
    """Return the figure of one or several runs: of each, how many images of how many were right.

    The interval is that of the share for one run, and from the lowest to the highest for several.
    """
    shares = tuple(100 * hits / count for hits, count in counted)
    hits, count = counted[0]
    if len(counted) == 1:
        low, high = (100 * end for end in wilson(hits, count))
        interval = f"95 % interval, {count:,} images"
    else:
        low, high = min(shares), max(shares)
        interval = f"lowest and highest of {_runs(len(shares))}"
    return Measured(
        statistics.median(shares),
        low,
        high,
        interval,
        runs=shares,
        images=count,
        call=call,
        versions=versions,
        departures=(*setting.drifted(versions), *departures),
        notes=tuple(notes),
    )


def _fewshot(setting: Setting) -> Measured | None:
    """Fine-tune on a few images per class, several times; None if it was stopped."""
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
    if result.stopped:
        return None
    counted = [(trial.correct, trial.count) for trial in result.trials]
    return _of_counts(
        setting,
        counted,
        _call("fewshot", setting.model, setting.data, str(setting.folder), **options),
        versions,
        notes=result.notes,
    )


def _vtab(setting: Setting) -> Measured | None:
    """Fine-tune on each task of VTAB-1k, several times; None if it was stopped."""
    assert setting.folder is not None
    options = {**setting.training, "runs": setting.runs, "tasks": setting.chosen.get("tasks")}
    del options["skip_bad"]
    callbacks = Callbacks(say=setting.say)
    result = vtab(
        setting.model, setting.folder, **options, progress=setting.progress, callbacks=callbacks
    )
    if result.stopped:
        return None
    counted = {
        name: [(run.correct, run.count) for run in score.runs]
        for name, score in result.tasks.items()
    }
    versions = {score.task.tfds: score.version for score in result.tasks.values()}
    notes = [f"{name}: {note}" for name, score in result.tasks.items() for note in score.notes]
    call = _call("vtab", setting.model, str(setting.folder), **options)
    return _of_tasks(counted, result.skipped, versions, notes, call)


def _vtab_released(setting: Setting) -> Measured:
    """Evaluate the checkpoints that were fine-tuned on the tasks of VTAB-1k."""
    counted: dict[str, list[tuple[int, int]]] = {}
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    notes: list[str] = []
    for task in chosen_tasks(setting.chosen.get("tasks")):
        try:
            versions[task.tfds] = task_version(task)
        except DatasetError as error:
            skipped[task.name] = str(error)
            continue
        notes += [f"{task.name}: {note}" for note in describe_drift(task)]
        counted[task.name] = []
        for run in range(setting.runs):
            name = f"{setting.release}-run{run}-{task.name}"
            found = evaluate(name, **setting.common, progress=setting.progress)
            counted[task.name].append((found.correct, found.count))
            setting.say(f"{name}: top-1 {found.top1:.2%} ({found.correct:,} of {found.count:,})")
    if not counted:
        raise none_prepared(skipped)
    call = f"bitzoo.evaluate({setting.release + '-runRUN-TASK'!r})"
    return _of_tasks(counted, skipped, versions, notes, call)


def _of_tasks(
    counted: Mapping[str, Sequence[tuple[int, int]]],
    skipped: Mapping[str, str],
    versions: Mapping[str, str],
    drift: Sequence[str],
    call: str,
) -> Measured:
    """Return the mean over tasks, and over those of each group, of the median of their runs.

    The interval is that of the runs' means. For one run it is that of the mean of shares of
    independent samples, by the normal distribution.

    Args:
        counted: Task -> of each run, how many images of how many were right.
        skipped: Task -> why it was left out.
        versions: As in `Measured`.
        drift: What is other in the data than in those of the figure.
        call: As in `Measured`.
    """
    shares = {task: [100 * hits / count for hits, count in runs] for task, runs in counted.items()}
    medians = {task: statistics.median(runs) for task, runs in shares.items()}
    value = statistics.fmean(medians.values())
    means = [statistics.fmean(runs) for runs in zip(*shares.values(), strict=True)]
    if len(means) == 1:
        variances = [(h / n) * (1 - h / n) / n for ((h, n),) in counted.values()]
        reach = 100 * Z_95 * math.sqrt(math.fsum(variances)) / len(variances)
        low, high, interval = value - reach, value + reach, "95 % interval of the mean"
    else:
        low, high, interval = min(means), max(means), f"lowest and highest of {_runs(len(means))}"
    by_group = {group: [n for n in medians if TASKS[n].group == group] for group in GROUPS}
    groups: dict[str, float] = {
        group: statistics.fmean(medians[name] for name in names)
        for group, names in by_group.items()
        if names
    }
    left_out = len(TASKS) - len(counted)
    some = f"The mean is of {len(counted)} of the {len(TASKS)} tasks, so it is another figure."
    unprepared = f"Not prepared and left out: {', '.join(skipped)}."
    return Measured(
        value,
        low,
        high,
        interval,
        tuple(means),
        None,
        call,
        parts={**groups, **medians},
        versions=versions,
        departures=(
            *((some,) if left_out else ()),
            *((unprepared,) if skipped else ()),
            *drift,
        ),
    )


MEASURES: Mapping[Action, Callable[[Setting], Measured | None]] = {
    "evaluate": _evaluate,
    "finetune": _finetune,
    "fewshot": _fewshot,
    "vtab": _vtab,
    "vtab-released": _vtab_released,
}


def _named(data: DataSource) -> str:
    """Return what to call the user's data."""
    if isinstance(data, Mapping):
        return ", ".join(f"{split} {_named(source)}" for split, source in data.items())
    return os.fspath(data) if isinstance(data, (str, os.PathLike)) else "data in memory"


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _call(function: str, *arguments: object, **options: object) -> str:
    """Return a call of the package as Python code."""
    words = [repr(os.fspath(a) if isinstance(a, os.PathLike) else a) for a in arguments]
    words += [f"{name}={value!r}" for name, value in options.items()]
    return f"bitzoo.{function}({', '.join(words)})"
