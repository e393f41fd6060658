"""The ending of an output's name and its format: one follows the other, or both are refused."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from safetensors.numpy import load_file

import bitzoo
from bitzoo.cli import main
from bitzoo.converters.convert import convert
from bitzoo.converters.formats.checkpoint_formats import FORMATS, Target, choose_format
from bitzoo.converters.open import open_source
from bitzoo.errors import UsageError
from bitzoo.exporters.export import export


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("names") / "a.npz", make_checkpoint())


@pytest.fixture
def run(monkeypatch, capsys):
    """A command in this process: arguments -> exit code, stdout, stderr."""
    monkeypatch.setattr(main, "exit_on_signals", lambda: None)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["bitzoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        found = capsys.readouterr()
        return ended.value.code, found.out, found.err

    return call


ENDINGS = {
    "z.h5": "keras",
    "z.HDF5": "keras",
    "z.npz": "npz",
    "z.safetensors": "timm",
    "z.timm.safetensors": "timm",
    "z.pth": "bit_pytorch",
    "z.pt": "bit_pytorch",
    "z.bin": "bit_pytorch",
    "z.pth.tar": "bit_pytorch",
}
"""Name of an output -> naming scheme of the file that is then there."""


@pytest.mark.parametrize("name", ENDINGS)
def test_the_ending_decides(tmp_path, source, name):
    result = bitzoo.convert(source, tmp_path / name, check="weights")
    assert result.output == tmp_path / name
    with open_source(result.output) as file:
        assert file.names == ENDINGS[name]
    assert result.parity.passed
    assert not any("ending" in note for note in result.notes)


def test_the_ending_decides_on_the_command_line(tmp_path, source, run):
    code, _, _ = run("convert", "--src", source, "--dst", tmp_path / "z.h5", "--check", "none")
    assert code == 0
    with h5py.File(tmp_path / "z.h5") as file:
        assert file["head/dense/head/dense/bias:0"].shape == (10,)


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [
        ("z.safetensors", "h5", r"whose files end in \.h5 or \.hdf5"),
        ("z.h5", "safetensors", r"whose files end in \.safetensors"),
        ("z.npz", "timm", r"whose files end in \.timm\.safetensors or \.safetensors"),
        ("z.pth", "npz", r"whose files end in \.npz"),
        ("z.safetensors", "transformers", "which is a folder"),
        ("z.onnx", "npz", r"whose files end in \.npz"),
        ("z.pth.tar", "safetensors", r"whose files end in \.safetensors"),
    ],
)
def test_a_contradiction_names_both(tmp_path, source, name, to, expected):
    said = rf'{name}: the ending \.\S+ contradicts `to="{to}"`, {expected}\. Change one of them'
    with pytest.raises(UsageError, match=said):
        bitzoo.convert(source, tmp_path / name, to=to)
    with pytest.raises(UsageError, match=said):
        convert(source, tmp_path / name, Target(to))
    assert list(tmp_path.iterdir()) == []


def test_a_contradiction_on_the_command_line(tmp_path, source, run):
    code, _, err = run(
        "convert", "--src", source, "--dst", tmp_path / "z.safetensors", "--to", "h5"
    )
    assert code == 2
    assert "the ending .safetensors contradicts --to h5" in err
    assert "leave --to out" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("z.onnx", r"use `bitzoo export MODEL --to onnx`"),
        ("z.xml", r"use `bitzoo export MODEL --to openvino`"),
        ("z.pb", r"use `bitzoo export MODEL --to savedmodel`"),
        ("z.pt2", r"use `bitzoo export MODEL --to torch-export`"),
        ("z.ckpt", r"bitzoo does not write \.ckpt files"),
        ("z.keras", r"bitzoo does not write \.keras files"),
        ("z.tar.gz", r"bitzoo does not write \.gz files"),
        ("z.TFLITE", r"bitzoo does not write \.tflite files"),
    ],
)
def test_an_ending_that_promises_something_else(tmp_path, source, name, said):
    writable = r".*It can write \.safetensors \(safetensors\); \.npz \(npz\); \.h5, \.hdf5 \(h5\)"
    with pytest.raises(UsageError, match=said + writable):
        bitzoo.convert(source, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_another_name_says_what_is_written(tmp_path, source, run):
    result = bitzoo.convert(source, tmp_path / "model.v2", check="none")
    assert result.notes[-1].startswith(
        "The name model.v2 has no ending of a checkpoint format: a safetensors file is written."
    )
    assert len(load_file(tmp_path / "model.v2")) == 45
    code, out, _ = run("convert", "--src", source, "--dst", tmp_path / "b", "--check", "none")
    assert code == 0
    assert "Give --dst an ending, or choose with --to." in out
    asked = bitzoo.convert(source, tmp_path / "c.v2", to="npz", check="none")
    assert not any("ending" in note for note in asked.notes)
    with np.load(tmp_path / "c.v2") as arrays:
        assert len(arrays.files) == 45


def test_a_folder_has_no_ending(tmp_path, source):
    (tmp_path / "made.h5").mkdir()
    result = bitzoo.convert(source, tmp_path / "made.h5", check="none")
    assert result.output == tmp_path / "made.h5" / "a.safetensors"
    folder = bitzoo.convert(source, tmp_path / "bit.50", to="transformers", check="none")
    assert (folder.output / "config.json").is_file()


def test_every_format_has_endings_that_lead_to_it():
    for row in FORMATS.values():
        for ending in row.endings:
            found = choose_format(Path("nowhere") / f"x{ending}")
            assert ending in FORMATS[found].endings
        assert choose_format(Path("nowhere") / f"x{row.ending}", row.name) == row.name


# --- reports and exports --------------------------------------------------------------------------


def test_a_proof_is_not_called_a_checkpoint(tmp_path, source):
    with pytest.raises(UsageError, match=r"x\.npz: a proof is JSON, .* such as parity\.json"):
        bitzoo.convert(source, tmp_path / "z.h5", report=tmp_path / "x.npz")
    with pytest.raises(UsageError, match=r"x\.safetensors: a proof is JSON"):
        bitzoo.verify(source, source, report=tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_proof_in_a_folder_has_its_own_name(tmp_path, source):
    (tmp_path / "proofs").mkdir()
    result = bitzoo.convert(source, tmp_path / "z.h5", check="weights", report=tmp_path / "proofs")
    assert result.report == tmp_path / "proofs" / "parity.json"
    assert list(json.loads(result.report.read_text())) == ["z.h5"]


@pytest.mark.parametrize("name", ["x.onnx", "x.xml", "x.pt2"])
def test_a_saved_model_is_no_file(tmp_path, source, name):
    with pytest.raises(UsageError, match=rf"{name}: savedmodel is a folder, .* Rename `out`"):
        export(source, "savedmodel", tmp_path / name)
    assert list(tmp_path.iterdir()) == []
