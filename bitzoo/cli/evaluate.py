"""`bitzoo evaluate` and `bitzoo predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bitzoo.cli.command import Command
from bitzoo.cli.completers import complete_model
from bitzoo.cli.console import in_line, print_json, print_table, progress_bar, say
from bitzoo.cli.options import PATH, debug_option, inference_options, weights_option


@click.command("evaluate", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.option("--data", required=True, help="Labelled images, as for finetune.")
@click.option(
    "--format", type=click.Choice(["table", "json"]), default="table", help="What to print."
)
@inference_options
@weights_option
@debug_option
def evaluate(
    model: str,
    data: str,
    format: str,  # noqa: A002
    batch_size: int,
    dtype: str,
    backend: str,
    weights: str | None,
) -> None:
    """Evaluate MODEL on labelled images.

    MODEL is a run folder, or any other model with class names.
    """
    from bitzoo.inference import evaluate as evaluation

    with progress_bar() as progress:
        found = evaluation.evaluate(
            model,
            data,
            batch_size=batch_size,
            dtype=dtype,
            backend=backend,
            weights=weights,
            progress=progress,
        )
    if format == "json":
        print_json(found.to_dict())
        return
    rows = [(row["name"], row["correct"], row["count"]) for row in found.per_class if row["count"]]
    print_table(("class", "correct", "images"), rows)
    top5 = f"top-5 {found.top5:.2%}, " if found.has_top5 else ""
    say(
        f"\ntop-1 {found.top1:.2%} ({found.correct:,} of {found.count:,}), {top5}"
        f"balanced accuracy {found.balanced_accuracy:.2%}, macro F1 {found.macro_f1:.2%}, "
        f"loss {found.loss:.4f}"
    )


@click.command("predict", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.argument("paths", type=PATH, nargs=-1, required=True)
@click.option("--top", type=int, default=1, show_default=True, help="Classes per image.")
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid"]),
    help="Function from logits to scores; default: the one that the model states.",
)
@click.option(
    "--format", type=click.Choice(["table", "csv", "json"]), default="table", help="What to print."
)
@inference_options
@weights_option
@debug_option
def predict(
    model: str,
    paths: tuple[Path, ...],
    top: int,
    activation: str | None,
    format: str,  # noqa: A002
    batch_size: int,
    dtype: str,
    backend: str,
    weights: str | None,
) -> None:
    """Classify images or folders of images.

    MODEL is a catalogue name, a checkpoint file, or a run folder.
    """
    from bitzoo.inference import predict as prediction

    with progress_bar() as progress:
        found = prediction.predict(
            model,
            paths,
            top=top,
            activation=activation,  # type: ignore[arg-type]
            batch_size=batch_size,
            dtype=dtype,
            backend=backend,
            weights=weights,
            progress=progress,
        )
    if format == "json":
        print_json(found.to_dicts())
        return
    rows = [
        (image.path, guess.label, round(guess.score, 4))
        for image in found
        for guess in image.guesses
    ]
    if format == "csv":
        _print_csv([("path", "label", "score"), *rows])
    else:
        print_table(("image", "class", "score"), rows)
    for image in found:
        if image.error:
            say(f"{image.path}: {image.error}", error=True)


def _print_csv(rows: Sequence[Sequence[object]]) -> None:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text).writerows(map(in_line, row) for row in rows)
    sys.stdout.write(text.getvalue())
