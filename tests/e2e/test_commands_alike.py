"""What holds for all commands: how a model is named, versions, JSON, completion, 80 columns."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from checkpoints import TINY, make_checkpoint, write_npz
from click.testing import CliRunner

import bitzoo
from bitzoo.catalogue import registry
from bitzoo.cli.main import app

PROGRAMS = Path(sys.executable).parent


def call(*words: object, code: int = 0, **options: Any):
    result = CliRunner().invoke(app, list(map(str, words)), **options)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_npz(folder / "own.npz", make_checkpoint(TINY, 0.5, 10))


class TestTheModel:
    @pytest.mark.parametrize("command", ["finetune", "convert", "hyperrule"])
    def test_is_the_first_argument_of_every_command(self, command):
        """Those that had a flag for it alone."""
        (argument,) = (
            parameter
            for parameter in app.commands[command].params
            if isinstance(parameter, click.Argument)
        )
        assert argument.metavar in ("MODEL", "SRC")

    def test_every_command_takes_a_model_first_or_has_none(self):
        first = {
            name: next((p for p in command.params if isinstance(p, click.Argument)), None)
            for name, command in app.commands.items()
        }
        without = {name for name, argument in first.items() if argument is None}
        assert without == {"quickstart"}
        others = {
            "list": "pattern",
            "verify": "src",
            "completion": "shell",
            "convert": "src_argument",
            "resume": "folder",
            "study": "file",
            "pretrain": "arch_argument",
            "distill": "student_argument",
            "probe": "models_argument",
        }
        for name, argument in first.items():
            if argument is not None:
                assert argument.name in (others.get(name), "model", "model_argument"), name

    def test_both_ways_do_the_same(self, checkpoint, tmp_path):
        by_argument, by_flag = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        call("convert", checkpoint, "--dst", by_argument, "--check", "none")
        call("convert", "--src", checkpoint, "--dst", by_flag, "--check", "none")
        assert by_argument.read_bytes() == by_flag.read_bytes()

    def test_flag_and_argument_name_one_model(self, checkpoint, tmp_path):
        twice = call("convert", checkpoint, "--src", "other.npz", "--dst", tmp_path / "x", code=2)
        assert f"SRC is named twice: '{checkpoint}' and --src 'other.npz'. Leave one out." in (
            twice.output
        )
        call("hyperrule", "BiT-M-R152x4", "--model", "BiT-M-R152x4", *PLAN)

    def test_a_missing_one_is_asked_for(self):
        assert (
            "Missing argument 'MODEL'."
            in call("finetune", "--data", "x", "--out", "y", code=2).output
        )
        assert "Missing argument 'SRC'." in call("convert", "--force", code=2).output

    def test_the_plan_depends_on_it(self):
        usual, large = (call("hyperrule", *name, *PLAN).output for name in ([], ["BiT-M-R152x4"]))
        assert "\ntest images      resize to 384x384\n" in usual
        assert "\ntest images      resize to 480x480\n" in large
        assert call("hyperrule", "--model", "BiT-M-R152x4", *PLAN).output == large


PLAN = ("--examples", 1000, "--size", 480)


@pytest.mark.parametrize("program", ["bitzoo", "bitzoo-convert"])
def test_both_programs_tell_their_version(program):
    printed = subprocess.check_output([PROGRAMS / program, "--version"], text=True)
    assert printed == f"bitzoo {bitzoo.__version__}\n"


class TestList:
    @pytest.mark.parametrize("text", ["R50", "r50", "*R50*"])
    def test_a_part_of_the_name_finds_it(self, text):
        result = call("list", text)
        names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
        assert names == [name for name in registry.list_models() if "R50" in name]
        assert len(names) == 124

    def test_nothing_found_is_said(self):
        result = call("list", "R99")
        assert (result.stdout, result.stderr) == (
            "",
            "0 models: no name matches 'R99'. `bitzoo list` shows all.\n",
        )
        assert call("list", "R99", "--json").stdout == "[]\n"


class TestWidth:
    """Of what is printed, only addresses and paths are longer than 80 columns."""

    def commands(self, checkpoint: Path, folder: Path) -> list[list[object]]:
        output = folder / "o.safetensors"
        return [
            ["list"],
            ["info", "BiT-M-R50x1"],
            ["info", "BiT-M-R152x4-run2-dsprites-orientation"],
            ["hyperrule", *PLAN],
            ["convert", checkpoint, "--dst", output],
            ["convert", checkpoint, "--dst", folder / "half.safetensors", "--dtype", "float16"],
            ["verify", checkpoint, output],
            ["info", output],
            ["publish", output, "--repo", "a/b", "--dry-run", "--folder", folder / "staged"],
            ["export", output, "--to", "torch-export", "--out", folder / "o.pt2"],
        ]

    @pytest.mark.slow
    def test_80_columns(self, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
        for words in self.commands(checkpoint, tmp_path):
            for line in call(*words).output.splitlines():
                rest = [w for w in line.split() if "/" not in w and "_" not in w]
                assert len(line) <= 80 or len(" ".join(rest)) <= 40, line

    def test_the_verdict_comes_last(self, checkpoint, tmp_path):
        output = tmp_path / "o.safetensors"
        printed = call("convert", checkpoint, "--dst", output, "--check", "weights").output
        assert printed.endswith("\nok: 45 of 45 tensors, logits not compared\n")
        other = write_npz(tmp_path / "other.npz", make_checkpoint(TINY, 0.5, 10, seed=1))
        differing = call("verify", other, output, "--check", "weights", code=1)
        *_, last = differing.stdout.splitlines()
        assert last == "FAILED: 0 of 45 tensors, logits not compared"


def test_a_card_as_json(checkpoint, tmp_path):
    printed = call("card", checkpoint).stdout
    document = json.loads(call("card", checkpoint, "--json").stdout)
    assert document == {"card": printed, "path": None}
    written = json.loads(call("card", checkpoint, "--json", "--out", tmp_path / "c.md").stdout)
    assert written["path"] == str(tmp_path / "c.md")
    assert (tmp_path / "c.md").read_text() == written["card"] == document["card"]


class TestCompletion:
    """In a real bash, with the script that the command prints; others by click's protocol."""

    def complete(self, line: str, folder: Path) -> list[str]:
        script = call("completion", "bash").stdout
        (folder / "setup.sh").write_text(script)
        program = line.split()[0]
        function = f"_{program.replace('-', '_')}_completion"
        asked = (
            f"source setup.sh; words=({line}X); words[-1]=${{words[-1]%X}}; "
            'COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); '
            # `compopt` works in a running completion only: say what it was asked for
            'compopt() { echo "compopt $1 $2"; }; '
            f'{function} {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
        shell = shutil.which("bash")
        assert shell is not None
        found = subprocess.run(
            [shell, "--norc", "-c", asked],
            cwd=folder, env=environment, text=True, capture_output=True, check=True,
        )  # fmt: skip
        assert found.stderr == ""
        return found.stdout.split("\n")[:-1]

    def test_names(self, tmp_path):
        found = self.complete("bitzoo info bit-m-r50x1-IL", tmp_path)
        assert found == ["BiT-M-R50x1-ILSVRC2012"]

    def test_names_beside_paths(self, tmp_path):
        (tmp_path / "BiT-M-own.npz").touch()
        (tmp_path / "BiT-M-R50x1-ILSVRC2012").mkdir()
        found = self.complete("bitzoo evaluate BiT-M-R50x1-IL", tmp_path)
        assert found == ["BiT-M-R50x1-ILSVRC2012", "BiT-M-R50x1-ILSVRC2012/"]

    @pytest.mark.parametrize(
        "line", ["bitzoo info ./o", "bitzoo-convert own", "bitzoo finetune x --data pho"]
    )
    def test_paths_are_left_to_the_shell(self, tmp_path, line):
        assert self.complete(line, tmp_path) == ["compopt -o default", ""]

    def test_commands_and_options(self, tmp_path):
        assert self.complete("bitzoo exp", tmp_path) == ["export"]
        assert self.complete("bitzoo-convert --keep", tmp_path) == ["--keep-source"]
        assert self.complete("bitzoo export x --to onn", tmp_path) == ["onnx"]

    @pytest.mark.parametrize("shell", ["zsh", "fish"])
    def test_other_shells(self, shell):
        script = call("completion", shell).stdout
        for program in ("bitzoo", "bitzoo-convert"):
            variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
            assert f"{variable}={shell}_complete" in script
        answer = subprocess.run(
            [PROGRAMS / "bitzoo"],
            env={
                **os.environ,
                "_BITZOO_COMPLETE": f"{shell}_complete",
                "COMP_WORDS": "bitzoo info BiT-L-R50x",
                "COMP_CWORD": "2" if shell == "zsh" else "BiT-L-R50x",
            },
            text=True, capture_output=True, check=True,
        )  # fmt: skip
        # zsh, and fish since click 8.5, have lines of their own; before, fish had "plain,NAME"
        found = re.fullmatch(
            r"plain[\n,](\S+?)(?:\n_)?\nplain[\n,](\S+?)(?:\n_)?", answer.stdout.strip()
        )
        assert found is not None
        assert found.groups() == ("BiT-L-R50x1", "BiT-L-R50x3")
