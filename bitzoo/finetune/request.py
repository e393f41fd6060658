"""What a user may ask of a run, and who is told how it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bitzoo.converters.tensors import Progress
from bitzoo.errors import UsageError
from bitzoo.finetune.evaluate import Evaluation
from bitzoo.finetune.hyperrule import Edition
from bitzoo.finetune.loop import LoopOptions
from bitzoo.finetune.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """What a user may ask of a run beyond model, data and folder; None follows the rule.

    Attributes:
        edition: ``paper`` or ``released``: whose HyperRule.
        pretrained: False starts from random weights.
        steps: Length of training; the schedule keeps its shape.
        batch_size: Images in a step.
        lr: Base learning rate.
        mixup: Alpha of MixUp; 0 for none.
        resolution: ``(resize, crop)`` in pixels; resize None scales with the crop.
        flip: Whether crops are mirrored at random.
        seed: Of everything random.
        val_fraction: Share to hold out of a data set that comes in one piece.
        examples_per_class: Few-shot: train on so many images of each class.
        skip_bad: Whether to go on without images that cannot be used.
        cache_gb: What decoded pictures may take on disk, in GB; 0 decodes at each step.
        workers: Processes that decode; None is one a core.
        loop: How to train: precision, memory, checkpoints.
    """

    edition: Edition = "paper"
    pretrained: bool = True
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    mixup: float | None = None
    resolution: tuple[int | None, int] | None = None
    flip: bool | None = None
    seed: int = 0
    val_fraction: float | None = None
    examples_per_class: int | None = None
    skip_bad: bool = False
    cache_gb: float = 20.0
    workers: int | None = None
    loop: LoopOptions = field(default_factory=LoopOptions)


def make_request(**options: Any) -> Request:
    """Return a request from fields of `Request` and of `LoopOptions`, all by their names.

    Raises:
        UsageError: If there is no such option.
    """
    own = {entry.name for entry in fields(Request)} - {"loop"}
    loop = {entry.name for entry in fields(LoopOptions)} - own
    unknown = sorted(options.keys() - own - loop)
    if unknown:
        raise UsageError(
            f"There is no option {', '.join(unknown)}; there are {', '.join(sorted(own | loop))}."
        )
    chosen = {name: options[name] for name in options.keys() & own}
    how = LoopOptions(**{name: options[name] for name in options.keys() & loop})
    return Request(**chosen, loop=how)


@dataclass(frozen=True)
class Watcher:
    """Who is told how it goes; every callback may be left out.

    Attributes:
        say: A sentence for people.
        progress: Called with a task, how much is done, and how much there is.
        on_start: Called with the recipe before the first step.
        on_step: Called with the metrics of each step.
        on_eval: Called with the step and its evaluation.
    """

    say: Callable[[str], None] = lambda text: None
    progress: Progress | None = None
    on_start: Callable[[Recipe], None] = lambda recipe: None
    on_step: Callable[[Mapping[str, float]], None] = lambda metrics: None
    on_eval: Callable[[int, Evaluation], None] = lambda step, evaluation: None
