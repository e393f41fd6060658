"""What a newcomer asks is answered within two clicks from the front page of the documentation."""

import os
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r"\]\(([^)\s#]+\.md)?(?:#[\w-]+)?\)")

QUESTIONS = {
    "manifest columns": ("reference/manifests.md", "`path`", "`label`", "`split`"),
    "where are the checkpoints": ("reference/run-folders.md", "checkpoints/step-*.safetensors"),
    "where are downloaded ones": ("reference/environment.md", "`BITZOO_CACHE`", "~/.cache/bitzoo"),
    "Python options of finetune": ("reference/python-training.md", "bitzoo.finetune"),
    "their meaning": ("reference/training-options.md", "same options, with the same names"),
    "what evaluate counts": ("how-to/evaluating.md", "exactly those that the run held out"),
    "paper or released": ("explanation/hyperrules.md", "follows the paper", "--edition released"),
    "which device": ("how-to/finetune.md", "## Which device", "`--device` decides"),
    "JSON keys": ("reference/json.md", "<!-- documents -->"),
    "TensorBoard": ("how-to/finetune.md", "## TensorBoard", "bitzoo[tensorboard]"),
    "how long": ("how-to/time.md", "bitzoo hyperrule", "--measure"),
    "licence": ("index.md", "Apache 2.0, for bitzoo and for the weights"),
    "not tried": ("explanation/untried.md", "released file"),
}
"""Question -> the page that answers it, and words of the answer."""


def links_of(page):
    """Return the pages of the documentation that a page links to."""
    folder = os.path.dirname(page)
    text = (DOCS / page).read_text(encoding="utf-8")
    return {os.path.normpath(os.path.join(folder, link)) for link in LINK.findall(text) if link}


@pytest.fixture(scope="module")
def clicks():
    """Page -> how many clicks it is from the front page, up to two."""
    found = {"index.md": 0}
    for count in (1, 2):
        for page in [page for page, at in found.items() if at == count - 1]:
            for link in links_of(page):
                found.setdefault(Path(link).as_posix(), count)
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_is_answered_within_two_clicks(question, clicks):
    page, *words = QUESTIONS[question]
    assert clicks[page] <= 2
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    assert all(word in text for word in words)
