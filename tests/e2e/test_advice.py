"""What messages advise works: every command that they name exists, and the ways out lead out."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import as_timm, make_checkpoint, write_npz
from hub_server import HubServer
from publishing import Workspace
from servers import FileServer

import bitzoo
from bitzoo.cli.main import app

DTD = "BiT-M-R50x1-run0-dtd"


def texts(path):
    """Every text in a module, with {} where something is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in ast.walk(node) if part is not node}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield str(node.value)


def advised():
    """Every command in backticks in a text of the package: module and words, without repeats."""
    package = Path(bitzoo.__file__).parent
    files = [(path, texts(path)) for path in sorted(package.rglob("*.py"))]
    files += [(path, [path.read_text()]) for path in sorted(package.rglob("*.j2"))]
    found: dict[str, str] = {}
    for path, said in files:
        for text in said:
            for command in re.findall(r"`((?:bitzoo|bitzoo-convert|hf) [^`]+)`", text):
                found.setdefault(command, path.name)
    return sorted(found.items())


ADVISED = advised()


def test_there_is_advice():
    assert len(ADVISED) > 10
    assert {command.split()[1] for command, _ in ADVISED} >= {"convert", "list", "finetune", "auth"}


@pytest.mark.parametrize(("command", "module"), [a for a in ADVISED if a[0].startswith("bitzoo")])
def test_commands_and_options_exist(command, module):
    program, *words = shlex.split(command)
    name = "convert" if program == "bitzoo-convert" else words.pop(0)
    found = app.get_command(click.Context(app), name)
    assert found is not None, f"{module} advises {command}"
    known = {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)}
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert flags <= known, f"{module} advises {command}"


@pytest.mark.parametrize("command", [c for c, _ in ADVISED if c.startswith("hf ")])
def test_commands_of_the_hubs_client_exist(command):
    words = shlex.split(command)[1:]
    plain = [word for word in words if not word.startswith("-")]
    shown = subprocess.run(
        [Path(sys.executable).with_name("hf"), *plain, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "", "NO_COLOR": "1"},
    ).stdout
    for flag in set(words) - set(plain):
        assert flag in shown


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = write_npz(tmp_path_factory.mktemp("npz") / "x.npz", make_checkpoint(num_classes=47))
    with FileServer({f"vtab/{DTD}.npz": path.read_bytes()}) as server:
        yield server


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, served):
    tensors = {
        name: np.ascontiguousarray(array)
        for name, array in as_timm(make_checkpoint(num_classes=3)).items()
    }
    with HubServer() as hub:
        hub.add_repo("lab/net", {"model.safetensors": safetensors.numpy.save(tensors)})
        folder = tmp_path_factory.mktemp("workspace")
        with Workspace(folder, hub, BITZOO_MIRROR=served.url) as place:
            yield place


def follow(workspace, error, **values):
    """Run the command that a message advises, with what it leaves to the user."""
    (command,) = re.findall(r"`bitzoo ([^`]+)`", error)
    words = [values.get(word, word) for word in shlex.split(command)]
    return workspace.run(*words)


@pytest.mark.parametrize("words", [["card"], ["publish", "--repo", "lab/copy", "--dry-run"]])
@pytest.mark.parametrize("kind", ["hub", "hf-hub", "address"])
def test_of_an_address(workspace, served, words, kind):
    address = f"{served.url}vtab/{DTD}.npz" if kind == "address" else f"{kind}:lab/net"
    refused = workspace.run(*words, address, code=2).err
    assert f"{address}: expected a catalogue name, a file or a folder" in refused
    for left in ("parity.json", "net.safetensors", f"{DTD}.safetensors"):
        (workspace.folder / left).unlink(missing_ok=True)
    follow(workspace, refused, ADDRESS=address)
    made = f"{DTD}.safetensors" if kind == "address" else "net.safetensors"
    assert made in workspace.run(*words, made).out.replace("\\", "") or words[0] == "publish"


@pytest.mark.parametrize("words", [["info"], ["card"], ["convert", "--src"]])
def test_of_a_bare_name(workspace, words):
    refused = workspace.run(*words, "lab/net", code=2).err
    (hint,) = re.findall(r"write (hub:\S+)\.$", refused, re.MULTILINE)
    workspace.run("info", hint)


def test_of_a_name_that_is_not_on_this_disk(workspace):
    words = ["publish", DTD, "--repo", "lab/dtd", "--dry-run"]
    (workspace.folder / f"{DTD}.safetensors").unlink(missing_ok=True)
    follow(workspace, workspace.run(*words, code=2).err)
    workspace.run(*words)


def test_of_a_proof_without_logits(workspace):
    write_npz(workspace.folder / "own.npz", make_checkpoint(num_classes=5))
    workspace.run("convert", "--src", "own.npz", "--check", "weights")
    words = ["publish", "own.safetensors", "--repo", "lab/own", "--dry-run"]
    refused = workspace.run(*words, code=2).err
    (command,) = re.findall(r"`bitzoo ([^`]+)`", refused)
    workspace.run(*shlex.split(command), "--src", "own.npz")
    workspace.run(*words)


def test_of_a_pattern(workspace):
    follow_up = workspace.run("publish", "BiT-X-*", "--org", "lab", "--dry-run", code=2).err
    for command in re.findall(r"`bitzoo ([^`]+)`", follow_up):
        workspace.run(*shlex.split(command))


@pytest.mark.parametrize("words", [["info", "hub:lab/none"], ["info", "hub:lab/net@v9"]])
def test_loading_does_not_speak_of_publishing(workspace, words):
    said = workspace.run(*words, code=2).err
    assert "commit" not in said.replace("branch, tag or commit", "")
    assert "uploaded" not in said
