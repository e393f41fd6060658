"""TensorFlow's own reader, in a process of its own, judges ours on checkpoints that it wrote."""

import subprocess
import sys
from pathlib import Path

import bundles
import numpy as np
import pytest

from bitzoo.converters.formats.tensorflow import TensorFlowSource
from bitzoo.converters.open import open_source

pytestmark = pytest.mark.slow


JUDGE = Path(__file__).parents[1] / "bundle_judge.py"
FORMS = ("kinds", "sharded", "partitioned", "partitioned_sharded", "three_shards")
OURS = np.arange(60, dtype="<f4").reshape(3, 4, 5)


def judge(*words):
    done = subprocess.run(
        [sys.executable, str(JUDGE), *map(str, words)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]


def bundle_of(source):
    assert isinstance(source, TensorFlowSource)
    return source._bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    data = OURS.tobytes()
    entry = bundles.entry(shape=OURS.shape, size=len(data), crc=bundles.masked(data))
    table = bundles.table([[(b"", bundles.header())], [(b"a", entry)]])
    bundles.write(folder / "by_the_tests", table, data)
    judge("write", folder)
    judge("read", *(folder / form for form in (*FORMS, "by_the_tests")))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_every_number_is_what_tensorflow_reads(folder, form):
    with np.load(folder / f"{form}.judged.npz") as judged, open_source(folder / form) as source:
        source.sha256()
        ours = {
            key: tensor
            for key, tensor in bundle_of(source).tensors.items()
            if tensor.dtype.kind != "V"
        }
        assert ours.keys() == set(judged.files)
        for key, tensor in ours.items():
            assert tensor.shape == judged[key].shape
            if tensor.shape:
                found = tensor.read()
                assert (key, found.dtype) == (key, judged[key].dtype)
                assert found.tobytes() == judged[key].tobytes(), key
    assert len(ours) > 2


def test_the_files_are_of_the_forms_that_they_are_meant_to_be(folder):
    assert len(list(folder.glob("three_shards.data-*-of-00003"))) == 3
    for form, axis in (("p/rows", 0), ("p/columns", 1)):
        with open_source(folder / "partitioned") as source:
            tensor = bundle_of(source).tensors[form]
            assert len(tensor._parts) > 2
            whole, cut = tensor.read(), [slice(None), slice(None)]
            cut[axis] = slice(1, 8)
            np.testing.assert_array_equal(tensor.read_slab(axis, 1, 8), whole[tuple(cut)])
    with open_source(folder / "kinds") as source:
        stored = {name: tensor.stored_dtype for name, tensor in bundle_of(source).tensors.items()}
    assert stored["bfloat16"] == "bfloat16"
    assert stored["text"] == "string"


def test_tensorflow_reads_what_the_tests_write(folder):
    """So that a file which they make wrong is wrong in that way alone."""
    with np.load(folder / "by_the_tests.judged.npz") as judged:
        np.testing.assert_array_equal(judged["a"], OURS)
