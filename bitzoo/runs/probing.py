"""`probe`: which of several models suits a data set, answered without training.

Of each model the features of all images are computed once; a ridge classifier on them is solved in
closed form, twice, and judged on images that it did not learn from. Features are cached by content
and model, so that what a time limit, Ctrl-C or a kill has ended goes on with the same call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitzoo.data.dataset import DataSource, Split
from bitzoo.data.run_folders import PROBE_NAME
from bitzoo.display import list_names
from bitzoo.durations import parse_duration
from bitzoo.errors import BitzooError, UsageError
from bitzoo.files import Progress, write_json
from bitzoo.inference.feature_cache import Features
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.optimize import chosen_device
from bitzoo.inference.runner import compute_dtype
from bitzoo.inference.selection import record_of
from bitzoo.models.bit import BiT
from bitzoo.models.preprocessing import EvalTransform
from bitzoo.progress import shown
from bitzoo.runs.config import Resolution
from bitzoo.runs.probe_data import ProbeData, read_probe_data
from bitzoo.runs.probe_features import (
    Found,
    Images,
    TimeIsUpError,
    TimeLimit,
    Way,
    find_or_compute,
)
from bitzoo.runs.probe_folder import SavedHead, require_free, write_probe_folder
from bitzoo.runs.probe_models import Candidate, find_candidates
from bitzoo.runs.probe_result import DONE, FAILED, NOT_TRIED, Probed, ProbeResult
from bitzoo.runs.probe_size import probe_size
from bitzoo.runs.report.artifacts import REPORT_NAME
from bitzoo.runs.report.probe_page import write_probe_report
from bitzoo.runs.run_dir import RunDir
from bitzoo.runs.run_lock import sole_use
from bitzoo.training.ridge import L2, STRENGTHS, LeftOut, RidgeSystem, choose_strength, scores
from bitzoo.zoo.classifier import load_classifier

_OURS = (PROBE_NAME, REPORT_NAME)


def probe(
    data: DataSource,
    models: Sequence[str | os.PathLike[str]] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | None = None,
    take: str | os.PathLike[str] | None = None,
    download: bool = False,
    folds: int | None = None,
    val_fraction: float | None = None,
    group_by: str | None = None,
    drop_near_duplicates: bool = False,
    eval_split: str | None = None,
    seed: int = 0,
    resolution: Resolution = None,
    skip_bad: bool = False,
    recheck: bool = False,
    time_limit: str | float | None = None,
    cache_gb: float = 20.0,
    workers: int | None = None,
    dtype: str = "float32",
    backend: str = "eager",
    device: str | None = None,
    progress: Progress | bool | None = None,
    say: Callable[[str], None] | None = None,
) -> ProbeResult:
    """Find out which model suits a data set, without training.

    For each model, the features of all images are computed once, by the network as
    `bitzoo.optimize` runs it. A ridge classifier on them is solved in closed form, twice: exactly
    as big_vision's `fewshot_lsr` does (l2 1024); and with the strength, of 31 powers of two, that
    does best on the training images when each of them in turn is left out (most right; of several,
    the lowest squared error). Both are judged on held-out images, which took no part in that
    choice.

    `bitzoo probe` does the same. Features are cached: a second call, with more models or after a
    time limit or Ctrl-C, computes only what is missing.

    Args:
        data: The data set; as for `bitzoo.finetune`, as all options below that are not explained.
        models: Catalogue names, patterns over the catalogue (``BiT-M-*``), checkpoint files, run
            folders. A pattern takes only models whose weights are on this machine, unless
            `download`; one that is named is fetched. None for all of the catalogue whose weights
            are on this machine.
        out: Folder for the report and `probe.json`; they are written after each model.
        save: Folder for the probe of the model that is advised, or of `take`: the network with the
            ridge classifier as its head, for `bitzoo.predict`, `evaluate`, `export` and `publish`.
        take: Which of the models to save.
        download: Whether patterns also take models that have to be fetched.
        folds: Judge all images, in so many stratified folds, each by a classifier of the others;
            for small data. None judges held-out images: the data set's own, or else those that a
            run of `bitzoo.finetune` holds out.
        val_fraction: Fraction to hold out.
        group_by: What keeps images on one side that belong together.
        drop_near_duplicates: Whether to drop training images that look like held-out ones.
        eval_split: Which is held out of data with both, ``val`` or ``test``.
        seed: Seed of the held-out choice and of the folds.
        resolution: The crop in pixels, or (resize, crop), for all models; default (256, 224), as
            big_vision's few-shot evaluation.
        skip_bad: Whether to skip images that cannot be used.
        recheck: Whether to read all images to check them, whatever earlier checks were kept.
        time_limit: Stop after this time (``30m``, ``2h``, or seconds). The models with the fewest
            parameters come first; what was not reached is listed as not tried.
        cache_gb: Most disk space for features, and as much for decoded images, in GB.
        workers: Processes that decode.
        dtype: Compute dtype of the networks.
        backend: What runs the networks; see `bitzoo.optimize`. None was measurably faster than
            ``eager`` in float32 at these batches without a minute of compiling for each model.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for a GPU if there is one.
        progress: As for `bitzoo.finetune`.
        say: Called with sentences for the user: what was chosen, and the score of each model.

    Returns:
        A row per model, and which to take. A model that cannot be used is a row with its reason.

    Raises:
        UsageError: If options contradict each other, there is no model to try or nothing to judge
            on, a folder has something else, or there is nothing to save.
        DatasetError: If the data cannot be used; lists all problems at once.
    """
    began = time.monotonic()
    limit = TimeLimit(None if time_limit is None else parse_duration(time_limit))
    compute_dtype(dtype)
    resize, crop = probe_size(resolution)
    where = chosen_device(device, backend)
    candidates = find_candidates(models, download=download)
    if take is not None and save is None:
        raise UsageError("`take` names the model to save. Say where, with `save`.")
    names = [own.name for own in candidates.models]
    if take is not None and os.fspath(take) not in names:
        raise UsageError(
            f"`take` must be one of the models that are tried ({list_names(names)}), found "
            f"{os.fspath(take)!r}."
        )
    tell = say or (lambda text: None)
    with ExitStack() as stack:
        report = stack.enter_context(shown(progress))
        folder = _taken(out, stack)
        if save is not None:
            require_free(Path(save))
        known = read_probe_data(
            data,
            folds=folds,
            val_fraction=val_fraction,
            group_by=group_by,
            drop_near_duplicates=drop_near_duplicates,
            eval_split=eval_split,
            seed=seed,
            skip_bad=skip_bad,
            recheck=recheck,
            transform=EvalTransform(crop, resize),
            # as in `Images.for_networks`: a single network takes them as they are decoded
            cache_bytes=int(cache_gb * 1e9) if len(candidates.models) > 1 else 0,
            workers=workers,
            progress=report,
        )
        transform = EvalTransform(crop, resize, bit_depth=known.summary.bit_depth)
        way = Way(transform, where, dtype, backend, int(cache_gb * 1e9), workers)
        notes = (*candidates.notes, *known.notes, *_notes(known, way, len(candidates.models)))
        for note in filter(None, [known.summary.kept, *notes]):
            tell(note)
        result = ProbeResult(
            known.images.source,
            known.images.classes,
            known.judged,
            _settings(known, way, seed),
            tuple(Probed(own.name, NOT_TRIED, "not reached yet") for own in candidates.models),
            candidates.not_here,
            notes,
            folder,
        )
        split = Split("probe", known.examples)
        images = stack.enter_context(Images(split, way, report))
        work = _Work(known, way, images, limit, report)
        rows: dict[str, Probed] = {}
        for number, candidate in enumerate(candidates.models):
            row = work.try_one(candidate, len(candidates.models) - number)
            rows[candidate.name] = row
            tell(row.sentence)
            waiting = [rows.get(own.model, own) for own in result.models]
            result = replace(
                result, models=_sorted(waiting), seconds=round(time.monotonic() - began, 3)
            )
            _write(result)
        if save is not None:
            result = _saved(result, work, data, Path(save), take)
            result = replace(result, seconds=round(time.monotonic() - began, 3))
            _write(result)
    return result


@dataclass(frozen=True)
class _Work:
    """What all models have in common."""

    known: ProbeData
    way: Way
    images: Images
    limit: TimeLimit
    progress: Progress | None

    def try_one(self, candidate: Candidate, left: int) -> Probed:
        """Return how a model does; whatever is wrong with it is said in its row."""
        began = time.monotonic()
        row = Probed(
            candidate.name,
            NOT_TRIED,
            "the time limit was reached before it",
            candidate.architecture.name if candidate.architecture else None,
            candidate.params,
        )
        if candidate.problem:
            return replace(row, outcome=FAILED, reason=candidate.problem)
        if self.limit.is_reached:
            return row
        try:
            network = load_classifier(candidate.name)
            progress = self.limit.ending(self.progress)
            found = find_or_compute(network, self.images, self.way, left, progress)
            row = self._judged(row, network, found)
        except TimeIsUpError as end:
            kept = f"the features of {end.done:,} of {end.total:,} images are computed and kept"
            if not self.way.cache_bytes:
                kept = f"{end.done:,} of {end.total:,} images were computed, and nothing is cached"
            return replace(row, reason=f"the time limit was reached: {kept}")
        except (BitzooError, OSError) as error:
            return replace(row, outcome=FAILED, reason=str(error))
        return replace(row, seconds=round(time.monotonic() - began, 3))

    def _judged(self, row: Probed, network: BiT, found: Found) -> Probed:
        labels, classes = self.known.labels, len(self.known.images.classes)
        correct, correct_lsr, chosen = 0, 0, list[LeftOut]()
        for learn, judge in self.known.rounds:
            system = RidgeSystem(found.features[learn], labels[learn], classes)
            best = choose_strength(system)
            chosen.append(best)
            correct += _right(system, best.l2, found.features[judge], labels[judge])
            correct_lsr += _right(system, L2, found.features[judge], labels[judge])
        form = network.architecture
        return replace(
            row,
            outcome=DONE,
            reason="",
            architecture=form.name,
            params=form.num_params(0),
            features=form.num_features,
            correct=correct,
            correct_lsr=correct_lsr,
            count=len(self.known.judged_rows),
            l2=tuple(best.l2 for best in chosen),
            left_out=sum(best.accuracy for best in chosen) / len(chosen),
            images_per_s=found.images_per_s,
            memory_bytes=found.memory_bytes,
            computed=found.computed,
            trained_on=self._trained_on(network),
        )

    def _trained_on(self, network: BiT) -> int | None:
        """Return how many of the judged images a run was trained on; None if that is unknown."""
        record = record_of(network)
        judged = [self.known.examples[row] for row in self.known.judged_rows.tolist()]
        if record is None or not record.can_compare(judged):
            return None
        return sum(example.sha256 in record.trained for example in judged)

    def head(self, network: BiT) -> SavedHead:
        """Return the head of a model to save, learned from all images that a run trains on."""
        found = find_or_compute(network, self.images, self.way, 1, self.progress)
        known, classes = self.known, self.known.images.classes
        learn = np.arange(len(known.images.train))
        system = RidgeSystem(found.features[learn], known.labels[learn], len(classes))
        best = choose_strength(system)
        weight, bias = system.solve(best.l2)
        evaluation = None
        if known.images.val is not None:
            judge = np.arange(len(learn), len(known.examples))
            logits = scores(found.features[judge], weight, bias).astype(np.float32)
            evaluation = Evaluation.of_logits(classes, known.labels[judge], logits)
        return SavedHead(
            torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), best, evaluation
        )


def _right(system: RidgeSystem, l2: float, features: Features, truth: Any) -> int:
    """Return how many images the classifier of a strength gets right."""
    weight, bias = system.solve(l2)
    parts = np.array_split(np.arange(len(truth)), len(truth) // _ROWS + 1)
    return sum(
        int((scores(features[rows], weight, bias).argmax(1) == truth[rows]).sum()) for rows in parts
    )


_ROWS = 4096
"""How many images are scored at once."""


def _sorted(rows: Sequence[Probed]) -> tuple[Probed, ...]:
    """Return the models that are done, the highest accuracy first, then the others as they were."""
    done = sorted(
        (row for row in rows if row.is_done),
        key=lambda row: (-row.correct, -(row.images_per_s or 0), row.params or 0),
    )
    return (*done, *(row for row in rows if not row.is_done))


def _taken(out: str | os.PathLike[str] | None, stack: ExitStack) -> Path | None:
    """Return the folder of the report, for the sole use of this call."""
    if out is None:
        return None
    folder = Path(out)
    with RunDir(folder).writing("Choose another `out`."):
        stack.enter_context(sole_use(folder))
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if not (folder / PROBE_NAME).is_file() and any(name not in _OURS for name in others):
        raise UsageError(
            f"{folder} has files but no probe in it. Choose another `out`, so that none of your "
            "files is lost."
        )
    return folder


def _write(result: ProbeResult) -> None:
    if result.folder is not None:
        with RunDir(result.folder).writing("Free some space, then give the same command again."):
            result.folder.mkdir(parents=True, exist_ok=True)
            write_json(result.folder / PROBE_NAME, result.to_dict())
            write_probe_report(result)


def _saved(
    result: ProbeResult,
    work: _Work,
    data: DataSource,
    folder: Path,
    take: str | os.PathLike[str] | None,
) -> ProbeResult:
    """Save the probe of the model that is named or advised."""
    name = os.fspath(take) if take is not None else result.advice.take
    row = next((own for own in result.models if own.model == name), None)
    if row is None or not row.is_done:
        why = f"{name}: {row.outcome}: {row.reason}" if row else result.advice.why
        raise UsageError(f"Nothing is saved in {folder}. {why}")
    network = load_classifier(row.model)
    head = work.head(network)
    write_probe_folder(folder, row, work.known, work.way, network, head, data, result)
    return replace(result, saved=folder)


def _settings(known: ProbeData, way: Way, seed: int) -> dict[str, Any]:
    """Return what determines the result, besides the models."""
    return {
        "data": known.images.fingerprint,
        "seed": seed,
        "folds": known.folds,
        "train": len(known.images.train),
        "judged": len(known.judged_rows),
        "resize": way.transform.resize,
        "crop": way.transform.crop,
        "dtype": way.dtype,
        "backend": way.backend,
        "device": way.device.type,
        "strengths": [STRENGTHS[0], STRENGTHS[-1], len(STRENGTHS)],
    }


def _notes(known: ProbeData, way: Way, models: int) -> tuple[str, ...]:
    """Return how models are compared, as sentences."""
    resize, crop = way.transform.resize, way.transform.crop
    truth = known.labels[known.judged_rows]
    most = int(np.bincount(truth).max())
    several = "All models are judged on the same images, so the highest accuracy is optimistic."
    return (
        f"All models see images that are resized to {resize}x{resize}, of which the central "
        f"{crop}x{crop} are taken; choose with `resolution`.",
        f"Always naming the most frequent class would be right for {most / len(truth):.1%}.",
        *((several,) if models > 1 else ()),
    )
