"""What the report and the card say about a run in words: each sentence is true of that run."""

from __future__ import annotations

from bitzoo.runs.report.run_summary import RunRecord
from bitzoo.training.recipe import DISTILLATION, INCEPTION_CROP, Recipe

__all__ = ["augmentation", "first_batch_note", "loss_caption", "origin"]

_UNCHANGED = ", which stayed as they were, on"


def origin(run: RunRecord) -> tuple[str, str, str]:
    """Return how the network came about: words, what it started from, and words before the data."""
    if run.options.get("kind") == "probe":
        return "its head solved in closed form on the features of", run.model, _UNCHANGED
    if run.is_frozen:
        return "its head trained on the features of", run.model, _UNCHANGED
    if run.teaching is not None:
        start = f"which started from {run.model}, " if run.is_pretrained else ""
        return f"{start}distilled by bitzoo from", run.teaching.names, "on the images of"
    if run.options.get("kind") == "pretrain":
        return "pre-trained by bitzoo from", run.model, "on"
    if not run.is_pretrained:
        return "trained from", run.model, "on"
    return "fine-tuned from", run.model, "on"


def augmentation(recipe: Recipe) -> list[str]:
    """Return what training does to an image besides resizing it, as verbs in the passive."""
    done = []
    if recipe.augmentation == INCEPTION_CROP:
        done.append("cropped to random boxes that are resized")
    if recipe.crop < recipe.resize:
        done.append("cropped at random")
    if recipe.flip:
        done.append("mirrored at random")
    if recipe.mixup_alpha:
        done.append("mixed in pairs (MixUp)")
    return done


def loss_caption(run: RunRecord) -> str:
    """Return what has to be known to compare the loss of training and of held-out images."""
    if run.plan is None:
        return ""
    if run.is_frozen:
        mixed = " The features are mixed in pairs (MixUp)." if run.plan.mixup_alpha else ""
        text = "Training images are neither cropped nor mirrored: only the head is trained." + mixed
    elif done := augmentation(run.plan):
        text = f"Training images are {join(done)}."
    else:
        text = "Training images are resized, and nothing else."
    if run.plan.loss == DISTILLATION:
        text += (
            " The loss of training is the divergence from the teacher, times the square of the "
            "temperature; that of held-out images is the cross-entropy with their labels, which "
            "is another quantity."
        )
    if run.evaluation is None:
        return text
    cut = ", and their centre is taken" if run.plan.eval_resize is not None else ""
    return f"{text} Held-out images are {'' if cut else 'only '}resized{cut}."


def first_batch_note(recipe: Recipe, shown: int, *, freeze: bool) -> str:
    """Return what the images of the first batch are.

    Args:
        recipe: The recipe.
        shown: How many of them are shown.
        freeze: Whether only the head was trained.
    """
    of = f"the {recipe.batch_size:,} images" if recipe.batch_size > 1 else "the one image"
    which = f"The first {shown:,} of {of}" if shown < recipe.batch_size else of.capitalize()
    if freeze:
        mixed = " MixUp mixed their features, not their pixels." if recipe.mixup_alpha else ""
        return (
            f"{which} of the first step. Only the head was trained, so they are resized, neither "
            f"cropped nor mirrored.{mixed}"
        )
    done = augmentation(recipe)
    how = join(done) if done else "resized, and nothing else"
    shares = " The shares are those of the two classes." if recipe.mixup_alpha else ""
    return f"{which} of the first step, as the network saw them: {how}.{shares}"


def join(words: list[str]) -> str:
    """Return words as a list in a sentence."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
