"""Changes to a run that has begun: another learning rate or dtype, more steps.

A change is recorded in `run.json` with the step from which it holds, and is part of the recipe from
then on: the learning rate stays a function of the step, so a run that is killed, or that goes back
to an earlier checkpoint, repeats its steps as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from bitzoo.errors import UsageError
from bitzoo.runs.run_dir import RunDir
from bitzoo.training.checked_values import whole
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.recipe import Recipe
from bitzoo.training.training_config import TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)


@dataclass(frozen=True)
class Change:
    """What to change in a run; None changes nothing.

    Attributes:
        lr: Another base learning rate.
        dtype: Another dtype of activations.
        extend: How many steps to train on after the end.
    """

    lr: float | None = None
    dtype: str | None = None
    extend: int | None = None


def changed(
    started: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    config: Config,
) -> tuple[Recipe, Config]:
    """Return recipe and options as they are after all changes.

    Args:
        started: What determined the result when the run started; see `RunDir.identity`.
        changes: See `RunDir`.
        recipe: The recipe of a run without changes.
        config: The options of a run without changes.

    Raises:
        UsageError: If a change is not possible, or unknown to this version.
    """
    if not changes:
        return recipe, config
    recipe = Recipe.from_dict(started["recipe"])
    config = replace(config, dtype=started["dtype"])
    for change in changes:
        key, step, new = change["key"], change["step"], change["new"]
        if key == "lr":
            recipe = recipe.changed_at(step, lr=new)
        elif key == "steps":
            recipe = recipe.changed_at(step, steps=new)
        elif key == "dtype":
            config = replace(config, dtype=new)
            note = f"The dtype was changed from {change['old']} to {new} after {step:,} steps."
            recipe = replace(recipe, notes=(*recipe.notes, note))
        else:
            raise UsageError(
                f"The run was changed in {key!r:.80}, which this version of bitzoo does not know. "
                "Continue it with the version that started it."
            )
    return recipe, config


def record_change(run_dir: RunDir, change: Change) -> None:
    """Record a change in the open run folder; it holds from the newest checkpoint on.

    An extension that has been recorded but not completed is not recorded a second time, so the same
    command can be repeated after it was killed.

    Raises:
        UsageError: If it is not possible, or would change nothing because all steps are made.
    """
    if change == Change():
        return
    started, changes = run_dir.identity, run_dir.changes
    recipe, config = Recipe.from_dict(started["recipe"]), TrainingConfig(dtype=started["dtype"])
    recipe, config = changed(started, changes, recipe, config)
    newest = None if started["freeze"] else latest_checkpoint(run_dir.checkpoints)
    step, steps = newest.step if newest else 0, recipe.schedule.steps
    is_over = step >= steps
    if change.extend is not None:
        more = whole("`extend`", change.extend, 1)
        last = [entry for entry in changes if entry["key"] == "steps"][-1:]
        if is_over or started["freeze"] or not last or steps - last[0]["old"] != more:
            recipe.changed_at(step, steps=steps + more)  # raises before anything is recorded
            run_dir.change(step, "steps", steps, steps + more)
            is_over = False
    if is_over:
        raise UsageError(
            f"{run_dir.folder} has made all its {steps:,} steps, so there is nothing left to "
            "change. Add `extend` for more steps."
        )
    if change.lr is not None and change.lr != recipe.schedule.base_lr:
        recipe.changed_at(step, lr=change.lr)
        run_dir.change(step, "lr", recipe.schedule.base_lr, change.lr)
    if change.dtype is not None and change.dtype != config.dtype:
        replace(config, dtype=change.dtype)
        run_dir.change(step, "dtype", config.dtype, change.dtype)
