"""Teachers are loaded, identified by their bytes, and matched with data and with each other."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint, write_npz

import bitzoo
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.data.dataset import Example, ImageSet, Split
from bitzoo.data.label_space import output_space
from bitzoo.data.problems import DatasetError
from bitzoo.errors import UsageError
from bitzoo.runs.teachers import fast_dtype, in_outputs, load_teachers
from bitzoo.zoo.model_folder import write_model_folder

ANIMALS = ("ant", "bee", "cow", "dog")


def make_teacher(folder, names=ANIMALS, seed=0, **known):
    """A model folder whose outputs are called `names`; None if they have no names."""
    folder.mkdir()
    count = 4 if names is None else len(names)
    path = write_npz(folder / "from.npz", make_checkpoint(num_classes=count, seed=seed))
    network = bitzoo.create_model(path, pretrained=True)
    made = replace(bitzoo.info(network), own_names=names, **({"activation": "softmax"} | known))
    write_model_folder(folder, network, made)
    return str(folder)


def load(*places, dtype="float32"):
    return load_teachers([f"name of {k}" for k in range(len(places))], places, dtype)


class TestLoading:
    def test_who_it_is(self, tmp_path):
        place = make_teacher(tmp_path / "a")
        faculty = load(place)
        (record,) = faculty.records
        content = (tmp_path / "a" / "model.safetensors").read_bytes()
        assert record.sha256 == hashlib.sha256(content).hexdigest()
        assert (record.name, record.architecture) == ("name of 0", "R(1,1,1,1)x0.5")
        assert record.dtype == "float32"
        assert faculty.space.names == ANIMALS
        assert faculty.notes == ()

    def test_its_logits_are_the_model_s(self, tmp_path):
        """Folded, without a gradient; for two teachers the mean, class by class."""
        names = ("dog", "ant", "cow", "bee")
        places = [make_teacher(tmp_path / "a"), make_teacher(tmp_path / "b", names, seed=1)]
        images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
        first, second = (bitzoo.create_model(p, pretrained=True) for p in places)
        with torch.no_grad():
            wanted = (first(images) + second(images)[:, [1, 3, 2, 0]]) / 2
        found = load(*places).ensemble(torch.device("cpu"))(images)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
        assert not found.requires_grad
        assert not found.is_inference()

    def test_in_bfloat16(self, tmp_path):
        place = make_teacher(tmp_path / "a")
        images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
        exact, rounded = (
            load(place, dtype=dtype).ensemble(torch.device("cpu"))(images)
            for dtype in ("float32", "bfloat16")
        )
        assert rounded.dtype == torch.float32
        assert 1e-5 < float((exact - rounded).norm() / exact.norm()) < 0.1

    def test_dtype_of_a_device(self, monkeypatch):
        assert fast_dtype(torch.device("cpu")) == "float32"
        for major, expected in ((7, "float32"), (8, "bfloat16"), (9, "bfloat16")):
            monkeypatch.setattr(
                torch.cuda, "get_device_capability", lambda device, major=major: (major, 0)
            )
            assert fast_dtype(torch.device("cuda")) == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("known", "said"),
        [
            ({"activation": "sigmoid"}, r"independent probability.*Fine-tune it first"),
        ],
    )
    def test_what_cannot_teach(self, tmp_path, known, said):
        with pytest.raises(UsageError, match=said):
            load(make_teacher(tmp_path / "a", **known))

    def test_without_a_head(self, tmp_path):
        path = write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=0))
        with pytest.raises(UsageError, match="has no head"):
            load(str(path))

    def test_other_channels(self, tmp_path):
        path = write_npz(tmp_path / "a.npz", make_checkpoint(in_chans=1))
        with pytest.raises(UsageError, match=r"must take RGB images.*found 1 channels"):
            load(str(path))

    def test_an_unknown_activation_is_said(self, tmp_path):
        (note,) = load(make_teacher(tmp_path / "a", activation=None)).notes
        assert "not known whether name of 0 was trained with softmax" in note

    def test_unknown_dtype(self, tmp_path):
        with pytest.raises(UsageError, match="`teacher_dtype` must be one of float32"):
            load(str(tmp_path), dtype="float64")

    def test_teachers_of_other_classes(self, tmp_path):
        places = [
            make_teacher(tmp_path / "a"),
            make_teacher(tmp_path / "b", ("ant", "bee", "cow", "emu")),
        ]
        with pytest.raises(UsageError, match=r"(?s)must have the same classes.*dog: none"):
            load(*places)

    def test_teachers_whose_classes_are_unknown(self, tmp_path):
        places = [make_teacher(tmp_path / "a"), make_teacher(tmp_path / "b", None)]
        with pytest.raises(UsageError, match="not known whether name of 0 and name of 1 have the"):
            load(*places)


def image_set(classes, labels, val=()):
    def split(name, given):
        return Split(
            name, tuple(Example(label, key=f"{name} {k}") for k, label in enumerate(given))
        )

    return ImageSet(classes, split("train", labels), split("val", val) if val else None, "data")


SPACE = output_space(ModelInfo("R50x1", 4, own_names=ANIMALS))


class TestClasses:
    def test_the_same_are_left_alone(self):
        images = image_set(ANIMALS, [0, 1, 2, 3])
        assert in_outputs(images, SPACE, None) == (images, ())

    def test_labels_are_the_outputs_of_their_names(self):
        """Another order and spelling, and not all of the teacher's."""
        images = image_set(("Cow", "ant"), [0, 1, 1], val=[1, 0])
        found, notes = in_outputs(images, SPACE, None)
        assert found.classes == ANIMALS
        assert [example.label for example in found.train.examples] == [2, 0, 0]
        assert [example.label for example in found.val.examples] == [0, 2]
        assert "matched" in notes[0]
        assert "all 4 classes of the teacher; the data set has images of 2" in notes[-1]

    def test_what_the_teacher_does_not_know(self):
        with pytest.raises(DatasetError, match=r"(?s)emu: none.*`unlabelled=True`"):
            in_outputs(image_set(("ant", "emu"), [0, 1]), SPACE, None)

    def test_keys_and_contents_stay(self):
        images = image_set(("dog", "cow"), [0, 1])
        found, _ = in_outputs(images, SPACE, None)
        assert [e.key for e in found.train.examples] == ["train 0", "train 1"]
        assert np.array_equal([e.label for e in found.train.examples], [3, 2])
