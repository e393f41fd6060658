"""Published scores of BiT on VTAB-1k, to stand beside one's own: means only, as no task's is known.

The figures are those of `bitzoo.catalogue.published_figures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bitzoo.catalogue import published_figures as figures
from bitzoo.catalogue.vtab_tasks import GROUPS


@dataclass(frozen=True)
class PublishedMean:
    """A published mean over the 19 tasks.

    Attributes:
        model: What was fine-tuned.
        mean: Mean top-1 over the tasks, in percent.
        groups: Mean of each group, in percent; empty where they were not published.
        source: Where it stands.
        note: How it was measured.
    """

    model: str
    mean: float
    groups: Mapping[str, float]
    source: str
    note: str


_PAPER, _README = "arXiv 1912.11370", "google-research/big_transfer, README"


def _rows() -> Iterator[PublishedMean]:
    for model, mean in zip(figures.PAPER_MODELS, figures.PAPER_TOP1["vtab-1k"], strict=True):
        yield PublishedMean(model, mean, {}, f"{_PAPER}, Table 2", "median of three runs")
    searched = "searched for each task"
    yield PublishedMean(
        figures.PAPER_MODELS[-1], figures.PAPER_VTAB_SEARCH, {}, f"{_PAPER}, appendix A", searched
    )
    for model, means in figures.README_VTAB.items():
        groups: dict[str, float] = {group: getattr(means, group) for group in GROUPS}
        yield PublishedMean(model, means.mean, groups, _README, "the released runs")


PUBLISHED: tuple[PublishedMean, ...] = tuple(_rows())
"""All of them. Other networks' scores, and any single task's, were never published."""

DISAGREEMENTS = (
    "The released runs of BiT-M-R152x4 (73.51) are 2.87 points above the same network's figure in "
    "the paper (70.64); nobody says why.",
    "The paper disagrees with itself: its Table 5 has 70.39 for BiT-S with R50x1, and its Table 2 "
    "66.87 for BiT-S with the much larger R152x4.",
)
"""Where the published figures contradict each other."""
