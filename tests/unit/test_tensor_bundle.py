"""TensorFlow's checkpoints written byte by byte, right and wrong, and read without TensorFlow."""

import random
import struct
import subprocess
import sys
import time
import tracemalloc
from itertools import pairwise

import bundles
import numpy as np
import pytest
from checkpoints import make_checkpoint
from watched import watch

from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.converters.state_dict import read_arrays
from bitzoo.errors import CheckpointError

NUMBERS = np.arange(24, dtype="<f4").reshape(4, 6)
OTHERS = np.linspace(-1, 1, 5, dtype="<f4")


def stored(array, *, dtype=bundles.FLOAT, offset=0, **changes):
    data = array.tobytes()
    known = {"dtype": dtype, "shape": array.shape, "offset": offset, "size": len(data)}
    return bundles.entry(**{**known, "crc": bundles.masked(data), **changes})


ENTRIES = [
    (b"", bundles.header()),
    (b"a", stored(NUMBERS)),
    (b"b/c", stored(OTHERS, offset=NUMBERS.nbytes)),
]
SHARD = NUMBERS.tobytes() + OTHERS.tobytes()


def write(folder, *blocks, shards=(SHARD,), **options):
    return bundles.write(folder / "model.ckpt", bundles.table(blocks, **options), *shards)


def read(prefix):
    with open_source(prefix) as source:
        source.sha256()
        return {name: tensor.read() for name, tensor in source.tensors.items()}


def refused(prefix, said):
    with pytest.raises(CheckpointError, match=said) as caught:
        read(prefix)
    assert str(caught.value).startswith(f"{prefix}: expected a TensorFlow checkpoint, but ")
    assert len(str(caught.value)) < 600


def test_tensors_of_one_block_and_of_several(tmp_path):
    for blocks in ([ENTRIES], [[entry] for entry in ENTRIES]):
        found = read(write(tmp_path, *blocks))
        assert found.keys() == {"a", "b/c"}
        assert found["a"].tobytes() == NUMBERS.tobytes()
        assert found["a"].shape == (4, 6)
        assert found["b/c"].tobytes() == OTHERS.tobytes()


@pytest.mark.parametrize(
    ("code", "dtype", "order", "stored_as"),
    [
        (1, "f4", ">", "float32"),
        (2, "f8", "<", "float64"),
        (2, "f8", ">", "float64"),
        (19, "f2", "<", "float16"),
        (19, "f2", ">", "float16"),
        (14, "u2", "<", "bfloat16"),
        (14, "u2", ">", "bfloat16"),
    ],
)
def test_every_kind_of_float_in_both_orders_of_bytes(tmp_path, code, dtype, order, stored_as):
    values = np.array([[1.5, -2.0, 0.15625], [448.0, 0.0, -0.5]], np.float32)  # exact in each
    array = values.astype(dtype) if code != 14 else (values.view(np.uint32) >> 16).astype("u2")
    array = array.astype(np.dtype(dtype).newbyteorder(order))
    entries = [(b"", bundles.header(endianness=order == ">")), (b"a", stored(array, dtype=code))]
    with open_source(write(tmp_path, entries, shards=[array.tobytes()])) as source:
        source.sha256()
        assert source.tensors["a"].stored_dtype.removeprefix(">") in (stored_as, dtype)
        np.testing.assert_array_equal(source.tensors["a"].read().astype(np.float32), values)
        np.testing.assert_array_equal(source.tensors["a"].read_slab(1, 1, 3), values[:, 1:])


def part_key(name, *extents):
    """Only for extents of 0 to 63, which are one byte each, and -1 for all of them."""
    numbers = [0x7F if number < 0 else 0x80 | number for pair in extents for number in pair]
    return b"\0" + name + b"\0\1" + bytes([1, len(extents), *numbers])


def partitioned(axis, cuts, shards=1, **changes):
    """Entries of NUMBERS in parts, each part in the next shard, and the shards."""
    whole = (0, -1)
    slices, parts, data = [], [], [b""] * shards
    for index, (start, stop) in enumerate(pairwise([0, *cuts, NUMBERS.shape[axis]])):
        extents = [whole, whole]
        extents[axis] = (start, stop - start)
        part = np.ascontiguousarray(NUMBERS.take(range(start, stop), axis))
        shard = index % shards
        entry = stored(part, offset=len(data[shard]), shard=shard)
        data[shard] += part.tobytes()
        slices.append(extents)
        parts.append((part_key(b"a", *extents), entry))
    entry = bundles.entry(**{"shape": NUMBERS.shape, "slices": slices, **changes})
    entries = [(b"", bundles.header(shards=shards)), *sorted(parts), (b"a", entry)]
    return entries, data


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("axis", "cuts"), [(0, [1]), (0, [1, 2, 3]), (1, [4]), (1, [1, 5])])
def test_a_partitioned_tensor(tmp_path, axis, cuts, shards):
    entries, data = partitioned(axis, cuts, shards)
    with open_source(write(tmp_path, entries, shards=data)) as source:
        assert source.tensors.keys() == {"a"}
        source.sha256()
        tensor = source.tensors["a"]
        np.testing.assert_array_equal(tensor.read(), NUMBERS)
        for along, size in enumerate(NUMBERS.shape):
            for start in range(size + 1):
                for stop in range(start, size + 2):
                    where = (slice(None),) * along + (slice(start, stop),)
                    slab = tensor.read_slab(along, start, stop)
                    np.testing.assert_array_equal(slab, NUMBERS[where])


def test_parts_that_do_not_make_a_whole(tmp_path):
    entries, data = partitioned(0, [1, 2])
    refused(write(tmp_path, [*entries[:2], entries[-1]], shards=data), "a part of 'a' is missing")
    entries, data = partitioned(0, [1, 2], shape=(5, 6))
    refused(write(tmp_path, entries, shards=data), "the parts of 'a' do not fit together")
    entries, data = partitioned(0, [1, 2], dtype=3)
    refused(write(tmp_path, entries, shards=data), "the parts of 'a' do not fit together")
    corners = [[(row, 2), (column, 3)] for row in (0, 2) for column in (0, 3)]
    entries = [
        ENTRIES[0],
        *((part_key(b"a", *corner), stored(NUMBERS[:2, :3])) for corner in corners),
        (b"a", bundles.entry(shape=(4, 6), slices=corners)),
    ]
    for number in range(4):
        values = stored(np.zeros((2, 3), "<f4"), offset=24 * number)
        entries[1 + number] = (entries[1 + number][0], values)
    refused(write(tmp_path, entries, shards=[bytes(96)]), "in parts along 2 axes")


# --- what is wrong with an index ------------------------------------------------------------------


def changed(number, **changes):
    """The entries, one of them with other fields."""
    entries = list(ENTRIES)
    array, offset = (NUMBERS, 0) if number == 1 else (OTHERS, NUMBERS.nbytes)
    entries[number] = (entries[number][0], stored(array, **{"offset": offset, **changes}))
    return entries


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (ENTRIES[1:], "its index has no header"),
        ([(b"", bundles.header(shards=0)), *ENTRIES[1:]], "counts 0 shards, expected 1 to 256"),
        ([(b"", bundles.header(shards=1 << 31)), *ENTRIES[1:]], "counts 2,147,483,648 shards"),
        ([(b"", bundles.header(shards=-1)), *ENTRIES[1:]], "counts -1 shards"),
        ([(b"", bundles.header(endianness=2)), *ENTRIES[1:]], "order of bytes is 2, expected 0"),
        (
            [(b"", bundles.header(consumer=2)), *ENTRIES[1:]],
            "needs version 2 of the format, expected 1",
        ),
        (changed(1, shard=1), "'a' is in shard 1, which is none"),
        (changed(1, shard=-1), "'a' is in shard -1, which is none"),
        (changed(2, offset=97), "'b/c' has 20 bytes from byte 97, of 116 in its shard"),
        (changed(2, offset=(1 << 63) - 4), "20 bytes from byte 9,223,372,036,854,775,804"),
        (changed(2, offset=-20), "20 bytes from byte -20"),
        (changed(2, size=-20), "-20 bytes from byte 96"),
        (changed(2, offset=92), "'a' and 'b/c' overlap"),
        (changed(1, size=92), r"'a' of shape \(4, 6\) needs 96 bytes, found 92"),
        (changed(1, shape=(1 << 40, 1 << 40)), r"needs [\d,]{30,} bytes, found 96"),
        (changed(1, shape=(4, -6)), "'a' has an impossible shape"),
        (changed(1, shape=(1,) * 33), "'a' has an impossible shape"),
        (changed(1, dtype=2), r"'a' of shape \(4, 6\) needs 192 bytes, found 96"),
        (changed(1, crc=7), "'a' is damaged: expected the checksum 00000007, found [0-9a-f]{8}"),
        ([*ENTRIES[:2], (b"b", b"\x08")], "the data ends within a number"),
        ([*ENTRIES[:2], (b"b", b"\x08" + b"\xff" * 10)], "a number has too many bytes"),
        ([*ENTRIES[:2], (b"b", b"\x0b")], "of the unknown kind 3"),
        ([*ENTRIES[:2], (b"b", b"\x12\x7f")], "127 bytes were expected where 0 are left"),
        ([*ENTRIES[:2], (b"b", bytes(70_000))], "has more than it should"),
        ([*ENTRIES, (b"b\x1b[31m", ENTRIES[1][1])], r"out of order|is no name"),
        ([*ENTRIES, (b"z\x1b[31m", stored(OTHERS, offset=116, shape=(0,), size=0))], "is no name"),
        ([ENTRIES[0], ENTRIES[2], ENTRIES[1]], "out of order"),
        ([*ENTRIES, ENTRIES[2]], "out of order"),
    ],
)
def test_entries_that_cannot_be(tmp_path, entries, said):
    refused(write(tmp_path, entries), said)


def test_a_table_that_is_none(tmp_path):
    good = bundles.table([ENTRIES])
    for size in (0, 7, 8, 47, 48, len(good) - 1):
        refused(bundles.write(tmp_path / "model.ckpt", good[:size], SHARD), "cannot be read")
    other = bundles.block(ENTRIES, kind=1)
    refused(write(tmp_path, other), "compressed by method 1, expected none")
    refused(write(tmp_path, bundles.block(ENTRIES, crc=1)), "checksum of a block of the index")
    refused(write(tmp_path, bundles.block(ENTRIES, restarts=[0, 3])), "lists keys where there are")
    body = struct.pack("<I", 1 << 30) + b"\0"
    long = body + struct.pack("<I", bundles.masked(body))
    refused(write(tmp_path, long), "shorter than it says")
    far = [(b"z", bundles.varint(1 << 62) + bundles.varint(9))]
    refused(write(tmp_path, ENTRIES, listed=lambda _: far), "bytes were expected where 0 are left")


def test_a_table_that_lists_a_block_again_and_again(tmp_path):
    """Each of 20,000 times it would be checked and read."""
    empty = bundles.block([], restarts=[0] * 15_000)
    prefix = write(
        tmp_path,
        empty,
        ENTRIES,
        listed=lambda handles: [
            *((b"%08d" % number, handles[0][1]) for number in range(15_000)),
            handles[1],
        ],
    )
    began = time.process_time()
    refused(prefix, "the blocks of the index overlap")
    assert time.process_time() - began < 2


def test_keys_that_share_what_is_not_there(tmp_path):
    for shared, more in ((1, 1), (0, 1 << 40), (1 << 40, 1)):
        body = bundles.varint(shared) + bundles.varint(more) + b"\0" + b"k"
        body += struct.pack("<II", 0, 1) + b"\0"
        made = body + struct.pack("<I", bundles.masked(body))
        refused(write(tmp_path, made), "a key of the index is damaged|bytes were expected")


def test_memory_is_bounded_by_what_is_there(tmp_path):
    """An index of many fields or entries; a graph of empty nodes, or of too many bytes."""
    dims = bundles.field(2, b"\x12\x00" * 30_000)
    refused(write(tmp_path, [ENTRIES[0], (b"a", dims)]), "'a' has an impossible shape")
    many = [(b"%08d" % number, bundles.entry(shape=(0,))) for number in range(20_001)]
    refused(write(tmp_path, ENTRIES[:1], many[:10_000], many[10_000:]), "more than 20,000 entries")
    refused(with_graph(tmp_path, bytes(3 << 20)), "3,145,736 bytes of text, expected at most")
    prefix = with_graph(tmp_path, b"\x0a\x00" * 900_000)
    tracemalloc.start()
    refused(prefix, "a message has more than 100,000 fields")
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()
    index = prefix.with_name("model.ckpt.index")
    index.write_bytes(bytes((4 << 20) + 1) + index.read_bytes())
    refused(prefix, r"its index has 4,194,\d{3} bytes, expected at most 4,194,304")


def with_graph(folder, graph, *, lengths_crc=None, size=None):
    length = struct.pack("<I", len(graph))
    checked = struct.pack("<I", bundles.masked(length) if lengths_crc is None else lengths_crc)
    data = bundles.varint(len(graph)) + checked + graph
    where = {"offset": len(SHARD), "size": len(data) if size is None else size}
    crc = bundles.masked(length + checked + graph)
    entry = bundles.entry(dtype=bundles.STRING, crc=crc, **where)
    key = b"_CHECKPOINTABLE_OBJECT_GRAPH"
    return write(folder, [ENTRIES[0], (key, entry), *ENTRIES[1:]], shards=[SHARD + data])


def test_a_graph_whose_checksums_are_wrong(tmp_path):
    assert read(with_graph(tmp_path, b"")).keys() == {"a", "b/c"}
    refused(with_graph(tmp_path, b"", lengths_crc=5), "the lengths of .* a wrong checksum")
    refused(with_graph(tmp_path, b"", size=3), "bytes were expected where 2 are left")
    prefix = with_graph(tmp_path, b"\x0a\x02\x0a\x00")
    shard = prefix.with_name("model.ckpt.data-00000-of-00001")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    refused(prefix, "GRAPH' is damaged: expected the checksum")


def test_a_graph_that_goes_in_circles(tmp_path):
    child = bundles.field(1, bundles.field(1, 0) + bundles.field(2, b"_root"))
    circle = bundles.field(1, child * 10)
    began = time.process_time()
    refused(with_graph(tmp_path, circle), "its object graph has more than 50,000 paths")
    assert time.process_time() - began < 2


def test_a_pipe_as_a_shard_is_no_shard(tmp_path):
    prefix = write(tmp_path, ENTRIES)
    shard = prefix.with_name("model.ckpt.data-00000-of-00001")
    shard.unlink()
    subprocess.run(["mkfifo", str(shard)], check=True)
    with pytest.raises(CheckpointError, match=r"needs the shard .*, which is missing"):
        read(prefix)


# --- a whole network ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A checkpoint of a network, in two shards, and its entries."""
    folder = tmp_path_factory.mktemp("network")
    shards, entries = [b"", b""], []
    for number, (name, array) in enumerate(sorted(make_checkpoint().items())):
        shard = number % 2
        entry = stored(array, offset=len(shards[shard]), shard=shard)
        shards[shard] += array.tobytes()
        entries.append((name.encode(), entry))
    entries = [(b"", bundles.header(shards=2)), *entries]
    return bundles.write(folder / "model.ckpt", bundles.table([entries]), *shards), entries


def arrays_in(prefix):
    with open_source(prefix) as source:
        return {
            name: array.tobytes() for name, array in read_arrays(source, identify(source)).items()
        }


def test_a_quantized_network_is_refused(tmp_path, network):
    _, entries = network
    name = entries[-1][0]
    entry = stored(np.zeros(7, "i1"), dtype=6, offset=0)
    prefix = write(tmp_path, [(b"", bundles.header()), (name, entry)], shards=[bytes(7)])
    with pytest.raises(CheckpointError, match=r"holds int8, expected float32 .*quantized"):
        read(prefix)


def damage(rng, data):
    data, kind = bytearray(data), rng.randrange(4)
    at = rng.randrange(len(data))
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + rng.randrange(1, 20)] = rng.randbytes(rng.randrange(1, 20))
    else:
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(data)


def outcomes(prefix, expected, damaged, count):
    """Damage a file again and again: each time the same numbers or a sentence."""
    seen = {"same": 0, "refused": 0}
    for seed in range(count):
        path, data = damaged(random.Random(seed))
        path.write_bytes(data)
        try:
            found = arrays_in(prefix)
        except CheckpointError:
            seen["refused"] += 1
        else:
            assert found == expected, f"seed {seed}"
            seen["same"] += 1
    return seen


@pytest.fixture
def copy(tmp_path, network):
    prefix, _ = network
    for path in prefix.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model.ckpt"


def test_damaged_indexes_and_shards_give_the_same_numbers_or_a_sentence(copy):
    """TensorFlow ended the process for one in ten."""
    expected = arrays_in(copy)
    for name, count in (("model.ckpt.index", 150), ("model.ckpt.data-00001-of-00002", 50)):
        path = copy.with_name(name)
        original = path.read_bytes()
        damaged = lambda rng, path=path, original=original: (path, damage(rng, original))  # noqa: E731
        seen = outcomes(copy, expected, damaged, count)
        assert seen["same"] <= count // 5
        path.write_bytes(original)


def test_damaged_entries_under_right_checksums_are_caught_too(copy, network):
    """The table is made anew around a damaged entry, as an attacker does."""
    expected = arrays_in(copy)
    _, entries = network

    def damaged(rng):
        changed = list(entries)
        at = rng.randrange(len(changed))
        key, value = changed[at]
        if rng.randrange(3):
            value = damage(rng, value)
        else:
            key = damage(rng, key or b"\0")
        changed[at] = (key, value)
        return copy.with_name("model.ckpt.index"), bundles.table([sorted(changed)])

    assert outcomes(copy, expected, damaged, 150)["refused"] > 75


def test_a_damaged_checkpoint_leaves_a_sentence_and_nothing_else(copy):
    """In a process of its own: TensorFlow ended it with SIGABRT, and took 400 MB."""
    index = copy.with_name("model.ckpt.index")
    data = bytearray(index.read_bytes())
    data[20] ^= 64
    index.write_bytes(data)
    before = sorted(path.name for path in copy.parent.iterdir())
    code, out, err, memory, _ = watch("convert", "--src", copy)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {copy}: expected a TensorFlow checkpoint, but it cannot be read")
    assert "the checksum of a block of the index does not match" in err
    assert sorted(path.name for path in copy.parent.iterdir()) == before
    assert memory < 300 << 20


def test_no_tensorflow_is_loaded(copy):
    code = (
        "import sys; from pathlib import Path; from bitzoo.converters.open import open_source\n"
        "with open_source(Path(sys.argv[1])) as source: source.sha256()\n"
        "print('tensorflow' in sys.modules, 'google.protobuf' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("False False\n", "")
