"""Runs pages from the command line; see the package."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from docs_world import running
from docs_world.pages import read_page
from docs_world.running import PageError, Ran, run_page
from docs_world.world import World


def main() -> int:
    """Run the pages that are named; 1 if one of them is wrong."""
    parser = argparse.ArgumentParser(prog="python -m docs_world")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--show", action="store_true", help="print what every block printed")
    parser.add_argument("--work", type=Path, help="keep what is made here, for the next time too")
    parser.add_argument("--seconds", type=float, default=1800, help="what a page may take")
    words = parser.parse_args()
    running.PAGE_SECONDS = words.seconds
    work = words.work or Path(tempfile.mkdtemp(prefix="docs-"))
    failed = 0
    try:
        with World(work.resolve()) as world:
            for path in words.pages:
                failed += not _run(world, path, work.resolve() / "pages" / path.stem, words.show)
    finally:
        if not words.work:
            shutil.rmtree(work)
    return 1 if failed else 0


def _run(world: World, path: Path, folder: Path, show: bool) -> bool:
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    if path.suffix == ".ipynb":
        return _run_notebook(world, path, folder)
    page = read_page(path)

    def tell(ran: Ran) -> None:
        block = ran.block
        print(f"{path}:{block.line}: {block.kind}, {ran.seconds:.1f} s", flush=True)
        if show and not ran.error:
            print(ran.output, flush=True)

    try:
        run_page(world, page, folder / "work", tell)
    except PageError as error:  # what it made stays, to be looked at
        print(f"FAULT {error}", flush=True)
        return False
    shutil.rmtree(folder)
    for block in page.not_run:
        print(f"{path}:{block.line}: not run: {block.title}")
    print(f"{path}: fine, {time.monotonic() - start:.1f} s", flush=True)
    return True


def _run_notebook(world: World, path: Path, folder: Path) -> bool:
    from docs_world.notebooks import run_notebook

    try:
        run_notebook(world, path, folder / "work")
    except PageError as error:
        print(f"FAULT {error}", flush=True)
        return False
    shutil.rmtree(folder)
    print(f"{path}: fine", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
