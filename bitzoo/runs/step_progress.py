"""Progress of the steps of a run: with loss and speed where they can be shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from bitzoo.files import Progress
from bitzoo.progress import Live, shown
from bitzoo.runs.config import Callbacks
from bitzoo.training.recipe import Recipe

TASK = "training"


@contextmanager
def reported(progress: Progress | bool | None, callbacks: Callbacks) -> Iterator[Callbacks]:
    """Yield callbacks that also report the run's steps as progress.

    Args:
        progress: As for `bitzoo.progress.shown`.
        callbacks: Those to add to.
    """
    with shown(progress) as wanted:
        yield _reporting_to(wanted, callbacks) if wanted else callbacks


def _reporting_to(progress: Progress, callbacks: Callbacks) -> Callbacks:
    total, facts = 0, ()  # type: int, Sequence[str]

    def on_start(recipe: Recipe) -> None:
        nonlocal total, facts
        total, facts = recipe.schedule.steps, ()
        callbacks.on_start(recipe)

    def on_step(metrics: Mapping[str, float]) -> None:
        nonlocal facts
        facts = facts_of(metrics)
        if isinstance(progress, Live):
            progress.show(TASK, int(metrics["step"]), total, facts=facts)
        else:
            progress(TASK, int(metrics["step"]), total)
        callbacks.on_step(metrics)

    def on_part(step: int, part: float) -> None:
        if isinstance(progress, Live):  # others are called with whole steps
            progress.show(TASK, step + part, total, facts=facts)
        callbacks.on_part(step, part)

    return replace(
        callbacks, progress=progress, on_start=on_start, on_step=on_step, on_part=on_part
    )


def facts_of(metrics: Mapping[str, float]) -> Sequence[str]:
    """Return what is shown of a step's metrics; no speed where none was measured."""
    facts = [f"loss {metrics['loss']:.3f}"]
    if rate := metrics.get("images_per_s"):
        facts.append(f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s")
    return facts
