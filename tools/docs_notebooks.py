"""Hook of MkDocs: each notebook in docs/ becomes a page, with the outputs that it stores.

Nothing is run, and Jupyter is not needed: a notebook is JSON. The notebook itself stays beside the
page, to be downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDING = ".ipynb"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith(ENDING):
            source = Path(file.abs_src_path)
            notebook = json.loads(source.read_text(encoding="utf-8"))
            name = file.src_uri.removesuffix(ENDING) + ".md"
            content = markdown_of(notebook, source.name)
            files.append(File.generated(config, name, content=content))
    return files


def markdown_of(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as Markdown.

    Args:
        notebook: What its file holds.
        name: Name of the file, which the page links to.
    """
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts += _output(output)
    title, *rest = parts[0].split("\n", 1)
    link = f"[Download this notebook]({name}){{ download }}"
    return "\n\n".join([title, link, *rest, *parts[1:]]) + "\n"


def _output(output: dict[str, Any]) -> Iterator[str]:
    """The first form of an output that a page can show: a picture, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).strip()
        yield f"![The picture that the cell above shows](data:image/png;base64,{picture})"
    else:
        text = "".join(output.get("text", data.get("text/plain", "")))
        yield f"```text\n{text.rstrip()}\n```"
