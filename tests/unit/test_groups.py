"""Groups stay in one split: by a column, by a regular expression, by what the images show."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from textures import texture, write_bursts

from bitzoo.data.dataset import DatasetError, read_dataset
from bitzoo.data.validation import inspect
from bitzoo.errors import UsageError


@pytest.fixture(scope="module")
def bursts(tmp_path_factory):
    """Two classes of six scenes each, five frames a scene; p03_2.jpg is frame 2 of scene 3."""
    return write_bursts(tmp_path_factory.mktemp("bursts"))


def scene_of(example):
    return example.key.rpartition("_")[0]


def scenes_in_both(images):
    train, val = ({scene_of(e) for e in split.examples} for split in (images.train, images.val))
    return train & val


def write_manifest(folder: Path, header: str, rows) -> Path:
    file = folder / "list.csv"
    file.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return file


@pytest.fixture(scope="module")
def manifest(bursts, tmp_path_factory):
    """The same images with the columns `Person` and `camera`, which no name of a file tells."""
    rows: list[Any] = []
    for path in sorted(bursts.rglob("*.jpg")):
        person = f"{path.parent.name} {path.stem.rpartition('_')[0]}"
        rows.append((str(path), path.parent.name, person, f"cam {len(rows) % 3}"))
    return write_manifest(tmp_path_factory.mktemp("manifest"), "path,label,Person,camera", rows)


# --- the split ------------------------------------------------------------------------------------


def test_a_random_split_has_frames_of_most_scenes_on_both_sides(bursts):
    images = read_dataset(bursts, val_fraction=0.2)
    assert len(images.val) == 12
    assert len(scenes_in_both(images)) >= 6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("source", "group_by"),
    [
        ("bursts", r"(.*)_\d\.jpg$"),
        ("bursts", r"(?:cat|dog)/p\d\d"),
        ("manifest", "person"),
        ("manifest", "Person"),
        ("bursts", "near-duplicates"),
    ],
)
def test_a_grouped_split_has_no_scene_on_both_sides(source, group_by, seed, request):
    data = request.getfixturevalue(source)
    images, _ = inspect(read_dataset(data, val_fraction=0.2, group_by=group_by, seed=seed))
    assert scenes_in_both(images) == set()
    # of each class 6 of 30 should be held out, and 5 is one scene
    assert Counter(e.label for e in images.val.examples) == {0: 5, 1: 5}
    assert len(images.train) == 50
    again, _ = inspect(read_dataset(data, val_fraction=0.2, group_by=group_by, seed=seed))
    assert again.fingerprint == images.fingerprint


def test_seeds_hold_out_different_groups(bursts):
    held = {
        frozenset(scene_of(e) for e in read_dataset(bursts, val_fraction=0.2, group_by=r"\w+/p\d+",
                                                    seed=seed).val.examples)
        for seed in range(10)
    }  # fmt: skip
    assert len(held) > 3


def test_a_class_does_not_change_which_groups_are_equal(bursts):
    """p03 is one group in both classes if the expression says so: then both are held out."""
    images = read_dataset(bursts, val_fraction=0.2, group_by=r"/(p\d\d)_")
    people = [{e.key.split("/")[1][:3] for e in split.examples} for split in images.splits]
    assert people[0] & people[1] == set()
    assert len(people[1]) == 1
    assert {e.key[:3] for e in images.val.examples} == {"cat", "dog"}


def test_what_was_done_is_said(bursts):
    images = read_dataset(bursts, val_fraction=0.2, group_by=r"\w+/p\d+")
    assert r"Groups by '\\w+/p\\d+', each in one split only: 12, of which 2 with 10 of 60 images " \
        "are held out." in images.notes  # fmt: skip
    assert images.held_out == (
        r"10 of 60 images, drawn by class in whole groups by '\\w+/p\\d+' with seed 0"
    )
    inspected, summary = inspect(images)
    assert inspected.held_out == images.held_out
    assert [note for note in summary.notes if "Groups" in note] == [
        note for note in images.notes if "Groups" in note
    ]
    each = read_dataset(bursts, val_fraction=0.2, group_by=".*")
    assert "By '.*', every image is a group of its own, so grouping changes nothing." in each.notes
    assert each.fingerprint == read_dataset(bursts, val_fraction=0.2).fingerprint


def test_copies_in_two_groups_join_them(tmp_path):
    write_bursts(tmp_path, persons=4, frames=2)
    (tmp_path / "cat/p01_9.jpg").write_bytes((tmp_path / "cat/p00_0.jpg").read_bytes())
    for seed in range(8):
        images, _ = inspect(
            read_dataset(tmp_path, val_fraction=0.3, group_by=r"\w+/p\d+", seed=seed)
        )
        sides = defaultdict(set)
        for split in images.splits:
            for example in split.examples:
                sides[scene_of(example)].add(split.name)
        assert all(len(found) == 1 for found in sides.values())
        assert sides["cat/p00"] == sides["cat/p01"]


def test_few_shot_training_images_are_of_other_groups(bursts):
    images = read_dataset(bursts, val_fraction=0.2, group_by=r"\w+/p\d+", examples_per_class=7)
    images, _ = inspect(images)
    assert scenes_in_both(images) == set()
    assert (len(images.train), len(images.val)) == (14, 10)
    with pytest.raises(UsageError, match=r"`group_by` must be a column .* with `examples_per_cl"):
        read_dataset(bursts, val_fraction=0.2, group_by="near-duplicates", examples_per_class=7)


# --- the sources ----------------------------------------------------------------------------------


def test_a_column_of_json_lines(bursts, tmp_path):
    file = tmp_path / "list.jsonl"
    with file.open("w") as lines:
        for path in sorted(bursts.rglob("*.jpg")):
            person = 100 + int(path.stem[1:3])
            row = {"path": str(path), "label": path.parent.name, "person": person}
            lines.write(json.dumps(row) + "\n")
    images = read_dataset(file, val_fraction=0.2, group_by="person")
    people = [{e.group for e in split.examples} for split in images.splits]
    assert people[0] | people[1] == {"100", "101", "102", "103", "104", "105"}
    assert people[0] & people[1] == set()


class Table:
    """The part of `datasets.Dataset` that is used; counts how often each column is read."""

    def __init__(self, **columns):
        self.columns = columns
        self.read: Counter[str] = Counter()
        self.features = dict.fromkeys(columns)

    def __len__(self):
        return len(self.columns["label"])

    def __getitem__(self, key):
        if isinstance(key, int):
            return {name: values[key] for name, values in self.columns.items()}
        self.read[key] += 1
        return self.columns[key]


def test_a_column_of_a_hugging_face_data_set():
    table = Table(
        image=[np.asarray(texture(seed, 20, 16)) for seed in range(24)],
        label=[seed % 2 for seed in range(24)],
        patient=[np.int64(seed // 4) for seed in range(24)],
        text=[None] * 24,
    )
    images = read_dataset(table, val_fraction=0.2, group_by="patient")
    assert Counter(e.group for e in images.val.examples) == {images.val.examples[0].group: 4}
    assert {e.group for e in images.train.examples} | {images.val.examples[0].group} == set(
        "012345"
    )
    with pytest.raises(DatasetError, match=r"value in the column 'text'.*none for 24 of 24: row 0"):
        read_dataset(table, val_fraction=0.2, group_by="text")
    with pytest.raises(DatasetError, match="has the columns patient, text"):
        read_dataset(table, val_fraction=0.2, group_by="person")
    assert table.read == {"label": 3, "patient": 1, "text": 1}  # other columns when they are needed


# --- mistakes -------------------------------------------------------------------------------------


def test_images_that_do_not_match_are_listed(bursts):
    with pytest.raises(DatasetError) as caught:
        read_dataset(bursts, val_fraction=0.2, group_by=r"(p0[0-4])_")
    assert str(caught.value) == (
        r"`group_by` must name the group of every image, but '(p0[0-4])_' finds nothing in 10 of "
        f"60 images of {str(bursts)!r}: 'cat/p05_0.jpg', 'cat/p05_1.jpg', 'cat/p05_2.jpg' and 7 "
        "more. It is a regular expression, because the data set has no columns for it. Correct "
        "it, or list the images in a CSV file with the columns path,label,group."
    )


def test_a_mistyped_column_shows_those_that_there_are(manifest):
    with pytest.raises(DatasetError, match="the data set has the columns camera, person"):
        read_dataset(manifest, val_fraction=0.2, group_by="persn")


def test_an_empty_cell_is_named(bursts, tmp_path):
    paths = sorted(map(str, bursts.rglob("*.jpg")))
    rows = [(path, "ab"[i % 2], "" if i == 5 else str(i // 4)) for i, path in enumerate(paths)]
    file = write_manifest(tmp_path, "path,label,person", rows)
    with pytest.raises(DatasetError, match=rf"column 'person'.*none for 1 of 60: {paths[5]}\. "):
        read_dataset(file, val_fraction=0.2, group_by="person")


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(p", r"must be a column of the data set or a regular expression, found '\(p'.*missing"),
        (r"\.jpg", r"at least two groups.*all 60 images of .* are in the group '\.jpg'"),
    ],
)
def test_expressions_that_cannot_group_are_refused(bursts, group_by, message):
    with pytest.raises(UsageError, match=message):
        read_dataset(bursts, val_fraction=0.2, group_by=group_by)


def test_nothing_to_group_without_held_out_images(bursts):
    with pytest.raises(UsageError, match=r"`group_by` must come with held-out images"):
        read_dataset(bursts, val_fraction=0, group_by=r"p\d\d")


def test_groups_too_large_to_hold_out_say_what_to_do(bursts):
    with pytest.raises(UsageError, match="images that belong together are not separated"):
        read_dataset(bursts, val_fraction=0.2, group_by="(cat|dog)")


# --- sources with splits of their own -------------------------------------------------------------


def write_splits(root, people):
    """`people` by split: each has two images of each class."""
    seed = 0
    for split, names in people.items():
        for name in names:
            for label in ("cat", "dog"):
                folder = Path(root, split, label)
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(2):
                    texture(seed, 40, 30).save(folder / f"{name}-{index}.png")
                    seed += 1
    return root


def test_own_splits_are_checked(tmp_path):
    write_splits(tmp_path, {"train": ["ann", "bob", "eve"], "val": ["dan"]})
    images = read_dataset(tmp_path, group_by=r"(\w+)-")
    assert images.problems == ()
    assert (
        r"Groups by '(\\w+)-', each in one split only: 4, of which 1 with 4 of 16 images are held "
        "out." in images.notes
    )


def test_a_group_on_both_sides_of_own_splits_is_a_problem(tmp_path):
    write_splits(tmp_path, {"train": ["ann", "bob", "eve"], "val": ["bob", "dan"]})
    images = read_dataset(tmp_path, group_by=r"(\w+)-")
    with pytest.raises(DatasetError) as caught:
        inspect(images)
    assert (
        "Groups in both train and val (1); move each to one, or do not group:\n"
        "  bob: 4 in train, 4 in val\n" in str(caught.value)
    )
    assert inspect(read_dataset(tmp_path))[0].val is not None


def test_near_duplicates_cannot_regroup_own_splits(tmp_path):
    write_splits(tmp_path, {"train": ["ann", "bob"], "val": ["dan"]})
    with pytest.raises(UsageError, match="has its own splits, found 'near-duplicates'"):
        read_dataset(tmp_path, group_by="near-duplicates")


# --- near-duplicates across the splits ------------------------------------------------------------


def test_the_random_split_leaks_and_the_grouped_one_does_not(bursts):
    random, summary = inspect(read_dataset(bursts, val_fraction=0.2))
    near = summary.near_duplicates
    held = {e.key for e in random.val.examples}
    leaking = {e.key for e in random.val.examples if scene_of(e) in scenes_in_both(random)}
    assert set(near.held_out) == leaking
    assert {p.train.key for p in near.pairs} == {
        e.key for e in random.train.examples if scene_of(e) in scenes_in_both(random)
    }
    assert all(scene_of(p.train) == scene_of(p.held_out) for p in near.pairs)
    assert summary.notes[-1] == near.note()
    assert f"training images of {len(leaking)} held-out images (" in near.note()
    assert leaking == held

    for group_by in (r"\w+/p\d+", "near-duplicates"):
        _, summary = inspect(read_dataset(bursts, val_fraction=0.2, group_by=group_by))
        assert summary.near_duplicates.pairs == ()
        assert not any("Near-duplicates" in note for note in summary.notes)


def test_dropping_takes_exactly_the_training_images_that_leak(bursts):
    images = read_dataset(bursts, val_fraction=0.04)
    kept, before = inspect(images)
    dropped, after = inspect(images, drop_near_duplicates=True)
    leaking = {pair.train.key for pair in before.near_duplicates.pairs}
    assert len(leaking) == 4 * len(kept.val)
    assert {e.key for e in dropped.train.examples} == {e.key for e in kept.train.examples} - leaking
    assert dropped.val == kept.val
    assert dropped.fingerprint != kept.fingerprint
    assert after.counts == {"train": len(kept.train) - len(leaking), "val": len(kept.val)}
    assert after.near_duplicates.dropped
    assert after.near_duplicates.pairs == before.near_duplicates.pairs
    assert after.notes[-1].startswith(f"Dropped from train: {len(leaking)} training images, near-")


def test_dropping_all_of_a_class_is_refused(tmp_path):
    for split in ("train", "val"):
        for label, seeds in (("cat", [1, 2]), ("dog", [3, 4] if split == "train" else [5, 6])):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for seed in seeds:
                texture(seed).save(folder / f"{seed}.jpg", quality=90 if split == "train" else 70)
    images = read_dataset(tmp_path)
    assert len(inspect(images)[1].near_duplicates.pairs) == 2
    with pytest.raises(UsageError, match=r"all those of cat are near-duplicates of held-out"):
        inspect(images, drop_near_duplicates=True)


def test_the_order_of_a_manifest_does_not_change_what_is_found(bursts, tmp_path):
    rows = [
        (str(p), p.parent.name, "val" if p.stem.endswith("0") else "train")
        for p in sorted(bursts.rglob("*.jpg"))
    ]
    first = inspect(read_dataset(write_manifest(tmp_path, "path,label,split", rows)))[1]
    order = np.random.default_rng(3).permutation(len(rows))
    shuffled = write_manifest(tmp_path, "path,label,split", [rows[i] for i in order])
    assert inspect(read_dataset(shuffled))[1].near_duplicates == first.near_duplicates
    assert len(first.near_duplicates.pairs) == 48


def test_an_evaluation_does_not_look_for_near_duplicates(bursts):
    images = read_dataset(bursts, val_fraction=0.2)
    assert inspect(images, training=False)[1].near_duplicates.pairs == ()


def test_images_of_one_colour_do_not_leak(tmp_path):
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for value in range(3):
                shade = 40 * value + 20 * (split == "val") + 10 * (label == "b")
                Image.new("RGB", (20, 20), (shade, 0, 0)).save(folder / f"{value}.png")
    assert inspect(read_dataset(tmp_path))[1].near_duplicates.pairs == ()
