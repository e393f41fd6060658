"""What few-shot trials found: each of them, and median, lowest and highest for each number."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bitzoo.data.run_folders import FEWSHOT_NAME
from bitzoo.display import Displayed
from bitzoo.errors import UsageError, damage_reported
from bitzoo.files import write_json
from bitzoo.runs.differences import differences
from bitzoo.small_files import read_json

_OURS = re.compile(r"\d+-shot|report\.html|\..*")
"""Names in a folder of trials besides `fewshot.json`."""


@dataclass(frozen=True)
class Trial:
    """One classifier, trained on few images and judged on all that are held out.

    Attributes:
        shots: Images per class that were asked for.
        run: Number of the trial, from 0, among those with as many.
        seed: Seed of the choice of images, and of everything random in training.
        images: Training images; fewer than `shots` per class where a class has no more.
        correct: Held-out images that were classified correctly.
        count: Held-out images.
        folder: The run's folder, below that of all trials; None if nothing was fine-tuned.
        steps: Length of training, in updates; None as for `folder`.
        changes: What of the rule was changed: option -> ``from`` and ``to``.
    """

    shots: int
    run: int
    seed: int
    images: int
    correct: int
    count: int
    folder: str | None = None
    steps: int | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Accuracy, in [0, 1]."""
        return self.correct / self.count

    @property
    def sentence(self) -> str:
        """What is said of it."""
        return (
            f"at {self.shots:,} per class, seed {self.seed}: top-1 {self.top1:.2%} "
            f"({self.correct:,} of {self.count:,}), trained on {self.images:,}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self) | {"top1": self.top1}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trial:
        """Restore a trial from the output of `to_dict`."""
        trial = cls(**{entry.name: record[entry.name] for entry in fields(cls)})
        numbers = (trial.shots, trial.run, trial.seed, trial.images, trial.correct, trial.count)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"a trial has {numbers}")
        if not 0 <= trial.correct <= trial.count or not trial.count:
            raise ValueError(f"{trial.correct} of {trial.count} images are correct")
        return trial


@dataclass(frozen=True)
class Spread:
    """The trials with one number of images per class.

    Attributes:
        shots: Images per class.
        images: Training images of the trials; several where trials differ.
        scores: Top-1 accuracy of each trial, by its number.
        median, lowest, highest: Of the scores.
    """

    shots: int
    images: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle score, or the mean of the two in the middle."""
        return statistics.median(self.scores)

    @property
    def lowest(self) -> float:
        """The lowest score."""
        return min(self.scores)

    @property
    def highest(self) -> float:
        """The highest score."""
        return max(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "shots": self.shots,
            "images": list(self.images),
            "runs": len(self.scores),
            "median": self.median,
            "lowest": self.lowest,
            "highest": self.highest,
        }


@dataclass(frozen=True, repr=False)
class FewShotResult(Displayed):
    """The outcome of `bitzoo.fewshot`.

    Attributes:
        folder: Where `fewshot.json` and the report are.
        settings: What was asked for, and what else determines the result.
        shots: The numbers of images per class, ascending.
        runs: Number of trials for each.
        test: What the accuracies are over, as a phrase.
        trials: All that are made, by `shots` and number.
        notes: What was chosen or is to be known, as sentences.
    """

    folder: Path
    settings: Mapping[str, Any]
    shots: tuple[int, ...]
    runs: int
    test: str
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """``finetune`` or ``ridge``."""
        return str(self.settings["method"])

    @property
    def stopped(self) -> bool:
        """Whether trials are missing; the same command goes on."""
        return len(self.trials) < len(self.shots) * self.runs

    @property
    def spreads(self) -> tuple[Spread, ...]:
        """The trials by number of images per class, without numbers that have none yet."""
        found = []
        for shots in self.shots:
            own = [trial for trial in self.trials if trial.shots == shots]
            if own:
                images = tuple(sorted({trial.images for trial in own}))
                found.append(Spread(shots, images, tuple(trial.top1 for trial in own)))
        return tuple(found)

    @property
    def scores(self) -> dict[int, tuple[float, ...]]:
        """Images per class -> the top-1 accuracy of each trial, in [0, 1]."""
        return {spread.shots: spread.scores for spread in self.spreads}

    @property
    def medians(self) -> dict[int, float]:
        """Images per class -> the median of the top-1 accuracies."""
        return {spread.shots: spread.median for spread in self.spreads}

    @property
    def departures(self) -> tuple[str, ...]:
        """What was done otherwise than the protocol says, as phrases."""
        changes = {
            f"{option.replace('_', ' ')} {_shown(change['to'])} instead of {_shown(change['from'])}"
            for trial in self.trials
            for option, change in trial.changes.items()
        }
        return tuple(sorted(changes))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; that of `fewshot.json`."""
        return {
            "settings": dict(self.settings),
            "shots": list(self.shots),
            "runs": self.runs,
            "test": self.test,
            "finished": not self.stopped,
            "summary": [spread.to_dict() for spread in self.spreads],
            "trials": [trial.to_dict() for trial in self.trials],
            "departures": list(self.departures),
            "notes": list(self.notes),
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        return [
            *(
                (
                    _per_class(spread.shots),
                    f"{spread.median:.2%} ({spread.lowest:.2%} to {spread.highest:.2%}, "
                    f"{len(spread.scores)} runs)",
                )
                for spread in self.spreads
            ),
            ("method", self.method),
            ("top-1 over", self.test),
            ("folder", self.folder),
            *(("departure", departure) for departure in self.departures),
        ]

    def table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        """Return headers and rows: a row per number of images per class, accuracies in percent."""
        headers = ("per class", "images", "median", "lowest", "highest", "runs")
        rows: list[tuple[object, ...]] = [
            (
                spread.shots,
                " or ".join(f"{count:,}" for count in spread.images),
                *(f"{100 * v:6.2f} %" for v in (spread.median, spread.lowest, spread.highest)),
                len(spread.scores),
            )
            for spread in self.spreads
        ]
        return headers, rows

    def write(self) -> None:
        """Write `fewshot.json`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FEWSHOT_NAME, self.to_dict())


def recorded_trials(
    folder: Path, settings: Mapping[str, Any], shots: Sequence[int], runs: int
) -> dict[tuple[int, int], Trial]:
    """Return what is made already: (shots, run) -> trial.

    Args:
        folder: The folder of the trials.
        settings: What determines the results; those of the folder must be the same.
        shots: The numbers that are asked for now; none of the folder may be left out.
        runs: Number of trials that is asked for now; at least that of the folder.

    Raises:
        UsageError: If the folder has trials of other settings, or files but no trials.
        CheckpointError: If `fewshot.json` is damaged.
    """
    place = folder / FEWSHOT_NAME
    if not place.is_file():
        if any(not _OURS.fullmatch(path.name) for path in folder.iterdir()):
            raise UsageError(
                f"{folder} has files but no few-shot trials in it. Choose another `out`, so that "
                "none of your files is lost."
            )
        return {}
    record = read_json(place)
    advice = "Move it away, and trials with complete run folders are only evaluated once more."
    with damage_reported(place, "the record of few-shot trials", advice):
        before, trials = dict(record["settings"]), [Trial.from_dict(t) for t in record["trials"]]
    if trials and (lines := differences(before, settings)):
        raise UsageError(
            f"{folder} was started with other options, so it cannot continue (before -> now):\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nUse the same options, or choose another `out`."
        )
    if extra := [t for t in trials if t.shots not in shots or t.run >= runs]:
        raise UsageError(
            f"{folder} has a trial with {_per_class(extra[0].shots)} and number {extra[0].run}, "
            f"which {', '.join(map(str, shots))} images per class and {runs} runs would leave out. "
            "Give at least the `shots` and `runs` of before, or choose another `out`."
        )
    return {(trial.shots, trial.run): trial for trial in trials}


def _per_class(shots: int) -> str:
    return f"{shots:,} image{'' if shots == 1 else 's'} per class"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
