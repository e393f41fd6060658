"""Errors name the Python option in Python and the flag on the command line."""

import errno
import logging
from typing import Any

import click
import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz

import bitzoo
from bitzoo.cli.command import Command
from bitzoo.cli.main import app
from bitzoo.cli.options import debug_option
from bitzoo.errors import BitzooError, HubError, ParityError, UsageError
from bitzoo.runs.run_dir import RunDir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a checkpoint and what an earlier conversion and export left."""
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "own.npz", make_checkpoint(num_classes=3))
    (tmp_path / "own.safetensors").write_text("mine")
    (tmp_path / "own.onnx").write_text("mine")
    (tmp_path / "taken.onnx").mkdir()
    return tmp_path


@pytest.fixture
def run(capsys):
    """A command line, run in this process -> exit code, stdout, stderr."""

    def call(command, *words):
        with pytest.raises(SystemExit) as ended:
            command.main(list(map(str, words)), prog_name="x")
        return ended.value.code or 0, *capsys.readouterr()

    return call


CASES = {
    "a taken output": (
        lambda: bitzoo.convert("own.npz"),
        ["convert", "--src", "own.npz"],
        "own.safetensors already exists. Choose another `dst`, or replace it with `force=True`.",
        "own.safetensors already exists. Choose another --dst, or replace it with --force.",
    ),
    "a report of nothing": (
        lambda: bitzoo.convert("own.npz", check="none", report="p.json"),
        ["convert", "--src", "own.npz", "--check", "none", "--report", "p.json"],
        'p.json: with `check="none"` there is no proof to report. Leave one of them out.',
        "p.json: with --check none there is no proof to report. Leave one of them out.",
    ),
    "a format for a file": (
        lambda: bitzoo.convert("own.npz", source_format="h5"),
        ["convert", "--src", "own.npz", "--from", "h5"],
        '`source_format="h5"` chooses between the released files of a catalogue name; own.npz is '
        "a file or an address, whose format is recognised. Leave `source_format` out.",
        "--from h5 chooses between the released files of a catalogue name; own.npz is a file or "
        "an address, whose format is recognised. Leave --from out.",
    ),
    "nothing to verify": (
        lambda: bitzoo.verify("own.npz", "own.safetensors", check="none"),
        ["verify", "own.npz", "own.safetensors", "--check", "none"],
        '`check="none"` would prove nothing. Use weights or logits.',
        "--check none would prove nothing. Use weights or logits.",
    ),
    "a suffix": (
        lambda: bitzoo.export("own.npz", "onnx", "own.pt2"),
        ["export", "own.npz", "--to", "onnx", "--out", "own.pt2"],
        "own.pt2: a file of format onnx must end in .onnx. Rename `out`.",
        "own.pt2: a file of format onnx must end in .onnx. Rename --out.",
    ),
    "a taken export": (
        lambda: bitzoo.export("own.npz", "onnx", "own.onnx"),
        ["export", "own.npz", "--to", "onnx", "--out", "own.onnx"],
        "own.onnx already exists. Choose another `out`, or replace it with `force=True`.",
        "own.onnx already exists. Choose another --out, or replace it with --force.",
    ),
    "a file for a folder": (  # which `force` would not replace
        lambda: bitzoo.export("own.npz", "savedmodel", "own.safetensors"),
        ["export", "own.npz", "--to", "savedmodel", "--out", "own.safetensors"],
        "own.safetensors: expected a new folder, found a file. Choose another `out`.",
        "own.safetensors: expected a new folder, found a file. Choose another --out.",
    ),
    "a folder for a file": (
        lambda: bitzoo.export("own.npz", "onnx", "taken.onnx", force=True),
        ["export", "own.npz", "--to", "onnx", "--out", "taken.onnx", "--force"],
        "taken.onnx: expected a file, found a folder. Choose another `out`.",
        "taken.onnx: expected a file, found a folder. Choose another --out.",
    ),
    "no guesses": (
        lambda: bitzoo.predict("own.npz", ["photo.png"], top=0),
        ["predict", "own.npz", "photo.png", "--top", "0"],
        "`top` must be at least 1, found 0.",
        "--top must be at least 1, found 0.",
    ),
    "empty batches": (
        lambda: bitzoo.predict("own.npz", ["photo.png"], batch_size=0),
        ["predict", "own.npz", "photo.png", "--batch-size", "0"],
        "`batch_size` must be at least 1, found 0.",
        "--batch-size must be at least 1, found 0.",
    ),
    "no repository": (
        lambda: bitzoo.publish("own.npz"),
        ["publish", "own.npz"],
        'Give the destination: `repo="organisation/name"` for one model, or `org="organisation"`, '
        "where each model keeps its name.",
        "Give the destination: --repo organisation/name for one model, or --org organisation, "
        "where each model keeps its name.",
    ),
    "one repository for many": (
        lambda: bitzoo.publish("BiT-M-*", repo="lab/x", license="mit"),
        ["publish", "BiT-M-*", "--repo", "lab/x", "--license", "mit"],
        "`folder`, `license` and `repo` are for one model; a pattern takes `org`.",
        "--folder, --license and --repo are for one model; a pattern takes --org.",
    ),
    "a tagged proposal": (
        lambda: bitzoo.publish("own.npz", repo="lab/x", tag="v1", create_pr=True),
        ["publish", "own.npz", "--repo", "lab/x", "--tag", "v1", "--create-pr"],
        "`tag` names a commit of the repository, which a pull request is not yet. Leave out "
        "one of `tag` and `create_pr`; tag the commit after the merge.",
        "--tag names a commit of the repository, which a pull request is not yet. Leave out "
        "one of --tag and --create-pr; tag the commit after the merge.",
    ),
    "no runs": (
        lambda: bitzoo.finetune("own.npz", "photos", "run", repeats=0),
        ["finetune", "--model", "own.npz", "--data", "photos", "--out", "run", "--repeats", "0"],
        "`repeats` must be at least 1, found 0.",
        "--repeats must be at least 1, found 0.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_names_options_in_its_own_form(folder, run, case, recwarn):
    function, words, in_python, on_the_command_line = CASES[case]
    (folder / "photo.png").touch()
    with pytest.raises(UsageError) as refused:
        function()
    assert str(refused.value) == in_python
    code, out, err = run(app, *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {on_the_command_line}"


@pytest.mark.parametrize(
    ("options", "in_python", "on_the_command_line"),
    [
        (
            {"resume": True, "overwrite": True},
            "`resume` and `overwrite` contradict each other. Choose one.",
            "--resume and --overwrite contradict each other. Choose one.",
        ),
        (
            {"resume": False, "overwrite": False},
            "already has a run. Continue it with `resume=True`, or delete it and start again "
            "with `overwrite=True`.",
            "already has a run. Continue it with --resume, or delete it and start again "
            "with --overwrite.",
        ),
    ],
)
def test_a_run_that_is_there(tmp_path, options, in_python, on_the_command_line):
    RunDir(tmp_path / "run").open({"seed": 0}, resume=False, overwrite=False)
    with pytest.raises(UsageError) as refused:
        RunDir(tmp_path / "run").open({"seed": 0}, **options)
    assert str(refused.value).endswith(in_python)
    finetune: Any = app.commands["finetune"]
    shown = finetune.with_flags(str(refused.value))
    assert shown.endswith(on_the_command_line)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`val_fraction`", "--val-fraction"),
        ("`skip_bad=True`", "--skip-bad"),
        ("`skip_bad=False`", "`skip_bad=False`"),
        ("`flip`, `flip=True`, `flip=False`", "--flip, --flip, --no-flip"),
        ("`pretrained=False`", "--random"),
        ("`pretrained=True`", "`pretrained=True`"),
        ("`batch_size=64`", "--batch-size 64"),
        ('`dtype="float16"`', "--dtype float16"),
        ("`out=path`", "`out=path`"),
        ("`force=True`", "`force=True`"),  # finetune has no such option
        ("`bitzoo list`", "`bitzoo list`"),
        ("steps", "steps"),
    ],
)
def test_only_options_of_the_command_are_rewritten(message, shown):
    finetune: Any = app.commands["finetune"]
    assert finetune.with_flags(f"Say {message}.") == f"Say {shown}."


def command(error):
    """A command that fails, in a group as `bitzoo` is one."""

    @click.group()
    @debug_option
    def group():
        pass

    @group.command("fail", cls=Command)
    @click.option("--force", is_flag=True)
    @debug_option
    def fail(force):
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UsageError("Use `force=True`."), 2, "Use --force."),
        (ParityError("It differs."), 1, "It differs."),
        (BitzooError("one\n\n  two"), 2, "one\n\n  two"),
        (HubError("The Hub refused."), 2, "The Hub refused."),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.npz"),
            2,
            "a.npz: Permission denied. Check the path, its permissions and the disk.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            2,
            "No space left on device. Check the path, its permissions and the disk.",
        ),
    ],
)
def test_an_error_is_one_paragraph_and_an_exit_code(run, error, code, shown):
    assert run(command(error), "fail") == (code, "", f"error: {shown}\n")


@pytest.mark.parametrize("words", [["fail", "--debug"], ["--debug", "fail"]])
def test_debug_adds_the_traceback_and_is_forgotten_afterwards(run, words):
    group = command(UsageError("Use `force=True`."))
    code, _, err = run(group, *words)
    assert code == 2
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nerror: Use --force.\n")
    assert run(group, "fail") == (2, "", "error: Use --force.\n")


def test_a_reader_who_has_left_is_no_error(run):
    code, _, err = run(command(BrokenPipeError(errno.EPIPE, "Broken pipe")), "fail")
    assert code == 1
    assert err == ""


def test_what_is_no_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError()).main(["fail"])


def test_warnings_name_flags_too(run):
    log = logging.getLogger("bitzoo.test_messages")
    log.propagate = False  # pytest listens at the root; a user's Python prints as the last resort

    @click.command(cls=Command)
    @click.option("--cache-gb", type=float)
    def warn(cache_gb):
        log.warning("%s full; raise `cache_gb`.", np.int64(3))

    assert run(warn) == (0, "", "3 full; raise --cache-gb.\n")
    assert logging.lastResort.formatter is None
