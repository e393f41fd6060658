"""What Hypothesis can generate from a description: whole files, and any JSON or text in them."""

import csv
import io
import json
import struct

import h5py
import numpy as np
import pytest
import torch
from attacks.checkpoints_under_attack import PART, WHOLE
from attacks.safetensors_files import timm_tensors
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from safetensors.torch import save

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source
from bitzoo.data.readers import read_listing
from bitzoo.errors import BitzooError

SAME_EVERY_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from([*PART, "other", "resnet/group_norm/gamma_1"])
SHAPES = some.array_shapes(min_dims=1, max_dims=5, min_side=1, max_side=5)
TEXTS = st.text(st.characters(), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
CONFIG_KEYS = st.sampled_from(
    [
        "architecture",
        "model_type",
        "num_classes",
        "label_names",
        "id2label",
        "pretrained_cfg",
        "bitzoo",
        "problem_type",
        "interpolation",
    ]
)


@pytest.fixture(autouse=True)
def no_storage(tmp_path):
    configuration.set_hypothesis_home_dir(tmp_path / "hypothesis")


def readable(path):
    """Every tensor as bitzoo reads it; None if it refuses the file."""
    refusal = ""
    try:
        with open_source(path) as source:
            source.sha256()
            return {
                tensor.name: np.array(tensor.read())
                for tensor in source.tensors.values()
                if tensor.shape
            }
    except BitzooError as error:
        refusal = str(error)
    assert path.name in refusal
    return None


def same_bits(one, other):
    return one.shape == other.shape and one.astype(other.dtype).tobytes() == other.tobytes()


FLOATS = st.sampled_from([np.dtype(code) for code in ("<f2", "<f4", "<f8", ">f4")])
FLOAT_ARRAYS = FLOATS.flatmap(lambda dtype: some.arrays(dtype, SHAPES))


@SAME_EVERY_TIME
@given(arrays=st.dictionaries(NAMES, FLOAT_ARRAYS, min_size=1, max_size=4), packed=st.booleans())
def test_any_npz_that_numpy_writes(tmp_path, arrays, packed):
    path = tmp_path / "some.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    found = readable(path)
    assert found is not None
    assert found.keys() == arrays.keys()
    assert all(same_bits(found[name], arrays[name]) for name in arrays)


@SAME_EVERY_TIME
@given(arrays=st.dictionaries(NAMES, FLOAT_ARRAYS, min_size=1, max_size=4))
def test_any_safetensors_file_that_the_library_writes(tmp_path, arrays):
    path = tmp_path / "some.safetensors"
    tensors = {n: torch.from_numpy(a.astype(a.dtype.newbyteorder("="))) for n, a in arrays.items()}
    path.write_bytes(save(tensors))
    found = readable(path)
    assert found is not None
    assert sorted(found) == sorted(tensors)
    assert all(same_bits(found[name], tensors[name].numpy()) for name in tensors)


@SAME_EVERY_TIME
@given(arrays=st.dictionaries(NAMES, FLOAT_ARRAYS, min_size=1, max_size=3), packed=st.booleans())
def test_any_keras_file_that_h5py_writes(tmp_path, arrays, packed):
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([b"layer"])
        group = file.create_group("layer")
        names = [f"w{i}" for i in range(len(arrays))]
        group.attrs["weight_names"] = np.array(names, "S")
        for name, array in zip(names, arrays.values(), strict=True):
            group.create_dataset(name, data=array, compression="gzip" if packed else None)
    found = readable(path)
    assert found is not None
    ordered = [found[f"resnet/layer/{name}"] for name in names] if not packed else [*found.values()]
    pairs = zip(ordered, arrays.values(), strict=True)
    assert all(same_bits(one, other) for one, other in pairs)


@SAME_EVERY_TIME
@given(header=st.dictionaries(TEXTS, JSON, max_size=4) | JSON, body=st.binary(max_size=64))
def test_any_json_as_the_header_of_a_safetensors_file(tmp_path, header, body):
    path = tmp_path / "some.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    assert readable(path) in (None, {})


@SAME_EVERY_TIME
@given(config=st.dictionaries(CONFIG_KEYS, JSON, max_size=5) | st.dictionaries(TEXTS, JSON))
def test_any_json_as_a_config(weights, config):
    (weights / "config.json").write_text(json.dumps(config))
    try:
        with open_source(weights) as source:
            info, _ = read_info(source, identify(source))
    except BitzooError:
        return
    _ = info.display_rows(), info.class_names
    assert ModelInfo.from_dict(json.loads(info.to_json())).to_dict() == info.to_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").write_bytes(save(timm_tensors(WHOLE)))
    return folder


STARTS = [b"PK\3\4", b"\x89HDF\r\n\x1a\n", b"\x80\x02", b"\x1f\x8b", b"\x10\0\0\0\0\0\0\0{", b"{"]


@SAME_EVERY_TIME
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_any_bytes_after_a_known_beginning(tmp_path, start, rest):
    path = tmp_path / "some.bin"
    path.write_bytes(start + rest)
    assert readable(path) in (None, {})


CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
WORDS = CELLS.map(str.strip).filter(bool)


@SAME_EVERY_TIME
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_any_list_of_images_that_the_csv_module_writes(tmp_path, rows):
    path, text = tmp_path / "images.csv", io.StringIO()
    csv.writer(text).writerows([("path", "label"), *rows])
    path.write_bytes(text.getvalue().encode())
    listing = read_listing(path)
    assert not listing.problems
    assert [row.path for row in listing.rows] == [tmp_path / image for image, _ in rows]
    assert len(listing.rows) == len(rows)
