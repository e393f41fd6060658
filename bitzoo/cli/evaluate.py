"""`bitzoo evaluate` and `bitzoo predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_model, complete_path
from bitzoo.cli.console import in_line, print_json, print_table, progress_bar, say, say_wrapped
from bitzoo.cli.finetune import finetune
from bitzoo.cli.options import (
    debug_option,
    inference_options,
    json_option,
    options_of,
    weights_option,
)
from bitzoo.display import in_percent

if TYPE_CHECKING:
    from bitzoo.inference.metrics import Evaluation
    from bitzoo.inference.predict import Predictions


@click.command("evaluate", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--data",
    shell_complete=complete_path,
    help="Labelled images, as for finetune; default: those of the model's own task.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="Images to count; default: val or else test of the data, or else those that the run was "
    "not trained on.",
)
@click.option("--all", "split", flag_value="all", help="Count all images, those trained on too.")
@click.option(
    "--labels",
    metavar="real|FILE|NUMBERING",
    help="ReaL's labels or a file like them; or whose numbers the data's classes are: index, "
    "imagenet1k, a task.",
)
@click.option(
    "--outputs",
    type=click.Choice(["all", "data"]),
    help="Outputs that compete: all, or those of the data's classes; default: as the published "
    "protocol of the data.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used.")
@options_of(finetune, "recheck")
@click.option(
    "--format", type=click.Choice(["table", "json"]), default="table", help="What to print."
)
@inference_options
@click.option(
    "--cache-gb",
    type=float,
    default=20.0,
    show_default=True,
    help="Disk space for decoded images; 0 keeps none.",
)
@click.option("--workers", type=int, help="Processes that decode; default: one per core.")
@weights_option
@json_option
@debug_option
def evaluate(format: str, json: bool, **options: Any) -> None:  # noqa: A002
    """Evaluate MODEL on labelled images.

    MODEL is a catalogue name, a checkpoint file or a run folder. Images are prepared as the model
    states. A run knows the images that it was trained on; on its own data, its held-out images are
    counted.

    With torchrun or accelerate launch, each process evaluates its share.
    """
    from bitzoo.inference import evaluate as evaluation

    if not is_main_process():
        evaluation.evaluate(**options)
        return
    with progress_bar() as progress:
        found = evaluation.evaluate(**options, progress=progress)
    if json or format == "json":
        print_json(found.to_dict())
    else:
        _print_evaluation(found)


def is_main_process() -> bool:
    """Whether this is the process that prints: the first of several, or the only one."""
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def _print_evaluation(found: Evaluation) -> None:
    """Print the classes, what was counted, and the figures with what was published."""
    rows = [(row["name"], row["correct"], row["count"]) for row in found.per_class if row["count"]]
    print_table(("class", "correct", "images"), rows)
    if found.several:
        say("(an image of several labels is counted here once, for its first)")
    selection = found.selection
    assert selection is not None
    say("")
    for sentence in (*filter(None, [found.kept, found.matched]), *selection.sentences):
        say_wrapped(as_flags(sentence))
    left_out = sum(map(len, selection.skipped.values()))
    names = () if found.several else ("balanced accuracy", "macro F1")
    others = list(zip(names, (found.balanced_accuracy, found.macro_f1), strict=False))
    others += [("top-5", found.top5)] if found.has_top5 else []
    loss = f"{'sigmoid loss' if found.of_sigmoid else 'loss'} {found.loss:.4f}"
    say(", ".join([*(f"{name} {value:.2%}" for name, value in others), loss]))
    for figure in found.published:
        say_wrapped(f"Published: {figure.sentence}")
    say(f"95 % interval of top-1: {in_percent(found.interval)}")
    say(
        f"top-1 {found.top1:.2%} ({found.correct:,} of {found.count:,}: {selection.chosen}"
        + (f"; {left_out:,} left out)" if left_out else ")")
    )


@click.command("predict", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.argument("paths", nargs=-1, required=True, shell_complete=complete_path)
@click.option("--top", type=int, default=1, show_default=True, help="Classes per image.")
@click.option(
    "--activation",
    type=click.Choice(["softmax", "sigmoid"]),
    help="Function from logits to scores; default: the one that the model states.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read.")
@click.option(
    "--format", type=click.Choice(["table", "csv", "json"]), default="table", help="What to print."
)
@inference_options
@weights_option
@json_option
@debug_option
@click.pass_context
def predict(
    context: click.Context,
    model: str,
    paths: tuple[str, ...],
    top: int,
    activation: str | None,
    skip_bad: bool,
    format: str,  # noqa: A002
    batch_size: int,
    dtype: str,
    backend: str,
    device: str | None,
    weights: str | None,
    json: bool,
) -> None:
    """Classify images or folders of images.

    MODEL is a catalogue name, a checkpoint file, or a run folder. PATHS are files, folders and
    names of data sets such as tfds:NAME@test; a single - stands for those on standard input, one
    per line. Web addresses are not fetched.

    An image that cannot be read has a row with the reason. Exit code: 0 if all were read, or all
    others were left out with --skip-bad; 1 if some could not be read, 2 if none could.
    """
    from bitzoo.inference import predict as prediction

    with progress_bar() as progress:
        found = prediction.predict(
            model,
            _with_standard_input(paths),
            top=top,
            activation=activation,  # type: ignore[arg-type]
            skip_bad=skip_bad,
            batch_size=batch_size,
            dtype=dtype,
            backend=backend,
            device=device,
            weights=weights,
            progress=progress,
        )
    _print_predictions(found, "json" if json else format)
    failed = len(found.failed)
    for image in found.skipped:
        say(f"Left out: {image.path}: {image.error}", error=True)
    if failed:
        say(f"{failed:,} of {len(found):,} images could not be read.", error=True)
    if failed or not found:
        if not any(image.guesses for image in found):
            say("error: No image could be read.", error=True)
            context.exit(2)
        context.exit(1)


def _with_standard_input(paths: Sequence[str]) -> list[str]:
    """Return the paths, with those on standard input in the place of `-`."""
    found: list[str] = []
    for path in paths:
        if path == "-":
            lines = sys.stdin.buffer.read().splitlines()
            found += [os.fsdecode(line) for line in lines if line.strip()]
        else:
            found.append(path)
    return found


def _print_predictions(found: Predictions, form: str) -> None:
    """Print a row per guess, and one per image that cannot be read."""
    if form == "json":
        print_json(found.to_dicts())
        return
    rows: list[tuple[object, ...]] = []
    for image in found:
        rows += [(image.path, g.label, round(g.score, 4), "") for g in image.guesses]
        rows += [(image.path, "", "", image.error)] if image.error else []
    if form == "csv":
        _print_csv([("path", "label", "score", "error"), *rows])
    elif found.failed:
        print_table(("image", "class", "score", "error"), rows)
    elif rows:
        print_table(("image", "class", "score"), [row[:3] for row in rows])


def _print_csv(rows: Sequence[Sequence[object]]) -> None:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text).writerows(map(in_line, row) for row in rows)
    sys.stdout.write(text.getvalue())
