"""The options and callbacks of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from bitzoo.errors import UsageError
from bitzoo.files import Progress
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.trackers import chosen_trackers
from bitzoo.training.hyperrule import Edition
from bitzoo.training.model_selection import evaluation_interval, explain_interval
from bitzoo.training.recipe import Recipe
from bitzoo.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from typing_extensions import Self

    from bitzoo.runs.estimate import Forecast

Resolution = int | tuple[int | None, int] | None
"""The crop in pixels, or (resize, crop); a resize of None scales with the crop."""


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """The options of any run besides what it starts from, data and folder; None follows the rule.

    The attributes common to all training are those of `TrainingConfig`.

    Attributes:
        steps: Length of training; the schedule keeps its shape.
        epochs: Length of training in passes over the training images, instead of `steps`.
        batch_size: Images per step.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: See `Resolution`.
        flip: Whether crops are mirrored at random.
        val_fraction: Fraction to hold out for validation if the data has no split.
        group_by: Column or regular expression that names the groups that stay in one split, or
            ``near-duplicates``; see `bitzoo.data.groups`.
        drop_near_duplicates: Whether to drop training images that look like held-out ones.
        split_seed: Seed of the held-out choice; None for `seed`.
        eval_split: Which is held out of data with both, ``val`` or ``test``; None for val.
        fixed_split: Whether the data set's own splits stay exactly as they are; see
            `bitzoo.data.validation.inspect`.
        examples_per_class: Few-shot: train on this many images per class.
        skip_bad: Whether to skip images that cannot be used.
        recheck: Whether to read all images to check them, whatever checks earlier runs have kept.
        cache_gb: Most disk space for decoded images, in GB; 0 decodes at each step.
        workers: Processes that decode; None for one per core.
        class_weights: ``balanced`` weighs classes inversely to their number of images; see
            `bitzoo.training.losses`.
        log: Where to log the metrics too; see `bitzoo.runs.trackers.chosen_trackers`.
    """

    kind: ClassVar[str]
    """Kind of the run, which is also the command that makes it; see `bitzoo.runs.kinds`."""
    made_how: ClassVar[str]
    """How the model came about, as a phrase."""
    starts_from_weights: ClassVar[bool] = True
    """Whether a run of this kind starts from a model; otherwise from an architecture."""

    checks_while_training: ClassVar[bool] = False
    """Whether images of large data sets are checked when they are used, not all of them before."""

    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    mixup: float | None = None
    resolution: Resolution = None
    flip: bool | None = None
    val_fraction: float | None = None
    group_by: str | None = None
    drop_near_duplicates: bool = False
    split_seed: int | None = None
    eval_split: str | None = None
    fixed_split: bool = False
    examples_per_class: int | None = None
    skip_bad: bool = False
    recheck: bool = False
    cache_gb: float = 20.0
    workers: int | None = None
    class_weights: str | None = None
    log: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen_trackers(self.log)
        if self.eval_every == 0 and self.selects:
            option = "patience" if self.patience is not None else "keep"
            raise UsageError(
                f"`{option}={getattr(self, option)!r}` needs evaluations during training, and "
                "`eval_every=0` makes none before the end. Leave `eval_every` out, or give a "
                "number of steps."
            )

    @property
    def also_reads(self) -> tuple[str, ...]:
        """Places of models besides the one that training starts from."""
        return ()

    def with_evaluations(self, recipe: Recipe, held_out: int) -> tuple[Self, str]:
        """Return the options with the steps between evaluations, and a sentence that says them.

        Args:
            recipe: The recipe.
            held_out: Number of held-out images; without any there is nothing to say.

        Raises:
            UsageError: If evaluations are to decide, and there is none before the end.
        """
        steps, ruled = recipe.schedule.steps, self.eval_every is None
        every = self.eval_every or 0
        if ruled and held_out:
            every = evaluation_interval(steps, recipe.batch_size, held_out)
        if self.selects and not (held_out and every < steps):
            option = "patience" if self.patience is not None else "keep"
            found = (
                f"an evaluation only after every {every:,} of {steps:,} steps. Give a smaller "
                "`eval_every`"
                if held_out
                else "no held-out images. Give `val_fraction`, or data with a split"
            )
            raise UsageError(
                f"`{option}={getattr(self, option)!r}` needs evaluations during training, found "
                f"{found}, or leave `{option}` out."
            )
        if not held_out:
            return replace(self, eval_every=0), ""
        said = explain_interval(every, steps, recipe.batch_size, held_out, ruled)
        return replace(self, eval_every=every), said

    @property
    def resize_and_crop(self) -> tuple[int | None, int | None]:
        """`resolution` as (resize, crop); None follows the rule."""
        if isinstance(self.resolution, int):
            return None, self.resolution
        return self.resolution or (None, None)


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """The options of a fine-tuning run.

    Attributes:
        edition: HyperRule of the ``paper`` or of the ``released`` code.
        pretrained: False starts from random weights.
    """

    kind = "finetune"
    made_how = "fine-tuned by bitzoo"

    edition: Edition = "paper"
    pretrained: bool = True


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """The options of a pre-training run.

    Attributes:
        recipe: A key of `bitzoo.training.pretraining.RULES`.
        weight_decay: Weight decay.
        fraction: Share of the training images that is used, above 0 and at most 1; None for all.
    """

    kind = "pretrain"
    made_how = "pre-trained by bitzoo"
    starts_from_weights = False
    checks_while_training = True

    recipe: str = "bit-s"
    weight_decay: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(
                f"`fraction` must be above 0 and at most 1, found {self.fraction!r}. Give such a "
                "share of the training images, or leave it out to use all."
            )


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """The options of a distillation.

    Attributes:
        teacher: What the user called each teacher.
        teacher_places: Where each is: a name, an address, or an absolute path.
        teacher_dtype: Dtype that they compute in.
        preset: A name of `bitzoo.training.distillation_presets.preset_names`.
        temperature: Of both sides.
        weight_decay: As in `bitzoo.training.distillation_presets.Preset`.
        unlabelled: Whether the images are read without their classes.
    """

    kind = "distill"
    made_how = "distilled by bitzoo"

    teacher: tuple[str, ...] = ()
    teacher_places: tuple[str, ...] = ()
    teacher_dtype: str | None = None
    preset: str | None = None
    temperature: float | None = None
    weight_decay: float | None = None
    unlabelled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        held_out = ("val_fraction", "group_by", "drop_near_duplicates", "split_seed")
        for option in (*held_out, "eval_split", "fixed_split"):
            if self.unlabelled and getattr(self, option) not in (None, False):
                raise UsageError(
                    f"`{option}` chooses images to hold out, but without labels nothing is "
                    "measured on them. Leave it out, or leave out `unlabelled`."
                )

    @property
    def also_reads(self) -> tuple[str, ...]:
        """Places of models besides the one that training starts from."""
        return self.teacher_places


def say_nothing(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Callbacks:
    """Callbacks during a run; all are optional.

    Attributes:
        say: Called with a sentence for the user.
        progress: Called with a task, how much is done, and how much there is.
        on_start: Called with the recipe before the first step.
        on_step: Called with the metrics of each step.
        on_part: Called within a step, with the number of updates made and the fraction of the next
            one's images that are done: 0.0 when it begins, then after each micro-batch.
        on_eval: Called with the step and its evaluation.
        confirm: Called before anything is decoded or written, with what the run will take; False
            ends it there. None lets `say` have the text. Without either, nothing is measured.
        looks_ahead: False measures nothing before the run, whoever hears.
    """

    say: Callable[[str], None] = say_nothing
    progress: Progress | None = None
    on_start: Callable[[Recipe], None] = lambda recipe: None
    on_step: Callable[[Mapping[str, float]], None] = lambda metrics: None
    on_part: Callable[[int, float], None] = lambda step, part: None
    on_eval: Callable[[int, Evaluation], None] = lambda step, evaluation: None
    confirm: Callable[[Forecast], bool] | None = None
    looks_ahead: bool = True

    @property
    def is_heard(self) -> bool:
        """Whether anybody is to hear what a run will take."""
        return self.looks_ahead and (self.confirm is not None or self.say is not say_nothing)
