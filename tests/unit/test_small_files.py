"""Files next to the weights: bounded, regular, JSON, and of the right form; else a sentence."""

import json
import logging
import math
import os
import random
import socket
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import as_timm, make_checkpoint
from safetensors.numpy import save_file

import bitzoo
from bitzoo.catalogue.metadata import MAX_SIDE, Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo, Provenance
from bitzoo.converters.formats.hf_config import render_hf_config, render_processor
from bitzoo.converters.formats.timm_config import render_timm_config
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import load_reports
from bitzoo.data.folder import order_classes
from bitzoo.data.manifest import read_manifest
from bitzoo.errors import BitzooError, CheckpointError, UsageError
from bitzoo.small_files import parse_json, read_json, read_json_lines, read_text

CLASSES = 4
NAMES = ("a", "b", "c", "d")
KNOWN = ModelInfo(
    "R(1,1,1,1)x0.5",
    CLASSES,
    own_names=NAMES,
    activation="softmax",
    preprocessing=Preprocessing(128, 160, "bilinear", True, "x"),
    provenance=Provenance("a.npz"),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    tensors = as_timm(make_checkpoint(num_classes=CLASSES))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return path


@pytest.fixture
def folder(tmp_path, weights):
    """A folder with weights, to which a test adds what describes them."""
    (tmp_path / "model").mkdir()
    os.link(weights, tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def info_of(folder):
    with open_source(folder) as source:
        return read_info(source, identify(source))


def write(folder, content, name="config.json"):
    (folder / name).write_text(json.dumps(content))


# --- what is no small file ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a socket"])
def test_only_regular_files_are_read(folder, name, kind, monkeypatch):
    path = folder / name
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        monkeypatch.chdir(folder)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        info_of(folder)
    assert str(caught.value) == (
        f"{path}: expected a regular file, found {kind}. Put the file itself there, or remove it."
    )
    assert time.monotonic() - start < 10


def test_a_link_to_a_regular_file_is_one_and_no_file_is_none(folder, tmp_path):
    (tmp_path / "blob").write_text(json.dumps(render_timm_config(KNOWN)))
    (folder / "config.json").symlink_to(tmp_path / "blob")
    assert info_of(folder)[0].own_names == NAMES
    (tmp_path / "blob").unlink()
    assert info_of(folder)[0].own_names is None


def test_no_more_is_read_than_the_bound(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no space
    with pytest.raises(CheckpointError, match="expected a small file of at most 4,194,304 bytes"):
        info_of(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": Infinity}', "Infinity is not a number of JSON"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "4300"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[]", "expected a JSON object, found list"),
    ],
)
def test_what_is_no_json_is_a_short_sentence(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        read_json(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert len(str(caught.value)) < 600


def test_json_of_other_tools_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"\\u00e9": "\\ud83d\\ude00", "n": -1.5e3}')
    assert read_json(tmp_path / "a.json") == {"\u00e9": "\U0001f600", "n": -1500.0}
    assert parse_json("[1, 2]") == [1, 2]


# --- values of another form -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (5, "a list of names"),
        ([["a"], "b", "c", "d"], "unhashable"),
        ([{"a": 1}, "b", "c", "d"], "unhashable"),
        (["a", "b", "c", None], "it has None as a name"),
        ({"0": "a", "2": "b"}, "KeyError: '1'"),
    ],
)
def test_label_names_of_another_form(folder, names, said):
    write(folder, render_timm_config(KNOWN) | {"label_names": names})
    info, _ = info_of(folder)
    assert info.class_names is None
    assert info.refused["class_names"].startswith("label_names in config.json next to the weights:")
    assert said in info.refused["class_names"]
    assert bitzoo.labels(folder) is None


def test_label_names_as_numbered_entries_are_read(folder):
    config = render_timm_config(KNOWN) | {"label_names": {"0": "w", "1": "x", "2": "y", "3": "z"}}
    write(folder, config | {"label_descriptions": {"w": "double u"}})
    assert info_of(folder)[0].class_names == ("double u", "x", "y", "z")
    write(folder, config | {"label_descriptions": ["w"]})
    assert "label_descriptions is list, not an object" in info_of(folder)[0].refused["class_names"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "c", "d"], "list indices must be integers"),
        ({"0": "a"}, "it has 1 names, and the head 4 outputs"),
        ({"0": "a", "1": "b", "2": "c", "4": "d"}, "KeyError: '3'"),
        ({"0": "a", "1": "b", "2": "c", "3": 4}, "it has names that are no text"),
        (7, "object of type 'int' has no len()"),
    ],
)
def test_id2label_of_another_form(folder, labels, said):
    write(folder, render_hf_config(KNOWN) | {"id2label": labels})
    info, _ = info_of(folder)
    assert info.class_names is None
    assert said in info.refused["class_names"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ([3, 200_000, 200_000], f"a crop of 200000 from 229017 pixels, expected 1 to {MAX_SIDE:,}"),
        ([3, 224, 448], "input_size 448 x 224 is not a square"),
        ([3, True, True], "two whole numbers"),
        ([3, "224", "224"], "unsupported operand"),
        ([3, 2**70, 2**70], "expected 1 to 4,096"),
        ([], "IndexError"),
        (None, "subscriptable"),
    ],
)
def test_a_size_that_no_network_sees(folder, size, said):
    """A side of 200,000 took 23 GB with the first picture."""
    config = render_timm_config(replace(KNOWN, preprocessing=None))
    config["pretrained_cfg"]["input_size"] = size
    write(folder, config)
    assert said in info_of(folder)[0].refused["preprocessing"]
    with pytest.raises(CheckpointError, match="pretrained_cfg in config"):
        bitzoo.create_transform(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 200_000, "width": 200_000}},
        {"size": "shortest_edge"},
        {"size": None},
        {"size": {"shortest_edge": [1]}},
        {"crop_size": {"height": True, "width": True}},
        {"resample": [2]},
        {"crop_size": {"height": 2**70, "width": 2**70}},
    ],
)
def test_a_processor_of_another_form(folder, changes):
    write(folder, render_processor(KNOWN) | changes, "preprocessor_config.json")
    assert (
        "preprocessor_config.json next to the weights: expected the keys of BitImageProcessor"
        in (info_of(folder)[0].refused["preprocessing"])
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("activation", "relu", "activation 'relu', expected sigmoid or softmax"),
        ("activation", ["softmax"], "activation ['softmax']"),
        ("num_classes", 2**40, "num_classes is 1099511627776, expected 0 to 16,777,216"),
        ("num_classes", "4", "num_classes is '4'"),
        ("in_chans", True, "in_chans is True"),
        ("architecture", 50, "architecture is int, not text"),
        ("identity", ["BiT-M-R50x1"], "a name, a basis and its evidence"),
        ("identity", {"basis": "vouched", "name": 5}, "name and evidence must be text"),
        ("provenance", {"sha256": "x"}, "KeyError: 'source'"),
        ("preprocessing", {"crop": 1e9}, "KeyError"),
        ("run", {"data": "x"}, "KeyError: 'fingerprint'"),
        ("sources", [1], "'list' object has no attribute 'items'"),
    ],
)
def test_a_record_of_another_form_is_ignored_and_said(folder, key, value, said, caplog):
    config = render_timm_config(KNOWN)
    config["bitzoo"]["model_info"][key] = value
    write(folder, config)
    _, notes = info_of(folder)
    (note,) = (note for note in notes if "record" in note)
    assert note.startswith("bitzoo's record in model cannot be read: ")
    assert said in note
    with caplog.at_level(logging.WARNING):
        assert bitzoo.create_model(folder, pretrained=True).num_classes == CLASSES
    assert said in caplog.text


def test_an_identity_of_another_form_is_our_error():
    wrong: Any
    for wrong in ([], {"basis": "google", "name": []}, {"basis": "trust me"}, None):
        with pytest.raises(CheckpointError, match="identity: expected a name, a basis"):
            Identity.from_dict(wrong)


# --- reports and lists ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['{"a.npz": {"weights_rule": Infinity}}', '{"a.npz": {}}', "[" * 100_000, '{"a": 1}', "[]"],
)
def test_a_parity_report_of_another_form(tmp_path, text):
    (tmp_path / "parity.json").write_text(text)
    with pytest.raises(UsageError, match=r"parity\.json: expected reports of earlier proofs"):
        load_reports(tmp_path / "parity.json")


def test_a_parity_report_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "parity.json")
    with pytest.raises(UsageError, match=r"parity\.json: expected reports of earlier proofs"):
        load_reports(tmp_path / "parity.json")


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "[" * 100_000, '{"model_info": 5}', '{"model_info": {"num_classes": 1e999}}'],
)
def test_the_report_of_an_export_of_another_form(tmp_path, text):
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "a.onnx.export.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        bitzoo.info(tmp_path / "a.onnx")
    assert len(str(caught.value)) < 600


def test_classes_that_are_named_by_thousands_of_digits(tmp_path):
    """Python converts at most 4,300 digits; such a name is text."""
    long = "9" * 5_000
    assert order_classes(["10", long, "2"]) == ("10", "2", long)
    assert order_classes(["10", "-3", "2"]) == ("-3", "2", "10")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"path,label\na.png,{long}\nb.png,7\n")
    assert read_manifest(tmp_path / "m.csv").classes == ("7", long)


# --- random changes -------------------------------------------------------------------------------

VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 2**40, 2**70, 1.5, "", "\x1b[31mred", "a" * 70_000, "relu", 200_000),
    *([], {}, [None], [[]], {"a": 1}, [2**40], ["a"], "9" * 5_000, [[[[[[1]]]]]]),
)


def places_in(content, path=()):
    if path:
        yield path
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield from (
            places_in(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
        )


class TestLines:
    def test_of_objects_and_of_anything_else(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"a": 1}\n[2]\n\n\xff\n{"loss": NaN}\r\n{"b": "\xff"}\n{"c": 3}\n{"d"')
        found = read_json_lines(path)
        assert math.isnan(found[4].pop("loss"))
        assert found == [{"a": 1}, None, None, None, {}, {"b": "\ufffd"}, {"c": 3}]

    def test_a_line_without_end_is_one_damaged_line(self, tmp_path):
        path, long = tmp_path / "a.jsonl", b'{"a": "' + b"x" * 300_000 + b'"}'
        path.write_bytes(b'{"a": 1}\n' + long + b'\n{"b": 2}\n' + long)
        assert read_json_lines(path) == [{"a": 1}, None, {"b": 2}, None]

    def test_a_file_without_end(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('{"a": 1}\n' * 10)
        assert len(read_json_lines(path, 90)) == 10
        with pytest.raises(CheckpointError, match="small file of at most 89 bytes, found more"):
            read_json_lines(path, 89)

    def test_a_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "a.jsonl")
        with pytest.raises(CheckpointError, match="expected a regular file, found a pipe"):
            read_json_lines(tmp_path / "a.jsonl")


def test_text_for_people(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(b"a\r\nb\rc\xff\n")
    assert read_text(path) == "a\nb\nc\ufffd\n"
    with pytest.raises(CheckpointError, match="small file of at most 7 bytes, found more"):
        read_text(path, 7)


@pytest.mark.parametrize("kind", ["timm", "transformers", "processor"])
def test_random_values_are_read_or_refused_never_a_traceback(folder, kind):
    generator = random.Random(kind)
    whole, name = {
        "timm": (render_timm_config(KNOWN), "config.json"),
        "transformers": (render_hf_config(KNOWN), "config.json"),
        "processor": (render_processor(KNOWN), "preprocessor_config.json"),
    }[kind]
    places = list(places_in(whole))
    refused = 0
    for _ in range(150):
        content = json.loads(json.dumps(whole))
        *path, last = generator.choice(places)
        parent = content
        for key in path:
            parent = parent[key]
        parent[last] = generator.choice(VALUES)
        write(folder, content, name)
        try:
            info, notes = info_of(folder)
        except BitzooError:
            refused += 1
            continue
        refused += bool(info.refused or notes)
        assert ModelInfo.from_dict(json.loads(info.to_json())).to_json() == info.to_json()
        way = info.preprocessing
        assert way is None or 1 <= way.crop <= way.resize <= MAX_SIDE
        assert info.names_or_reason()[0] is None or len(info.class_names) == CLASSES
        assert len(repr(info)) < 2_000
    assert refused > 5
