"""Write `model_cards/`: a card per model of the catalogue, and an index.

    python tools/model_cards.py          # `make cards`

The 57 checkpoints of an architecture that were fine-tuned on VTAB-1k share one card.
"""

from __future__ import annotations

from pathlib import Path

from bitzoo import ModelSpec, get_spec, list_models
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.model_cards.render import CardSubject, render_card, render_vtab_card

FOLDER = Path(__file__).parents[1] / "model_cards"
INDEX = "README.md"
_VTAB = "BiT-M-VTAB"
_OWNER = "YOUR-NAME"


def render_all() -> dict[str, str]:
    """Return file name -> content of everything in `model_cards/`."""
    cards, rows = {}, []
    for name, specs in _groups().items():
        spec = specs[0]
        vtab = spec.family == _VTAB
        subject = CardSubject(f"{_OWNER}/{name}", ModelInfo.of_release(spec))
        cards[f"{name}.md"] = render_vtab_card(specs) if vtab else render_card(subject)
        rows.append(_row(name, specs))
    return {INDEX: _index(rows), **cards}


def _groups() -> dict[str, list[ModelSpec]]:
    """Name of the card -> what it is about, in the catalogue's order."""
    groups: dict[str, list[ModelSpec]] = {}
    for spec in map(get_spec, list_models()):
        name = f"BiT-M-{spec.arch_name}-VTAB" if spec.family == _VTAB else spec.name
        groups.setdefault(name, []).append(spec)
    return groups


def _row(name: str, specs: list[ModelSpec]) -> str:
    spec = specs[0]
    own = [m for m in spec.metrics if m.name == "top-1" and m.note.startswith("these weights")]
    score = f"{own[0].value:g} % on {own[0].dataset}" if own else ""
    classes = sorted({each.num_classes for each in specs})
    shown = f"{classes[0]:,}" + (f" to {classes[-1]:,}" if len(classes) > 1 else "")
    count = f" ({len(specs)} checkpoints)" if len(specs) > 1 else ""
    task = "the 19 tasks of VTAB-1k" if len(specs) > 1 else spec.task
    files = " ".join(spec.files) or "never released"
    return (
        f"| [{name}]({name}.md){count} | {spec.arch_name} | {spec.num_params:,} | {shown} | "
        f"{task} | {spec.resolution} | {score} | {files} |"
    )


def _index(rows: list[str]) -> str:
    head = (
        "# Model cards\n\nOne card per model of the catalogue, written by `make cards` from what "
        "bitzoo knows: no file was read for\nthem. `bitzoo card NAME` prints one, and "
        "`bitzoo publish` adds the proof about exactly the bytes that it\nsends. Scores are "
        "published scores of exactly these weights; the cards have their sources.\n\n"
        "| model | network | parameters | classes | trained for | px | published top-1 | files |\n"
        "|---|---|---:|---:|---|---:|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    """Write all files, and remove cards of models that the catalogue no longer has."""
    FOLDER.mkdir(exist_ok=True)
    wanted = render_all()
    for path in FOLDER.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(wanted) - 1} cards and their index in {FOLDER.name}/")


if __name__ == "__main__":
    main()
