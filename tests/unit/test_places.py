"""TensorFlow Hub's and Kaggle's names of the catalogue's models."""

from typing import Any

import pytest

from bitzoo.catalogue.places import names_by_handle
from bitzoo.catalogue.registry import find_spec, get_spec, list_models
from bitzoo.cli.info import describe, facts
from bitzoo.zoo.resolve import is_address, is_location


def test_the_25_modules_of_google_and_the_8_of_sayakpaul():
    handles = names_by_handle()
    google = [handle for handle in handles if handle.startswith("google/bit/")]
    assert len(google) == 25
    assert len([handle for handle in handles if handle.startswith("sayakpaul/")]) == 8
    assert len(handles) == 33
    assert sum(len(get_spec(name).places) for name in list_models()) == 33
    assert not any("r152x2" in handle for handle in google)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://tfhub.dev/google/bit/m-r50x1/1", "BiT-M-R50x1"),
        ("google/bit/m-r50x1", "BiT-M-R50x1"),
        ("google/bit/m-r50x1/1", "BiT-M-R50x1"),
        ("https://tfhub.dev/google/bit/s-r101x3/ilsvrc2012_classification/1", "BiT-S-R101x3"),
        ("google/bit/m-r152x4/ilsvrc2012_classification", "BiT-M-R152x4-ILSVRC2012"),
        ("google/bit/m-r50x3/imagenet21k_classification/1", "BiT-M-R50x3"),
        ("google/bit/TensorFlow2/m-r50x1/1", "BiT-M-R50x1"),
        (
            "https://www.kaggle.com/models/google/bit/tensorFlow2/m-r50x1-ilsvrc2012-classification",
            "BiT-M-R50x1-ILSVRC2012",
        ),
        (
            "https://www.kaggle.com/models/google/bit/frameworks/TensorFlow2/variations/s-r50x1",
            "BiT-S-R50x1",
        ),
        ("sayakpaul/bit_resnet152x2_384_classification", "BiT-R152x2_T_384"),
        (
            "https://tfhub.dev/sayakpaul/distill_bit_r50x1_160_feature_extraction/1",
            "BiT-R50x1_160",
        ),
    ],
)
def test_a_handle_is_a_name(text, name):
    assert find_spec(text).name == name
    assert not is_location(text)
    assert not is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "google/bit/m-r152x2",
        "google/bit/l-r50x1",
        "google/bit/m-r50x1/2",
        "google/experts/bit/r50x1/in21k/bird/1",
        "https://example.org/google/bit/m-r50x1/1",
        "https://tfhub.dev/google/bit/m-r50x1/1?tf-hub-format=compressed",
        "a/BiT-M-R50x1",
    ],
)
def test_others_are_not(text):
    assert find_spec(text) is None
    assert is_location(text)


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "google" / "bit" / "m-r50x1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_location("google/bit/m-r50x1")


def elsewhere(record):
    lines: Any = dict(facts(record))["elsewhere"]
    return "\n".join(lines)


def test_info_shows_the_places():
    record = describe("google/bit/m-r50x1")
    assert record["name"] == "BiT-M-R50x1"
    assert [place["outputs"] for place in record["places"]] == ["features", "logits"]
    shown = elsewhere(record)
    assert "https://tfhub.dev/google/bit/m-r50x1/1 (features)" in shown
    assert "google/bit/TensorFlow2/m-r50x1-imagenet21k-classification/1" in shown
    assert "images in [0, 1], scaled to [-1, 1] inside" in shown
    assert "unverified" in shown
    student = elsewhere(describe("BiT-R50x1_224"))
    assert "images in [-1, 1], unlike Google's own modules" in student
