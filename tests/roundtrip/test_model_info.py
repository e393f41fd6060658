"""What is known of a model is the same after every way through the formats that can carry it."""

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz
from transformers import AutoImageProcessor, BitForImageClassification

import bitzoo
from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo, Provenance
from bitzoo.catalogue.run_info import RunInfo, TeacherInfo
from bitzoo.converters.convert import convert
from bitzoo.converters.formats.checkpoint_formats import FORMATS, Target
from bitzoo.errors import CheckpointError
from bitzoo.zoo.model_folder import write_model_folder

CLASSES = 7
FORMS = {"safetensors": True, "timm": True, "transformers": True, "h5": True} | {
    "npz": False,
    "bit_pytorch": False,
}
"""Format -> whether it carries the record."""
CARRY = [to for to, carries in FORMS.items() if carries]
KNOWN = ModelInfo(
    "R(1,1,1,1)x0.5",
    CLASSES,
    identity=Identity(None, "unknown", "fine-tuned by bitzoo"),
    base=Identity("BiT-M-R50x1", "google", "https://host/BiT-M-R50x1.npz"),
    own_names=tuple(f"smoker {i}" for i in range(CLASSES)),
    activation="sigmoid",
    preprocessing=Preprocessing(96, 110, "bicubic", False, "its owner"),
    license="mit",
    run=RunInfo("photos/", "ab" * 32, {"train": 90, "val": 10}, {"name": "mine"}, 3),
    sources={"license": "its owner", "own_names": "its owner", "activation": "its owner"},
)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A converted model of someone's own, with all that can be known."""
    place = tmp_path_factory.mktemp("first")
    path = write_npz(place / "a.npz", make_checkpoint(num_classes=CLASSES))
    network = bitzoo.create_model(path, pretrained=True)
    write_model_folder(place / "own", network, KNOWN)
    convert(place / "own", place / "first.safetensors")
    return place / "first.safetensors"


def there(path, to, folder):
    return convert(path, folder / f"made{FORMATS[to].ending}", Target(to)).output


def test_the_record_is_json_and_back():
    made = replace(KNOWN, provenance=Provenance("x.npz", "ab" * 32, dtype="float16"))
    assert ModelInfo.from_dict(json.loads(made.to_json())) == made


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"train": 9000, "val": 10}, "photos/ (train 9,000, val 10)"),
        (
            {"train": 90, "held_out": "the data set's own val split", "left_out": 3},
            "photos/ (train 90, left out 3; held out: the data set's own val split)",
        ),
        ({}, "photos/"),
    ],
)
def test_what_it_was_trained_on_is_said_in_words(split, said):
    made = replace(KNOWN, run=replace(KNOWN.run, split=split))
    assert ("trained on", said) in made.display_rows()


def test_numbers_of_a_trained_model_are_not_said_to_be_unchanged():
    """Its record keeps the first file, whose numbers training has changed."""
    made = Provenance("x.npz", "ab" * 32)
    trained = dict(replace(KNOWN, provenance=made).display_rows())
    assert trained["numbers"] == "first converted from x.npz"
    taken = dict(replace(KNOWN, provenance=made, run=None).display_rows())
    assert taken["numbers"] == "from x.npz, unchanged"
    rounded = replace(made, rounded_from="float32", dtype="float16")
    assert dict(replace(KNOWN, provenance=rounded).display_rows())["numbers"] == (
        "first converted from x.npz, rounded from float32 to float16"
    )


def test_teachers_are_part_of_the_record():
    """And a run without any has the record that earlier versions wrote."""
    teachers = (TeacherInfo("runs/a", "cd" * 32, "R50x1", "fine-tuned by bitzoo", "bfloat16"),)
    made = replace(KNOWN, run=replace(KNOWN.run, teachers=teachers))
    assert ModelInfo.from_dict(json.loads(made.to_json())) == made
    assert json.loads(made.to_json())["run"]["teachers"] == [
        {
            "name": "runs/a",
            "sha256": "cd" * 32,
            "architecture": "R50x1",
            "identity": "fine-tuned by bitzoo",
            "dtype": "bfloat16",
        }
    ]
    file = f"weights file with SHA-256 {'cd' * 32}"
    said = f"runs/a (R50x1; fine-tuned by bitzoo; {file}), in bfloat16"
    assert ("teacher", said) in made.display_rows()
    assert "teachers" not in json.loads(KNOWN.to_json())["run"]


def test_the_first_conversion_adds_where_the_numbers_came_from(first):
    found = bitzoo.info(first)
    assert found.provenance.source == "own"
    assert found.provenance.is_exact
    assert replace(found, provenance=None) == KNOWN


@pytest.mark.parametrize("to", CARRY)
def test_every_format_that_can_carry_it_does(first, tmp_path, to):
    assert bitzoo.info(there(first, to, tmp_path)) == bitzoo.info(first)


@pytest.mark.parametrize(("one", "other"), list(permutations(CARRY, 2)))
def test_every_way_through_two_formats(first, tmp_path, one, other):
    (tmp_path / "b").mkdir()
    middle = there(first, one, tmp_path)
    assert bitzoo.info(there(middle, other, tmp_path / "b")) == bitzoo.info(first)


@pytest.mark.parametrize("to", [to for to, carries in FORMS.items() if not carries])
def test_what_cannot_carry_it_says_so(first, tmp_path, to):
    conversion = convert(first, tmp_path / f"made{FORMATS[to].ending}", Target(to))
    assert any("has no place for class names" in note for note in conversion.notes)
    found = bitzoo.info(conversion.output)
    assert found == ModelInfo(KNOWN.architecture, CLASSES)


def test_a_network_carries_it_and_hands_it_on(first, tmp_path):
    network = bitzoo.create_model(first, pretrained=True)
    assert network.info == bitzoo.info(first)
    write_model_folder(tmp_path / "again", network, network.info)
    assert bitzoo.info(tmp_path / "again") == bitzoo.info(first)
    assert bitzoo.labels(network) == list(KNOWN.own_names)
    transform = bitzoo.create_transform(network)
    assert (transform.crop, transform.resize, transform.interpolation) == (96, 110, "bicubic")


def test_with_the_head_of_imagenet_21k(tmp_path):
    """21,843 own names, an own processor, a stated licence; only HDF5 has no room for the names."""
    path = write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=21_843))
    known = replace(KNOWN, num_classes=21_843, own_names=tuple(f"c {i}" for i in range(21_843)))
    network = bitzoo.create_model(path, pretrained=True)
    write_model_folder(tmp_path / "own", network, known)
    found = bitzoo.info(convert(tmp_path / "own", tmp_path / "b.safetensors").output)
    assert replace(found, provenance=None) == known
    for to in ("transformers", "timm"):
        assert bitzoo.info(there(tmp_path / "b.safetensors", to, tmp_path)) == found
    conversion = convert(tmp_path / "b.safetensors", tmp_path / "c.h5", Target("h5"))
    assert "The class names are too long" in " ".join(conversion.notes)
    assert bitzoo.info(conversion.output) == replace(found, own_names=None)


def test_the_table_in_the_documentation_is_what_was_found_here():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M))
    for to, carries in FORMS.items():
        cells = rows[to].split(" | ")
        names = "up to 60 kB" if to == "h5" else "yes" if carries else "no"
        assert cells == [names, *["yes" if carries else "no"] * 4]
    assert FORMATS["h5"].record_bytes == 60_000
    established = dict(re.findall(r"^\| `([\w ]+)` \| .* \| (yes|no) \|$", text, re.M))
    for basis, said in established.items():
        if basis not in FORMS:
            assert Identity("BiT-M-R50x1", basis).established == (said == "yes")


class TestTransformersOwnKeys:
    """A folder as transformers writes it, without a word of bitzoo's."""

    @pytest.fixture
    def theirs(self, first, tmp_path):
        folder = there(first, "transformers", tmp_path)
        config = json.loads((folder / "config.json").read_text())
        del config["bitzoo"]
        (folder / "config.json").write_text(json.dumps(config))
        weights = folder / "model.safetensors"
        model = BitForImageClassification.from_pretrained(folder)
        weights.unlink()
        model.save_pretrained(folder)  # drops the metadata of the file
        return folder

    def test_names_activation_and_processor_are_read(self, theirs):
        found = bitzoo.info(theirs)
        assert found.own_names == KNOWN.own_names
        assert found.activation == "sigmoid"
        assert replace(found.preprocessing, source="") == replace(KNOWN.preprocessing, source="")
        assert (found.license, found.identity.name) == (None, None)
        network = bitzoo.create_model(theirs, pretrained=True)
        assert bitzoo.labels(network) == list(KNOWN.own_names)
        assert bitzoo.create_transform(network).crop == 96

    def test_transformers_prepares_images_as_bitzoo_then_does(self, theirs, tmp_path):
        import numpy as np
        import torch
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        own = bitzoo.create_transform(theirs)(image)
        processor = AutoImageProcessor.from_pretrained(theirs, use_fast=False)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(own, expected, rtol=0, atol=2e-2)  # rounding of the resize

    def test_a_changed_name_counts_more_than_the_record(self, first, tmp_path):
        folder = there(first, "transformers", tmp_path)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"]["0"] = "renamed"
        (folder / "config.json").write_text(json.dumps(config))
        found = bitzoo.info(folder)
        assert found.own_names == ("renamed", *KNOWN.own_names[1:])
        assert found.sources["own_names"] == "config.json of transformers"
        assert found.license == "mit"  # which transformers' keys do not touch

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"image_mean": [0.485, 0.456, 0.406]}, "normalizes images with image_mean"),
            ({"image_std": [0.229, 0.224, 0.225]}, "normalizes images with image_std"),
            ({"do_normalize": False}, "disables do_normalize"),
            ({"rescale_factor": 1.0}, "rescales pixels by 1.0"),
            ({"size": {"height": 96, "width": 80}}, "cannot be read"),
            ({"resample": 1}, "cannot be read"),
        ],
    )
    def test_a_processor_of_another_range_is_refused(self, theirs, changes, says):
        path = theirs / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        network = bitzoo.create_model(theirs, pretrained=True)  # the weights are fine
        with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json.*{says}"):
            bitzoo.create_transform(network)

    def test_the_processor_of_transformers_5_stands_under_a_key(self, theirs):
        path = theirs / "preprocessor_config.json"
        settings = json.loads(path.read_text())
        path.unlink()
        (theirs / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
        assert bitzoo.info(theirs).preprocessing.crop == 96

    def test_label_0_is_no_name(self, theirs):
        path = theirs / "config.json"
        config = json.loads(path.read_text())
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(CLASSES)}
        path.write_text(json.dumps(config))
        assert bitzoo.info(theirs).own_names is None


class TestWhatIsNotKnown:
    @pytest.fixture
    def plain(self, tmp_path):
        return write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=CLASSES))

    @pytest.mark.parametrize("to", CARRY)
    def test_stays_unknown(self, plain, tmp_path, to):
        found = bitzoo.info(there(plain, to, tmp_path))
        assert (found.own_names, found.label_set, found.activation) == (None, None, None)
        assert (found.preprocessing, found.license) == (None, None)
        assert found.identity == Identity()

    def test_is_said(self, plain):
        text = str(bitzoo.info(plain))
        assert text.count("not known") == 4
        assert len(text.splitlines()) <= 10


def test_a_claim_in_a_file_stays_a_claim(tmp_path, monkeypatch):
    """Metadata can be copied to any file: only who compared the bytes may state more."""
    from bitzoo.models.architecture import ARCHITECTURES, Architecture

    monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
    monkeypatch.setattr("bitzoo.models.architecture.DEPTHS", {"R50": (1, 1, 1, 1)})
    path = write_npz(tmp_path / "a.npz", make_checkpoint(num_classes=1000))
    google = Identity("BiT-S-R50x1", "google", "https://host/BiT-S-R50x1.npz")
    output = convert(path, tmp_path / "b.safetensors", identity=google).output
    found = bitzoo.info(output)
    assert (found.identity.name, found.identity.basis) == ("BiT-S-R50x1", "stated")
    assert not found.identity.established
    assert "google" in found.identity.evidence
    again = convert(output, tmp_path / "c.safetensors").output
    assert bitzoo.info(again).identity.evidence == found.identity.evidence
