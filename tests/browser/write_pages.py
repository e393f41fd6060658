"""Write the pages that `check.mjs` opens: reports of all commands and cards, into a folder.

    python tests/browser/write_pages.py FOLDER

Cards are Markdown; they are rendered as GitHub's dialect, inside a plain page in the width and the
colours that the Hub gives them.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

from markdown_it import MarkdownIt  # noqa: E402
from report_pages import (  # noqa: E402
    SIZES,
    fewshot_result,
    leaking_record,
    probe_result,
    record_of,
    study_result,
    vtab_result,
)

from bitzoo.runs.report.fewshot_page import write_fewshot_report  # noqa: E402
from bitzoo.runs.report.html import write_card, write_report  # noqa: E402
from bitzoo.runs.report.probe_page import write_probe_report  # noqa: E402
from bitzoo.runs.report.study_page import write_study_report  # noqa: E402
from bitzoo.runs.report.vtab_report import write_vtab_report  # noqa: E402

CARDS = ("BiT-M-R50x1", "BiT-M-R50x1-ILSVRC2012", "BiT-M-R50x1-VTAB", "BiT-L-R50x1", "README")
_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --page: #ffffff; --text: #1f2937; --line: #e5e7eb; --code: #f3f4f6; --link: #0b5cad; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #0b0f19; --text: #d1d5db; --line: #374151; --code: #1f2937; --link: #7ab8ff; }}
}}
body {{ margin: 0; background: var(--page); color: var(--text); font: 16px/1.6 sans-serif; }}
main {{ max-width: 760px; margin: 0 auto; padding: 16px; overflow-wrap: break-word; }}
a {{ color: var(--link); }}
code, pre {{ background: var(--code); font-size: 14px; }}
pre {{ padding: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }}
.table {{ overflow-x: auto; }}
th, td {{ border: 1px solid var(--line); padding: 4px 10px; }}
table {{ border-collapse: collapse; }}
</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def page_of(card: str, title: str) -> str:
    """Return a card as a page; its metadata, which the Hub takes out, is taken out."""
    text = card.partition("\n---\n")[2] if card.startswith("---\n") else card
    body = str(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    tables = body.replace("<table>", '<div class="table" tabindex="0"><table>')
    return _FRAME.format(title=title, body=tables.replace("</table>", "</table></div>"))


def write_pages(folder: Path) -> list[Path]:
    """Write all pages; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for count in SIZES:
        run = record_of(count)
        pages.append(write_report(folder / f"report-{count}.html", run))
        card = write_card(folder / f"card-{count}.md", run)
        pages.append(_write(folder / f"card-{count}.html", card.read_text(encoding="utf-8")))
    unmeasured = record_of(6, evaluation=None, mistakes=(), history=[], galleries=[])
    pages.append(write_report(folder / "report-nothing-held-out.html", unmeasured))
    leaking = leaking_record()
    pages.append(write_report(folder / "report-near-duplicates.html", leaking))
    card = write_card(folder / "card-near-duplicates.md", leaking)
    pages.append(_write(folder / "card-near-duplicates.html", card.read_text(encoding="utf-8")))
    pages.append(write_vtab_report(folder / "report-vtab.html", vtab_result(folder)))
    for made in (
        write_fewshot_report(fewshot_result(folder / "fewshot")),
        write_probe_report(probe_result(folder / "probe")),
        write_study_report(study_result(folder / "study")),
    ):
        pages.append(made.replace(folder / f"report-{made.parent.name}.html"))
        made.parent.rmdir()
    for name in CARDS:
        text = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
        pages.append(_write(folder / f"released-{name}.html", text))
    return pages


def _write(path: Path, card: str) -> Path:
    path.write_text(page_of(card, path.stem), encoding="utf-8")
    return path


if __name__ == "__main__":
    for written in write_pages(Path(sys.argv[1])):
        print(written)
