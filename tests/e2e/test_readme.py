"""README's claims: its table is the registry's, its Python runs, its commands exist and work."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz
from readme_table import README, TABLE, render
from servers import FileServer

import bitzoo

TEXT = README.read_text(encoding="utf-8")
NAME = "BiT-M-R50x1-ILSVRC2012"


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def test_the_catalogue_table_is_the_registry() -> None:
    match = TABLE.search(TEXT)
    assert match is not None
    assert match[0] == match[1] + render() + match[2], "run `make readme`"


def test_calls_from_python_fit_their_functions() -> None:
    """Names, positions and keywords of each call of bitzoo that a line of the README shows."""
    lines = [line for line in TEXT.splitlines() if re.match(r" {4}bitzoo\.", line)]
    called = set()
    for line in lines:
        for node in ast.walk(ast.parse(line.strip())):
            if isinstance(node, ast.Call) and getattr(node.func, "value", None) is not None:
                function = node.func
                assert isinstance(function, ast.Attribute)
                if isinstance(function.value, ast.Name) and function.value.id == "bitzoo":
                    signature = inspect.signature(getattr(bitzoo, function.attr))
                    signature.bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
                    called.add(function.attr)
    assert called == {"convert", "verify", "finetune", "evaluate", "predict", "export", "publish"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README names, full-size R50x1."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("workspace")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "photo.jpg")
    write_npz(folder / "bit_m_r50x1.npz", make_checkpoint((3, 4, 6, 3), 1, 21843))
    write_npz(folder / f"{NAME}.npz", make_checkpoint((3, 4, 6, 3), 1, 1000))
    return folder


@pytest.fixture(scope="module")
def environment(workspace: Path) -> Iterator[dict[str, str]]:
    with FileServer({f"{NAME}.npz": (workspace / f"{NAME}.npz").read_bytes()}) as server:
        yield {
            **os.environ,
            "BITZOO_CACHE": str(workspace / "cache"),
            "BITZOO_MIRROR": server.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }


def run(command: list[str], workspace: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=workspace, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full_size
def test_commands_then_python(workspace: Path, environment: dict[str, str]) -> None:
    """Every command and snippet, in the order of the README's converting and loading."""
    commands = [
        line
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith(("bitzoo ", "bitzoo-convert "))
    ]
    assert len(commands) == 6
    for command in commands:
        output = run(shlex.split(command), workspace, environment)
        if "convert" in command or "verify" in command:
            assert "every bit equal" in output
            assert "FAILED" not in output
    assert (workspace / "bit_m_r50x1.safetensors").stat().st_size > 270_000_000
    first, loading = blocks("python")
    answer = run([sys.executable, "-c", first], workspace, environment)
    assert re.fullmatch(r".+ \d+\.\d%\n", answer)
    check = "\nprint(model.num_classes, model.num_features)"
    assert run([sys.executable, "-c", loading + check], workspace, environment) == "0 2048\n"
