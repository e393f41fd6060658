"""A plan that fits a time limit: fewer steps first, then a lower resolution, and nothing else.

1. If the plan fits as it is, it stays.
2. Otherwise it gets as many steps as fit, but not fewer than a tenth of the rule's, nor than one
   pass over the training images.
3. If so few do not fit either, the resolution goes down, to the first of `CROPS` at which they do;
   there again it gets as many steps as fit.

What the user gave, steps or resolution, stays. The batch, the learning rate and the shape of the
schedule stay in any case. Where nothing fits, that is an error, which says what would be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitzoo.durations import duration
from bitzoo.errors import UsageError
from bitzoo.runs.job import Job
from bitzoo.training.recipe import Recipe

CROPS = (384, 320, 256, 224, 192, 160, 128)
"""Edges in pixels that a plan may be reduced to; the last is what BiT-HyperRule uses for small
images, the least that a network of ImageNet is known to do well with."""
LEAST_SHARE = 10
"""Steps are reduced to one in so many, not further."""
USED_SHARE = 0.9
"""Share of the limit that the plan is made for: estimates are off by some percent, and a machine
has other work."""
_NOTE = "Made to end within "


@dataclass(frozen=True)
class Limits:
    """How far a plan may be reduced.

    Attributes:
        least_steps: Fewest steps.
        crops: Edges in pixels, from the plan's own down.
    """

    least_steps: int
    crops: Sequence[int]

    @classmethod
    def of(cls, recipe: Recipe, examples: int, *, steps_given: bool, crop_given: bool) -> Limits:
        """Return how far a recipe may be reduced.

        Args:
            recipe: The plan.
            examples: Number of training images.
            steps_given: Whether the user said how long to train.
            crop_given: Whether the user said the resolution.
        """
        steps = recipe.schedule.steps
        least = max(-(-steps // LEAST_SHARE), -(-examples // recipe.batch_size))
        lower = [] if crop_given else [crop for crop in CROPS if crop < recipe.crop]
        return cls(steps if steps_given else min(steps, least), (recipe.crop, *lower))


def fit(
    limit: float,
    recipe: Recipe,
    limits: Limits,
    seconds: Callable[[Recipe], float],
    spent: float = 0.0,
) -> Recipe | None:
    """Return the recipe of the first plan that fits; None if none does.

    Args:
        limit: Seconds for the whole command.
        recipe: The plan.
        limits: How far it may be reduced.
        seconds: Estimates what a recipe takes from now on.
        spent: Seconds that the command has taken until now.
    """
    room = USED_SHARE * limit - spent
    for crop in limits.crops:
        smaller = recipe if crop == recipe.crop else recipe.override(crop=crop)
        if seconds(with_steps(smaller, limits.least_steps)) > room:
            continue
        fits, fails = limits.least_steps, recipe.schedule.steps + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if seconds(with_steps(smaller, middle)) <= room:
                fits = middle
            else:
                fails = middle
        return with_steps(smaller, fits)
    return None


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with another length, recorded as any override."""
    return recipe if steps == recipe.schedule.steps else recipe.override(steps=steps)


def noted(before: Recipe, after: Recipe, limit: float) -> Recipe:
    """Return the recipe that was made to fit, with a sentence that says so.

    Args:
        before: The plan.
        after: What fits.
        limit: Seconds.
    """
    changes = changes_of(before, after)
    if not changes:
        return after
    text = f"{_NOTE}{duration(limit)}, as asked for: {changes}."
    return replace(after, notes=(*after.notes, text))


def changes_of(before: Recipe, after: Recipe) -> str:
    """Return what differs, in words; empty if nothing does."""
    pairs = (
        ("steps", before.schedule.steps, after.schedule.steps, ""),
        ("resolution", before.crop, after.crop, " px"),
    )
    return " and ".join(
        f"{old:,}{unit} reduced to {new:,}{unit} ({name})" if unit else
        f"{old:,} {name} reduced to {new:,}"
        for name, old, new, unit in pairs
        if old != new
    )  # fmt: skip


def as_before(recipe: Recipe, begun: Recipe) -> Recipe:
    """Return the recipe with what was made to fit when the run began.

    Args:
        recipe: The plan, as if there were no limit.
        begun: The run's recipe.
    """
    notes = [note for note in begun.notes if note.startswith(_NOTE)]
    if not notes:
        return recipe
    if begun.crop != recipe.crop:
        recipe = recipe.override(crop=begun.crop, resize=begun.resize)
    recipe = with_steps(recipe, begun.schedule.steps)
    return replace(recipe, notes=(*recipe.notes, *notes))


def fixed(job: Job, recipe: Recipe) -> Job:
    """Return the job with the options that its plan was made to fit by, if it was.

    So the same options make the same run again, whatever the machine does then.

    Args:
        job: The job.
        recipe: Its plan.
    """
    config, overrides = job.config, recipe.overrides
    if not any(note.startswith(_NOTE) for note in recipe.notes):
        return job
    changes: dict[str, Any] = {}
    if config.steps is None and config.epochs is None and "steps" in overrides:
        changes["steps"] = recipe.schedule.steps
    if config.resolution is None and "crop" in overrides:
        both = config.kind == "finetune"
        changes["resolution"] = (recipe.resize, recipe.crop) if both else recipe.crop
    return replace(job, config=replace(config, **changes))


def nothing_fits(
    limit: float, recipe: Recipe, limits: Limits, needed: float, frozen: float | None = None
) -> UsageError:
    """Return the error that says what would be needed.

    Args:
        limit: Seconds.
        recipe: The plan.
        limits: How far it could be reduced.
        needed: Seconds that the whole command takes with the smallest plan.
        frozen: Seconds that it takes if only the head is trained; None if that is no way out.
    """
    steps, crop = limits.least_steps, limits.crops[-1]
    kept = [
        name
        for name, is_kept in (
            ("steps", steps == recipe.schedule.steps),
            ("resolution", crop == recipe.crop),
        )
        if is_kept
    ]
    given = f"; {' and '.join(kept)} cannot be reduced" if kept else ""
    minutes = -(-needed / USED_SHARE // 60)
    text = (
        f"No plan fits `time_limit={limit:g}` ({duration(limit)}): the smallest, {steps:,} steps "
        f"of {recipe.batch_size:,} images at {crop} px, takes about {duration(needed)} with "
        f"everything before and after{given}. Give `time_limit={minutes * 60:g}`"
    )
    if frozen is not None:
        text += f", or `freeze=True`, which takes about {duration(frozen)}"
    return UsageError(f"{text}.")
