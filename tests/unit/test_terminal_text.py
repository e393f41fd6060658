"""What reaches a terminal: bounded messages, and no characters that act on it."""

import json
import logging
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import numpy as np
import pytest
from checkpoints import as_timm, make_checkpoint
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import save_file

import bitzoo.cli
from bitzoo import errors
from bitzoo.cli.command import Command
from bitzoo.cli.console import print_facts, print_json, print_table, say
from bitzoo.cli.main import app
from bitzoo.display import shortened, visible
from bitzoo.errors import BitzooError, CheckpointError, damage_reported

HOSTILE = "\x1b]0;owned\x07 \u202egnp.exe \x9b31m \u2028 \ud800 \x7f \r"
SHOWN = r"\x1b]0;owned\x07 \u202egnp.exe \x9b31m \u2028 \ud800 \x7f \r"
LETTERS = "\u00e9 \u65e5\u672c \u0627\u0644 \U0001f431 \u0646\u200c\u06cc a\u00a0b\u3000c"
ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, BitzooError)
]


def test_what_acts_on_a_terminal_is_shown_and_letters_stay():
    assert visible(HOSTILE) == SHOWN
    assert visible(LETTERS) == LETTERS
    assert visible("two\nlines") == "two\nlines"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, *range(0x202A, 0x202F), 0xFEFF, 0xE0041):
        assert visible(chr(code)).isprintable() or code == 10


@pytest.mark.parametrize("kind", ERRORS)
def test_messages_are_bounded_and_visible_whoever_shows_them(kind):
    error = kind(f"{HOSTILE}\n" + "x" * 70_000 + " Do this next.")
    assert str(error).startswith(f"{SHOWN}\nxxx")
    assert str(error).endswith("xxx Do this next.")
    assert len(str(error)) <= 6_000
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_message_of_many_lines_keeps_its_beginning_and_its_end():
    lines = str(BitzooError("first\n" + "line\n" * 5_000 + "last")).split("\n")
    assert (lines[0], lines[-1], len(lines)) == ("first", "last", 50)
    assert "  [... 4,953 lines ...]" in lines


def test_shortened_says_what_it_left_out():
    assert shortened("a" * 100, 100) == "a" * 100
    text = shortened("a" * 500 + "b" * 500, 200)
    assert len(text) <= 200
    assert re.fullmatch(r"a+ \[\.\.\. 8\d\d characters \.\.\.\] b+", text)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyError("shape"), "KeyError: 'shape'"),
        (MemoryError(), "MemoryError"),
        (RecursionError("maximum recursion"), "maximum recursion"),
        (OverflowError("too large"), "too large"),
        (OSError("no errno"), "no errno"),
        (ValueError("a\n  b" + "c" * 70_000), "a b" + "c" * 197 + "..."),
        (AssertionError(), "AssertionError"),
    ],
)
def test_the_boundary_of_a_reader(raised, said):
    with pytest.raises(CheckpointError) as caught, damage_reported("a.npz", "a zip file"):
        raise raised
    assert str(caught.value) == (
        f"a.npz: expected a zip file, but it cannot be read ({said}). It is truncated or damaged; "
        "fetch it again."
    )
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised",
    [KeyboardInterrupt(), SystemExit(3), errors.UsageError("ours"), PermissionError(13, "denied")],
)
def test_what_passes_the_boundary(raised):
    with pytest.raises(type(raised)) as caught, damage_reported("a.npz", "a zip file"):
        raise raised
    assert caught.value is raised


# --- the command line -----------------------------------------------------------------------------


def _facts(name, value):
    """A fact in lines of 80 columns."""
    first, *more = textwrap.wrap(value, 80 - len(name) - 2, subsequent_indent="  ")
    yield f"{name}  {first}"
    yield from (" " * (len(name) + 2) + line for line in more)


def test_everything_that_is_printed_is_visible(capsys):
    say(HOSTILE)
    say(HOSTILE, error=True)
    print_table(("name",), [(f"{HOSTILE}\nanother row",)])
    print_facts([("name", f"{HOSTILE}\nproof  every bit equal"), ("list", ["\x1b[2J"])])
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    assert err == f"{SHOWN}\n"
    assert out.splitlines() == [
        SHOWN,
        "name",
        rf"{SHOWN}\nanother row",
        *(line.rstrip() for line in _facts("name", rf"{SHOWN}\nproof  every bit equal")),
        r"list  \x1b[2J",
    ]


def test_json_is_exact_and_ascii(capsys):
    print_json({HOSTILE: [LETTERS, "a\nb"]})
    out, _ = capsys.readouterr()
    assert json.loads(out) == {HOSTILE: [LETTERS, "a\nb"]}
    assert out.isascii()
    assert out.replace("\n", "").isprintable()


def test_errors_warnings_and_tracebacks_are_visible(monkeypatch):
    # as in a real process, where nobody has set up logging; pytest's own handler also would send
    # the text to another process, which cannot take a lone surrogate
    monkeypatch.setattr(logging.getLogger("bitzoo"), "propagate", False)

    @click.command(cls=Command)
    def command():
        logging.getLogger("bitzoo").warning("note %s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            raise CheckpointError(f"{HOSTILE}: wrong") from error

    @click.group()
    @click.pass_context
    def main(context):
        context.meta["bitzoo.debug"] = True

    main.add_command(command, "x")
    result = CliRunner().invoke(main, ["x"])
    assert result.exit_code == 2
    assert f"note {SHOWN}" in result.output
    assert f"error: {SHOWN}: wrong" in result.output
    assert f"ValueError: {SHOWN}" in result.output
    assert result.output.replace("\n", "").isprintable()


def test_commands_print_through_one_place():
    """`say`; and CSV, whose cells are made visible before."""
    found = []
    for path in sorted(Path(bitzoo.cli.__file__).parent.glob("*.py")):
        for line in path.read_text().splitlines():
            if re.search(r"(?<![\w.])print\(|\becho\(|std(out|err)\.write\(", line):
                found.append((path.name, line.strip()))
    assert [name for name, _ in found] == ["console.py", "evaluate.py"]


@pytest.fixture
def hostile_model(tmp_path):
    """A folder whose class names and metadata would act on a terminal; and a picture."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = as_timm(make_checkpoint(num_classes=2))
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    long = {"note": "\x1b[31m" + "x" * 100_000}
    save_file(arrays, folder / "model.safetensors", metadata=long)
    names = ["\x1b[2Jcat\nfake line", "\u202egod"]
    (folder / "config.json").write_text(json.dumps({"label_names": names, "pretrained_cfg": {}}))
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    return folder, tmp_path / "a.png", names


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_class_names_from_files_in_predictions(hostile_model, form):
    folder, picture, names = hostile_model
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] = {"input_size": [3, 32, 32]}
    (folder / "config.json").write_text(json.dumps(config))
    command = ["predict", str(folder), str(picture), "--top", "2", "--format", form]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert re.sub(r"[\r\n]", "", result.stdout).isprintable()
    if form == "json":
        guesses = json.loads(result.stdout)[0]["predictions"]
        assert {guess["label"] for guess in guesses} == set(names)
    else:
        assert r"\x1b[2Jcat\nfake line" in result.stdout
        assert r"\u202egod" in result.stdout


def test_info_of_a_hostile_file_is_a_screen(hostile_model):
    result = CliRunner().invoke(app, ["info", str(hostile_model[0])])
    assert result.exit_code == 0, result.output
    assert result.output.replace("\n", "").isprintable()
    assert len(result.output) < 6_000
    assert r"\x1b[31mxxx" in result.output


def test_a_name_that_is_no_text_is_an_error_not_a_traceback(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "bitzoo", "info", b"\xff\x1b[31m.npz"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith(rb"error: ")
    assert rb"\udcff\x1b[31m.npz" in run.stderr
