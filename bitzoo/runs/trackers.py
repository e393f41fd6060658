"""Log metrics to TensorBoard, Weights & Biases and others, through accelerate's trackers.

accelerate knows how to talk to each of them; here is what a run adds: where the files go, and how a
resumed run goes on. Whatever a tracker does, training goes on: one that fails is left out with a
warning, and `metrics.jsonl` has everything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bitzoo.errors import UsageError, reason_of

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TENSORBOARD, WANDB, NONE = "tensorboard", "wandb", "none"
FOLDER_NAME = "tensorboard"
PROJECT = "bitzoo"
"""Name of the project under which a service shows the runs, where its own settings name none."""

Track = Callable[[int, Mapping[str, float]], None]
"""Called with the number of updates made so far and metrics by name."""

_PACKAGES = {TENSORBOARD: "'bitzoo[tensorboard]'"}
"""What to install for a tracker, where that is not its name."""
_log = logging.getLogger(__name__)


def chosen_trackers(log: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the trackers that `log` means.

    Args:
        log: One or several names that accelerate knows, its own or those of classes registered
            with it; ``none`` for none. None, or an empty list, is TensorBoard if it is installed.

    Raises:
        UsageError: If a name is unknown, or what it needs is not installed.
    """
    from accelerate import tracking as known

    wanted = (log,) if isinstance(log, str) else tuple(log or ())
    installed = {str(name) for name in known.get_available_trackers()}
    if not wanted:
        return (TENSORBOARD,) if TENSORBOARD in installed else ()
    if NONE in wanted:
        if len(wanted) > 1:
            raise UsageError(
                f"`log` names {NONE!r} and others, found {', '.join(map(repr, wanted))}. Choose."
            )
        return ()
    for name in wanted:
        if name not in known.LOGGER_TYPE_TO_CLASS:
            names = ", ".join(sorted([*map(str, known.LOGGER_TYPE_TO_CLASS), NONE]))
            raise UsageError(f"`log` must be one of {names}, found {name!r}.")
        is_builtin = known.LOGGER_TYPE_TO_CLASS[name].__module__ == known.__name__
        if is_builtin and name not in installed:
            package = _PACKAGES.get(name, name)
            raise UsageError(
                f"`log` names {name}, which is not installed. Install it with "
                f"`pip install {package}`, or leave it out."
            )
    return tuple(dict.fromkeys(wanted))


@contextlib.contextmanager
def tracking(
    names: Sequence[str],
    run: Path,
    step: int,
    options: Mapping[str, Any],
    run_id: str,
) -> Iterator[Track]:
    """Log to trackers until the context ends.

    Args:
        names: The result of `chosen_trackers`.
        run: The run folder; files go below it, where the tracker lets one choose.
        step: Number of updates already made: TensorBoard drops what it has of later ones.
        options: What the run was started with, for trackers that show it.
        run_id: The run's id, under which W&B goes on with a run that is resumed.

    Raises:
        UsageError: If a tracker cannot be started, as without an account.
    """
    if TENSORBOARD in names:
        keep_tensorflow_out()
    trackers: list[GeneralTracker] = []
    try:
        for name in names:
            trackers.append(_started(name, run, step, options, run_id))

        def track(step: int, metrics: Mapping[str, float]) -> None:
            for tracker in tuple(trackers):
                try:
                    tracker.log(dict(metrics), step=step)
                except Exception as error:
                    trackers.remove(tracker)
                    _warn(tracker, error)

        yield track
    finally:
        for tracker in trackers:
            try:
                tracker.finish()
            except Exception as error:
                _warn(tracker, error)


def _started(
    name: str, run: Path, step: int, options: Mapping[str, Any], run_id: str
) -> GeneralTracker:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    try:
        if name == TENSORBOARD:
            tracker = LOGGER_TYPE_TO_CLASS[name](FOLDER_NAME, run, purge_step=step + 1)
        elif name == WANDB:
            tracker = _wandb(run, run_id)
        else:
            kind = LOGGER_TYPE_TO_CLASS[name]
            places = (str(run),) if kind.requires_logging_directory else ()
            tracker = kind(PROJECT, *places)
        tracker.start()
        if name != TENSORBOARD:  # which would begin another folder for it at each resume
            tracker.store_init_configuration(_flat(options))
    except Exception as error:
        raise UsageError(
            f"`log` names {name}, which cannot be started ({reason_of(error)}). Set it up as its "
            "documentation says, or leave it out."
        ) from error
    return tracker


def _wandb(run: Path, run_id: str) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    project, name = os.environ.get("WANDB_PROJECT", PROJECT), run.resolve().name
    return WandBTracker(project, name=name, dir=str(run), id=run_id, resume="allow")


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return options as services take them: scalars by name, nested ones as ``recipe/crop``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (str, int, float, bool)):
            flat[prefix + name] = value
    return flat


def _warn(tracker: GeneralTracker, error: Exception) -> None:
    _log.warning(
        "%s failed and gets no more metrics (%s); training goes on, and metrics.jsonl has all.",
        tracker.name,
        reason_of(error),
    )


def keep_tensorflow_out() -> None:
    """Make TensorBoard write files itself, by the switch of its builds without TensorFlow.

    Otherwise it imports TensorFlow if that is installed, which takes seconds, and having both
    TensorFlow's LLVM and that of torch's Triton ends the process (TensorFlow 2.21, torch 2.15).
    """
    name = "tensorboard.compat.notf"
    sys.modules.setdefault(name, ModuleType(name))
