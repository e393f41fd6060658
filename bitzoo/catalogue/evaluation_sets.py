"""The data sets on which figures of the checkpoints were published, as data.

Image counts: ILSVRC-2012, https://arxiv.org/abs/1409.0575; ReaL, https://arxiv.org/abs/2006.07159
(46,837 of the 50,000 images have labels); ImageNet-V2, https://arxiv.org/abs/1902.10811;
ImageNet-A, https://arxiv.org/abs/1907.07174; ImageNet-R, https://arxiv.org/abs/2006.16241;
ImageNet-Sketch, https://arxiv.org/abs/1905.13549; the others, tensorflow_datasets 4.9's catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EVALUATION_SETS", "TASK_SETS", "EvaluationSet"]


@dataclass(frozen=True)
class EvaluationSet:
    """A data set, or the part of one, that figures are published on.

    Attributes:
        title: Its name, as `Metric.dataset`.
        sources: The strings that name it as data, the usual one first.
        images: How many images it has.
        subset: The key of its classes in `published_lists.SUBSETS`; None for classes that are not
            ILSVRC-2012's.
        judged: How many of the images are judged; None for all.
        real: Whether it is judged by ReaL's labels.
        restricted: Whether only the outputs of its classes compete.
        is_first: Whether it is what images of all its classes are likely from, whatever their
            number: ILSVRC-2012's own.
        where: How the images may be given otherwise, as a phrase.
    """

    title: str
    sources: tuple[str, ...]
    images: int
    subset: str | None = None
    judged: int | None = None
    real: bool = False
    restricted: bool = False
    is_first: bool = False
    where: str = "a folder of class folders"

    @property
    def counted(self) -> int:
        """How many images are judged."""
        return self.images if self.judged is None else self.judged


_ILSVRC = "ILSVRC-2012"
_SYNSETS = (
    "a folder of its 50,000 validation images in folders by WordNet id (n01440764, ...), or flat "
    "(ILSVRC2012_val_00000001.JPEG, ...) with the ground truth of its development kit"
)

EVALUATION_SETS: tuple[EvaluationSet, ...] = (
    EvaluationSet(
        _ILSVRC,
        ("tfds:imagenet2012@validation",),
        50_000,
        _ILSVRC,
        is_first=True,
        where=_SYNSETS,
    ),
    EvaluationSet(
        "ImageNet ReaL",
        ("tfds:imagenet2012_real@validation",),
        50_000,
        _ILSVRC,
        judged=46_837,
        real=True,
        is_first=True,
        where=_SYNSETS,
    ),
    EvaluationSet(
        "ImageNet-V2 matched frequency",
        ("tfds:imagenet_v2/matched-frequency@test",),
        10_000,
        _ILSVRC,
    ),
    EvaluationSet("ImageNet-Sketch", ("tfds:imagenet_sketch@test",), 50_889, _ILSVRC),
    EvaluationSet(
        "ImageNet-A", ("tfds:imagenet_a@test",), 7_500, "ImageNet-A", restricted=True, is_first=True
    ),
    EvaluationSet("ILSVRC-2012 (classes of ImageNet-A)", (), 10_000, "ImageNet-A", restricted=True),
    EvaluationSet(
        "ImageNet-R",
        ("tfds:imagenet_r@test",),
        30_000,
        "ImageNet-R",
        restricted=True,
        is_first=True,
    ),
    EvaluationSet("ILSVRC-2012 (classes of ImageNet-R)", (), 10_000, "ImageNet-R", restricted=True),
    EvaluationSet("Oxford Flowers-102", ("tfds:oxford_flowers102@test",), 6_149),
    EvaluationSet("Oxford-IIIT Pets", ("tfds:oxford_iiit_pet@test",), 3_669),
    EvaluationSet("Food-101", ("tfds:food101@validation",), 25_250),
    EvaluationSet("SUN397", ("tfds:sun397/tfds@test",), 21_750),
)

TASK_SETS: dict[str, EvaluationSet] = {
    task: next(data for data in EVALUATION_SETS if data.title == title)
    for task, title in {
        "ilsvrc-2012": _ILSVRC,
        "oxford_flowers102": "Oxford Flowers-102",
        "oxford_iiit_pet": "Oxford-IIIT Pets",
        "food101": "Food-101",
        "sun397": "SUN397",
    }.items()
}
"""What a head predicts (`ModelSpec.task`) -> the data set on which it is evaluated."""
