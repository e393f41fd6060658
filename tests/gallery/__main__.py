"""Makes the pictures; see the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from browser.write_pages import page_of
from docs_world.world import World
from screens import Terminal

from bitzoo.catalogue.registry import get_spec
from gallery.network import train
from gallery.recording import write_recording
from gallery.sheets import write_sheet
from gallery.world import PRETRAINED, TrainedWorld, run_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PEOPLE, LEAVES = "smoking-and-phoning", "forest-pests"
COLUMNS, ROWS = 80, 40
RECORDED = {
    "convert": "bitzoo convert bit_m_r50x1.npz --force",
    "probe": "bitzoo probe BiT-M-R50x1 --data people.csv --folds 5 --group-by person",
    "finetune": "bitzoo finetune BiT-M-R50x1 --data people.csv --group-by person --out runs/film",
}


def main(work: Path, network: Path | None) -> None:
    """Run the examples' pages, and take from their folders what the gallery shows.

    Args:
        work: Folder to work in. What is in it already is not made again.
        network: Weights of the small network; None to train it, in `work`.
    """
    work.mkdir(parents=True, exist_ok=True)
    pages = {name: work / name / "work" for name in (PEOPLE, LEAVES)}
    if network is None:
        network = train(_scripts(work / "scripts"), work)
    with TrainedWorld(work / "world", network) as world:
        for name, folder in pages.items():
            if not folder.exists():
                run_page(world, DOCS / "examples" / f"{name}.md", folder.parent)
        _copy(pages[PEOPLE], pages[LEAVES], DOCS / "gallery")
        _record(world, pages[PEOPLE], DOCS / "gallery")
    examples = DOCS / "examples"
    write_sheet(
        pages[PEOPLE] / "people", ("phoning", "smoking", "neither"), examples / "people.webp"
    )
    kinds = ("healthy", "leaf-miner", "caterpillar", "galls")
    write_sheet(pages[LEAVES] / "leaves", kinds, examples / "leaves.webp")
    shots = [str(DOCS / "gallery" / f"{name}.html") for name in ("report", "probe", "card")]
    subprocess.run(
        ["node", str(ROOT / "tests/browser/shoot.mjs"), str(DOCS / "gallery"), *shots], check=True
    )


def _scripts(folder: Path) -> Path:
    """Write the drawing scripts that the pages show."""
    from docs_world.pages import read_page

    folder.mkdir(exist_ok=True)
    for name in (PEOPLE, LEAVES):
        for block in read_page(DOCS / "examples" / f"{name}.md").blocks:
            if block.kind == "file":
                (folder / block.title).write_text(block.text, encoding="utf-8")
    return folder


def _copy(people: Path, leaves: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    shutil.copy(people / "runs/balanced/report.html", folder / "report.html")
    shutil.copy(leaves / "probes/models/report.html", folder / "probe.html")
    card = (people / "runs/balanced/README.md").read_text(encoding="utf-8")
    (folder / "card.html").write_text(page_of(card, "A model card"), encoding="utf-8")


def _record(world: World, people: Path, folder: Path) -> None:
    """Record commands in the folder of the page, where the network is fetched already."""
    released = get_spec(PRETRAINED).files["npz"]
    shutil.copy(world.bucket.folder / released, people / "bit_m_r50x1.npz")
    for name, command in RECORDED.items():
        environment = world.environment(people.parent / "own")
        size = {"columns": COLUMNS, "rows": ROWS}
        words = command.split()[1:]
        with Terminal(words, **size, folder=people, environment=environment) as terminal:
            if terminal.finish(900):
                raise SystemExit(f"{command}:\n{terminal.text()}")
        write_recording(folder, name, command, terminal.seen)


if __name__ == "__main__":
    given = [Path(word).resolve() for word in sys.argv[1:]]
    if given:
        main(given[0], given[1] if len(given) > 1 else None)
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name), None)
