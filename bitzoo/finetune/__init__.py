"""Fine-tuning: any zoo model on any user's images, by BiT-HyperRule.

The package can be called: ``bitzoo.finetune("BiT-M-R50x1", "photos/", "runs/photos")``.

Layers, each importing only from those before it::

    recipe  hyperrule                                what is done, as data
    findings  splits  sources  manifests  huggingface
    listing  dataset  verdicts  inspection           which images there are, and what is wrong
    decoders  shelves  pixels                        decoded once, mapped into memory
    plan  batches                                    batch number n, a pure function of (seed, n)
    accumulation  memory  microbatches  updates      one update of a batch of any size
    checkpoints  loop                                training that can be killed
    evaluation  evaluate  linear                     exact counts; the head alone
    plots  record  report  leavings                  what is left for people
    journal  trackers  request  session  run         the whole of it
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitzoo.finetune.dataset import Source
    from bitzoo.finetune.recipe import Recipe
    from bitzoo.finetune.request import Watcher
    from bitzoo.finetune.run import FinetuneResult


def finetune(
    model: str | os.PathLike[str],
    data: Source,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Any = None,
    **options: Any,
) -> FinetuneResult:
    """Fine-tune a zoo model on images, by BiT-HyperRule (arXiv 1912.11370, section 3.3).

    Args:
        model: A catalogue name, a checkpoint file, or the folder of a run.
        data: A folder of class folders, a manifest, arrays or a Hugging Face data set; see
            `bitzoo.finetune.dataset.read_dataset`.
        out: The run directory.
        resume: Go on with the run in `out` from its newest whole checkpoint, if there is one.
        overwrite: Throw the run in `out` away.
        progress: Called with a task, how much of it is done, and how much there is.
        **options: Fields of `bitzoo.finetune.request.Request`, or of its
            `bitzoo.finetune.updates.LoopOptions`.

    Returns:
        What came of it: the folder, the recipe, the evaluation on held-out images.

    Raises:
        DatasetError: If the data cannot be trained on; all that is wrong with them at once.
        UsageError: If options contradict each other, or `out` holds another run.
        BitzooError: As `bitzoo.create_model` and `bitzoo.finetune.loop.train` raise.
    """
    from bitzoo.finetune.request import Watcher, make_request
    from bitzoo.finetune.run import run

    request = make_request(**options)
    watcher = _reporting_to(progress) if progress else Watcher()
    return run(model, data, Path(out), request, resume=resume, overwrite=overwrite, watcher=watcher)


def _reporting_to(progress: Any) -> Watcher:
    """Return a watcher that counts steps, too, as progress in a task."""
    from bitzoo.finetune.request import Watcher

    total = 0

    def on_start(recipe: Recipe) -> None:
        nonlocal total
        total = recipe.schedule.steps

    def on_step(metrics: Mapping[str, float]) -> None:
        progress("training", int(metrics["step"]), total)

    return Watcher(progress=progress, on_start=on_start, on_step=on_step)


class _CallablePackage(ModuleType):
    """`bitzoo.finetune` is a package of modules and the name of what it is for."""

    def __call__(self, *args: Any, **options: Any) -> FinetuneResult:
        return finetune(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
