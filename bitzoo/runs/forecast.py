"""`forecast`: what fine-tuning will take, measured without doing it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bitzoo.data.dataset import DataSource
from bitzoo.durations import parse_duration
from bitzoo.files import Progress
from bitzoo.inference.processes import in_main_process, process_device
from bitzoo.runs.config import Callbacks, FinetuneConfig, Resolution
from bitzoo.runs.estimate import Forecast
from bitzoo.runs.finetune import KIND
from bitzoo.runs.foresight import Foresight
from bitzoo.runs.job import Job
from bitzoo.runs.one_run import read_images
from bitzoo.runs.step_progress import reported
from bitzoo.training.hyperrule import Edition

OUT = Path("RUN")
"""Stands for the run folder in the commands of cheaper ways."""


def forecast(
    model: str | os.PathLike[str],
    data: DataSource,
    *,
    edition: Edition = "paper",
    freeze: bool = False,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    resolution: Resolution = None,
    dtype: str = "float32",
    device: str | None = None,
    time_limit: str | float | None = None,
    progress: Progress | bool | None = None,
) -> Forecast:
    """Measure what `bitzoo.finetune` with the same options would take here, and write nothing.

    `bitzoo hyperrule --measure` does the same. The data are read and checked as for the run.

    Args:
        model: As for `bitzoo.finetune`, and so the others.
        data: The images.
        edition: HyperRule of the ``paper`` or of the ``released`` code.
        freeze: Whether only the head is trained.
        steps: Length of training, in updates.
        epochs: The same in passes over the training images.
        batch_size: Images per step.
        resolution: The crop in pixels, or (resize, crop).
        dtype: Dtype of activations.
        device: Where it computes.
        time_limit: Makes the plan fit.
        progress: As for `bitzoo.finetune`.

    Returns:
        The plan, its estimate, and above an hour on a CPU cheaper ways.

    Raises:
        UsageError: If options contradict each other, or no plan fits the time limit.
        BitzooError: As `bitzoo.finetune` raises.
    """
    began, most = time.monotonic(), None if time_limit is None else parse_duration(time_limit)
    config = FinetuneConfig(
        edition=edition,
        freeze=freeze,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        resolution=resolution,
        dtype=dtype,
        device=device,
    )
    process_device(device)  # before the data are read, if there is no such device
    job = Job(os.fspath(model), data, config)
    with reported(progress, Callbacks()) as callbacks:
        images, summary = in_main_process(lambda: read_images(job, callbacks))
        network, is_kept = KIND.create(job, images, callbacks)
        recipe = KIND.plan(job, images, summary, network, is_kept)
        sight = Foresight(job, recipe, network, images, summary, OUT)
        if most is not None:
            sight.fit_in(most, time.monotonic() - began)
        return sight.forecast(told_from=0.0)
