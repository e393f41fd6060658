"""`bitzoo hyperrule`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bitzoo.cli.command import Command
from bitzoo.cli.console import print_facts, print_json, progress_bar, prose_to_stderr
from bitzoo.cli.finetune import finetune, parse_resolution, print_forecast
from bitzoo.cli.options import (
    debug_option,
    edition_option,
    json_option,
    model_parameter,
    options_of,
)
from bitzoo.errors import UsageError

if TYPE_CHECKING:
    from bitzoo.training.hyperrule import Edition


@click.command("hyperrule", cls=Command, logs=False)
@click.option("--examples", "num_examples", type=int, help="Number of training images.")
@click.option("--size", "image_size", help="Size of the images, HEIGHTxWIDTH: 480x640.")
@edition_option
@model_parameter("model", required=False, help="The same as MODEL.")
@click.option("--flip/--no-flip", default=True, help="Whether mirroring keeps the labels right.")
@click.option("--crop/--no-crop", default=True, help="Whether cropping keeps the labels right.")
@click.option("--measure", is_flag=True, help="Measure what it takes here: with MODEL and --data.")
@click.option("--data", help="With --measure: the images, as for bitzoo finetune.")
@options_of(
    finetune,
    *("freeze", "steps", "epochs", "batch_size", "resolution", "dtype", "device", "time_limit"),
)
@json_option
@debug_option
def hyperrule(
    num_examples: int | None,
    image_size: str | None,
    edition: Edition,
    model: str | None,
    flip: bool,
    crop: bool,
    measure: bool,
    data: str | None,
    json: bool,
    **options: Any,
) -> None:
    """Print the plan of BiT-HyperRule for a data set, and what it takes.

    MODEL matters for R152x4, and with --measure: a few images are then trained on for some seconds,
    and time, memory and disk of the whole run are printed. Nothing is written.

    Example: bitzoo hyperrule BiT-M-R50x1 --data photos/ --measure
    """
    from bitzoo.training.recipe_text import explain

    if measure:
        if model is None or data is None:
            raise UsageError("--measure needs a MODEL and --data. Give both.")
        if num_examples is not None or image_size is not None or not (flip and crop):
            raise UsageError(
                "--examples, --size, --no-flip and --no-crop follow from --data. Leave them out."
            )
        _measure(model, data, edition, json, options)
        return
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) != ParameterSource.DEFAULT:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for --measure. Add that, or leave {flag} out.")
    if data is not None:
        raise UsageError("--data is for --measure. Add that, or give --examples and --size.")
    if num_examples is None or image_size is None:
        missing = "--examples" if num_examples is None else "--size"
        raise click.MissingParameter(param_hint=f"'{missing}'", param_type="option")
    from bitzoo.training import hyperrule as rule

    size = parse_size(image_size)
    recipe = rule.hyperrule(num_examples, size, edition, model, flip=flip, crop=crop)
    if json:
        print_json(recipe.to_dict())
    else:
        print_facts(explain(recipe))


def _measure(model: str, data: str, edition: Edition, json: bool, options: dict[str, Any]) -> None:
    from bitzoo.runs.forecast import forecast
    from bitzoo.training.recipe_text import explain

    options["resolution"] = parse_resolution(options["resolution"])
    with prose_to_stderr(json), progress_bar() as progress:
        found = forecast(model, data, edition=edition, progress=progress, **options)
    if json:
        print_json({"recipe": found.recipe.to_dict(), **found.to_dict()})
        return
    print_facts(explain(found.recipe, freeze=options["freeze"]))
    print_forecast(found)


def parse_size(text: str) -> tuple[int, int]:
    """Return ``HxW`` or ``S`` as height and width.

    Raises:
        UsageError: If it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--size must look like 480x640 (height x width) or 224, found {text!r}.")
    return int(parts[0]), int(parts[-1])
