"""A notebook as a page of the documentation: text, cells and their outputs, in order."""

import json
from pathlib import Path

import pytest
from docs_notebooks import markdown_of

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cell(kind, source, **more):
    return {"cell_type": kind, "source": source.splitlines(keepends=True), **more}


def test_cells_become_text_code_and_what_they_showed():
    printed = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    value = {"output_type": "execute_result", "data": {"text/plain": ["3"], "text/html": ["x"]}}
    picture = {
        "output_type": "execute_result",
        "data": {"image/png": "QUJD\n", "text/plain": ["p"]},
    }
    notebook = {
        "cells": [
            cell("markdown", "# A title\n\nA line."),
            cell("code", "print(1)\nprint(2)\n3", outputs=[printed, value]),
            cell("code", "picture", outputs=[picture]),
        ]
    }
    assert markdown_of(notebook, "n.ipynb") == (
        "# A title\n\n[Download this notebook](n.ipynb){ download }\n\n\nA line.\n\n"
        "```python\nprint(1)\nprint(2)\n3\n```\n\n```text\n1\n2\n```\n\n```text\n3\n```\n\n"
        "```python\npicture\n```\n\n"
        "![The picture that the cell above shows](data:image/png;base64,QUJD)\n"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_small_and_were_run_from_first_to_last_cell(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    assert len(text) < 200_000
    for place in ("/tmp", "/home", "/root", "/work", "127.0.0.1"):
        assert place not in text


def test_there_are_two_notebooks():
    assert len(NOTEBOOKS) == 2
