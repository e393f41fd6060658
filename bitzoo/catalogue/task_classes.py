"""Classes of the VTAB and teacher heads, in the order of their outputs, and how others number them.

No class names were released with these heads. Their outputs are in tensorflow_datasets' order
(google-research/task_adaptation, data/*.py), so the names are tensorflow_datasets' (4.9.10; those
of CIFAR-100 are in its archive, `fine_label_names.txt`). Nobody has checked them against the heads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

__all__ = ["Numbering", "TaskClasses", "task_classes"]


@dataclass(frozen=True)
class Numbering:
    """Numbers that a published copy of a data set calls its classes by.

    Attributes:
        numbers: Output -> the number of its class.
        source: Whose numbers they are, as a phrase.
    """

    numbers: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class TaskClasses:
    """What is known about the classes of a task.

    Attributes:
        names: One name per output, as tensorflow_datasets spells them; None if it has only numbers.
        numberings: Other numbers that published copies use.
        orders_differ: Why numbers from 0 on do not say which classes they are, as a sentence; empty
            where all copies that are known number the classes as tensorflow_datasets does.
        caution: What to think of where numbers are taken as outputs, as a sentence.
    """

    names: tuple[str, ...] | None = None
    numberings: tuple[Numbering, ...] = ()
    orders_differ: str = ""
    caution: str = ""


_ORDERS_DIFFER = {
    "caltech101": (
        "Caltech-101 is numbered in several ways: tensorflow_datasets has 102 classes from "
        "accordion on, with background_google at 4; torchvision leaves the background out; and "
        "folders sorted by case begin with Faces, Faces_easy, Leopards and Motorbikes."
    ),
    "sun397": (
        "SUN397 is numbered in several ways: tensorflow_datasets and torchvision have lists of "
        "their own, and copies number their folders."
    ),
}
_NUMBERINGS = {
    "oxford_flowers102": Numbering(tuple(range(1, 103)), "Oxford's own (imagelabels.mat)"),
    "oxford_iiit_pet": Numbering(tuple(range(1, 38)), "Oxford's own (annotations/list.txt)"),
    "svhn": Numbering((10, *range(1, 10)), "Stanford's own, in which 10 is the digit 0"),
    "clevr-count": Numbering(
        tuple(range(3, 11)), "the numbers of objects, as torchvision has them"
    ),
    "smallnorb-azimuth": Numbering(tuple(range(0, 36, 2)), "NYU's own, in steps of 10 degrees"),
}
_CAUTIONS = {
    "oxford_flowers102": (
        "Some copies of Flowers-102 number the classes in the order of their numbers as text "
        "(1, 10, 100, 101, ...); such a copy cannot be told by its numbers, and would score near 0."
    ),
    "clevr-count": "Class 0 is 3 objects, class 7 is 10.",
}


@functools.cache
def _names() -> Mapping[str, list[str]]:
    text = resources.files("bitzoo.catalogue").joinpath("task_classes.json").read_text("utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def task_classes(task: str) -> TaskClasses:
    """Return what is known about the classes of a task, such as ``dtd``."""
    names, numbering = _names().get(task), _NUMBERINGS.get(task)
    return TaskClasses(
        names=None if names is None else tuple(names),
        numberings=() if numbering is None else (numbering,),
        orders_differ=_ORDERS_DIFFER.get(task, ""),
        caution=_CAUTIONS.get(task, ""),
    )
