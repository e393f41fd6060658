"""A recipe in words, for people; neither torch nor NumPy."""

from __future__ import annotations

from bitzoo.training.recipe import (
    CLASS_WEIGHTS,
    DISTILLATION,
    INCEPTION_CROP,
    SIGMOID,
    TEMPERATURE,
    Recipe,
)
from bitzoo.training.schedule import Schedule

_HEADS = {"zero": "new, zero-initialised", "kept": "kept, because the classes are the same"}


def explain(recipe: Recipe, *, freeze: bool = False) -> list[tuple[str, str]]:
    """Describe a recipe as rows of (subject, statement).

    Args:
        recipe: The recipe.
        freeze: Whether only the head is trained, on features of images that are resized to the crop
            size and not augmented.
    """
    rows = [
        ("recipe", recipe.name),
        ("training images", _frozen_text(recipe) if freeze else _image_text(recipe)),
        ("test images", _test_text(recipe)),
        ("length", f"{recipe.schedule.steps:,} steps of {recipe.batch_size:,} images"),
        ("learning rate", _rate_text(recipe.schedule)),
        ("optimizer", _optimizer_text(recipe)),
        ("mixup", _mixup_text(recipe) + (", of features" if freeze and recipe.mixup_alpha else "")),
        ("head", _head_text(recipe)),
        ("loss", _loss_text(recipe)),
    ]
    if recipe.num_examples is not None:
        rows.insert(4, ("epochs", _epoch_text(recipe, recipe.num_examples)))
    if recipe.overrides:
        rows.append(("changed", _change_text(recipe)))
    return rows + [("note", note) for note in recipe.notes]


def _image_text(recipe: Recipe) -> str:
    if recipe.augmentation == INCEPTION_CROP:
        parts = [
            "inception crop: a random box of 5 to 100 % of the area, resized to "
            f"{recipe.crop}x{recipe.crop}"
        ]
    else:
        parts = [f"resize to {recipe.resize}x{recipe.resize}"]
    if recipe.crop < recipe.resize:
        parts.append(f"random crop of {recipe.crop}x{recipe.crop}")
    if recipe.flip:
        parts.append("random horizontal flip")
    return ", ".join(parts)


def _test_text(recipe: Recipe) -> str:
    if recipe.eval_resize is None:
        return f"resize to {recipe.crop}x{recipe.crop}"
    return f"shorter side to {recipe.eval_resize}, central {recipe.crop}x{recipe.crop}"


def _frozen_text(recipe: Recipe) -> str:
    return (
        f"resize to {recipe.crop}x{recipe.crop}; no crop and no flip, as only the head is trained"
    )


def _epoch_text(recipe: Recipe, examples: int) -> str:
    seen = recipe.schedule.steps * recipe.batch_size
    epochs = f"{seen / examples:,.1f}" if seen >= examples else f"{seen / examples:.2g}"
    plural = "" if examples == 1 else "s"
    return f"{epochs}: {seen:,} images are drawn from {examples:,} example{plural}"


def _rate_text(schedule: Schedule) -> str:
    parts = [f"{schedule.base_lr:g}"]
    if schedule.warmup:
        parts = [f"from 0 to {schedule.base_lr:g} over the first {schedule.warmup:,} steps"]
    if schedule.boundaries:
        *first, last = (f"{step:,}" for step in schedule.boundaries)
        after = f"steps {', '.join(first)} and {last}" if first else f"step {last}"
        parts.append(f"divided by {schedule.decay:g} after {after} (the first is step 0)")
    if schedule.shape == "cosine":
        parts.append(f"then half a cosine to 0 at step {schedule.steps:,}")
    text = ", ".join(parts)
    if schedule.before is None:
        return text
    return f"{text}; until step {schedule.since:,}: {_rate_text(schedule.before)}"


def _optimizer_text(recipe: Recipe) -> str:
    decay = f"weight decay {recipe.weight_decay:g}" if recipe.weight_decay else "no weight decay"
    if recipe.weight_decay and recipe.decayed == "kernels":
        decay += " on kernels"
    if recipe.optimizer == "adamw":
        first, second = recipe.betas
        decay += " (times the learning rate)" if recipe.weight_decay else ""
        text = f"AdamW, betas {first:g} and {second:g}, {decay}"
    else:
        text = f"{recipe.optimizer.upper()}, momentum {recipe.momentum:g}, {decay}"
    if recipe.clip_norm is not None:
        text += f", gradients clipped to norm {recipe.clip_norm:g}"
    return text


def _mixup_text(recipe: Recipe) -> str:
    return f"alpha {recipe.mixup_alpha:g}, one lambda per batch" if recipe.mixup_alpha else "off"


def _head_text(recipe: Recipe) -> str:
    text = _HEADS.get(recipe.head, recipe.head)
    return f"{text}, its biases at {recipe.head_bias:g}" if recipe.head_bias else text


def _loss_text(recipe: Recipe) -> str:
    name = recipe.loss.replace("_", " ")
    if recipe.loss == DISTILLATION:
        return (
            "divergence of the student from the teacher, at temperature "
            f"{recipe.loss_options.get(TEMPERATURE):g} on both sides, times its square; no labels"
        )
    if recipe.loss == SIGMOID:
        return f"{name}, summed over the classes"
    if CLASS_WEIGHTS not in recipe.loss_options:
        return name
    return f"{name}; class c, with n_c of the n images of k classes, weighs n / (k n_c)"


def _change_text(recipe: Recipe) -> str:
    def shown(value: object) -> str:
        if value is None:
            return "none"
        return f"{value:g}" if isinstance(value, float) else str(value)

    return "; ".join(
        f"{option.replace('_', ' ')} from {shown(change['from'])} to {shown(change['to'])}"
        for option, change in recipe.overrides.items()
    )
