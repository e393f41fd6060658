"""Files of arrays in the cache: what was kept comes back, and no damage goes unnoticed."""

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from bitzoo.data.array_files import read_arrays, write_arrays
from bitzoo.data.record_labels import LabelCache

ABOUT = {"names": ["cat", "dög"], "count": 3}
ARRAYS: dict[str, Any] = {
    "labels": np.array([0, 1, 1], np.int32),
    "places": np.array([0, 2**40], np.int64),
    "none": np.empty(0, np.uint8),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.arrays"
    write_arrays(path, ABOUT, {name: [array[:1], array[1:]] for name, array in ARRAYS.items()})
    return path


def test_what_was_kept_comes_back(path):
    about, arrays = read_arrays(path)
    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].tolist() == array.tolist()
    assert [arrays[name].dtype for name in ("labels", "places")] == [np.int32, np.int64]


def test_no_damaged_bit_goes_unnoticed(path):
    """But in the gaps between arrays, which say nothing."""
    whole = path.read_bytes()
    unseen = []
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            found = read_arrays(path)
            if found is not None:
                unseen.append(at)
                assert found[0] == ABOUT
                assert {n: a.tolist() for n, a in found[1].items()} == {
                    n: a.tolist() for n, a in ARRAYS.items()
                }
    assert {whole[at] for at in unseen} == {0}
    assert set(unseen) <= {*range(12, 64), *range(80, 128)}


@pytest.mark.parametrize("keep", [0, 5, 11, 12, 60, -1])
def test_a_truncated_file_is_none(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    assert read_arrays(path) is None


@pytest.mark.parametrize(
    "tail",
    [b"[" * 100_000, b"{}", b"[]", b"\xff", b'{"form": "another"}'],
    ids=["deep", "empty", "list", "bytes", "form"],
)
def test_another_description_is_none(path, tail):
    path.write_bytes(tail + struct.pack("<IQ", zlib.crc32(tail), len(tail)))
    assert read_arrays(path) is None


@pytest.mark.parametrize("entry", [["|O", 1, 0, 0], ["<i4", 2**62, 0, 0], ["<i4", 1, 2**70, 0]])
def test_an_impossible_array_is_none(path, entry):
    about = {"form": "bitzoo arrays 2", "about": {}, "arrays": [["one", *entry]]}
    tail = json.dumps(about).encode()
    path.write_bytes(tail + struct.pack("<IQ", zlib.crc32(tail), len(tail)))
    assert read_arrays(path) is None


def test_a_label_that_was_damaged_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path))
    cache, asked = LabelCache(["a", "b"]), []

    def read(number):
        asked.append(number)
        return number % 3

    first = cache.labels("train", 9, range(9), read).tolist()
    assert cache.labels("train", 9, range(9), read).tolist() == first
    assert len(asked) == 9
    (path,) = (tmp_path / "labels").glob("*.labels")
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the second label, which would be 0
    path.write_bytes(content)
    assert cache.labels("train", 9, range(9), read).tolist() == first
    assert len(asked) == 18
