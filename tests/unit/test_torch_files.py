"""PyTorch files: what is in them is read from the file, whole, and nothing in it is run.

The judge of values is `torch.load` of the same bytes, without memory map, together with the
checksums that Python's `zipfile` finds. The judge of which weights are meant is timm's loader.
"""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import as_timm, make_checkpoint
from formats import as_bit_pytorch

import bitzoo
from bitzoo.cli import main
from bitzoo.converters.averages import choose_average, names_average
from bitzoo.converters.formats.torch_pickle import ForeignGlobalError, Opaque, read_pickle
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.converters.state_dict import read_arrays
from bitzoo.errors import CheckpointError, TensorMismatchError, UsageError
from bitzoo.zoo.classifier import load_classifier
from bitzoo.zoo.info import describe

ARRAYS: dict[str, Any] = make_checkpoint(num_classes=3)
OTHERS = make_checkpoint(num_classes=3, seed=5)


def as_state(arrays):
    """A state dict with timm's names."""
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in as_timm(arrays).items()}


RAW, EMA = as_state(ARRAYS), as_state(OTHERS)


def prefixed(prefix, state=RAW):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture
def saved(tmp_path):
    """Save an object as torch.save does, and return the path."""

    def save(content, **options):
        torch.save(content, tmp_path / "a.pth", **options)
        return tmp_path / "a.pth"

    return save


def read(path, weights=None):
    """Everything that conversions and loading read: values by timm's names, place and notes."""
    with open_source(path, weights=weights) as source:
        return read_arrays(source, identify(source)), source.taken, source.notes


def is_same(found, state):
    return found.keys() == state.keys() and all(
        np.array_equal(found[name], state[name].detach().float().numpy()) for name in state
    )


def refused(path, *parts, weights=None):
    """Assert that a file is refused in less than a screen, without control characters."""
    with pytest.raises((CheckpointError, UsageError)) as caught:
        read(path, weights)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert len(message) < 2_000
    assert message.isprintable()


# --- point 15: what the archive says is checked ---------------------------------------------------

BIT = {"model": as_bit_pytorch(ARRAYS), "step": 3}


def archive_of(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


WHOLE = archive_of(BIT)
with zipfile.ZipFile(io.BytesIO(WHOLE)) as _archive:
    MEMBERS, DIRECTORY = _archive.infolist(), _archive.start_dir


def data_of(member):
    name, extra = struct.unpack_from("<HH", WHOLE, member.header_offset + 26)
    return member.header_offset + 30 + name + extra


def entry_of(member):
    """Position of a member's entry in the directory."""
    return WHOLE.index(member.filename.encode(), DIRECTORY) - 46


STEM = next(member for member in MEMBERS if member.filename.endswith("/data/0"))


def changed(position, new):
    return WHOLE[:position] + new + WHOLE[position + len(new) :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(data_of(STEM) + 100, b"\1"), "'archive/data/0' is damaged: expected CRC-32"),
        (changed(data_of(MEMBERS[0]) + 30, b"\xff"), "'archive/data.pkl' is damaged"),
        (changed(entry_of(STEM) + 20, struct.pack("<2I", 64, 64)), "has 18,816 bytes, found 64"),
        (changed(entry_of(STEM) + 20, struct.pack("<I", 64)), "states two sizes"),
        (changed(entry_of(STEM) + 10, b"\x08\0"), "is compressed (zip method 8)"),
        (changed(entry_of(STEM) + 8, b"\x01\0"), "is encrypted"),
        (changed(entry_of(STEM) + 38, b"\x10"), "is marked as a folder"),
        (changed(entry_of(STEM) + 42, b"\1"), "is not where the zip directory says"),
        (changed(STEM.header_offset + 26, b"\x0d"), "is not where the zip directory says"),
        (changed(STEM.header_offset + 8, b"\x08"), "contradicts the zip directory"),
        (changed(STEM.header_offset + 18, b"\1"), "contradicts the zip directory"),
        (changed(STEM.header_offset + 28, b"\xff\xff"), "overlap"),
        (changed(entry_of(MEMBERS[-1]) + 46, MEMBERS[-2].filename[:5].encode()), None),
        (WHOLE + b"\0", "does not end with a zip directory"),
        (WHOLE[:-1], "does not end with a zip directory"),
        (b"PK" + WHOLE, "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_damaged_archive_says(tmp_path, data, said):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    if said is None:  # the same bytes written again are no damage
        assert data == WHOLE
        return
    refused(path, f"{path}: ", said)
    with pytest.raises(CheckpointError):
        bitzoo.convert(path, tmp_path / "a.safetensors", check="weights")
    assert not (tmp_path / "a.safetensors").exists()
    with pytest.raises(CheckpointError):
        bitzoo.create_model(path, pretrained=True)


def test_two_records_of_one_name(tmp_path):
    path = tmp_path / "a.pth"
    other = next(member for member in MEMBERS if member.filename.endswith("/data/1"))
    path.write_bytes(changed(entry_of(other) + 46, STEM.filename.encode()))
    refused(path, "'archive/data/0'")


def test_records_that_share_bytes(tmp_path):
    """Two entries for the same bytes, each of them right."""
    path = tmp_path / "a.pth"
    entry = WHOLE[entry_of(STEM) : entry_of(STEM) + 46 + len(STEM.filename)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a/data.pkl", b"N."), ("a/data/0", bytes(64))):
            archive.writestr(name, content)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", start + 4)
    entry = data[second : second + 46 + 8].replace(b"a/data/0", b"a/data/1")
    end = bytearray(data[-22:])
    struct.pack_into("<2HI", end, 8, 3, 3, len(data) - 22 - start + len(entry))
    path.write_bytes(data[:-22] + entry + end)
    refused(path, "is not where the zip directory says")


def mutations(count, seed):
    """Damaged versions of `WHOLE`: most of them in what describes the records."""
    dice = random.Random(seed)
    heads = [(member.header_offset, 64 + len(member.filename)) for member in MEMBERS]

    def spot():
        start, size = dice.choice(
            [
                (DIRECTORY, len(WHOLE) - DIRECTORY),
                dice.choice(heads),
                (60, MEMBERS[0].file_size + 70),
                (0, len(WHOLE)),
            ]
        )
        return start + dice.randrange(size)

    for _ in range(count):
        at, kind = spot(), dice.randrange(10)
        if kind < 6:
            yield changed(at, bytes([WHOLE[at] ^ 1 << dice.randrange(8)]))
        elif kind < 8:
            yield changed(at, dice.choice([b"\0" * 4, b"\xff" * 4, b"\xff\xff", b"\1\0\0\0"]))
        elif kind < 9:
            yield WHOLE[:at] + bytes(dice.choice([1, 4, 64])) + WHOLE[at:]
        else:
            yield WHOLE[:at] + WHOLE[at + dice.choice([1, 4, 64]) :]


def judge(path):
    """What plain torch.load says the weights are; None if it or zipfile refuses the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        return None if damaged else torch.load(path, weights_only=True)["model"]
    except Exception:  # whatever a damaged file leads to
        return None


def test_mutated_files_are_refused_or_right(tmp_path):
    path = tmp_path / "a.pth"
    outcomes: collections.Counter[str] = collections.Counter()
    for data in mutations(120, seed=1):
        path.write_bytes(data)
        try:
            with open_source(path) as source:
                inventory = identify(source)
                source.sha256()
                found = {tensor.name: tensor.read() for tensor in inventory.tensors.values()}
        except CheckpointError:
            outcomes["refused"] += 1
            continue
        expected = judge(path)
        right = expected is not None and is_same(found, expected)
        outcomes["right" if right else "wrong"] += 1
    assert outcomes["wrong"] == 0
    assert outcomes["refused"] > 60
    assert outcomes["right"] > 10


def test_a_folder_of_transformers_is_checked_too(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(changed(data_of(STEM) + 100, b"\1"))
    refused(tmp_path, "'archive/data/0' is damaged")
    shards = tmp_path / "shards"
    shards.mkdir()
    torch.save({"head.conv.bias": BIT["model"]["head.conv.bias"]}, shards / "2.bin")
    rest = {name: value for name, value in BIT["model"].items() if name != "head.conv.bias"}
    torch.save(rest, shards / "1.bin")
    index = {name: "2.bin" if name == "head.conv.bias" else "1.bin" for name in BIT["model"]}
    text = str({"weight_map": index}).replace("'", '"')
    (shards / "pytorch_model.bin.index.json").write_text(text)
    assert is_same(read(shards)[0], RAW)
    data = bytearray((shards / "1.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (shards / "1.bin").write_bytes(data)
    refused(shards, "is damaged: expected CRC-32")


def test_a_file_that_shrinks_while_it_is_open_is_an_error(saved):
    path = saved(RAW)
    with open_source(path) as source:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="It is truncated"):
            read_arrays(source, identify(source))


def test_bytes_of_another_order(tmp_path, saved):
    """As a machine of the other byte order writes them; `torch.load` is the judge."""
    with zipfile.ZipFile(saved(RAW)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if "/data/" in name and "serialization" not in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)
    assert all(torch.equal(v, RAW[k]) for k, v in torch.load(path, weights_only=True).items())
    assert is_same(read(path)[0], RAW)


FLAT = torch.cat([value.reshape(-1) for value in RAW.values()])


def views_of_one_storage():
    views, at = {}, 0
    for name, value in RAW.items():
        views[name] = FLAT[at : at + value.numel()].view(value.shape)
        at += value.numel()
    return views


@pytest.mark.parametrize(
    "state",
    [
        views_of_one_storage(),
        {
            n: v.transpose(0, 1).contiguous().transpose(0, 1) if v.ndim == 4 else v
            for n, v in RAW.items()
        },
        {n: torch.nn.Parameter(v) for n, v in RAW.items()},
        {n: FLAT[: v.numel()].view(v.shape) for n, v in RAW.items()},
        {n: v.to(torch.float16) for n, v in RAW.items()},
        {n: v.to(torch.bfloat16) for n, v in RAW.items()},
        {n: v.double() for n, v in RAW.items()},
    ],
    ids=["one storage", "transposed", "parameters", "shared", "float16", "bfloat16", "float64"],
)
def test_views_and_dtypes(saved, state):
    path = saved(state)
    assert is_same(read(path)[0], torch.load(path, weights_only=True))


def test_views_that_are_refused(saved):
    norm = RAW["norm.weight"]
    path = saved({**RAW, "norm.weight": torch.zeros(1).expand(norm.shape)})
    refused(path, "'norm.weight' is a view with gaps or repeats", "tensor.contiguous()")
    refused(saved({**RAW, "norm.weight": torch.zeros(2 * len(norm))[::2]}), "strides (2,)")
    few = FLAT[: RAW["stages.3.blocks.0.conv2.weight"].numel()].clone()
    refused(
        saved({name: few[: value.numel()].view(value.shape) for name, value in RAW.items()}),
        "they share memory. Save copies",
    )


def tampered(saved, old, new):
    """A checkpoint whose pickle was changed, with the right checksums."""
    path = saved(RAW)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            if name.endswith(".pkl"):
                assert old in data
                data = data.replace(old, new, 1)
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"M`\x12", b"M\x61\x12", "storage '0' has 18,820 bytes, found 18,816"),
        (b"K\x00(K K\x03", b"K\x05(K K\x03", "a tensor reaches out of its storage"),
        (b"K K\x03K\x07K\x07", b"K K\x03K\x07J\xff\xff\xff\x7f", "out of its storage"),
        (b"K K\x03K\x07K\x07", b"K K\x03K\x07J\xff\xff\xff\xff", "malformed"),
        (b"FloatStorage", b"QIntStorages", "could run code"),
        (b"FloatStorage", b"CharStorage", "storage '0' has"),
    ],
)
def test_tampered_pickles(saved, old, new, said):
    refused(tampered(saved, old, new), said)


def test_the_old_format_says_that_it_has_no_checksum(saved):
    path = saved({"model": RAW}, _use_new_zipfile_serialization=False)
    found, _, notes = read(path)
    assert is_same(found, RAW)
    assert "before PyTorch 1.6, which has no checksums: damage" in notes[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    refused(path, f"its tensors end at byte {len(whole):,} of {len(whole) + 1:,}")
    path.write_bytes(whole[:-1])
    refused(path, "its tensors end at byte")


# --- point 7: checkpoints as people have them -----------------------------------------------------


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_pickle_protocols(saved, protocol):
    path = saved({"net": RAW, "args": argparse.Namespace(lr=1)}, pickle_protocol=protocol)
    assert is_same(read(path)[0], RAW)


METADATA = {
    "rng_state": torch.get_rng_state(),
    "best_acc": torch.tensor(0.5),
    "epoch": torch.tensor(3),
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("/x"), when=datetime.datetime(2020, 1, 2)),
    "numbers": [np.float64(0.1), np.int32(3), np.bool_(True), np.dtype("f4"), np.zeros((2, 2))],
    "texts": np.array(["a", "b"]),
    "history": collections.defaultdict(list, loss=[1.0, 2.0]),
    "counts": collections.Counter("abca"),
    "past": collections.deque([1, 2], maxlen=3),
    "time": [datetime.date(2020, 1, 2), datetime.timedelta(3), datetime.timezone.utc],
    "numpy_rng": np.random.RandomState(0).get_state(),
    "torch": [torch.__version__, torch.float32, torch.device("cpu"), torch.Size([1, 2])],
    "sets": [{1, 2}, frozenset("ab"), slice(1, 2), range(3), 1j, bytearray(b"x")],
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict(),
}


@pytest.mark.parametrize("old", [False, True])
def test_metadata_of_trainers(saved, old):
    options = {"_use_new_zipfile_serialization": not old}
    found, taken, notes = read(saved({"my_weights": RAW, **METADATA}, **options))
    assert is_same(found, RAW)
    assert taken is None
    assert notes[0] == "Took the weights under 'my_weights'."
    assert notes[1].startswith("Skipped training state: 'rng_state', 'best_acc', 'epoch', 'args', ")
    assert notes[1].endswith(" and 4 more.")


def test_tensors_beside_the_weights(saved):
    found, _, notes = read(saved({**RAW, **METADATA}))
    assert is_same(found, RAW)
    assert "'rng_state', 'best_acc', 'epoch'" in notes[0]
    path = saved({**RAW, "aux.weight": torch.zeros(3, 3)})
    with pytest.raises(TensorMismatchError, match=r"\+ aux\.weight \(3, 3\)"):
        read(path)


@pytest.mark.parametrize(
    "prefix", ["module._orig_mod.", "module.module.", "model.", "net.", "backbone.", "any.thing."]
)
@pytest.mark.parametrize("scheme", ["timm", "bit_pytorch"])
def test_prefixes(saved, prefix, scheme):
    state = RAW if scheme == "timm" else as_bit_pytorch(ARRAYS)
    found, _, notes = read(saved({"state_dict": prefixed(prefix, state)}))
    assert is_same(found, RAW)
    assert f"Removed the prefix {prefix!r} from the names." in notes


@pytest.mark.parametrize(
    "content",
    [
        {"net": RAW},
        {"weights": RAW, "optim": {"momentum": prefixed("")}},
        {"model": {"state_dict": RAW}},
        {"a": {"b": {"c": [3, {"d": RAW}]}}},
        [3, RAW],
        {**prefixed("net."), **prefixed("task.net.")},
    ],
    ids=["net", "momentum", "nested", "deep", "list", "one network under two names"],
)
def test_places(saved, content):
    assert is_same(read(saved(content))[0], RAW)


def test_two_networks(saved):
    for content in (
        {"student": RAW, "teacher": EMA},
        {**prefixed("student."), **prefixed("teacher.", EMA)},
    ):
        path = saved(content)
        refused(path, "found 2, under 'student' and 'teacher'", '`weights="student"`')
        assert is_same(read(path, "teacher")[0], EMA)
        found, taken, notes = read(path, "student")
        assert is_same(found, RAW)
        assert taken == "raw (student)"
        assert notes[0] == (
            "Took the weights under 'student'; `weights=\"teacher\"` takes those under 'teacher'."
        )
        refused(path, "called 'nobody'", '`weights="teacher"`', weights="nobody")


def test_what_is_outside_of_the_prefix(saved):
    headless = {name: value for name, value in RAW.items() if not name.startswith("head.")}
    others = {"fc.weight": torch.zeros(3, 4)}
    path = saved({**prefixed("backbone.", headless), **others})
    refused(path, "has no head", "'fc.weight'", '`weights="backbone"` takes the network without')
    found, _, notes = read(path, "backbone")
    assert is_same(found, headless)
    assert "Left out what is not under 'backbone.': 'fc.weight'." in notes
    found, _, notes = read(saved({**prefixed("backbone."), "projector.weight": torch.zeros(3)}))
    assert is_same(found, RAW)
    assert "Left out what is not under 'backbone.': 'projector.weight'." in notes


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
def test_numbers_that_are_no_floats(saved, dtype):
    name = str(dtype).removeprefix("torch.")
    path = saved({key: value.to(dtype) for key, value in RAW.items()})
    refused(path, f"'stem.conv.weight' is {name}; expected plain float numbers")


def test_quantized_weights(saved):
    stem = "stem.conv.weight"
    with pytest.warns(UserWarning, match="deprecated"):
        quantized = torch.quantize_per_tensor(RAW[stem], 0.1, 0, torch.qint8)
    path = saved({**RAW, stem: quantized})
    refused(path, f"{stem!r} is quantized", "only the one that it was made from")


def test_what_is_no_checkpoint_of_weights_is_named(tmp_path, saved):
    network = torch.nn.Linear(2, 2)
    path = tmp_path / "b.pth"
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.save(torch.jit.script(network), path)
    refused(path, "found a TorchScript program (torch.jit.save)", "torch.jit.load")
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2),)), str(tmp_path / "b.pt2"))
    refused(tmp_path / "b.pt2", "found an exported program (torch.export.save)")
    with torch.package.PackageExporter(path) as package:
        package.save_pickle("model", "model.pkl", {"a": 1})
    refused(path, "found a package of code (torch.package)")
    refused(
        saved(network), "asks for torch.nn.modules.linear.Linear", "save the network's state_dict()"
    )
    refused(saved(torch.optim.SGD(network.parameters()).state_dict()), "the state of an optimizer")
    path.write_bytes(pickle.dumps(as_timm(ARRAYS)))
    refused(path, "found a plain Python pickle")
    refused(saved({"a": np.zeros(3)}), "expected a state dict, or one under", "found 'a'")


class Code:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (__import__, "builtins.__import__"),
        (subprocess.Popen, "subprocess.Popen"),
        (pickle.loads, "pickle.loads"),
    ],
)
def test_code_is_refused_by_name(tmp_path, saved, function, name):
    mark = tmp_path / "ran"
    path = saved({"model": RAW, "args": Code(function, f"touch {mark}")})
    refused(path, f"a pickle that could run code: it asks for {name}. Do not load this file.")
    assert not mark.exists()


def test_names_from_a_file_never_reach_the_terminal_raw(saved):
    refused(saved({**RAW, "a\x1b[31mb": torch.zeros(3, 3)}), "printable characters")
    found, _, notes = read(saved({"model": RAW, "\x1b[31m\u202e" + "x" * 500: 1}))
    assert is_same(found, RAW)
    assert all(note.isprintable() and len(note) < 200 for note in notes)
    many = {f"{i}" * 50: i for i in range(3_000)}
    assert all(len(note) < 1_000 for note in read(saved({"model": RAW, **many}))[2])


def numbered(start, count):
    return b"".join(
        b"\x8a\x08" + struct.pack("<q", (i * (2**61 - 1)) % 2**62) + b"N" for i in range(count)
    )


HEAD = b"\x80\x02"
BOMBS = {
    "dicts": HEAD + b"(" + b"}" * 10**6 + b"l.",
    "memo": HEAD + b"}r\xff\xff\xff\x7f.",
    "deep key": HEAD + b"})" + b"\x85" * 400_000 + b"Ns.",
    "deep list": HEAD + b"]" * 400_000 + b"a" * 399_999 + b".",
    "marks": HEAD + b"(" * 400_000 + b".",
    "long text": HEAD + b"X\xff\xff\xff\x7fx.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "equal hashes": HEAD + b"}(" + numbered(0, 150_000) + b"u.",
    "doubling": HEAD
    + b"]q\0"
    + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
    + b"Q.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickles_that_promise_too_much(bomb):
    """Each ends at once, with a value or an error, in bounded memory."""
    code = (
        "import io, resource, sys\n"
        "from bitzoo.converters.formats.torch_pickle import read_pickle\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_pickle(io.BytesIO(sys.stdin.buffer.read()))\n"
        "except ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], input=BOMBS[bomb], capture_output=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 200 << 10


def test_nothing_in_a_pickle_becomes_an_object():
    read_back, _ = read_pickle(io.BytesIO(pickle.dumps({"a": argparse.Namespace(b=1)})))
    assert read_back == {"a": Opaque("argparse.Namespace", is_made=True)}
    with pytest.raises(ForeignGlobalError, match=r"^shutil\.rmtree$"):
        read_pickle(io.BytesIO(pickle.dumps(Code(shutil.rmtree, "/nowhere"))))
    with pytest.raises(ForeignGlobalError, match=r"^signal\.|^_signal\."):
        read_pickle(io.BytesIO(pickle.dumps(Code(signal.raise_signal, 9))))


# --- point 2: averaged weights --------------------------------------------------------------------

WITH_AVERAGE = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA},
    "model_ema": {"model": RAW, "model_ema": EMA, "args": argparse.Namespace()},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": EMA},
    "nested": {"model": RAW, "ema": {"decay": 0.9, "module": prefixed("module.", EMA)}},
    "swa": {"model": RAW, "swa_model": {"n_averaged": torch.tensor(3), **prefixed("module.", EMA)}},
    "AveragedModel": {"a": RAW, "b": {"n_averaged": torch.tensor(3), **prefixed("module.", EMA)}},
    "one state dict": {"state_dict": {**prefixed("model."), **prefixed("ema_model.module.", EMA)}},
    "AveragedModel in one": {
        "state_dict": {
            **prefixed("model."),
            **prefixed("ema_model.module.", EMA),
            "ema_model.n_averaged": torch.tensor(3),
        }
    },
    "shadow": {"model": RAW, "ema_shadow": EMA},
    "Lightning SWA": {
        "state_dict": prefixed("net."),
        "callbacks": {"StochasticWeightAveraging": {"average_model_state": prefixed("net.", EMA)}},
    },
    "Lightning averaging": {
        "state_dict": prefixed("net.", EMA),
        "current_model_state": prefixed("net."),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    },
    "mmengine": {
        "state_dict": EMA,
        "ema_state_dict": {"steps": torch.tensor(1), **prefixed("module.")},
    },
}


@pytest.mark.parametrize("trainer", WITH_AVERAGE)
def test_averages_first_raw_on_request(saved, trainer):
    path = saved(WITH_AVERAGE[trainer])
    found, taken, notes = read(path)
    assert is_same(found, EMA)
    assert taken.startswith("ema (")
    assert notes[0].startswith("Took the averaged weights (EMA) under ")
    assert '`weights="raw"` takes those under ' in notes[0]
    assert is_same(read(path, "ema")[0], EMA)
    found, taken, notes = read(path, "raw")
    assert is_same(found, RAW)
    assert taken.startswith("raw (")
    assert '`weights="ema"` takes those under ' in notes[0]


def test_a_file_with_one_set_of_weights(tmp_path, saved):
    path = saved({"state_dict": RAW, "state_dict_ema": None})
    assert is_same(read(path, "raw")[0], RAW)
    refused(path, "expected weights called 'ema', but there are none", weights="ema")
    found, taken, notes = read(saved({"n_averaged": torch.tensor(3), **prefixed("module.")}))
    assert is_same(found, RAW)
    assert taken == "ema (module)"
    assert notes[0] == "Took the averaged weights (EMA) under 'module'."
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert is_same(read(tmp_path / "a.npz", "raw")[0], RAW)
    refused(tmp_path / "a.npz", "It has one set of weights; leave `weights` out", weights="ema")
    bitzoo.convert(tmp_path / "a.npz", tmp_path / "b.safetensors", check="none")
    refused(tmp_path / "b.safetensors", "'ema', but there are none", weights="ema")


def test_an_average_without_names_is_not_silently_missing(saved):
    content = {"model": RAW, "ema": {"decay": 0.9, "shadow_params": list(EMA.values())}}
    found, _, notes = read(saved(content))
    assert is_same(found, RAW)
    assert notes[-1] == "No network has its names under 'ema': that average was not used."


def test_the_model_says_which_weights_it_has(tmp_path, saved, caplog):
    path = saved(WITH_AVERAGE["timm"])
    model = bitzoo.create_model(path, pretrained=True)
    assert is_same({k: v.numpy() for k, v in model.state_dict().items()}, EMA)
    assert model.info.provenance.weights == "ema (state_dict_ema)"
    assert "Took the averaged weights (EMA) under 'state_dict_ema'" in caplog.text
    assert bitzoo.info(path).provenance.weights == "ema (state_dict_ema)"
    assert "Took the averaged weights" in describe(str(path))["notes"][0]
    model = bitzoo.create_model(path, pretrained=True, weights="raw")
    assert is_same({k: v.numpy() for k, v in model.state_dict().items()}, RAW)
    assert model.info.provenance.weights == "raw (state_dict)"
    result = bitzoo.convert(path, tmp_path / "b.safetensors", check="none", weights="raw")
    assert "Took the weights under 'state_dict'" in result.notes[0]
    made = bitzoo.info(result.output).provenance
    assert (made.source, made.weights) == ("a.pth", "raw (state_dict)")
    assert made.sha256 == result.source_sha256
    with pytest.raises(UsageError, match='`weights="ema"` chooses between the weights in a file'):
        bitzoo.create_model("BiT-M-R50x1", weights="ema")


def test_what_evaluates_and_exports_loads_what_was_asked_for(saved):
    path = saved(WITH_AVERAGE["timm"])
    for weights, expected in ((None, EMA), ("raw", RAW)):
        network = load_classifier(path, weights)
        assert is_same({k: v.numpy() for k, v in network.state_dict().items()}, expected)
    with pytest.raises(UsageError, match=r'`weights="raw"` .* but the model is loaded already'):
        load_classifier(network, "raw")


def test_averages_of_tensorflow():
    found = {"a": 1, "a/ExponentialMovingAverage": 2, "b": 3}
    chosen, taken, notes = choose_average(found)
    assert (chosen, taken) == ({"a": 2, "b": 3}, "ema")
    assert notes == (
        'Took the moving averages (EMA) of 1 variables; `weights="raw"` takes the others.',
    )
    assert choose_average(found, "raw")[:2] == ({"a": 1, "b": 3}, "raw")
    assert choose_average({"b": 3}) == ({"b": 3}, None, ())
    assert choose_average({"b": 3}, "raw") == ({"b": 3}, None, ())
    with pytest.raises(UsageError, match="x: expected weights called 'ema'"):
        choose_average({"b": 3}, "ema", file="x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("state_dict_ema", True),
        ("modelEMA", True),
        ("ema2", True),
        ("StochasticWeightAveraging", True),
        ("ExponentialMovingAverage", True),
        ("schema", False),
        ("avgpool", False),
        ("model", False),
    ],
)
def test_what_names_an_average(name, expected):
    assert names_average(name) is expected


def test_reading_takes_no_longer_than_hashing(saved):
    """One pass: a damaged bit is found by what hashes the file anyway."""
    path = saved(RAW)
    with open_source(path) as source:
        advanced: list[int] = []
        start = time.process_time()
        source.sha256(advanced.append)
        assert time.process_time() - start < 5
    assert sum(advanced) == path.stat().st_size


@pytest.fixture
def command(monkeypatch, capsys):
    """`bitzoo-convert` in this process: arguments -> exit code, stdout, stderr."""
    monkeypatch.setattr(main, "exit_on_signals", lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bitzoo-convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.convert_main()
        return exit_.value.code or 0, *capsys.readouterr()

    return call


def test_the_command_line_says_and_chooses(saved, command):
    path = saved(WITH_AVERAGE["timm"])
    arguments = ("--src", path, "--check", "none", "--force")
    code, out, _ = command(*arguments)
    words = " ".join(out.split())
    assert code == 0
    assert "Took the averaged weights (EMA) under 'state_dict_ema'; --weights raw takes" in words
    assert bitzoo.info(path.with_suffix(".safetensors")).provenance.weights.startswith("ema")
    code, out, _ = command(*arguments, "--weights", "raw")
    assert "--weights ema takes those under 'state_dict_ema'" in " ".join(out.split())
    assert bitzoo.info(path.with_suffix(".safetensors")).provenance.weights.startswith("raw")
    path = saved({"student": RAW, "teacher": EMA})
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "found 2, under 'student' and 'teacher'. Choose one, as with --weights student." in err
    code, _, err = command(*arguments, "--weights", "ema")
    assert code == 2
    assert "weights called 'ema', but there are none. It has --weights raw, --weights " in err
