"""Near-duplicates are found across splits, others are not; many images take seconds."""

import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from textures import COPIES, shaken, texture

from bitzoo.data.dataset import Example
from bitzoo.data.near_duplicates import (
    CORRELATION,
    DISTANCE,
    drop_from,
    find_near_duplicates,
    near_groups,
    signature_of,
)


def listed(images, prefix):
    return [
        (Example(0, key=f"{prefix}{index:03}"), signature_of(image))
        for index, image in enumerate(images)
    ]


@pytest.fixture(scope="module")
def originals():
    return [texture(seed) for seed in range(40)]


@pytest.mark.parametrize("change", COPIES)
def test_every_copy_is_found_with_its_original(originals, change):
    train = listed([texture(seed) for seed in range(100, 130)], "other") + listed(
        [COPIES[change](image) for image in originals], "copy"
    )
    found = find_near_duplicates(train, listed(originals, "original"))
    assert {(p.train.key, p.held_out.key) for p in found.pairs} == {
        (f"copy{index:03}", f"original{index:03}") for index in range(40)
    }
    assert found.held_out == tuple(f"original{index:03}" for index in range(40))
    assert max(pair.distance for pair in found.pairs) <= DISTANCE


def test_different_images_are_no_near_duplicates():
    images = listed([texture(seed) for seed in range(300)], "")
    found = find_near_duplicates(images[:150], images[150:])
    assert found.pairs == ()
    assert found.held_out == ()
    assert found.note() == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: image.crop((40, 30, 160, 120)),
    ],
    ids=["mirrored", "turned", "a quarter cut off"],
)
def test_what_the_docs_say_is_not_found(originals, change):
    copies = listed([change(image) for image in originals[:10]], "copy")
    assert find_near_duplicates(copies, listed(originals[:10], "original")).pairs == ()


def test_the_same_shapes_in_other_colours_are_different_images():
    """Of equal brightness, so that the bits cannot tell them apart."""
    grey = np.asarray(texture(1).convert("L"), dtype=np.float64)[..., None] / 2 + 60
    red, blue = (
        Image.fromarray((grey + np.array(tint)).clip(0, 255).astype(np.uint8))
        for tint in ((60, -31, 2), (-30, 2, 68))
    )
    a, b = signature_of(red), signature_of(blue)
    assert sum(bin(x ^ y).count("1") for x, y in zip(a[:32], b[:32], strict=True)) <= DISTANCE
    assert find_near_duplicates(listed([red], "red"), listed([blue], "blue")).pairs == ()


def test_images_of_one_colour_are_not_compared():
    black, white = Image.new("RGB", (50, 40)), Image.new("RGB", (50, 40), "white")
    noise = np.random.default_rng(0).integers(100, 103, (40, 50, 3), dtype=np.uint8)
    assert signature_of(black) == signature_of(white) == signature_of(Image.fromarray(noise)) == b""
    assert find_near_duplicates(listed([black], "a"), listed([black], "b")).pairs == ()
    assert near_groups([b"", b""]) == (0, 1)


def test_a_signature_depends_on_the_pixels_only_and_has_224_bytes():
    image = texture(5, 900, 700)
    assert signature_of(image) == signature_of(image.copy())
    assert len(signature_of(image)) == 224
    assert signature_of(texture(5, 3, 1)) != b""  # images smaller than the grid are enlarged


def test_large_images_are_sampled_without_losing_their_copies():
    large = texture(7, 3000, 2000)
    noise = np.random.default_rng(0).normal(0, 25, (2000, 3000, 3))
    large = Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
    small = large.resize((300, 200), Image.Resampling.BICUBIC)
    (pair,) = find_near_duplicates(listed([small], "a"), listed([large], "b")).pairs
    assert pair.distance <= DISTANCE // 2


def test_each_training_image_has_its_nearest_held_out_image_whatever_the_order(originals):
    train = listed([shaken(originals[seed % 4], seed) for seed in range(20)], "t")
    train += listed([texture(seed) for seed in range(200, 230)], "x")
    held_out = listed([*originals[:4], COPIES["half the size"](originals[0])], "v")
    expected = find_near_duplicates(train, held_out)
    assert len(expected.pairs) == 20
    assert len(expected.held_out) == 5
    bits = {e.key: np.unpackbits(np.frombuffer(s[:32], np.uint8)) for e, s in train + held_out}
    for pair in expected.pairs:
        distances = [int((bits[pair.train.key] != bits[e.key]).sum()) for e, _ in held_out]
        assert pair.distance == min(distances)
        assert pair.held_out.key == f"v{distances.index(min(distances)):03}"
    assert [p.distance for p in expected.pairs] == sorted(p.distance for p in expected.pairs)
    random = np.random.default_rng(0)
    for _ in range(5):
        shuffled = [train[i] for i in random.permutation(len(train))]
        others = [held_out[i] for i in random.permutation(len(held_out))]
        assert find_near_duplicates(shuffled, others) == expected


def test_equally_near_images_are_told_apart_by_their_names(originals):
    train = listed(originals[:1], "t")
    held_out = [(Example(0, key=key), train[0][1]) for key in ("b", "a", "c")]
    found = find_near_duplicates(train, held_out)
    assert [(p.held_out.key, p.distance) for p in found.pairs] == [("a", 0)]
    assert found.held_out == ("a", "b", "c")


def test_dropping_removes_the_training_images_and_says_how_many(originals):
    train = listed([*originals[:3], texture(999)], "t")
    found = find_near_duplicates(train, listed(originals[:3], "v"))
    assert found.note() == (
        "Near-duplicates across the splits: 3 training images of 3 held-out images "
        "(t000 ~ v000, for example), so the accuracy is partly that of recognizing images again. "
        "`drop_near_duplicates` drops them from train; `group_by` keeps groups of images in one "
        "split."
    )
    dropped, left = drop_from(found, train, ["cat"])
    assert [example.key for example, _ in left] == ["t003"]
    assert dropped.note() == (
        "Dropped from train: 3 training images, near-duplicates of 3 held-out images "
        "(t000 ~ v000, for example)."
    )
    assert dropped.to_dict() == {
        "held_out_images": 3,
        "train_images": 3,
        "dropped_from_train": True,
        "most_bits_that_differ": DISTANCE,
        "least_correlation": CORRELATION,
    }


def test_frames_of_one_scene_are_one_group(originals):
    frames = [shaken(originals[seed % 5], seed) for seed in range(25)]
    groups = near_groups([signature_of(image) for image in frames])
    assert groups == tuple(seed % 5 for seed in range(25))


def test_groups_are_linked_through_others():
    """The first and the last of a pan are no near-duplicates, but each is one of the next."""
    scene = texture(3, 400, 300)
    pan = [scene.crop((x, 0, x + 300, 300)) for x in range(0, 31, 3)]
    signatures = [signature_of(image) for image in pan]
    ends = [(Example(0, key=str(i)), signatures[i]) for i in (0, -1)]
    assert find_near_duplicates(ends[:1], ends[1:]).pairs == ()
    assert set(near_groups(signatures)) == {0}


def test_groups_do_not_depend_on_the_order(originals):
    signatures = [signature_of(shaken(originals[seed % 7], seed)) for seed in range(30)]
    order = np.random.default_rng(1).permutation(30)
    groups, shuffled = near_groups(signatures), near_groups([signatures[i] for i in order])
    assert sorted(Counter(groups).values()) == sorted(Counter(shuffled).values())
    assert {(groups[order[i]], shuffled[i]) for i in range(30)}.__len__() == 7


def test_blocks_do_not_change_what_is_found(originals, monkeypatch):
    train = listed([shaken(originals[seed % 9], seed) for seed in range(40)], "t")
    held_out = listed(originals[:12], "v")
    expected = find_near_duplicates(train, held_out)
    groups = near_groups([s for _, s in train])
    monkeypatch.setattr("bitzoo.data.near_duplicates._BLOCK", 7)
    calls = []
    found = find_near_duplicates(train, held_out, lambda *told: calls.append(told))
    assert found == expected
    assert calls[-1] == ("comparing images", 480, 480)
    assert len(calls) == 12
    calls.clear()
    assert near_groups([s for _, s in train], lambda *told: calls.append(told)) == groups
    assert calls[-1] == ("comparing images", 1600, 1600)


def test_fifty_thousand_images_are_compared_in_time():
    """Some 3 s of one core; the limit is loose, a loop in Python would take minutes."""
    random = np.random.default_rng(0)
    made = [random.bytes(224) for _ in range(50_000)]
    made[45_100] = made[17]
    examples = [(Example(0, key=f"{index:05}"), data) for index, data in enumerate(made)]
    start = time.process_time()
    found = find_near_duplicates(examples[:45_000], examples[45_000:])
    assert time.process_time() - start < 30
    assert [(p.train.key, p.held_out.key) for p in found.pairs] == [("00017", "45100")]


def test_a_signature_takes_about_a_millisecond():
    image = texture(1, 500, 375)
    start = time.process_time()
    for _ in range(50):
        signature_of(image)
    assert (time.process_time() - start) / 50 < 0.01
