"""`bitzoo probe`."""

from __future__ import annotations

from typing import Any

import click

from bitzoo.cli.command import Command, as_flags
from bitzoo.cli.completers import complete_model, complete_path
from bitzoo.cli.console import (
    in_line,
    print_facts,
    print_json,
    print_table,
    progress_bar,
    prose_to_stderr,
    say,
    say_wrapped,
)
from bitzoo.cli.finetune import finetune, parse_resolution
from bitzoo.cli.options import (
    PATH,
    debug_option,
    json_option,
    options_of,
    time_limit_option,
)


@click.command("probe", cls=Command, no_args_is_help=True)
@click.argument("models_argument", metavar="[MODEL]...", nargs=-1, shell_complete=complete_model)
@click.option(
    "--models",
    "models",
    multiple=True,
    metavar="MODEL",
    shell_complete=complete_model,
    help="The same as MODEL; as often as needed.",
)
@click.option(
    "--data", required=True, shell_complete=complete_path, help="Labelled images, as for finetune."
)
@click.option("--out", type=PATH, help="Folder for report.html and probe.json.")
@click.option("--save", type=PATH, help="Folder for the best probe as a model, with a linear head.")
@click.option(
    "--take", metavar="MODEL", shell_complete=complete_model, help="Save this one, not the best."
)
@click.option("--download", is_flag=True, help="Patterns take models that have to be fetched, too.")
@click.option(
    "--folds", type=int, help="Judge all images, in so many stratified folds; for small data."
)
@click.option(
    "--val-fraction",
    type=float,
    help="Fraction to hold out; default 0.1 if the data has no split.",
)
@click.option("--group-by", help="Column or regular expression of groups that stay together.")
@click.option(
    "--drop-near-duplicates", is_flag=True, help="Drop training images like held-out ones."
)
@click.option(
    "--eval-split",
    type=click.Choice(["val", "test"]),
    help="What is held out of data with both; default val.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of split and folds.")
@click.option("--resolution", help="CROP or RESIZE,CROP in pixels; default 256,224.")
@click.option("--skip-bad", is_flag=True, help="Skip images that cannot be used.")
@options_of(finetune, "recheck")
@time_limit_option("Stop after this time; the rest is not tried:")
@click.option(
    "--cache-gb",
    type=float,
    default=20.0,
    show_default=True,
    help="Disk space for features, and as much for decoded images.",
)
@click.option("--workers", type=int, help="Processes that decode; default: one per core.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Compute dtype; lower precision is faster.",
)
@click.option(
    "--backend",
    type=click.Choice(["eager", "compile", "onnxruntime", "openvino"]),
    default="eager",
    show_default=True,
    help="Library that runs the networks.",
)
@click.option("--device", help="cpu, cuda, cuda:1 or mps; default: a GPU if there is one.")
@json_option
@debug_option
def probe(
    models_argument: tuple[str, ...], models: tuple[str, ...], data: str, json: bool, **options: Any
) -> None:
    """Find out which MODEL suits some images, without training.

    Each MODEL is a name, a pattern such as "BiT-M-*" (of which those on this machine are taken), a
    file or a run folder; without any, all of the catalogue that are on this machine. Features are
    computed once and cached: the same command goes on where it was stopped.

    Example: bitzoo probe BiT-M-R50x1 BiT-M-R101x1 --data photos/ --out probes/photos
    """
    from bitzoo.runs import probing

    options["resolution"] = parse_resolution(options["resolution"])
    named = (*models_argument, *models)
    with prose_to_stderr(json), progress_bar() as progress:
        result = probing.probe(
            data,
            named or None,
            progress=progress,
            say=lambda text: say_wrapped(as_flags(in_line(text))),
            **options,
        )
    if json:
        print_json(result.to_dict())
        return
    say("")
    if result.done:
        print_table(*result.table())
        say("")
    if result.left:
        print_facts([(row.model, as_flags(f"{row.outcome}: {row.reason}")) for row in result.left])
        say("")
    say_wrapped(in_line(result.advice.why))
    places: list[tuple[str, object]] = []
    if result.folder is not None:
        places += [("report", result.folder / "report.html")]
        places += [("all figures", result.folder / "probe.json")]
    if result.saved is not None:
        places.append(("saved", result.saved))
    if places:
        print_facts(places)
    else:
        say_wrapped("A report with a plot: --out FOLDER. The best as a model: --save FOLDER.")
