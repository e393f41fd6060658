"""What `bitzoo finetune`, `evaluate`, `predict` and `hyperrule` do and print."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitzoo.cli.console import print_facts, print_json, print_table, progress_bar, say
from bitzoo.errors import UsageError
from bitzoo.training.recipe import Recipe


def hyperrule(examples: int, size: str, *, edition: str, model: str | None, json: bool) -> None:
    """Print the plan of BiT-HyperRule for so many images of that size."""
    from bitzoo.training.hyperrule import explain
    from bitzoo.training.hyperrule import hyperrule as plan

    recipe = plan(examples, parse_size(size), edition, model)  # type: ignore[arg-type]
    if json:
        print_json(recipe.to_dict())
    else:
        print_facts(explain(recipe))


def parse_size(text: str) -> tuple[int, int]:
    """Return ``HxW`` or ``S`` as height and width.

    Raises:
        UsageError: If it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"A size must look like 480x640 (height x width) or 224, found {text!r}.")
    return int(parts[0]), int(parts[-1])


def parse_resolution(text: str | None) -> tuple[int | None, int] | None:
    """Return ``CROP`` or ``RESIZE,CROP`` as (resize or None, crop).

    Raises:
        UsageError: If it is neither.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--resolution must be CROP or RESIZE,CROP in pixels, found {text!r}.")
    return (int(parts[0]) if len(parts) == 2 else None), int(parts[-1])


def finetune(model: str, data: str, out: Path, **options: Any) -> None:
    """Run once, or `repeats` times with one seed after another, and say what came of it."""
    from bitzoo.runs.config import Callbacks
    from bitzoo.runs.finetune import finetune as run
    from bitzoo.training.distributed import join_processes

    options["resolution"] = parse_resolution(options["resolution"])
    main = join_processes().is_main_process
    with progress_bar() as progress:
        lines = _Lines(to_terminal=progress is not None, bar=progress)
        callbacks = (
            Callbacks(say=say, progress=progress, on_start=lines.start, on_step=lines.step)
            if main
            else Callbacks()
        )
        result = run(model, data, out, callbacks=callbacks, **options)
    if not main:
        return
    for one in result.repeats or (result,):
        _say_result(one)
    if result.repeats:
        summary = result.summary()
        say(f"median top-1 {summary['median']:.2%}, standard deviation {summary['stdev']:.2%}")


def evaluate(
    model: str,
    data: str,
    *,
    format: str,  # noqa: A002
    dtype: str,
    backend: str,
    batch_size: int,
) -> None:
    """Print how a run or model does on labelled images."""
    from bitzoo.data.dataset import read_dataset
    from bitzoo.data.image_store import open_pixels
    from bitzoo.data.validation import inspect
    from bitzoo.files import cache_dir
    from bitzoo.inference.evaluate import evaluate as count
    from bitzoo.inference.optimize import COMPUTE_DTYPES, best_device
    from bitzoo.models.bit import BiT
    from bitzoo.runs.session import labels_of
    from bitzoo.zoo.create import create_model
    from bitzoo.zoo.info import create_transform, labels

    network = create_model(model, pretrained=True)
    names = labels(network)
    if names is None or not isinstance(network, BiT):
        raise UsageError(
            f"{model} does not say what its classes are called, so its outputs cannot be matched "
            "with the data's. Evaluate a run of `bitzoo finetune`."
        )
    with progress_bar() as progress:
        images, _ = inspect(read_dataset(data, classes=names), training=False, progress=progress)
        split = images.val or images.train
        with open_pixels(
            split,
            create_transform(network).crop,
            cache=cache_dir() / "pixels",
            budget_bytes=20_000_000_000,
            progress=progress,
        ) as pixels:
            found = count(
                network,
                pixels,
                labels_of(split),
                names,
                batch_size=batch_size,
                dtype=COMPUTE_DTYPES[dtype],
                backend=backend,
                device=best_device(backend),
                progress=progress,
            )
    if format == "json":
        print_json(found.to_dict())
        return
    rows = [(row["name"], row["correct"], row["count"]) for row in found.per_class if row["count"]]
    print_table(("class", "correct", "images"), rows)
    say(
        f"\ntop-1 {found.top1:.2%} ({found.correct:,} of {found.count:,}), "
        f"top-5 {found.top5:.2%}, loss {found.loss:.4f}"
    )


def predict(
    model: str,
    paths: tuple[Path, ...],
    *,
    top: int,
    format: str,  # noqa: A002
    dtype: str,
    backend: str,
    batch_size: int,
) -> None:
    """Print the likeliest classes of pictures."""
    from bitzoo.inference.evaluate import predict as look
    from bitzoo.inference.optimize import COMPUTE_DTYPES, best_device
    from bitzoo.zoo.create import create_model
    from bitzoo.zoo.info import create_transform, labels

    network = create_model(model, pretrained=True)
    names = labels(network)
    with progress_bar() as progress:
        found = look(
            network,
            paths,
            create_transform(network),
            names=names,
            activation=network.info.activation or "softmax",
            k=top,
            batch_size=batch_size,
            dtype=COMPUTE_DTYPES[dtype],
            backend=backend,
            device=best_device(backend),
            progress=progress,
        )
    if format == "json":
        print_json([prediction.to_dict() for prediction in found])
        return
    rows = [
        (str(prediction.path), guess.label, round(guess.score, 4))
        for prediction in found
        for guess in prediction.guesses
    ]
    if format == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([("path", "label", "score"), *rows])
        sys.stdout.write(text.getvalue())
    else:
        print_table(("picture", "class", "score"), rows)
    for prediction in found:
        if prediction.error:
            print(f"{prediction.path}: {prediction.error}", file=sys.stderr)


class _Lines:
    """Training as it goes: a bar on a terminal, else a plain line now and then."""

    def __init__(self, *, to_terminal: bool, bar: Any) -> None:
        self._bar = bar if to_terminal else None
        self._total, self._last = 0, 0.0

    def start(self, recipe: Recipe) -> None:
        """Show the recipe."""
        from bitzoo.training.hyperrule import explain

        print_facts(explain(recipe))
        self._total = recipe.schedule.steps

    def step(self, metrics: Mapping[str, float]) -> None:
        """Show one step."""
        step = int(metrics["step"])
        if self._bar:
            rate = metrics.get("images_per_s", 0.0)
            self._bar(
                f"training (loss {metrics['loss']:.3f}, {rate:,.0f} images/s)", step, self._total
            )
        elif step == self._total or time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            rate = metrics.get("images_per_s", 0.0)
            say(
                f"step {step} of {self._total}, loss {metrics['loss']:.4f}"
                + (f", {rate:,.1f} images/s" if rate else "")
            )


def _say_result(result: Any) -> None:
    if result.stopped:
        say(f"Stopped after step {result.steps}. Go on with --resume.")
        return
    found = result.evaluation
    score = (
        f"top-1 {found.top1:.2%} ({found.correct:,} of {found.count:,} held-out images)"
        if found
        else "no images were held out"
    )
    say(f"{result.folder}: {result.steps} steps, {score}. Read {result.folder / 'report.html'}.")
