"""The notebooks of the documentation run, and a notebook that is wrong is found to be."""

import nbformat
import pytest
from docs_world.groups import DOCS
from docs_world.notebooks import run_notebook
from docs_world.running import PageError
from docs_world.world import World

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world"), forks=False) as made:
        yield made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_notebook(path, world, tmp_path):
    run_notebook(world, path, tmp_path / "work")


def write(folder, *cells):
    """A notebook of these cells, as if each had been run without an output."""
    v4 = nbformat.v4
    made = [v4.new_code_cell(text, execution_count=n) for n, text in enumerate(cells, start=1)]
    path = folder / "own.ipynb"
    nbformat.write(v4.new_notebook(cells=made), path)
    return path


def test_a_cell_that_fails(world, tmp_path):
    path = write(tmp_path, "x = 1", "x / 0")
    with pytest.raises(PageError, match="ZeroDivisionError"):
        run_notebook(world, path, tmp_path / "page" / "work")


def test_an_error_that_is_stored(world, tmp_path):
    path = write(tmp_path, "x = 1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].outputs = [
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    ]
    nbformat.write(notebook, path)
    with pytest.raises(PageError, match="cell 1 is stored with an error"):
        run_notebook(world, path, tmp_path / "page" / "work")


def test_a_cell_that_was_never_run(world, tmp_path):
    path = write(tmp_path, "x = 1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].execution_count = None
    nbformat.write(notebook, path)
    with pytest.raises(PageError, match="not of one run in order"):
        run_notebook(world, path, tmp_path / "page" / "work")


def test_the_kernel_is_in_the_small_world(world, tmp_path):
    path = write(
        tmp_path,
        "import os\nfrom bitzoo.models.architecture import ARCHITECTURES",
        "assert ARCHITECTURES['R50x1'].depths == (1, 1, 1, 1)",
        "assert os.environ['BITZOO_MIRROR'].startswith('http://127.0.0.1:')",
    )
    run_notebook(world, path, tmp_path / "page" / "work")
