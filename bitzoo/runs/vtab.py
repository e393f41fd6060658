"""`vtab`: fine-tune a model on the tasks of VTAB-1k, several times each, by the protocol of BiT.

Every run is an ordinary run of `finetune` in a folder of its own, `OUT/TASK/seed-N`, which can be
looked at, evaluated and published like any other. What is finished is not done again, so that the
same call goes on where a killed one ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bitzoo.catalogue.vtab_tasks import GROUPS, TASKS, VtabTask
from bitzoo.data.problems import DatasetError
from bitzoo.data.run_folders import RUN_NAME
from bitzoo.data.source_names import VTAB
from bitzoo.data.vtab_data import (
    describe_drift,
    find_task,
    none_prepared,
    task_title,
    task_version,
)
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.processes import in_main_process
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.differences import differences
from bitzoo.runs.job import Job
from bitzoo.runs.one_run import run_job
from bitzoo.runs.report.artifacts import EVALUATION_NAME
from bitzoo.runs.report.vtab_report import VTAB_REPORT_NAME, write_vtab_report
from bitzoo.runs.run_dir import RunDir, is_list_of_changes, read_record
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.total import Total
from bitzoo.runs.vtab_result import RunScore, TaskScore, VtabResult
from bitzoo.small_files import read_json
from bitzoo.training.checked_values import whole
from bitzoo.training.hyperrule import Edition

RESULT_NAME = "vtab.json"
"""The scores, in the folder of all runs."""
PAPER_RUNS = 3

_NEUTRAL = {
    *("device", "micro_batch", "channels_last", "compile", "recompute_norms", "checkpoint_blocks"),
    *("checkpoint_every", "keep_checkpoints", "cache_gb", "workers", "log"),
}
"""Options that change no result by more than rounding; a run may go on with others."""


def vtab(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tasks: str | Sequence[str] | None = None,
    runs: int = PAPER_RUNS,
    edition: Edition = "paper",
    pretrained: bool = True,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mixup: float | None = None,
    resolution: Resolution = None,
    flip: bool | None = None,
    seed: int = 0,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    freeze: bool = False,
    micro_batch: int | None = None,
    channels_last: bool | None = None,
    compile: bool = False,  # noqa: A002
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    class_weights: str | None = None,
    log: str | Sequence[str] | None = None,
    progress: Progress | bool | None = None,
    callbacks: Callbacks | None = None,
) -> VtabResult:
    """Fine-tune a model on the tasks of VTAB-1k and test it on their full test splits.

    Each task has 1,000 training images (``train800val200``), and BiT-HyperRule: 500 steps of 512
    images, learning rate 0.003, no MixUp, the resolution by the size of the images, no flips or
    crops where they would change labels. The score is the mean over the tasks of the median of the
    runs' top-1 accuracies (arXiv 1912.11370, section 3 and supplementary section F).

    The data sets must have been prepared by TensorFlow Datasets; a task of which that is not so is
    skipped. The same call again goes on with what is not finished. `out` then has `vtab.json`, a
    report, and a run folder for each task and seed. `bitzoo vtab` does the same.

    Args:
        model: As for `bitzoo.finetune`.
        out: The folder of all runs.
        tasks: Names of tasks and groups (``natural``, ``specialized``, ``structured``): one,
            several, or several in one text with commas; None for all 19.
        runs: Number of runs of each task, with consecutive seeds; 3 in the paper.
        edition: HyperRule of the ``paper`` or of the ``released`` code. This and all that follows
            down to `flip` departs from the protocol if given, which is recorded.
        pretrained: False starts from random weights.
        steps: Length of training, in updates.
        epochs: Length in passes over the training images, instead of `steps`.
        batch_size: Images per step.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: The crop in pixels, or (resize, crop).
        flip: Whether crops are mirrored at random, in all tasks.
        seed: Seed of the first run.
        cache_gb: Most disk space for decoded images, in GB; 0 decodes at each step.
        workers: Processes that decode; None for one per core.
        dtype: Dtype of activations: ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        freeze: Whether to train only the head, on cached features (linear probe).
        micro_batch: Most images that a process computes at once; None for as many as fit.
        channels_last: Memory format; None for the faster one on a CPU, as measured, and contiguous
            elsewhere.
        compile: Whether to run through `torch.compile`.
        recompute_norms: Half the activation memory, a few percent slower.
        checkpoint_blocks: A quarter of the activation memory, for one more forward pass.
        checkpoint_every: Steps between checkpoints; 0 writes one only at the end. One is kept.
        class_weights: ``balanced`` weighs classes inversely to their number of images.
        log: As for `bitzoo.finetune`.
        progress: As for `bitzoo.finetune`.
        callbacks: As for `bitzoo.finetune`.

    Returns:
        The scores, which tasks were skipped, and in what the protocol was departed from.

    Raises:
        DatasetError: If there is no such task, none of them is prepared, or a data set is damaged.
        UsageError: If options contradict each other, a run in `out` was started with others, or
            another process is using it.
        MissingExtraError: If TensorFlow Datasets is not installed.
        BitzooError: As `bitzoo.finetune` raises.
    """
    config = FinetuneConfig(
        seed=whole("`seed`", seed, 0),
        dtype=dtype,
        freeze=freeze,
        micro_batch=micro_batch,
        channels_last=channels_last,
        compile=compile,
        recompute_norms=recompute_norms,
        checkpoint_blocks=checkpoint_blocks,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=1,
        eval_every=0,  # the test images are looked at once, at the end
        device=device,
        edition=edition,
        pretrained=pretrained,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        mixup=mixup,
        resolution=resolution,
        flip=flip,
        fixed_split=True,
        cache_gb=cache_gb,
        workers=workers,
        class_weights=class_weights,
        log=log,
    )
    chosen, callbacks = chosen_tasks(tasks), callbacks or Callbacks()
    seeds = range(seed, seed + whole("`runs`", runs, 1))
    total = Total(0, callbacks.say)
    work = _Work(os.fspath(model), Path(out), config, seeds, callbacks, progress, total)
    with contextlib.ExitStack() as stack:
        in_main_process(lambda: work.take(stack))
        prepared, skipped = in_main_process(lambda: _divide(chosen))
        if skipped:
            callbacks.say(
                f"Skipped, as their data are not prepared ({len(skipped)}): {', '.join(skipped)}."
            )
        total.left = len(prepared) * runs
        found: dict[str, TaskScore] = {}
        records: list[Mapping[str, Any]] = []
        for number, (task, version) in enumerate(prepared.items(), start=1):
            callbacks.say(f"Task {number} of {len(prepared)}: {task}")
            scores = work.run_task(TASKS[task], records)
            notes = in_main_process(partial(describe_drift, TASKS[task]))
            if len(scores) == runs:
                found[task] = TaskScore(task, version, scores, notes)
            result = VtabResult(
                work.model,
                work.out,
                dict(found),
                skipped,
                departures_of(records, runs, config),
                stopped=len(scores) < runs,
            )
            in_main_process(partial(work.write, result))
            if result.stopped:
                break
    return result


def chosen_tasks(tasks: str | Sequence[str] | None) -> list[VtabTask]:
    """Return the tasks that are named, each once, in the order of the groups.

    Args:
        tasks: As for `vtab`.

    Raises:
        DatasetError: If a name is neither a task's nor a group's.
        UsageError: If none is named.
    """
    given = [tasks] if isinstance(tasks, str) else GROUPS if tasks is None else tasks
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("`tasks` must name at least one task or group, found none.")
    groups = {name for name in names if name in GROUPS}
    wanted = {find_task(name).name for name in names if name not in groups}
    return [
        task
        for group in GROUPS
        for task in TASKS.values()
        if task.group == group and (group in groups or task.name in wanted)
    ]


def departures_of(
    records: Iterable[Mapping[str, Any]], runs: int, config: FinetuneConfig
) -> tuple[str, ...]:
    """Say in what finished runs departed from the protocol of the paper.

    Args:
        records: What `run.json` says of each.
        runs: Number of runs of each task.
        config: Their options.
    """
    changed: dict[str, tuple[set[str], set[str]]] = {}
    later = set[str]()
    for record in records:
        for option, values in record["recipe"]["overrides"].items():
            rule, now = changed.setdefault(option, (set(), set()))
            rule.add(_shown(values["from"]))
            now.add(_shown(values["to"]))
        later.update(str(change["key"]) for change in record.get("changes", ()))
    found = [
        f"{option.replace('_', ' ')}: {_either(now)} instead of {_either(rule)}"
        for option, (rule, now) in changed.items()
    ]
    default = FinetuneConfig()
    others = (
        (config.freeze, "only the head was trained, on features of images without crops and flips"),
        (not config.pretrained, "random weights instead of pre-trained ones"),
        (config.edition != "paper", f"HyperRule of the {config.edition} code"),
        (config.dtype != default.dtype, f"dtype: {config.dtype} instead of {default.dtype}"),
        (runs != PAPER_RUNS, f"runs: {runs} of each task instead of {PAPER_RUNS}"),
        (bool(later), f"changed in the middle of runs: {', '.join(sorted(later))}"),
    )
    return tuple(found + [sentence for applies, sentence in others if applies])


@dataclass(frozen=True)
class _Work:
    """All runs of a call."""

    model: str
    out: Path
    config: FinetuneConfig
    seeds: range
    callbacks: Callbacks
    progress: Progress | bool | None
    total: Total

    def take(self, stack: contextlib.ExitStack) -> None:
        """Keep other calls out of the folder until `stack` is unwound."""
        if (self.out / RUN_NAME).is_file():
            raise UsageError(
                f"{self.out} is the folder of a single run. Choose another `out` for those of all "
                "tasks."
            )
        with RunDir(self.out).writing("Choose another `out`."):
            stack.enter_context(sole_use(self.out))

    def run_task(self, task: VtabTask, records: list[Mapping[str, Any]]) -> tuple[RunScore, ...]:
        """Do the runs of a task that are not finished.

        Args:
            task: The task.
            records: Gets what `run.json` says of each finished run.

        Returns:
            The scores of all that are finished: fewer than were asked for if one was stopped.
        """
        scores: list[RunScore] = []
        for number, seed in enumerate(self.seeds):
            place = self.out / task.name / f"seed-{seed}"
            job = Job(self.model, f"{VTAB}{task.name}", replace(self.config, seed=seed))
            found = in_main_process(partial(_finished, job, place, task))
            if found is None:
                quiet = replace(self.callbacks, say=lambda text: None)
                result = run_job(
                    job,
                    place,
                    1,
                    self.progress,
                    self.total.begin(self.callbacks if number == 0 else quiet),
                    resume=True,
                    overwrite=False,
                )
                if result.stopped:
                    break
                found = in_main_process(partial(_finished, job, place, task))
            if found is None:
                raise CheckpointError(
                    f"{place}: expected the files of a finished run, found them changed. Run the "
                    "same command again."
                )
            record, correct, count = found
            records.append(record)
            score = RunScore(seed, f"{task.name}/{place.name}", correct, count)
            scores.append(score)
            self.total.left -= 1
            self.callbacks.say(
                f"{task.name}, seed {seed}: top-1 {score.top1:.2%} ({correct:,} of {count:,})"
            )
        return tuple(scores)

    def write(self, result: VtabResult) -> None:
        """Write the scores and the report."""
        with RunDir(self.out).writing("Free some space, then run the same command again."):
            write_json(self.out / RESULT_NAME, result.to_dict())
            write_vtab_report(self.out / VTAB_REPORT_NAME, result)


def _divide(chosen: Sequence[VtabTask]) -> tuple[dict[str, str], dict[str, str]]:
    """Return task -> its data's version of those that are prepared, and task -> why not.

    Raises:
        DatasetError: If none is prepared.
        MissingExtraError: If TensorFlow Datasets is not installed.
    """
    prepared: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for task in chosen:
        try:
            prepared[task.name] = task_version(task)
        except DatasetError as error:
            skipped[task.name] = str(error)
    if not prepared:
        raise none_prepared(skipped)
    return prepared, skipped


def _finished(job: Job, place: Path, task: VtabTask) -> tuple[Mapping[str, Any], int, int] | None:
    """Return what a run's folder says of it, and its correct and all test images.

    None if it is not finished, or its files do not say enough; `finetune` goes on with it then.

    Raises:
        UsageError: If it is finished, and was started with other options.
    """
    record = read_record(place)
    if record is None or not isinstance(record.get("finished"), dict):
        return None
    try:
        found = read_json(place / EVALUATION_NAME)
        correct, count, before = found["correct"], found["count"], record["options"]
        then = _settings(before["model"], before["data_name"], before["config"])
        overrides = record["recipe"]["overrides"]
        departed = [{"from", "to"} <= change.keys() for change in overrides.values()]
    except (CheckpointError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    if not (type(correct) is type(count) is int and 0 <= correct <= count and count):
        return None
    if not all(departed) or not is_list_of_changes(record.get("changes", [])):
        return None
    options = job.to_dict(task_title(task))
    now = _settings(options["model"], options["data_name"], options["config"])
    if lines := differences(then, now):
        raise UsageError(
            f"{place} was run with other options (before -> now):\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nUse the same options, or start again in another `out`."
        )
    return record, correct, count


def _settings(model: object, data: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the result of a run."""
    options = asdict(FinetuneConfig()) | dict(config)
    used = {name: value for name, value in options.items() if name not in _NEUTRAL}
    return {"model": model, "data set": data, **used}


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _either(values: Iterable[str]) -> str:
    return " or ".join(sorted(values, key=lambda text: (len(text), text)))
