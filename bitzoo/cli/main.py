"""The commands `bitzoo` and `bitzoo-convert`. Heavy modules are imported by the command that runs.

Exit codes: 0 fine, 1 a proof failed, 2 bad input or usage, 128 + the signal that ended it.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bitzoo._version import __version__
from bitzoo.cli.signals import exit_on_signals
from bitzoo.errors import BitzooError

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_PATH = click.Path(path_type=Path)
_debug = False


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    global _debug
    _debug = _debug or value


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
json_option = click.option("--json", is_flag=True, help="Print JSON for scripts.")
check_option = click.option(
    "--check",
    type=click.Choice(["none", "weights", "logits"]),
    default="logits",
    show_default=True,
    help="What to prove: logits for both proofs.",
)


edition_option = click.option(
    "--edition",
    type=click.Choice(["paper", "released"]),
    default="paper",
    show_default=True,
    help="Whose HyperRule: the paper's, or the released code's.",
)


def inference_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add how a network is run."""
    for option in (
        click.option(
            "--backend",
            type=click.Choice(["eager", "compile", "onnxruntime", "openvino"]),
            default="eager",
            show_default=True,
            help="What runs the network.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
            help="What it computes in; less is faster.",
        ),
        click.option("--batch-size", type=int, default=32, show_default=True),
    ):
        command = option(command)
    return command


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, message="bitzoo %(version)s")
@debug_option
def app() -> None:
    """The home of Google's Big Transfer (BiT) models."""


@app.command("list")
@click.argument("pattern", default="*")
@click.option("--released", is_flag=True, help="Only what Google released.")
@json_option
@debug_option
def list_command(pattern: str, released: bool, json: bool) -> None:
    """List the catalogue, or what of it matches PATTERN, such as 'BiT-M-*'."""
    from bitzoo.catalogue import registry
    from bitzoo.cli.console import print_json, print_table

    names = registry.list_models(pattern, released=True if released else None)
    specs = [registry.get_spec(name) for name in names]
    if json:
        print_json([spec.to_dict() for spec in specs])
        return
    headers = ("name", "network", "classes", "task", "px", "parameters", "files")
    print_table(
        headers,
        [
            (
                spec.name,
                spec.arch_name,
                spec.num_classes,
                spec.task,
                spec.resolution,
                spec.num_params,
                " ".join(spec.files) or "never released",
            )
            for spec in specs
        ],
    )
    print(f"{len(specs)} models", file=sys.stderr)


@app.command()
@click.argument("model")
@json_option
@debug_option
def info(model: str, json: bool) -> None:
    """Show all that is known of MODEL, a catalogue name or a checkpoint file."""
    from bitzoo.cli import info as describe
    from bitzoo.cli.console import print_facts, print_json

    record = describe.describe(model)
    if json:
        print_json(record)
    else:
        print_facts(describe.facts(record))


@app.command(no_args_is_help=True)
@click.option("--src", required=True, help="A checkpoint, its address, or a catalogue name.")
@click.option("--dst", type=_PATH, help="File or folder to write to; default: beside the source.")
@click.option(
    "--to",
    type=click.Choice(["safetensors", "npz", "h5", "timm", "transformers", "bit_pytorch"]),
    default="safetensors",
    show_default=True,
    help="Format to write; of transformers, a folder.",
)
@click.option(
    "--from",
    "kind",
    type=click.Choice(["npz", "h5", "tfhub"]),
    help="Which released file of a catalogue name; default npz.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Round the numbers; the file says so, and by how much they moved.",
)
@click.option(
    "--eps-exact",
    is_flag=True,
    help="Kernels x10, so that timm or transformers compute Google's function; not to fine-tune.",
)
@check_option
@click.option(
    "--report",
    type=_PATH,
    help="Where to write the proof; default: parity.json beside the output.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--keep-source", is_flag=True, help="Keep a downloaded source in the cache.")
@json_option
@debug_option
def convert(**options: Any) -> None:
    """Convert a checkpoint, by default to safetensors, and prove that nothing changed.

    The source may be of any format that BiT was ever released or used in; it is recognised by its
    content.

    Example: bitzoo-convert --src bit_m_r50x1.npz
    """
    from bitzoo.cli import convert as commands

    commands.convert(options.pop("src"), options.pop("dst"), **options)


@app.command(no_args_is_help=True)
@click.argument("src", type=_PATH)
@click.argument("dst", type=_PATH)
@check_option
@click.option("--report", type=_PATH, help="Where to write the proof; default: nowhere.")
@json_option
@debug_option
def verify(src: Path, dst: Path, **options: Any) -> None:
    """Prove again that two checkpoint files, SRC and what was made of it, hold one model."""
    from bitzoo.cli import convert as commands

    commands.verify(src, dst, **options)


@app.command()
@click.option("--examples", type=int, required=True, help="Number of training images.")
@click.option("--size", required=True, help="Their size, height x width: 480x640.")
@edition_option
@click.option("--model", help="Name of the model; matters to R152x4.")
@json_option
@debug_option
def hyperrule(examples: int, size: str, **options: Any) -> None:
    """Print the plan of BiT-HyperRule for a data set."""
    from bitzoo.cli import finetune as training_commands

    training_commands.hyperrule(examples, size, **options)


@app.command(no_args_is_help=True)
@click.option("--model", required=True, help="A catalogue name, a file, or a run's folder.")
@click.option("--data", required=True, help="A folder of class folders, or a .csv or .jsonl.")
@click.option("--out", type=_PATH, required=True, help="The run's folder.")
@edition_option
@click.option("--random", "pretrained", flag_value=False, default=True, help="Random weights.")
@click.option("--steps", type=int, help="Length of training; the schedule keeps its shape.")
@click.option("--batch-size", type=int, help="Images in a step, however they fit into memory.")
@click.option("--lr", type=float, help="Base learning rate.")
@click.option("--mixup", type=float, help="Alpha of MixUp; 0 for none.")
@click.option("--resolution", help="CROP or RESIZE,CROP in pixels.")
@click.option("--flip/--no-flip", default=None, help="Mirror images at random.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--repeats", type=int, default=1, help="Runs with one seed after another.")
@click.option("--val-fraction", type=float, help="Share to hold out; default 0.1 if none is.")
@click.option("--examples-per-class", type=int, help="Few-shot: so many images of each class.")
@click.option("--skip-bad", is_flag=True, help="Go on without images that cannot be used.")
@click.option("--cache-gb", type=float, default=20.0, show_default=True)
@click.option("--workers", type=int, help="Processes that decode; default one a core.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32")
@click.option("--freeze", is_flag=True, help="Train the head alone, on features kept.")
@click.option("--micro-batch", type=int, help="Images computed at once; default: what fits.")
@click.option("--compile", is_flag=True, help="Run through torch.compile.")
@click.option("--recompute-norms", is_flag=True, help="Half the memory, a little slower.")
@click.option("--checkpoint-blocks", is_flag=True, help="A quarter of the memory, slower.")
@click.option("--checkpoint-every", type=int, default=100, show_default=True, help="In steps.")
@click.option("--eval-every", type=int, default=0, help="In steps; 0 only at the end.")
@click.option(
    "--channels-last/--no-channels-last", default=None, help="Memory format; default on a CPU."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, if there is one.")
@click.option("--overwrite", is_flag=True, help="Throw the run in --out away.")
@debug_option
def finetune(model: str, data: str, out: Path, **options: Any) -> None:
    """Fine-tune a model on your images, by BiT-HyperRule.

    Example: bitzoo finetune --model BiT-M-R50x1 --data photos/ --out runs/photos
    """
    from bitzoo.cli import finetune as training_commands

    training_commands.finetune(model, data, out, **options)


@app.command(no_args_is_help=True)
@click.argument("model")
@click.option("--data", required=True, help="Labelled images, as for finetune.")
@click.option("--format", type=click.Choice(["table", "json"]), default="table")
@inference_options
@debug_option
def evaluate(model: str, data: str, **options: Any) -> None:
    """Count how MODEL, a run's folder, does on labelled images."""
    from bitzoo.cli import finetune as training_commands

    training_commands.evaluate(model, data, **options)


@app.command(no_args_is_help=True)
@click.argument("model")
@click.argument("paths", type=_PATH, nargs=-1, required=True)
@click.option("--top", type=int, default=1, show_default=True, help="Classes a picture.")
@click.option("--format", type=click.Choice(["table", "csv", "json"]), default="table")
@inference_options
@debug_option
def predict(model: str, paths: tuple[Path, ...], **options: Any) -> None:
    """Say what MODEL sees in pictures or folders of pictures."""
    from bitzoo.cli import finetune as training_commands

    training_commands.predict(model, paths, **options)


@app.command(no_args_is_help=True)
@click.argument("model")
@click.option(
    "--to",
    type=click.Choice(["onnx", "openvino", "torch-export", "savedmodel"]),
    required=True,
    help="Format.",
)
@click.option(
    "--out",
    type=_PATH,
    required=True,
    help="File to write (.onnx, .xml, .pt2), or the folder of a SavedModel.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What kernels are stored in.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@json_option
@debug_option
def export(model: str, to: str, out: Path, **options: Any) -> None:
    """Write MODEL for another runtime, run the file, and say how far it deviates.

    MODEL is a catalogue name, a checkpoint file, or a run's folder.

    Example: bitzoo export BiT-M-R50x1-ILSVRC2012 --to onnx --out r50x1.onnx
    """
    from bitzoo.cli import export as export_commands

    export_commands.export(model, to, out, **options)


@app.command(no_args_is_help=True)
@click.argument("model")
@click.option("--repo", help="organisation/name: where to publish one model.")
@click.option("--org", help="Organisation or user; each model keeps its name there.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--create-pr", is_flag=True, help="Propose the files in a pull request.")
@click.option("--tag", help="Name the commit, such as v1.")
@click.option("--dry-run", is_flag=True, help="Write folder and plan; touch no network.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--folder", type=_PATH, help="Where the files are put together; default: the cache.")
@click.option("--license", "license_id", help="SPDX id, for files of which bitzoo knows none.")
@json_option
@debug_option
def publish(model: str, **options: Any) -> None:
    """Publish MODEL (a name or pattern, a file, a run's folder) to the Hugging Face Hub."""
    from bitzoo.cli import publish as publish_commands

    publish_commands.publish(model, **options)


@app.command(no_args_is_help=True)
@click.argument("model")
@click.option("--repo", help="organisation/name, for the snippets.")
@click.option("--out", type=_PATH, help="File to write; default: the screen.")
@debug_option
def card(model: str, **options: Any) -> None:
    """Write the model card of MODEL: a name, a file or a run's folder."""
    from bitzoo.cli import publish as publish_commands

    publish_commands.card(model, **options)


@app.command()
@click.option(
    "--folder",
    type=_PATH,
    default=Path("quickstart"),
    show_default=True,
    help="Where its files go.",
)
@debug_option
def quickstart(folder: Path) -> None:
    """Make a small random checkpoint, convert it with proof, classify a picture, fine-tune."""
    from bitzoo.cli.quickstart import run

    run(folder)


def main() -> None:
    """Run `bitzoo`."""
    _run(app)


def convert_main() -> None:
    """Run `bitzoo-convert`, which is `bitzoo convert`."""
    convert.context_settings = _SETTINGS
    _run(convert)


def _run(command: Callable[[], Any]) -> None:
    """Run a command; errors become one paragraph on stderr and an exit code."""
    exit_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except BitzooError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        _fail(f"{what}{error.strerror or error}. Check the path, its permissions and the disk.", 2)


def _fail(message: str, code: int) -> None:
    if _debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
