"""big_vision's own BiT checkpoints (`models/bit_paper.py`): a source like the others.

The files are written here with the names of big_vision's code, in the way its `np.savez` writes
them; nothing is imported from bitzoo for that.
"""

import json

import numpy as np
import pytest
import torch
from checkpoints import as_timm, make_checkpoint, write_npz
from safetensors.numpy import load_file

import bitzoo
from bitzoo.converters.convert import convert
from bitzoo.converters.formats.checkpoint_formats import FORMATS, Target
from bitzoo.converters.identify import identify
from bitzoo.converters.key_mapping import name_of, slot_of
from bitzoo.converters.open import open_source
from bitzoo.converters.parity import logits as logits_proof
from bitzoo.converters.parity import reference_tensorflow
from bitzoo.converters.parity.verify import Check, convert_and_prove, verify
from bitzoo.errors import CheckpointError, TensorMismatchError

ARRAYS = make_checkpoint((2, 1, 1, 1))
PREFIXES = ["params/", "opt/target/", ""]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(logits_proof, "PROBES", ((48, 1), (33, 2)))
    monkeypatch.setattr(reference_tensorflow, "is_installed", lambda: False)


def as_big_vision(arrays, prefix="params/"):
    """The tree of big_vision's network, flattened: paths -> arrays."""
    found = {}
    for name, array in arrays.items():
        parts = name.removeprefix("resnet/").split("/")
        kind = {"gamma": "scale", "beta": "bias"}.get(parts[-1], parts[-1])
        if parts[0] == "root_block":
            path = "root_block/conv_root/kernel"
        elif parts[0] == "head":
            path, array = f"head/{kind}", array[0, 0] if kind == "kernel" else array
        elif parts[0] == "group_norm":
            path, array = f"norm-pre-head/{kind}", array[None, None, None]
        else:
            block, unit, branch, layer = parts[:4]
            number = "abc".index(branch) + 1
            if layer == "group_norm":
                path, array = f"{block}/{unit}/gn{number}/{kind}", array[None, None, None]
            else:
                path = f"{block}/{unit}/" + ("conv_proj" if layer == "proj" else f"conv{number}")
                path += "/kernel"
        found[prefix + path] = array
    return found


def bits_of_bfloat16(array):
    """As `np.savez` stores what JAX calls bfloat16."""
    tensor = torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16)
    return tensor.view(torch.int16).numpy().view("V2")


STATE = {
    "opt/0/count": np.int32(7),
    "opt/0/trace/block1/unit01/conv1/kernel": np.zeros(3, np.float32).view("V4"),
    "opt/0/trace/head/bias": bits_of_bfloat16(np.zeros(10, np.float32)),
    "chrono/accum_train_time": np.float64(3.5),
    "extra/mesh": np.array("tpu"),
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_parameters_are_read(tmp_path, prefix, save):
    source = tmp_path / "bv.npz"
    state = {} if prefix == "" else {k.replace("opt/0", "opt/state"): v for k, v in STATE.items()}
    save(source, **as_big_vision(ARRAYS, prefix), **state)
    conversion, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert report.to_dict()["weights_rule"].endswith("the source bit for bit")
    found = load_file(conversion.output)
    expected = as_timm(ARRAYS)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert "pads the maximum pool of the root with minus infinity" in conversion.notes[0]
    assert "compute the released function" in conversion.notes[0]
    if prefix:
        assert conversion.notes[1] == (
            "Left out, because they are no parameters: chrono/accum_train_time, extra/mesh, "
            "opt/state/count, opt/state/trace/block1/unit01/conv1/kernel, "
            "opt/state/trace/head/bias."
        )
    state = bitzoo.create_model(source, pretrained=True).state_dict()
    assert all(torch.equal(state[name], torch.from_numpy(expected[name])) for name in expected)


@pytest.mark.parametrize("to", FORMATS)
def test_there_and_back(tmp_path, to):
    source = tmp_path / "bv.npz"
    np.savez(source, **as_big_vision(ARRAYS))
    there = convert(source, tmp_path / f"b{FORMATS[to].ending}", Target(to), compare=True)
    assert there.weights.passed
    back = convert(there.output, tmp_path / "back.npz", Target("npz")).output
    with np.load(back) as arrays:
        assert set(arrays.files) == set(ARRAYS)
        assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert verify(source, back, check=Check.WEIGHTS).passed
    assert verify(back, source, check=Check.WEIGHTS).passed


def test_the_table_has_the_names_of_big_vision(tmp_path):
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    with open_source(source) as file:
        slots = identify(file).tensors
    names = {name_of(slot, "bit_paper") for slot in slots}
    assert names == set(as_big_vision(ARRAYS, ""))
    assert {slot_of(name, "bit_paper") for name in names} == set(slots)


def test_bfloat16_is_read_and_said(tmp_path):
    source = tmp_path / "bv.npz"
    stored = {name: bits_of_bfloat16(array) for name, array in as_big_vision(ARRAYS).items()}
    np.savez(source, **stored, **STATE)
    with np.load(source) as arrays:
        assert arrays["params/head/bias"].dtype == "V2"
    conversion, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert any(
        note == "All tensors are stored as bfloat16, whose numbers float32 holds exactly."
        for note in conversion.notes
    )
    assert json.loads(json.dumps(report.to_dict()))["weights"]["groups"][0]["source"] == "bfloat16"
    found = load_file(conversion.output)
    for name, array in as_timm(ARRAYS).items():
        expected = torch.from_numpy(array.copy()).to(torch.bfloat16).float()
        assert torch.equal(torch.from_numpy(found[name]), expected)
    kept = convert(source, tmp_path / "b.safetensors", Target(dtype="bfloat16"), compare=True)
    assert kept.weights.rule == "bit for bit"


def test_without_a_head(tmp_path):
    source = tmp_path / "bv.npz"
    np.savez(source, **as_big_vision(make_checkpoint(num_classes=0)))
    assert convert(source).inventory.num_classes == 0


def test_damage_in_what_is_left_out_is_found(tmp_path):
    source = tmp_path / "bv.npz"
    write_npz(source, as_big_vision(ARRAYS) | {"opt/x": np.arange(1000, dtype=np.int64)})
    data = bytearray(source.read_bytes())
    at = data.index(np.arange(500, 502, dtype=np.int64).tobytes())
    data[at] ^= 1
    source.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'opt/x\.npy' is damaged: expected CRC-32"):
        convert(source)


def test_a_missing_tensor_has_the_name_of_the_file(tmp_path):
    arrays = as_big_vision(ARRAYS)
    del arrays["params/block2/unit01/gn2/scale"]
    np.savez(tmp_path / "bv.npz", **arrays)
    with pytest.raises(TensorMismatchError, match=r"- block2/unit01/gn2/scale \(64,\)"):
        convert(tmp_path / "bv.npz")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_other_network_of_big_vision_is_refused(tmp_path, prefix):
    """Its names were read in models/bit.py: unit1, gn_root, gn_proj, no root_block."""
    names = ["conv_root/kernel", "gn_root/scale", "gn_root/bias", "head/kernel", "head/bias"]
    names += [f"block1/unit1/{layer}/kernel" for layer in ("conv1", "conv2", "conv3", "conv_proj")]
    names += [f"block1/unit1/{layer}/scale" for layer in ("gn1", "gn2", "gn3", "gn_proj")]
    write_npz(tmp_path / "v1.npz", {prefix + name: np.ones(4, np.float32) for name in names})
    said = r"v1\.npz: expected BiT as released \(a ResNet-v2.*models/bit\.py: a ResNet-v1"
    with pytest.raises(CheckpointError, match=said):
        convert(tmp_path / "v1.npz")


def test_other_void_numbers_are_refused(tmp_path):
    arrays = as_big_vision(ARRAYS)
    arrays["params/head/bias"] = arrays["params/head/bias"].view("V4")
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"'params/head/bias' has dtype \|V4"):
        convert(tmp_path / "a.npz")
