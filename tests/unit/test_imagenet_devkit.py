"""ImageNet's published layout: a flat folder of images and the labels of the development kit."""

import contextlib
import shutil
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
from tfds_builders import image_bytes
from torchvision.datasets import imagenet

from bitzoo.data.dataset import list_splits, read_dataset
from bitzoo.data.problems import DatasetError
from bitzoo.data.readers import read_listing

SYNSETS = ("n01440764", "n01443537", "n02119789", "n02100735", "n02110185")
"""Four classes and, at the end, a synset above them, which has children."""
NUMBERS = (3, 1, 4, 2, 5)
"""Their numbers in the kit, which are not in the order of the sorted synsets."""
TRUTH = (2, 2, 4, 1, 3, 4)


def write_meta(path):
    """`meta.mat` with the fields of the real one."""
    fields = [(name, object) for name in (
        "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
        "num_train_images",
    )]  # fmt: skip
    table = np.zeros((len(SYNSETS), 1), fields)
    for row, (number, synset) in enumerate(zip(NUMBERS, SYNSETS, strict=True)):
        children = 4 if number == 5 else 0
        table[row, 0] = (number, synset, "a, b", "it is", children, np.arange(children), 1, 1300)
    scipy.io.savemat(path, {"synsets": table}, do_compression=True)


def write_images(folder, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        (folder / name).write_bytes(image_bytes(number, kind="JPEG"))
    return folder


def write_kit(folder):
    data = folder / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    write_meta(data / "meta.mat")
    lines = "".join(f"{number}\n" for number in TRUTH)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return data


def expected_labels(tmp_path, data, monkeypatch):
    """The labels as torchvision reads them from the kit's archive."""
    root = tmp_path / "theirs"
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(data.parent, "ILSVRC2012_devkit_t12")
    monkeypatch.setattr(imagenet, "_verify_archive", lambda *_: None)
    imagenet.parse_devkit_archive(str(root))
    return torch.load(root / imagenet.META_FILE, weights_only=True)[1]


def refused(source):
    with pytest.raises(DatasetError) as caught:
        read_listing(source)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize("place", ["in", "beside", "around"])
def test_labels_of_the_kit(tmp_path, monkeypatch, place):
    images = write_images(tmp_path / "imagenet/val/images")
    data = write_kit({"in": images, "beside": images.parent, "around": tmp_path}[place])
    listing = read_listing(images)
    assert [row.label for row in listing.rows] == expected_labels(tmp_path, data, monkeypatch)
    assert [row.label for row in listing.rows] == [SYNSETS[NUMBERS.index(n)] for n in TRUTH]
    assert listing.classes == tuple(sorted(SYNSETS[:4]))
    assert listing.rows[4].path == images / "ILSVRC2012_val_00000005.JPEG"
    assert listing.notes == (
        f"Labels by {str(data / 'ILSVRC2012_validation_ground_truth.txt')!r}.",
    )


def test_files_beside_the_images(tmp_path):
    images = write_images(tmp_path / "val", 4)
    for file in write_kit(tmp_path / "kit").iterdir():
        shutil.copy(file, images)
    (images / "notes.txt").write_text("")
    listing = read_listing(images)
    assert len(listing.rows) == 4
    assert listing.notes[1:] == (
        "Not there: 2 of the 6 images with labels.",
        "Ignored: what is no validation image (1): notes.txt.",
    )


def test_images_without_a_label(tmp_path):
    images = write_images(tmp_path / "val", 8)
    write_kit(tmp_path)
    listing = read_listing(images)
    assert [problem.subject for problem in listing.problems] == [
        "ILSVRC2012_val_00000007.JPEG",
        "ILSVRC2012_val_00000008.JPEG",
    ]


def test_without_labels(tmp_path):
    said = refused(write_images(tmp_path / "val"))
    assert "whose labels must be beside them" in said
    assert "Unpack the development kit in the folder" in said


def test_numbers_alone_are_not_guessed(tmp_path):
    images = write_images(tmp_path / "val")
    (write_kit(tmp_path) / "meta.mat").unlink()
    said = refused(images)
    assert "own numbers, which are not in the order of the sorted synsets" in said
    assert "Only the kit's meta.mat says what they are, found none beside them" in said


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("meta.mat", b"\0" * 200, "expected the table of synsets"),
        ("ILSVRC2012_validation_ground_truth.txt", b"2\nx\n", "expected one number of meta.mat"),
        ("ILSVRC2012_validation_ground_truth.txt", b"2\n5\n", "meta.mat has no 5"),
    ],
)
def test_damage(tmp_path, file, content, why):
    images = write_images(tmp_path / "val")
    (write_kit(tmp_path) / file).write_bytes(content)
    said = refused(images)
    assert why in said
    assert said.endswith("Copy it again from where it was published.")


@pytest.mark.parametrize("at", [280, 292, 356])
def test_a_table_of_which_the_library_crashes(tmp_path, at):
    """scipy ends its process of such a file; this one goes on."""
    images = write_images(tmp_path / "val")
    meta = write_kit(tmp_path) / "meta.mat"
    table = scipy.io.loadmat(meta)["synsets"]
    for change in ("shorter", "longer"):
        scipy.io.savemat(meta, {"synsets": table})
        whole = meta.read_bytes()
        end = at + 4 if change == "shorter" else at - 4
        meta.write_bytes(whole[:at] + whole[end:])
        with contextlib.suppress(DatasetError):
            read_listing(images)


def write_kaggle(top):
    """Kaggle's archive: the images deep in it, the labels at its top, with boxes behind them."""
    inside = top / "ILSVRC/Data/CLS-LOC"
    write_images(inside / "val")
    synsets = [SYNSETS[NUMBERS.index(number)] for number in TRUTH]
    lines = ["ImageId,PredictionString"]
    for number in (4, 2, 6, 1, 5, 3):
        synset = synsets[number - 1]
        lines.append(f"ILSVRC2012_val_{number:08},{synset} 1 2 3 4 {synset} 5 6 7 8 ")
    (top / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    mapping = "".join(f"{synset} tench, Tinca tinca\n" for synset in sorted(SYNSETS[:4]))
    (top / "LOC_synset_mapping.txt").write_text(mapping)
    return inside, synsets


@pytest.mark.parametrize("given", ["", "ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val"])
def test_labels_of_kaggle(tmp_path, given):
    inside, synsets = write_kaggle(tmp_path)
    listing = read_listing(tmp_path / given)
    assert [row.label for row in listing.rows] == synsets
    assert listing.classes == tuple(sorted(SYNSETS[:4]))
    assert listing.rows[0].path == inside / "val/ILSVRC2012_val_00000001.JPEG"


def test_labels_of_kaggle_that_are_damaged(tmp_path):
    inside, _ = write_kaggle(tmp_path)
    with (tmp_path / "LOC_val_solution.csv").open("a") as file:
        file.write("ILSVRC2012_val_00000007,n01440764 1 2 3 4 n01443537 1 2 3 4\n")
    assert "line 8 has not one image and one synset" in refused(inside / "val")


def test_with_the_training_images(tmp_path):
    inside, synsets = write_kaggle(tmp_path)
    for synset in SYNSETS[:4]:
        place = inside / "train" / synset
        place.mkdir(parents=True)
        (place / f"{synset}_1.JPEG").write_bytes(image_bytes(9, kind="JPEG"))
    images = read_dataset(tmp_path)
    assert (len(images.train), len(images.val)) == (4, 6)
    assert images.classes == tuple(sorted(SYNSETS[:4]))
    assert [images.classes[e.label] for e in images.val.examples] == synsets
    assert list(list_splits(tmp_path, images.classes).splits) == ["train", "val"]


def test_a_list_of_synsets(tmp_path):
    images = write_images(tmp_path / "val")
    synsets = [SYNSETS[NUMBERS.index(number)] for number in TRUTH]
    (tmp_path / "synset_labels.txt").write_text("\n".join(synsets) + "\n")
    assert [row.label for row in read_listing(images).rows] == synsets


def test_folders_of_synsets_stay_what_they_are(tmp_path):
    for split in ("train", "val"):
        for synset in SYNSETS[:2]:
            place = tmp_path / split / synset
            place.mkdir(parents=True)
            (place / "ILSVRC2012_val_00000001.JPEG").write_bytes(image_bytes(1, kind="JPEG"))
    images = read_dataset(tmp_path)
    assert images.val.examples[1].key == f"val/{SYNSETS[1]}/ILSVRC2012_val_00000001.JPEG"
