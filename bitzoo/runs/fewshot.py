"""`fewshot`: how well a model does with a few images per class, over several choices of images.

A trial is a fine-tuning run in a folder of its own, or a closed-form classifier on features that
are computed once for all trials. The record of those that are made is written after each of them,
so that the same command goes on where it was stopped or killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bitzoo.data.dataset import DataSource, ImageSet, Split, read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.data.shots import describe_short, draw_shots
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.inference.evaluate import labels_of
from bitzoo.inference.feature_cache import Features
from bitzoo.inference.features import compute_features
from bitzoo.inference.processes import in_main_process, join_processes, process_device
from bitzoo.inference.runner import compute_dtype
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.progress import shown
from bitzoo.runs.config import Callbacks, Resolution
from bitzoo.runs.fewshot_result import FewShotResult, Trial, recorded_trials
from bitzoo.runs.finetune import finetune
from bitzoo.runs.probe_size import PROBE_SIZE, probe_size
from bitzoo.runs.report.fewshot_page import write_fewshot_report
from bitzoo.runs.run_dir import CHECKPOINTS_NAME, RunDir
from bitzoo.runs.run_lock import sole_use
from bitzoo.runs.total import Total
from bitzoo.training.checkpointing import FILES
from bitzoo.training.hyperrule import Edition
from bitzoo.training.ridge import ridge, scores
from bitzoo.zoo.classifier import load_classifier
from bitzoo.zoo.resolve import WEIGHTS_NAME

Method = Literal["finetune", "ridge"]
SHOTS = (1, 5, 10, 25, 100)
"""The numbers of the paper's figures (arXiv 1912.11370, section 4.2)."""

_ONLY_FINETUNE = {
    "edition": "paper",
    "steps": None,
    "epochs": None,
    "batch_size": None,
    "lr": None,
    "mixup": None,
    "flip": None,
    "freeze": False,
    "micro_batch": None,
    "recompute_norms": False,
    "checkpoint_blocks": False,
    "checkpoint_every": 100,
    "discard_weights": False,
}
"""Options that mean nothing to the closed-form classifier -> their defaults."""
_NO_RESULT = ("micro_batch", "recompute_norms", "checkpoint_blocks", "checkpoint_every")
"""Options that change no result."""
_NOTES: dict[str, str] = {
    "finetune": "Each trial fine-tunes the whole network by BiT-HyperRule ({edition} edition), "
    "whose length follows the number of training images, and is evaluated once, at the end.",
    "ridge": "Each trial is big_vision's few-shot probe: ridge regression (l2 1024) on features "
    "of images that are resized to {resize}x{resize}, of which the central {crop}x{crop} are "
    "taken. They are resized by Pillow, antialiased; big_vision resizes without antialiasing.",
}


def fewshot(
    model: str | os.PathLike[str],
    data: DataSource,
    out: str | os.PathLike[str],
    *,
    shots: Sequence[int] = SHOTS,
    runs: int = 5,
    method: Method = "finetune",
    seed: int = 0,
    edition: Edition = "paper",
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    mixup: float | None = None,
    resolution: Resolution = None,
    flip: bool | None = None,
    freeze: bool = False,
    val_fraction: float | None = None,
    skip_bad: bool = False,
    recheck: bool = False,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    micro_batch: int | None = None,
    recompute_norms: bool = False,
    checkpoint_blocks: bool = False,
    checkpoint_every: int = 100,
    discard_weights: bool = False,
    progress: Progress | bool | None = None,
    say: Callable[[str], None] | None = None,
) -> FewShotResult:
    """Measure how well a model learns from a few images per class.

    For each number of images per class, several trials with other images: balanced choices that
    depend only on the data set and the seed, those of fewer images among those of more. All are
    judged on the same images: the data set's own test split, whole, else its val split, else
    images that are held out.

    `bitzoo fewshot` does the same. Called again after it was stopped or killed, it goes on; more
    `shots` or `runs` add to those that are made.

    Args:
        model: A catalogue name, a checkpoint file, or a run folder; as for `bitzoo.finetune`.
        data: The data set; as for `bitzoo.finetune`.
        out: Folder for `fewshot.json`, the report, and a run folder per trial.
        shots: Numbers of images per class. A class with fewer gives all that it has.
        runs: Number of trials for each, with the seeds `seed`, `seed` + 1, and so on.
        method: ``finetune``, which is the paper's protocol: BiT-HyperRule on the whole network; or
            ``ridge``, which takes minutes instead of hours: a closed-form classifier on features,
            exactly big_vision's `fewshot_lsr` but for how pixels are resized.
        seed: Seed of the first trial, and of the held-out choice.
        edition: HyperRule of the ``paper`` or of the ``released`` code.
        steps: As for `bitzoo.finetune`, as all options below that are not explained here.
        epochs: Length in passes over the training images, instead of `steps`.
        batch_size: Images per step.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: The crop in pixels, or (resize, crop); by default that of HyperRule, and for
            ``ridge`` (256, 224).
        flip: Whether crops are mirrored at random.
        freeze: Whether to train only the head.
        val_fraction: Fraction that is held out if the data set has no split.
        skip_bad: Whether to skip images that cannot be used.
        recheck: As for `bitzoo.finetune`; of several trials, the first reads all images.
        cache_gb: Most disk space for decoded images, and as much for features, in GB.
        workers: Processes that decode.
        dtype: Dtype of activations.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        micro_batch: Most images that a process computes at once.
        recompute_norms: Half the activation memory.
        checkpoint_blocks: A quarter of the activation memory.
        checkpoint_every: Steps between checkpoints.
        discard_weights: Whether to remove the weights and checkpoints of each trial once it is
            recorded; the rest of its run folder stays.
        progress: As for `bitzoo.finetune`.
        say: Called with sentences for the user: what was chosen, and the score of each trial.

    Returns:
        All trials, with medians.

    Raises:
        UsageError: If options contradict each other, there are no images to evaluate on, `out` has
            something else, or another process is using it.
        BitzooError: As `bitzoo.finetune` raises.
    """
    given: dict[str, Any] = {
        "edition": edition,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "mixup": mixup,
        "resolution": resolution,
        "flip": flip,
        "freeze": freeze,
        "skip_bad": skip_bad,
        "recheck": recheck,
        "cache_gb": cache_gb,
        "workers": workers,
        "dtype": dtype,
        "device": device,
        "micro_batch": micro_batch,
        "recompute_norms": recompute_norms,
        "checkpoint_blocks": checkpoint_blocks,
        "checkpoint_every": checkpoint_every,
    }
    numbers = _checked(shots, runs, method, given | {"discard_weights": discard_weights})
    tell = _Told(say)
    folder = Path(out)
    with shown(progress) as report:
        images = in_main_process(
            lambda: read_dataset(
                data, val_fraction=val_fraction, seed=seed, eval_split="test", progress=report
            )
        )
    if images.val is None:
        raise UsageError(
            f"Few-shot trials need images to evaluate on, and {images.source} has none. Leave out "
            "`val_fraction`, or give data with a test split."
        )
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(shown(progress))
        task = _Task(os.fspath(model), data, images, folder, seed, val_fraction, given, report)
        keep = not discard_weights
        methods: dict[str, Callable[[_Task, _Told, int], _Finetuning | _Probe]] = {
            "finetune": _Finetuning,
            "ridge": _Probe,
        }
        in_main_process(lambda: _take(folder, stack))
        settings = _settings(task, method)
        made = in_main_process(lambda: recorded_trials(folder, settings, numbers, runs))
        result = FewShotResult(
            folder,
            settings,
            numbers,
            runs,
            _test(images),
            tuple(made[key] for key in sorted(made)),
            _notes(task, method, numbers),
        )
        in_main_process(partial(_record, result, keep))  # what is killed is known as what it is
        for note in result.notes:
            tell(note)
        left = sum((number, run) not in made for number in numbers for run in range(runs))
        maker = methods[method](task, tell, left)
        for number in numbers:
            for run in range(runs):
                if (number, run) in made:
                    continue
                trial = maker.trial(number, run)
                if trial is None:
                    return result
                tell(trial.sentence)
                made[number, run] = trial
                result = replace(result, trials=tuple(made[key] for key in sorted(made)))
                in_main_process(partial(_record, result, keep))
    return result


@dataclass(frozen=True)
class _Task:
    """What all trials have in common."""

    model: str
    data: DataSource
    images: ImageSet
    folder: Path
    seed: int
    val_fraction: float | None
    options: Mapping[str, Any]
    progress: Progress | None

    @property
    def has_own_split(self) -> bool:
        return self.images.draw is None

    @property
    def training_labels(self) -> list[int]:
        return [example.label for example in self.images.train.examples]


class _Told:
    """Says each sentence once: many are the same for all trials."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, sentence: str) -> None:
        is_new = sentence not in self._said and "\n" not in sentence
        self._said.add(sentence)
        if self._say is not None and is_new and join_processes().is_main_process:
            self._say(sentence)


class _Finetuning:
    """Trials that are fine-tuning runs."""

    def __init__(self, task: _Task, tell: _Told, left: int) -> None:
        self._task, self._tell = task, tell
        self._total = Total(left, tell, "trial")
        self._recheck = task.options["recheck"]

    def trial(self, shots: int, run: int) -> Trial | None:
        """Carry out a trial, or go on with it; None if it was stopped before its end."""
        task, seed = self._task, self._task.seed + run
        name = f"{shots}-shot/seed-{seed}"
        result = finetune(
            task.model,
            task.data,
            task.folder / name,
            seed=seed,
            split_seed=None if task.has_own_split else task.seed,
            eval_split="test",
            fixed_split=task.has_own_split,
            val_fraction=task.val_fraction,
            examples_per_class=shots,
            eval_every=0,
            keep_checkpoints=1,
            resume=True,
            progress=task.progress or False,
            callbacks=self._total.begin(Callbacks(say=self._tell)),
            **{**task.options, "recheck": self._recheck},
        )
        self._recheck = False
        found = result.evaluation
        if result.stopped or found is None:
            return None
        images = result.recipe.num_examples
        assert images is not None
        changes = dict(result.recipe.overrides)
        if task.options["freeze"]:
            changes["trained"] = {"from": "the whole network", "to": "the head alone"}
        return Trial(
            shots, run, seed, images, found.correct, found.count, name, result.steps, changes
        )


class _Probe:
    """Trials in closed form; images are read and features computed for the first of them."""

    def __init__(self, task: _Task, tell: _Told, left: int) -> None:
        self._task, self._tell = task, tell
        self._known: tuple[ImageSet, Features, Features] | None = None

    def trial(self, shots: int, run: int) -> Trial:
        """Carry out a trial."""
        task, seed = self._task, self._task.seed + run
        images, train, test = self._known = self._known or self._read()
        assert images.val is not None
        labels, truth = labels_of(images.train), labels_of(images.val)
        chosen = draw_shots(labels, len(images.classes), [shots], seed)[shots]
        weight, bias = ridge(train[chosen], labels[chosen], len(images.classes))
        correct = sum(
            int((scores(test[rows], weight, bias).argmax(1) == truth[rows]).sum())
            for rows in np.array_split(np.arange(len(truth)), len(truth) // _ROWS + 1)
        )
        changes: dict[str, Mapping[str, Any]] = {}
        size = probe_size(task.options["resolution"])
        for name, usual, value in zip(("resize", "crop"), PROBE_SIZE, size, strict=True):
            if value != usual:
                changes[name] = {"from": usual, "to": value}
        if (dtype := task.options["dtype"]) != "float32":
            changes["dtype"] = {"from": "float32", "to": dtype}
        return Trial(shots, run, seed, len(chosen), correct, len(truth), changes=changes)

    def _read(self) -> tuple[ImageSet, Features, Features]:
        """Return the usable images, and the features of those to train and to evaluate on."""
        task, options = self._task, self._task.options
        resize, crop = probe_size(options["resolution"])
        images, summary = inspect(
            task.images,
            skip_bad=options["skip_bad"],
            workers=options["workers"],
            progress=task.progress,
            fixed_split=task.has_own_split,
            keep_checks=True,
            recheck=options["recheck"],
        )
        for note in filter(None, [summary.kept, *summary.notes]):
            self._tell(note)
        network = load_classifier(task.model)
        transform = EvalTransform(crop, resize, bit_depth=summary.bit_depth)
        assert images.val is not None
        train, test = (self._features(network, s, transform) for s in (images.train, images.val))
        return images, train, test

    def _features(self, network: BiT, split: Split, transform: EvalTransform) -> Features:
        options = self._task.options
        # Decoded pixels are not cached: their features are, and nothing else is made of them.
        with open_pixels(split, transform, budget_bytes=0, workers=options["workers"]) as pixels:
            return compute_features(
                network,
                pixels,
                process_device(options["device"]),
                self._task.progress,
                dtype=compute_dtype(options["dtype"]),
                budget_bytes=int(options["cache_gb"] * 1e9),
            )


_ROWS = 4096
"""How many images are scored at once."""


def _checked(
    shots: Sequence[int], runs: int, method: str, options: Mapping[str, Any]
) -> tuple[int, ...]:
    """Return the numbers of images per class, ascending, once all options are possible."""
    if method not in get_args(Method):
        raise UsageError(
            f"`method` must be one of {', '.join(get_args(Method))}, found {method!r}."
        )
    numbers = tuple(sorted(set(shots)))
    if not numbers or any(type(number) is not int or number < 1 for number in numbers):
        raise UsageError(
            f"`shots` must be whole numbers of at least 1, found {', '.join(map(repr, shots))}."
        )
    if type(runs) is not int or runs < 1:
        raise UsageError(f"`runs` must be a whole number of at least 1, found {runs!r}.")
    if method == "ridge":
        without = [name for name, usual in _ONLY_FINETUNE.items() if options[name] != usual]
        if without:
            shown_names = ", ".join(f"`{name}`" for name in without)
            raise UsageError(
                f'`method="ridge"` trains in closed form, so {shown_names} would change '
                'nothing. Leave it out, or use `method="finetune"`.'
            )
        probe_size(options["resolution"])
        compute_dtype(options["dtype"])
    return numbers


def _settings(task: _Task, method: str) -> dict[str, Any]:
    """Return what determines the results, besides the trials that are asked for."""
    ignored = {"workers", "device", "cache_gb", "recheck", *_NO_RESULT}
    if method == "ridge":
        ignored |= set(_ONLY_FINETUNE)
    options = {name: value for name, value in task.options.items() if name not in ignored}
    size = options["resolution"]
    return {
        "model": task.model,
        "dataset": task.images.source,
        "data": task.images.fingerprint,
        "method": method,
        "numpy": ".".join(np.__version__.split(".")[:2]),  # its streams stay the same within one
        "seed": task.seed,
        **options,
        "resolution": list(size) if isinstance(size, tuple) else size,
    }


def _notes(task: _Task, method: str, shots: Sequence[int]) -> tuple[str, ...]:
    resize, crop = probe_size(task.options["resolution"])
    how = _NOTES[method].format(edition=task.options["edition"], resize=resize, crop=crop)
    test = f"All trials are judged on the same images: {_test(task.images)}."
    labels = task.training_labels
    short = (describe_short(labels, task.images.classes, number) for number in shots)
    few = [f"{sentence} All that they have are taken." for sentence in short if sentence]
    return (how, test, *few)


def _test(images: ImageSet) -> str:
    """Return what trials are judged on, as a phrase."""
    count = f"all {len(images.val or ()):,} images of "
    return ("" if images.draw else count) + str(images.held_out)


def _take(folder: Path, stack: contextlib.ExitStack) -> None:
    with RunDir(folder).writing("Choose another `out`."):
        stack.enter_context(sole_use(folder))


def _record(result: FewShotResult, keep_weights: bool) -> None:
    """Write record and report of the trials so far, and remove what shall not stay of them."""
    with RunDir(result.folder).writing("Free some space, then give the same command again."):
        result.write()
        write_fewshot_report(result)
        for trial in result.trials if not keep_weights else ():
            if trial.folder is not None:
                _discard(result.folder / trial.folder)


def _discard(folder: Path) -> None:
    """Remove the weights and checkpoints of a finished run."""
    for path in [folder / WEIGHTS_NAME, *(folder / CHECKPOINTS_NAME).glob(FILES)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # none there, or the user's files are in it
        (folder / CHECKPOINTS_NAME).rmdir()
