"""The world in which the pages run, with a network that was trained and longer plans.

    PYTHONPATH=tests:. python -m gallery.world NETWORK WORK docs/examples/forest-pests.md

runs pages as `python -m docs_world --show` does. `BiT-M-R50x1` has the weights of NETWORK there;
all other names have random ones. Trainings take at most as many steps, of as many images and
pixels, as `LIMITS` says.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from docs_world import running
from docs_world.pages import read_page
from docs_world.world import World

from bitzoo.catalogue.registry import get_spec
from gallery.network import write_as_release

LIMITS = "60,32,80"
"""Steps, images of a step, pixels of an edge."""
PRETRAINED = "BiT-M-R50x1"
PAGE_SECONDS = 3600.0


class TrainedWorld(World):
    """As the world of the tests, but for the network and the plans."""

    def __init__(self, folder: Path, network: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        spec = get_spec(PRETRAINED)
        file = self.bucket.folder / spec.files["npz"]
        if not file.exists():
            write_as_release(network, file, spec.num_classes)

    def environment(self, *words: Any, **named: Any) -> dict[str, str]:
        """The environment of a page."""
        return {**super().environment(*words, **named), "BITZOO_DOCS_LIMITS": LIMITS}


def run_page(world: World, path: Path, folder: Path) -> None:
    """Run a page in a new folder, and print what its blocks print."""
    shutil.rmtree(folder, ignore_errors=True)
    running.PAGE_SECONDS = PAGE_SECONDS

    def tell(ran: running.Ran) -> None:
        print(f"--- line {ran.block.line}, {ran.seconds:.0f} s\n{ran.output}", flush=True)

    running.run_page(world, read_page(path), folder / "work", tell)


if __name__ == "__main__":
    network, work, *pages = map(Path, sys.argv[1:])
    with TrainedWorld(work.resolve(), network) as world:
        for page in pages:
            run_page(world, page, work.resolve() / "pages" / page.stem)
