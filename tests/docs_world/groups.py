"""Which pages there are, and which test file runs which: two files, one for each of two cores."""

from __future__ import annotations

from pathlib import Path

from docs_world.world import CODE

DOCS = CODE / "docs"
QUICK = ("how-to/load-and-classify.md", "how-to/verify.md")
"""Pages that the quick tests run too."""
TRAINING = (
    *(
        f"how-to/{name}.md"
        for name in (
            *("probe", "time", "finetune", "library-data-sets", "cpu", "several-processes"),
            *("resume", "evaluating", "large-data", "fewshot", "vtab", "reproduce", "pretraining"),
            *("distillation", "studies"),
        )
    ),
    "reference/training-options.md",
)
"""Those of the second file."""


def all_pages() -> dict[str, Path]:
    """Name -> file of every page, README first."""
    names = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    return {"README.md": CODE / "README.md"} | {name: DOCS / name for name in names}
