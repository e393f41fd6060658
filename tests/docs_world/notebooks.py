"""Notebooks of the documentation: what they show was made without an error, and they run again."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

from docs_world import running
from docs_world.running import PageError
from docs_world.world import World


def run_notebook(world: World, path: Path, folder: Path) -> None:
    """Run all cells of a notebook in a kernel of the small world, in a folder of its own.

    Raises:
        PageError: If a cell fails, or failed when the stored outputs were made, or was never run.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        raise PageError(f"{path}: stored outputs are not of one run in order: {counts}")
    for cell in cells:
        if any(output.output_type == "error" for output in cell.outputs):
            raise PageError(f"{path}: cell {cell.execution_count} is stored with an error")
    own, given = folder.parent / "own", tuple(notebook.metadata.get("given", ()))
    folder.mkdir(parents=True)
    environment = world.environment(own) | world.processes(given)
    world.clear_hub()
    world.furnish(folder, own, given)
    client = nbclient.NotebookClient(
        notebook,
        timeout=running.PAGE_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute(env=environment)
    except (nbclient.exceptions.CellExecutionError, nbclient.exceptions.CellTimeoutError) as error:
        raise PageError(f"{path}: {error}") from error
