"""Published lists of WordNet ids: the subsets of ImageNet that others evaluate on, and the words.

They are files of timm (`timm/data/_info`), read without importing it, which would load torch.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["SUBSETS", "TFDS_SUBSETS", "WHOLE_LISTS", "subset_synsets", "timm_file", "words_of"]

SUBSETS = {
    "ImageNet-A": "imagenet_a_synsets.txt",
    "ImageNet-R": "imagenet_r_synsets.txt",
    "ILSVRC-2012": "imagenet_synsets.txt",
}
"""Name of a set of classes that models with more outputs are evaluated on -> timm's file.

Hendrycks et al. evaluate ImageNet-A (https://arxiv.org/abs/1907.07174) and -R
(https://arxiv.org/abs/2006.16241) with the logits restricted to their 200 classes.
"""


TFDS_SUBSETS = {"imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R"}
"""Data set of tensorflow_datasets that declares all 1,000 classes -> those it has."""


WHOLE_LISTS = {"imagenet1k": "ILSVRC-2012"}
"""Label set (see `class_names.LABEL_SETS`) -> the set of classes that it lists."""


def timm_file(name: str) -> Path:
    """Return the path of one of timm's lists."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("bitzoo needs the package timm, which is not installed.")
    return Path(found.submodule_search_locations[0], "data", "_info", name)


@functools.cache
def subset_synsets(subset: str) -> tuple[str, ...]:
    """Return the WordNet ids of a subset, in ascending order, which is that of ILSVRC's outputs."""
    return tuple(timm_file(SUBSETS[subset]).read_text(encoding="utf-8").split())


@functools.cache
def _lemmas() -> Mapping[str, str]:
    with timm_file("imagenet_synset_to_lemma.txt").open(encoding="utf-8", newline="") as file:
        return dict(csv.reader(file, delimiter="\t"))


def words_of(synsets: Sequence[str]) -> list[str]:
    """Return WordNet's words for ids, separated by commas; "" for an unknown id."""
    return [_lemmas().get(synset, "") for synset in synsets]
