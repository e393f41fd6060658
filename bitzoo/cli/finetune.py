"""`bitzoo finetune`."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_path
from bitzoo.cli.console import (
    ask,
    in_line,
    is_answered,
    print_facts,
    print_json,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.options import (
    PATH,
    debug_option,
    edition_option,
    json_option,
    model_parameter,
    time_limit_option,
)
from bitzoo.durations import duration
from bitzoo.errors import UsageError

if TYPE_CHECKING:
    from bitzoo.inference.metrics import Evaluation
    from bitzoo.runs.estimate import Forecast
    from bitzoo.runs.run_result import RunResult
    from bitzoo.training.recipe import Recipe


@click.command("finetune", cls=Command, no_args_is_help=True)
@model_parameter("model", help="The same as MODEL.")
@click.option(
    "--data",
    required=True,
    shell_complete=complete_path,
    help="A folder of class folders, a .csv or .jsonl file, or the name of a data set: hf:NAME, "
    "tfds:NAME or torchvision:NAME, and @SPLIT, or tar:SHARDS.",
)
@click.option("--out", type=PATH, required=True, help="Run folder.")
@edition_option
@click.option(
    "--random", "pretrained", flag_value=False, default=True, help="Start from random weights."
)
@click.option("--steps", type=int, help="Length of training; the schedule keeps its shape.")
@click.option(
    "--epochs", type=float, help="Length in passes over the training images, instead of --steps."
)
@click.option(
    "--batch-size",
    type=int,
    help="Effective batch size (split into micro-batches to fit memory).",
)
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--mixup", type=float, help="Alpha of MixUp; 0 for none.")
@click.option("--resolution", help="CROP or RESIZE,CROP in pixels.")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--repeats", type=int, default=1, help="Number of runs, each with the next seed.")
@click.option(
    "--val-fraction",
    type=float,
    help="Validation fraction; default 0.1 if the data has no split.",
)
@click.option(
    "--group-by",
    metavar="COLUMN|REGEX",
    help="Keep groups of images in one split: a column, a regular expression on the paths, or "
    "near-duplicates.",
)
@click.option(
    "--drop-near-duplicates",
    is_flag=True,
    help="Drop training images that look like held-out ones.",
)
@click.option("--split-seed", type=int, help="Seed of the held-out choice; default: --seed.")
@click.option(
    "--eval-split",
    type=click.Choice(["val", "test"]),
    help="Split to hold out of data with both; default: val.",
)
@click.option(
    "--fixed-split",
    is_flag=True,
    help="Use the data set's own splits exactly as they are, as benchmarks do.",
)
@click.option("--examples-per-class", type=int, help="Few-shot: use only N images per class.")
@click.option("--skip-bad", is_flag=True, help="Skip images that cannot be used.")
@click.option(
    "--recheck", is_flag=True, help="Read all images to check them, also those checked before."
)
@click.option(
    "--cache-gb",
    type=float,
    default=20.0,
    show_default=True,
    help="Disk space for decoded images; 0 decodes at each step.",
)
@click.option("--workers", type=int, help="Processes that decode; default: one per core.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    help="Dtype of activations.",
)
@click.option("--device", help="cpu, cuda, cuda:1 or mps; default: a GPU if there is one.")
@click.option(
    "--freeze", is_flag=True, help="Train only the head, on cached features (linear probe)."
)
@click.option(
    "--backend",
    type=click.Choice(["eager", "compile", "onnxruntime", "openvino"]),
    default="eager",
    help="With --freeze: library that computes the features.",
)
@click.option("--micro-batch", type=int, help="Images computed at once; default: what fits.")
@click.option("--compile", is_flag=True, help="Run through torch.compile.")
@click.option(
    "--recompute-norms", is_flag=True, help="Half the activation memory, a few percent slower."
)
@click.option(
    "--checkpoint-blocks", is_flag=True, help="A quarter of the activation memory, slower."
)
@click.option(
    "--checkpoint-every",
    type=int,
    default=100,
    show_default=True,
    help="Steps between checkpoints; 0 writes one only at the end.",
)
@click.option(
    "--eval-every",
    type=int,
    help="Steps between evaluations, 0 only at the end; default: ten in a run.",
)
@click.option(
    "--class-weights",
    type=click.Choice(["balanced"]),
    help="Weigh classes inversely to their number of images.",
)
@click.option(
    "--keep",
    type=click.Choice(["best", "last"]),
    help="Weights to keep: of the last step, as BiT does (default), or of the best evaluation.",
)
@click.option(
    "--patience",
    type=int,
    help="Stop after N evaluations without a better top-1; keeps the best weights.",
)
@click.option(
    "--log",
    multiple=True,
    callback=lambda context, option, names: names or None,
    help="Log to tensorboard (default if installed), wandb, ...; none; several times for several.",
)
@click.option(
    "--channels-last/--no-channels-last",
    default=None,
    help="Memory format; default: the faster one on a CPU, as measured.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out, if there is one.")
@click.option("--overwrite", is_flag=True, help="Delete what a run wrote to --out, start again.")
@time_limit_option("Make a plan that ends within:")
@click.option("--yes", is_flag=True, help="Do not ask before a run of hours.")
@json_option
@debug_option
def finetune(model: str, data: str, out: Path, json: bool, yes: bool, **options: Any) -> None:
    """Fine-tune MODEL on your images, by BiT-HyperRule.

    MODEL is a catalogue name, a checkpoint file, or a run folder.

    Example: bitzoo finetune BiT-M-R50x1 --data photos/ --out runs/photos
    """
    from bitzoo.runs import finetune as runs

    options["resolution"] = parse_resolution(options["resolution"])
    work = functools.partial(runs.finetune, model, data, out, **options)
    yes = yes or options["time_limit"] is not None
    carry_out(work, device=options["device"], freeze=options["freeze"], yes=yes, json=json)


def carry_out(
    work: Callable[..., RunResult], *, device: str | None, freeze: bool, yes: bool, json: bool
) -> None:
    """Do the work of a run, show it, and print its result; only the main process prints.

    Args:
        work: Takes the keywords `progress` and `callbacks`, as `bitzoo.finetune`.
        device: Where it computes; None chooses.
        freeze: Whether only the head is trained.
        yes: Whether not to ask before what takes long.
        json: Whether stdout gets the result as JSON, and stderr everything else.
    """
    from bitzoo.inference.processes import join_processes
    from bitzoo.runs.config import Callbacks

    main = join_processes(device).is_main_process
    if not main:
        work(progress=False, callbacks=Callbacks())
        return
    told = _Told(freeze)
    callbacks = Callbacks(
        say=_say,
        on_start=told.recipe,
        on_eval=told.evaluation,
        confirm=functools.partial(_confirmed, yes),
    )
    with prose_to_stderr(json), progress_bar() as progress:
        result = work(progress=progress, callbacks=callbacks)
    if json:
        print_json(result.to_dict())
        return
    for one in result.repeats or (result,):
        _print_result(one)
    summary = result.summary()
    if len(summary["top1"]) > 1:
        say(f"median top-1 {summary['median']:.2%}, standard deviation {summary['stdev']:.2%}")


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


def _say(text: str) -> None:
    say(as_flags(text))


def _confirmed(yes: bool, forecast: Forecast) -> bool:
    """Say what a run will take, and ask whether to begin if that is long."""
    print_forecast(forecast)
    if yes or not forecast.ways:
        return True
    if not is_answered():
        say_wrapped("There is no terminal to ask on, so it begins. Stop it as any other command.")
        return True
    if ask("Begin?"):
        return True
    raise UsageError("Not confirmed; nothing was started. Use --yes to skip the question.")


def print_forecast(forecast: Forecast) -> None:
    """Print what a run will take, and a table of cheaper ways; a command stays in one line."""
    for line in forecast.lines:
        say_wrapped(as_flags(line))
    if not forecast.ways:
        return
    rows = [
        (f"about {duration(way.seconds)}", way.how, way.command or way.options)
        for way in forecast.ways
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"  {takes:<{widths[0]}}  {how:<{widths[1]}}  {in_line(command)}"
        for takes, how, command in rows
    ]
    say("\n".join(["Cheaper ways:", *lines]))


class _Told:
    """What is printed during a run: the recipe, and evaluations but the last, which is the end."""

    def __init__(self, freeze: bool) -> None:
        self._steps, self._freeze = 0, freeze

    def recipe(self, recipe: Recipe) -> None:
        from bitzoo.training.recipe_text import explain

        self._steps = recipe.schedule.steps
        print_facts(explain(recipe, freeze=self._freeze))

    def evaluation(self, step: int, found: Evaluation) -> None:
        if step < self._steps:
            say(f"step {step:,}: {_verdict(found)}", error=True)


def _print_result(result: RunResult) -> None:
    if result.stopped:
        quoted = shlex.quote(str(result.folder))
        say(f"Stopped after step {result.steps}. Continue with: bitzoo resume {quoted}")
        return
    if result.was_finished:
        say(
            f"{result.folder} is finished: all {result.steps:,} steps were made before. To train "
            "on, add --extend STEPS."
        )
        return
    found, folder = result.evaluation, result.folder
    verdict = _verdict(found) if found else "no images were held out"
    if result.leakage and result.leakage.matters:
        say(f"Without near-duplicates in train: top-1 {result.leakage.accuracy_without}")
    if result.choice and result.choice.sentence:
        say_wrapped(result.choice.sentence)
    say(f"\n{in_line(folder)}: {result.steps:,} steps, {verdict}")
    for sentence in result.sentences:
        say_wrapped(sentence)
    print_facts(
        [
            ("report", folder / "report.html"),
            ("next", f"bitzoo predict {shlex.quote(str(folder))} IMAGES"),
        ]
    )


def _verdict(found: Evaluation) -> str:
    score = f"{100 * found.top1:.1f} %"
    return f"top-1 {score} ({found.correct:,} of {found.count:,} held-out images)"
