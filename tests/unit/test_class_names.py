"""Class names stand at the index of their logit. Oracle: the files that timm itself reads."""

import csv
import importlib.util
import re
from pathlib import Path

import pytest

from bitzoo.catalogue.class_names import class_names, class_names_or_reason
from bitzoo.errors import UsageError


def timm_lines(name):
    spec = importlib.util.find_spec("timm")
    return (Path(spec.origin).parent / "data" / "_info" / name).read_text().splitlines()


@pytest.mark.parametrize(
    ("label_set", "file", "count"),
    [
        ("imagenet1k", "imagenet_synsets.txt", 1000),
        ("imagenet21k_goog", "imagenet21k_goog_synsets.txt", 21843),
    ],
)
def test_every_name_belongs_to_the_synset_at_its_index(label_set, file, count):
    synsets = timm_lines(file)
    lemmas = dict(csv.reader(timm_lines("imagenet_synset_to_lemma.txt"), delimiter="\t"))
    assert len(synsets) == count
    assert class_names(label_set, descriptions=False) == synsets
    assert class_names(label_set) == [lemmas[synset] for synset in synsets]


@pytest.mark.parametrize(
    ("index", "synset", "words"),
    [
        (0, "n01440764", "tench, Tinca tinca"),
        (281, "n02123045", "tabby, tabby cat"),
        (417, "n02782093", "balloon"),
        (999, "n15075141", "toilet tissue, toilet paper, bathroom tissue"),
    ],
)
def test_known_indices_of_imagenet_1k(index, synset, words):
    assert class_names("imagenet1k")[index] == words
    assert class_names("imagenet1k", descriptions=False)[index] == synset


def test_known_indices_of_imagenet_21k():
    names = class_names("imagenet21k_goog")
    ids = class_names("imagenet21k_goog", descriptions=False)
    assert (names[0], names[-1]) == ("organism, being", "knothole")
    assert (ids[0], ids[-1]) == ("n00004475", "n15102894")
    assert ids == sorted(ids)
    assert names[ids.index("n02123045")] == "tabby, tabby cat"


@pytest.mark.parametrize(
    ("spelling", "label_set"),
    [
        ("imagenet", "imagenet1k"),
        ("ImageNet-1k", "imagenet1k"),
        ("imagenet-21k-goog", "imagenet21k_goog"),
        ("imagenet21k", "imagenet21k_goog"),
    ],
)
def test_spellings(spelling, label_set):
    assert class_names(spelling) == class_names(label_set)


@pytest.mark.parametrize(
    ("label_set", "reason"),
    [
        (None, r"This model has no class names: .* imagenet1k and imagenet21k_goog\. Refer"),
        (
            "jft",
            r"no class names for 'jft'; they are known only for imagenet1k and imagenet21k_goog",
        ),
    ],
)
def test_missing_names_come_with_a_reason(label_set, reason):
    names, said = class_names_or_reason(label_set)
    assert names is None
    assert re.search(reason, said)
    with pytest.raises(UsageError, match=reason):
        class_names(label_set)


def test_names_come_without_a_reason():
    names, said = class_names_or_reason("imagenet1k")
    assert names[281] == "tabby, tabby cat"
    assert said == ""
