"""README: its table is the registry's, it is short, its links lead somewhere, its lines work.

Its blocks run in the small world of the documentation too (tests/docs_world).
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz
from docs_world.pages import read_page
from readme_table import README, TABLE, render
from servers import FileServer

TEXT = README.read_text(encoding="utf-8")
NAME = "BiT-M-R50x1-ILSVRC2012"
SCREEN_AND_A_HALF = 110


def test_the_catalogue_table_is_the_registry() -> None:
    match = TABLE.search(TEXT)
    assert match is not None
    assert match[0] == match[1] + render() + match[2], "run `make readme`"


def test_it_stays_a_screen_and_a_half() -> None:
    assert len(TEXT.splitlines()) <= SCREEN_AND_A_HALF


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    files = [link for link in links if "://" not in link]
    assert len(files) > 15
    assert [link for link in files if not (README.parent / link).is_file()] == []


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph, and Google's file, full-size R50x1."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder = tmp_path_factory.mktemp("workspace")
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "photo.jpg")
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
def test_the_first_command_and_the_python_at_full_size(
    workspace: Path, environment: dict[str, str]
) -> None:
    blocks = read_page(README).blocks
    (python,) = [block.text for block in blocks if block.kind == "python"]
    commands = [line for block in blocks for line in block.text.splitlines()]
    (convert,) = [line for line in commands if line.startswith("bitzoo convert ")]
    output = run(shlex.split(convert), workspace, environment)
    assert "every bit equal" in output
    assert "FAILED" not in output
    assert (workspace / "in1k.safetensors").stat().st_size > 100_000_000
    verify = ["bitzoo", "verify", f"{NAME}.npz", "in1k.safetensors"]
    assert "every bit equal" in run(verify, workspace, environment)
    answer = run([sys.executable, "-c", python], workspace, environment)
    assert re.fullmatch(r".+ \d+\.\d%\n", answer)
