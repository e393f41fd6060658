"""Numbers that the output's dtype lacks: rounded once, to nearest, and said and proven to be.

What is nearest is found here by looking a number up in the sorted list of all numbers of a 16-bit
dtype, or with `struct`, whose rounding is Python's own; bitzoo's cast and its judge share no code
with either.
"""

import bisect
import json
import logging
import struct
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import as_timm, make_checkpoint, write_npz
from formats import as_bit_pytorch, write_keras
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import bitzoo
from bitzoo.cli.console import print_report
from bitzoo.converters import convert as conversion_module
from bitzoo.converters.convert import convert
from bitzoo.converters.dtypes import round_to, widen
from bitzoo.converters.formats.checkpoint_formats import FORMATS, Target
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import read_info
from bitzoo.converters.open import open_source
from bitzoo.converters.parity import logits as logits_proof
from bitzoo.converters.parity import reference_numpy, reference_tensorflow
from bitzoo.converters.parity.rounding import judge_rounding
from bitzoo.converters.parity.verify import Check, convert_and_prove, verify
from bitzoo.errors import CheckpointError, ParityError, UsageError
from bitzoo.model_cards.text import proof_rows

RNG = np.random.default_rng(11)
WIDE = {
    name: array.astype(np.float64) * (1 + 1e-9 * RNG.standard_normal(array.shape))
    for name, array in make_checkpoint().items()
}
"""The checkpoint in float64, with digits that float32 lacks."""
PARAMS = sum(array.size for array in WIDE.values())
NEAREST = "rounded to {}: nearest, at most half a unit in the last place"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small probe images and one oracle; tests/oracle has the others."""
    monkeypatch.setattr(logits_proof, "PROBES", ((48, 1), (33, 2)))
    monkeypatch.setattr(reference_tensorflow, "is_installed", lambda: False)


# --- the cast and its judge -----------------------------------------------------------------------


def value_of(bits, dtype):
    """A number by its stored bits."""
    if dtype == "float16":
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    return struct.unpack("<f", struct.pack("<I", bits << 16 if dtype == "bfloat16" else bits))[0]


FINITE = {
    dtype: [value_of(bits, dtype) for bits in range(top)]
    for dtype, top in (("float16", 0x7C00), ("bfloat16", 0x7F80))
}
"""All non-negative finite numbers in order: an index is the number's bits."""


def nearest_bits(number, dtype):
    """The bits of the nearest number of a dtype, ties to even."""
    sign = int(np.signbit(number))
    if dtype == "float32":
        try:
            return struct.unpack("<I", struct.pack("<f", number))[0]
        except OverflowError:
            return sign << 31 | 0x7F800000
    numbers, size = FINITE[dtype], abs(number)
    over = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    if size >= over:
        return sign << 15 | len(numbers)
    above = min(bisect.bisect_left(numbers, size), len(numbers) - 1)
    below = max(above - 1, 0)
    to_above, to_below = abs(numbers[above] - size), abs(numbers[below] - size)
    if to_above == to_below:
        return sign << 15 | (above if above % 2 == 0 else below)
    return sign << 15 | (above if to_above < to_below else below)


def hard_numbers(dtype):
    """Numbers, midpoints and their float64 neighbours in all ranges, and the special ones."""
    if dtype == "float32":
        bits = np.concatenate([RNG.integers(0, 0x7F7FFFFF, 2000), [0, 1, 2, 0x7FFFFF, 0x800000]])
        at = bits.astype(np.uint32).view(np.float32).astype(np.float64)
        after = (bits + 1).astype(np.uint32).view(np.float32).astype(np.float64)
    else:
        chosen = RNG.integers(0, len(FINITE[dtype]) - 1, 2000)
        chosen = np.concatenate([chosen, [0, 1, 2, len(FINITE[dtype]) - 2]])
        numbers = np.array(FINITE[dtype])
        at, after = numbers[chosen], numbers[chosen + 1]
    middle = at + (after - at) / 2
    top = {"float16": 65520.0, "bfloat16": 3.3961775292304957e38, "float32": 2.0**128 - 2.0**103}
    edges = np.array([top[dtype], 1e308, 5e-324, 0.0])
    parts = [at, middle, edges]
    parts += [np.nextafter(part, way) for part in (middle, edges) for way in (0, np.inf)]
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    return np.concatenate([found, -found])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_cast_and_its_judge_against_a_table_of_all_numbers(dtype):
    numbers = hard_numbers(dtype)
    right = np.array([nearest_bits(float(number), dtype) for number in numbers])
    kind = np.uint32 if dtype == "float32" else np.uint16
    assert np.array_equal(round_to(numbers, dtype).view(kind), right.astype(kind))

    def stored(bits):
        with np.errstate(invalid="ignore"):
            return np.array([value_of(int(one), dtype) for one in bits])

    judged = judge_rounding(numbers, stored(right), dtype)
    assert judged.nearest
    assert judged.max_ulp == 0.5
    assert judged.infinite == np.isinf(stored(right)).sum() > 0
    flip = 1 << (31 if dtype == "float32" else 15)
    for wrong in (right + 1, right - 1, right ^ flip):
        picked = RNG.choice(len(numbers), 300, replace=False)
        for index in picked:
            if wrong[index] < 0 or wrong[index] == flip - 1 or wrong[index] >= 2 * flip:
                continue  # 0 - 1 has another sign, and that is tried too
            one = slice(index, index + 1)
            assert not judge_rounding(numbers[one], stored(wrong[one]), dtype).nearest, numbers[one]


def test_nan_is_rounded_to_nan_only():
    some = np.array([np.nan, 1.0, np.inf, -np.inf])

    def nearest(*stored):
        return judge_rounding(some, np.array(stored, np.float32), "float32").nearest

    assert nearest(*some)
    assert not nearest(1, 1, np.inf, -np.inf)
    assert not nearest(np.nan, np.nan, np.inf, -np.inf)
    assert not nearest(np.nan, 1, 3.4e38, -np.inf)


def test_a_float32_number_is_no_bfloat16_number():
    number = np.array([1 + 2**-10])
    assert judge_rounding(number, np.array([1.0], np.float32), "bfloat16").nearest
    assert not judge_rounding(number, number.astype(np.float32), "bfloat16").nearest


def test_float64_is_rounded_once():
    """Through float32, this number would become halfway, and then even: the wrong neighbour."""
    number = np.array([1 + 2**-8 + 2**-40])
    assert widen(round_to(number, "bfloat16"), "bfloat16").tolist() == [1 + 2**-7]
    twice = round_to(number.astype(np.float32), "bfloat16")
    assert widen(twice, "bfloat16").tolist() == [1.0]


# --- a float64 source -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "dtype"),
    [
        ("safetensors", "float32"),
        ("npz", "float32"),
        ("h5", "float32"),
        ("bit_pytorch", "float32"),
        ("transformers", "float16"),
        ("timm", "bfloat16"),
    ],
)
def test_a_rounded_float64_source_is_said_to_be(tmp_path, capsys, to, dtype):
    source = write_npz(tmp_path / "dbl.npz", WIDE)
    output = tmp_path / f"b{FORMATS[to].ending}"
    conversion, report = convert_and_prove(source, output, Target(to, dtype))
    assert report.passed
    assert report.weights.rounded_to == dtype
    assert 0 < report.weights.max_ulp <= 0.5
    assert any(f"stored as float64, rounded to {dtype} (nearest)" in n for n in conversion.notes)
    document = json.loads(json.dumps(report.to_dict()))
    assert document["weights_rule"].endswith("the source " + NEAREST.format(dtype))
    assert document["weights"]["rounded_to"] == dtype
    assert document["weights"]["max_ulp"] == report.weights.max_ulp
    (group,) = document["weights"]["groups"]
    assert (group["source"], group["output"], group["params"]) == ("float64", dtype, PARAMS)
    print_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"rounded to {dtype}, nearest: at most {report.weights.max_ulp:.4f} ulp" in shown
    assert "bit equal" not in shown + str(report) + json.dumps(document)
    assert "bit for bit" not in shown + str(report) + json.dumps(document)
    assert proof_rows(document)[0][2:] == (group["found"], "0.5 ulp")

    # the network is what the oracle computes from the rounded numbers; the rest is stated
    judged = [proof for proof in report.logits if proof.judged]
    assert all(proof.relative_l2 < 1e-12 for proof in judged if proof.dtype == "float64")
    (stated,) = [proof for proof in report.logits if not proof.judged]
    network = bitzoo.create_model(conversion.output, pretrained=True).double()
    images = np.random.default_rng(logits_proof.SEED).uniform(-1, 1, (1, 48, 48, 3))
    images = images.astype(np.float32).astype(np.float64)
    with torch.no_grad():
        found = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    expected = reference_numpy.forward(WIDE, images)
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert stated.relative_l2 == pytest.approx(distance, rel=1e-6)
    assert {"float32": 1e-10, "float16": 1e-6, "bfloat16": 1e-5}[dtype] < distance < 0.1
    assert document["unrounded"][0]["tolerance"] is None
    assert "stated" in shown

    made = conversion.info.provenance
    assert (made.rounded_from, made.dtype, made.is_exact) == ("float64", dtype, False)
    with open_source(conversion.output) as written:
        kept = read_info(written, identify(written))[0].provenance
    if FORMATS[to].record_bytes == 0:
        assert kept is None
    else:
        assert kept.rounded_from == "float64"
        assert kept.weights_relative_l2 == pytest.approx(made.weights_relative_l2, rel=1e-3)
        assert kept.logits_relative_l2 == pytest.approx(distance, rel=1e-3)
        assert f"rounded from float64 to {dtype}" in str(bitzoo.info(conversion.output))
    again = verify(source, conversion.output)
    assert again.passed
    assert again.to_dict()["weights"] == document["weights"]
    back = verify(conversion.output, source, check=Check.WEIGHTS)
    assert len(back.weights.differing) > 40  # the digits that are gone do not come back


@pytest.mark.parametrize("to", FORMATS)
def test_float64_on_request(tmp_path, caplog, to):
    source = write_npz(tmp_path / "dbl.npz", WIDE)
    conversion, report = convert_and_prove(
        source, tmp_path / f"b{FORMATS[to].ending}", Target(to, "float64")
    )
    assert report.passed
    assert report.weights.rounded_to is None
    assert report.to_dict()["weights_rule"].endswith("equals the source bit for bit")
    assert not conversion.rounded
    assert conversion.info.provenance.is_exact
    with open_source(conversion.output) as written:
        tensors = identify(written).tensors.values()
        assert {tensor.stored_dtype for tensor in tensors} == {"float64"}
    back = convert(conversion.output, tmp_path / "back.npz", Target("npz", "float64")).output
    with np.load(back) as arrays:
        assert all(np.array_equal(arrays[name], WIDE[name]) for name in WIDE)
    with caplog.at_level(logging.WARNING):
        model = bitzoo.create_model(conversion.output, pretrained=True)
    assert "All tensors are stored as float64, rounded to float32 (nearest)." in caplog.messages
    state = model.state_dict()
    for name, array in as_timm(WIDE).items():
        assert torch.equal(state[name], torch.from_numpy(array.astype(np.float32)))
    if made := model.info.provenance:
        assert (made.rounded_from, made.dtype) == ("float64", "float32")


def test_float64_files_load_in_the_libraries_they_are_for(tmp_path):
    import timm
    from transformers import BitForImageClassification

    arrays = {n: a.astype(np.float64) for n, a in make_checkpoint((3, 4, 6, 3), 0.5).items()}
    source = write_npz(tmp_path / "dbl.npz", arrays)
    path = convert(source, target=Target("timm", "float64")).output
    model: Any = timm.create_model(
        "resnetv2_50x1_bit", num_classes=10, stem_chs=32, channels=(128, 256, 512, 1024)
    )
    timm.models.load_checkpoint(model, str(path))
    assert model.stem.conv.weight.dtype == torch.float32
    stem = as_timm(arrays)["stem.conv.weight"]
    assert torch.equal(model.stem.conv.weight, torch.from_numpy(stem.astype(np.float32)))
    folder = convert(source, target=Target("transformers", "float64")).output
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float64"
    loaded = BitForImageClassification.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(loaded.bit.embedder.convolution.weight, model.stem.conv.weight)


def test_float64_is_refused_where_nothing_is_gained(tmp_path):
    source = write_npz(tmp_path / "a.npz", make_checkpoint())
    said = r'`dtype="float64"` keeps .* but .*a\.npz is stored as float32: float32 holds all'
    with pytest.raises(UsageError, match=said):
        convert(source, target=Target("npz", "float64"))
    with pytest.raises(UsageError, match="`eps_exact` changes them"):
        Target("timm", "float64", eps_exact=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("write", ["npz", "h5", "pth"])
def test_other_files_with_float64(tmp_path, write):
    if write == "npz":
        source = write_npz(tmp_path / "a.npz", {n: a.astype(">f8") for n, a in WIDE.items()})
    elif write == "h5":
        source = write_keras(tmp_path / "a.h5", WIDE, chunks=True)
    else:
        source = tmp_path / "a.pth"
        torch.save(as_bit_pytorch(WIDE), source)
    _, report = convert_and_prove(source, tmp_path / "b.safetensors")
    assert report.weights.rounded_to == "float32"
    found = load_file(tmp_path / "b.safetensors")
    for name, array in as_timm(WIDE).items():
        assert np.array_equal(found[name], array.astype(np.float32))


def test_numbers_beyond_float32(tmp_path):
    source = write_npz(tmp_path / "a.npz", WIDE | {"resnet/group_norm/beta": np.full(1024, 1e39)})
    with pytest.raises(CheckpointError, match=r"'resnet/group_norm/beta' .*too large for float32"):
        convert(source)
    _, report = convert_and_prove(
        source, tmp_path / "b.npz", Target("npz", "float64"), check=Check.WEIGHTS
    )
    assert report.passed


# --- several dtypes in one file -------------------------------------------------------------------


def mixed(tmp_path):
    """Kernels in float64, scales in float16, shifts in float32."""
    dtypes = {"gamma": np.float16, "beta": np.float32}
    return write_npz(
        tmp_path / "mixed.npz",
        {n: a.astype(dtypes.get(n.rpartition("/")[2], np.float64)) for n, a in WIDE.items()},
    )


def test_each_dtype_is_said(tmp_path, capsys):
    source = mixed(tmp_path)
    conversion, report = convert_and_prove(source, tmp_path / "b.safetensors")
    assert report.passed
    assert conversion.notes == (
        "13 of 45 tensors are stored as float16, whose numbers float32 holds exactly.",
        "19 of 45 tensors are stored as float64, rounded to float32 (nearest); "
        "the dtype float64 would keep them.",
    )
    groups = {g.change.source: (g.tensors, g.found, g.allowed) for g in report.weights.groups}
    assert groups["float16"] == (
        13,
        "every number equal, float16 widened to float32",
        "equal",
    )
    assert groups["float32"] == (13, "every bit equal", "equal")
    assert groups["float64"][0] == 19
    assert groups["float64"][1].startswith("rounded to float32, nearest: at most 0.")
    assert sum(group.params for group in report.weights.groups) == PARAMS
    print_report(report)
    weights = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights")]
    assert len(weights) == 3
    rule = report.to_dict()["weights_rule"]
    assert f"19 tensors {NEAREST.format('float32')}" in rule
    assert "13 tensors number for number (float16 widened to float32)" in rule

    kept = convert(source, tmp_path / "c.safetensors", Target(dtype="float64"), compare=True)
    assert {g.change.rounded_to for g in kept.weights.groups} == {None}
    assert kept.weights.passed


def test_bfloat16_that_stays_bfloat16_is_not_rounded(tmp_path):
    first = convert(write_npz(tmp_path / "a.npz", WIDE), target=Target(dtype="bfloat16")).output
    with safe_open(first, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    from safetensors.torch import save_file as save_torch

    save_torch(tensors, tmp_path / "plain.safetensors")
    made = convert(
        tmp_path / "plain.safetensors",
        tmp_path / "b.safetensors",
        Target(dtype="bfloat16"),
        compare=True,
    )
    assert made.weights.passed
    assert made.weights.rule == "bit for bit"
    assert made.info.provenance.is_exact
    with safe_open(made.output, "np") as file:
        assert "weights_relative_l2" not in file.metadata()
    again = convert(first, tmp_path / "c.safetensors", Target(dtype="float16"))
    assert again.info.provenance.rounded_from == "float64 to bfloat16"
    assert again.info.provenance.dtype == "float16"
    said = [value for key, value in again.info.display_rows() if key == "numbers"]
    assert said[0].endswith("by the last rounding")


# --- planted errors -------------------------------------------------------------------------------


def test_one_number_off_by_a_unit(tmp_path):
    source = write_npz(tmp_path / "dbl.npz", WIDE)
    output = convert(source).output
    tensors = load_file(output)
    tensors["norm.weight"][5] = np.nextafter(tensors["norm.weight"][5], np.float32(2))
    save_file(tensors, output, {"format": "pt"})
    report = verify(source, output, check=Check.WEIGHTS)
    assert report.weights.differing == ("resnet/group_norm/gamma",)
    with pytest.raises(ParityError, match=f"Expected numbers {NEAREST.format('float32')}"):
        report.require()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_cast_that_cuts_off_is_found_out(tmp_path, monkeypatch, dtype):
    """Which rounding again by the same cast would never see."""

    def cut(values, dtype):
        wide = values.astype(np.float64)
        rounded = widen(round_to(wide, dtype), dtype).astype(np.float64)
        return round_to(np.where(np.abs(rounded) > np.abs(wide), rounded * 0.99, rounded), dtype)

    monkeypatch.setattr(conversion_module, "round_to", cut)
    source = write_npz(tmp_path / "dbl.npz", WIDE)
    with pytest.raises(ParityError, match=f"tensors differ .*Expected numbers rounded to {dtype}"):
        convert_and_prove(source, tmp_path / "b.safetensors", Target(dtype=dtype))
    assert [path.name for path in tmp_path.iterdir()] == ["dbl.npz"]
