"""The safetensors reader against hostile headers, the writer against the safetensors library."""

import json
import os
import random
import struct
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from bitzoo.converters.formats.safetensors import (
    MAX_HEADER_BYTES,
    SafetensorsSource,
    SafetensorsWriter,
)
from bitzoo.errors import CheckpointError

F4 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
GOOD = {"a": F4}


def write(path, header, data=bytes(8), length=None):
    """A file with this header: text, bytes or what JSON makes of anything else."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(**changed):
    return {"a": F4 | changed}


def refused(path, said):
    """The message, which must be about the file, short, and quick to come."""
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=said) as caught:
        SafetensorsSource(path)
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 1_500
    assert message.isprintable()
    return message


class TestReading:
    def test_values_shapes_and_metadata(self, tmp_path):
        arrays = {
            "x": np.arange(6, dtype="f4").reshape(2, 3),
            "half": np.array([0.5, -2, 65504], "f2"),
            "double": np.array([[[1e300]]]),
            "scalar": np.array(7, "f4"),
            "none": np.zeros((3, 0), "f4"),
        }
        save_file(arrays, tmp_path / "a", {"format": "pt", "note": "größe"})
        with SafetensorsSource(tmp_path / "a") as source:
            assert source.metadata == {"format": "pt", "note": "größe"}
            assert set(source.tensors) == set(arrays)
            for name, array in arrays.items():
                tensor = source.tensors[name]
                assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
                if array.shape:
                    assert tensor.read().tolist() == array.tolist()
            assert source.tensors["x"].read_slab(1, 1, 3).tolist() == [[1, 2], [4, 5]]
            assert source.size == (tmp_path / "a").stat().st_size

    def test_any_order_of_entries_and_tensors_without_bytes(self, tmp_path):
        header = {
            "last": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            "first": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "empty": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
            "empty at the end": {"dtype": "F16", "shape": [0, 9], "data_offsets": [8, 8]},
        }
        path = write(tmp_path / "a", header, struct.pack("<2f", 1, 2))
        with SafetensorsSource(path) as source:
            values = {name: tensor.read().tolist() for name, tensor in source.tensors.items()}
        expected = {name: array.tolist() for name, array in load_file(path).items()}
        assert (
            values == expected == {"first": [1], "last": [2], "empty": [], "empty at the end": []}
        )

    def test_the_library_agrees_on_what_is_whole(self, tmp_path):
        """Files this reader accepts are read later by the library."""
        chance = random.Random(0)
        path = tmp_path / "a"
        save_file({"a": np.arange(4, dtype="f4"), "b": np.ones((2, 2), "f4")}, path, {"x": "y"})
        good = path.read_bytes()
        outcomes = {True: 0, False: 0}
        for _ in range(800):
            data = bytearray(good)
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
            try:
                with SafetensorsSource(path) as source:
                    ours = {name: t.read().tolist() for name, t in source.tensors.items()}
            except CheckpointError:
                outcomes[False] += 1
            else:
                outcomes[True] += 1
                assert ours == {name: array.tolist() for name, array in load_file(path).items()}
        assert min(outcomes.values()) > 20


HOSTILE = {
    "no file at all": (b"", "found a stated length of 0 in a file of 0"),
    "seven bytes": (b"\x40" + bytes(6), "found a stated length of 0 in a file of 7"),
    "length of zero": (struct.pack("<Q", 0) + b"{}", "found a stated length of 0 in"),
    "length beyond the file": (struct.pack("<Q", 9) + b"{}", "stated length of 9 in a file of 10"),
    "length of 16 EiB": (b"\xff" * 8 + b"{}", "stated length of 18,446,744,073,709,551,615"),
    "length of 2**63": (struct.pack("<Q", 1 << 63) + b"{}", "9,223,372,036,854,775,808"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_lengths_that_lie(tmp_path, kind):
    content, said = HOSTILE[kind]
    (tmp_path / "a").write_bytes(content)
    assert "damaged" in refused(tmp_path / "a", said)


def test_a_header_beyond_the_bound_is_not_read(tmp_path):
    path = write(tmp_path / "a", "{}", length=MAX_HEADER_BYTES + 1)
    os.truncate(path, 1 << 33)  # a hole: the file really is that large
    tracemalloc.start()
    refused(path, f"at most {MAX_HEADER_BYTES:,} bytes, found a stated length of")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


BAD_JSON = {
    "cut": '{"a":{"dtype":"F32","shape":[2],"data_off',
    "nothing": "          ",
    "single quotes": "{'a': 1}",
    "comma": '{"a":1,}',
    "two documents": "{}{}",
    "nested lists": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "not UTF-8": b'{"\xff\xfe": 1}',
    "UTF-16": json.dumps(GOOD).encode("utf-16-le"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "name twice": json.dumps(GOOD)[:-1] + "," + json.dumps(GOOD)[1:],
    "field twice": '{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "number of 9,000 digits": '{"a":' + "9" * 9000 + "}",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_headers_that_are_no_json(tmp_path, kind):
    path = write(tmp_path / "a", BAD_JSON[kind])
    assert "convert the source again" in refused(path, "its safetensors header is not readable")


@pytest.mark.parametrize("header", [[], [1], "null", '"text"', "NaN", "true", "12"])
def test_headers_that_are_no_object(tmp_path, header):
    path = write(tmp_path / "a", header if header else "[]")
    refused(path, "expected a JSON object as safetensors header")


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {"b": "c"}}, [], "text", 5, True]
)
def test_metadata_that_is_no_text(tmp_path, metadata):
    path = write(tmp_path / "a", {"__metadata__": metadata} | GOOD)
    with pytest.raises(safetensors.SafetensorError):
        load_file(path)
    refused(path, "expected safetensors metadata that maps text to text")


ENTRIES = {
    "null": {"a": None},
    "text": {"a": "F32"},
    "list": {"a": ["F32", [2], [0, 8]]},
    "number": {"a": 5},
    "nothing": {"a": {}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown dtype": entry(dtype="float32"),
    "dtype null": entry(dtype=None),
    "dtype list": entry(dtype=["F32"]),
    "shape null": entry(shape=None),
    "shape number": entry(shape=2),
    "shape text": entry(shape="2"),
    "shape object": entry(shape={"2": 2}),
    "size bool": entry(shape=[True, 2]),
    "size float": entry(shape=[2.0]),
    "size text": entry(shape=["2"]),
    "size null": entry(shape=[None]),
    "size list": entry(shape=[[2]]),
    "size negative": entry(shape=[-2]),
    "two negatives": entry(shape=[-1, -2]),
    "size 2**63": entry(shape=[1 << 63, 0]),
    "size that wraps": entry(shape=[(1 << 62) + 2]),
    "size of 4,000 digits": entry(shape=[10**4000]),
    "shape too small": entry(shape=[1]),
    "shape too large": entry(shape=[3]),
    "rank 33": entry(shape=[1] * 32 + [2]),
    "offsets swapped": entry(data_offsets=[8, 0]),
    "offset negative": entry(data_offsets=[-8, 0]),
    "offset float": entry(data_offsets=[0.0, 8.0]),
    "offset bool": entry(data_offsets=[False, 8]),
    "offset NaN": entry(data_offsets=[0, float("nan")]),
    "offset infinite": entry(data_offsets=[0, float("inf")]),
    "offset huge": entry(data_offsets=[1 << 70, (1 << 70) + 8]),
    "one offset": entry(data_offsets=[0]),
    "three offsets": entry(data_offsets=[0, 4, 8]),
    "offsets text": entry(data_offsets="08"),
    "offsets null": entry(data_offsets=None),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_entries_that_make_no_sense(tmp_path, kind):
    path = write(tmp_path / "a", ENTRIES[kind])
    said = refused(path, "safetensors entry 'a' cannot be read")
    assert "expected a dtype of ['BF16', 'F16', 'F32', 'F64'], a shape and two offsets" in said


def test_a_shape_of_a_million_dimensions_takes_no_time(tmp_path):
    """The product of as many twos is a number of 300 kB, and an hour's work."""
    path = write(tmp_path / "a", entry(shape=[2] * 1_300_000))
    refused(path, "1,300,000 dimensions")


COVERS = {
    "hole": ({"a": F4, "b": F4 | {"data_offsets": [12, 20]}}, 20, "'b' starts at byte"),
    "hole at the start": (entry(data_offsets=[4, 12]), 12, "'a' starts at byte"),
    "overlap": ({"a": F4, "b": F4 | {"data_offsets": [4, 12]}}, 12, "'b' starts at byte"),
    "same place": ({"a": F4, "b": F4}, 8, "'b' starts at byte"),
    "bytes after": (GOOD, 9, "tensors end at byte"),
    "cut": (GOOD, 7, "tensors end at byte"),
    "no data": (GOOD, 0, "tensors end at byte"),
    "no tensors but data": ({}, 8, "tensors end at byte"),
}


@pytest.mark.parametrize("kind", COVERS)
def test_offsets_that_do_not_cover_the_data_once(tmp_path, kind):
    header, size, said = COVERS[kind]
    path = write(tmp_path / "a", header, bytes(size))
    with pytest.raises(safetensors.SafetensorError):
        load_file(path)
    refused(path, said)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31m", r"'\\x1b\[31m'"),
        ("a\nb", r"'a\\nb'"),
        ("\u202e", r"'\\u202e'"),
        ("\udcff", r"'\\udcff'"),
        ("n" * 300, r"\(300 characters\)"),
    ],
)
def test_names_that_a_terminal_must_not_see(tmp_path, name, shown):
    refused(write(tmp_path / "a", {name: F4}), f"a tensor is named .*{shown}")


# --- writing --------------------------------------------------------------------------------------

SHAPES = {
    "stages.0.blocks.10.norm1.weight": (5,),
    "stages.0.blocks.9.conv1.weight": (6, 3, 1, 1),
    "stem.conv.weight": (4, 3, 7, 7),
    "head.fc.bias": (1,),
    "head.fc.weight": (1, 5, 1, 1),
    "Z": (2,),
}


def arrays_of(shapes):
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_rows(path, arrays, metadata, order=None, threads=1):
    """Write every row on its own, shuffled."""
    writer = SafetensorsWriter(path, {n: a.shape for n, a in arrays.items()}, metadata)
    rows = [(name, row) for name, array in arrays.items() for row in range(len(array))]
    random.Random(order).shuffle(rows)
    with ThreadPoolExecutor(threads) as pool:
        list(
            pool.map(lambda at: writer.write(at[0], at[1], arrays[at[0]][at[1] : at[1] + 1]), rows)
        )
    return writer


class TestWriting:
    @pytest.mark.parametrize("threads", [1, 8])
    def test_the_library_reads_the_same_values(self, tmp_path, threads):
        arrays = arrays_of(SHAPES)
        path = tmp_path / "a.safetensors"
        write_rows(path, arrays, {"format": "pt", "sha": "0000"}, 1, threads).finish(
            {"sha": "beef"}
        )
        found = load_file(path)
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: array.tobytes() for name, array in arrays.items()
        }
        assert {n: a.shape for n, a in found.items()} == SHAPES
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt", "sha": "beef"}
            assert (
                file.get_tensor("stem.conv.weight").tobytes()
                == arrays["stem.conv.weight"].tobytes()
            )

    def test_the_data_section_is_the_librarys(self, tmp_path):
        arrays = arrays_of(SHAPES)
        write_rows(tmp_path / "ours", arrays, {"format": "pt"}, 2).finish({})
        save_file(arrays, tmp_path / "theirs", {"format": "pt"})
        size = sum(array.nbytes for array in arrays.values())
        ours, theirs = [(tmp_path / name).read_bytes() for name in ("ours", "theirs")]
        assert ours[-size:] == theirs[-size:]
        assert (len(ours) - size) % 64 == 0
        headers = [json.loads(raw[8:-size]) for raw in (ours, theirs)]
        assert headers[0] == headers[1]

    def test_this_reader_reads_it_too(self, tmp_path):
        arrays = arrays_of(SHAPES)
        write_rows(tmp_path / "a", arrays, {"format": "pt"}, 4).finish({})
        with SafetensorsSource(tmp_path / "a") as source:
            assert {n: t.read().tobytes() for n, t in source.tensors.items()} == {
                n: a.tobytes() for n, a in arrays.items()
            }

    def test_metadata_must_keep_its_length(self, tmp_path):
        writer = SafetensorsWriter(tmp_path / "a", {"x": (1,)}, {"sha": "0" * 64})
        with pytest.raises(ValueError, match="changed their length"):
            writer.finish({"sha": "0" * 200})
        writer.close()

    def test_metadata_that_utf8_cannot_hold(self, tmp_path):
        odd = os.fsdecode(b"caf\xe9.npz")  # a file's name in Latin-1, as Python shows it
        SafetensorsWriter(tmp_path / "a", {"x": (1,)}, {"source": odd, "z": "größe"}).finish({})
        with safetensors.safe_open(tmp_path / "a", "np") as file:
            assert file.metadata() == {"source": "caf?.npz", "z": "größe"}

    def test_short_writes_are_continued(self, tmp_path, monkeypatch):
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:7], at))
        array = np.arange(300, dtype="f4")
        writer = SafetensorsWriter(tmp_path / "a", {"x": (300,)}, {})
        writer.write("x", 0, array)
        writer.finish({})
        monkeypatch.undo()
        assert load_file(tmp_path / "a")["x"].tolist() == array.tolist()

    def test_nothing_is_written_after_the_end(self, tmp_path):
        writer = SafetensorsWriter(tmp_path / "a", {"x": (3,)}, {})
        writer.close()
        with pytest.raises(ValueError, match="closed file"):
            writer.write("x", 0, np.zeros(3, "f4"))
