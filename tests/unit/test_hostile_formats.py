"""Damaged and hostile files of all formats but npz: exit 2, nothing written, nothing run."""

import gzip
import io
import json
import pickle
import random
import shutil
import sys
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import torch
from checkpoints import as_timm, make_checkpoint, write_npz
from formats import as_bit_pytorch, write_keras
from safetensors.numpy import save_file
from servers import FileServer

from bitzoo.cli import main
from bitzoo.converters.convert import convert
from bitzoo.converters.formats import tar as archives
from bitzoo.converters.formats.checkpoint_formats import Target
from bitzoo.converters.open import open_source
from bitzoo.errors import BitzooError, CheckpointError

ARRAYS = make_checkpoint()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


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


@pytest.fixture
def refused(tmp_path, command):
    """Assert that a file is refused as every bad file should be, and leaves nothing behind."""

    def check(path, *said, to="npz"):
        before = sorted((str(at), at.stat().st_size) for at in tmp_path.rglob("*"))
        output = tmp_path / "converted"
        code, out, err = command("--src", path, "--dst", output, "--to", to, "--check", "weights")
        assert sorted((str(at), at.stat().st_size) for at in tmp_path.rglob("*")) == before
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        for text in said:
            assert text in err
        assert "Traceback" not in err
        assert len(err) < 20_000
        assert err.replace("\n", "").isprintable()

    return check


# --- HDF5 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras_bytes(tmp_path_factory):
    return write_keras(tmp_path_factory.mktemp("keras") / "a.h5", ARRAYS).read_bytes()


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_h5(tmp_path, refused, keras_bytes, share):
    path = tmp_path / "a.h5"
    path.write_bytes(keras_bytes[: max(9, int(len(keras_bytes) * share))])
    refused(path, f"{path}: expected a Keras HDF5 file, but it cannot be read")


def test_h5_files_with_random_damage_never_crash(tmp_path, keras_bytes):
    """Each is refused with an error of ours, or read as it stands: its numbers have no sums."""
    generator = random.Random(0)
    structure = [at for at in range(len(keras_bytes)) if at < 20_000 or at % 997 == 0]
    refusals = 0
    for _ in range(20):
        data = bytearray(keras_bytes)
        for at in generator.sample(structure, 4):
            data[at] = generator.randrange(256)
        (tmp_path / "a.h5").write_bytes(data)
        try:
            convert(tmp_path / "a.h5", tmp_path / "a.npz", target=Target("npz"), force=True)
        except BitzooError:
            refusals += 1
    assert 2 < refusals < 20


def test_an_h5_file_of_something_else(tmp_path, refused):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros(3)
    refused(tmp_path / "a.h5", "expected Keras's attribute 'layer_names'", "found only images")


def test_h5_weights_that_lie_elsewhere(tmp_path, refused):
    write_keras(tmp_path / "secret.h5", ARRAYS)
    shutil.copy(tmp_path / "secret.h5", tmp_path / "a.h5")
    at = "root_block/root_block/standardized_conv2d/kernel:0"
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[at]
        file[at] = h5py.ExternalLink("secret.h5", at)
    refused(tmp_path / "a.h5", "are in other files, expected them in this one")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[at]
        file.create_dataset(at, (7, 7, 3, 32), "<f4", external=[("/etc/passwd", 0, 18_816)])
    refused(tmp_path / "a.h5", "are in other files, expected them in this one")


def test_h5_weights_that_are_no_numbers_or_listed_twice(tmp_path, refused):
    at = "root_block/root_block/standardized_conv2d/kernel:0"
    write_keras(tmp_path / "a.h5", ARRAYS)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file[at]
        file[at] = "text"
    refused(tmp_path / "a.h5", "is stored as object, expected float32 numbers")
    write_keras(tmp_path / "b.h5", ARRAYS)
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        layers = file.attrs["layer_names"]
        file.attrs["layer_names"] = np.concatenate([layers, layers[:1]])
    refused(tmp_path / "b.h5", "expected each name once, found two weights named")
    write_keras(tmp_path / "c.h5", ARRAYS)
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        del file["block2"]
    refused(tmp_path / "c.h5", "expected a Keras HDF5 file, but it cannot be read")


def test_an_h5_file_of_another_network_shows_a_diff(tmp_path, refused):
    arrays = dict(ARRAYS)
    del arrays["resnet/block2/unit01/b/group_norm/beta"]
    refused(
        write_keras(tmp_path / "a.h5", arrays),
        "- resnet/block2/unit01/b/group_norm/beta (64,)",
        "closest to R(1,1,1,1)x0.5 with 10 classes",
    )


# --- pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pickle", "old", "zip", "nested", "numpy object"])
def test_a_pickle_with_code_is_not_run(tmp_path, refused, form):
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    payload = Payload(mark)
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": payload}))
    elif form == "numpy object":
        path.write_bytes(pickle.dumps({"a": np.array([payload], dtype=object)}))
    else:
        state = {**as_bit_pytorch(ARRAYS), "extra": payload}
        content = {"model": {f"module.{k}": v for k, v in state.items()}}
        torch.save(
            content if form == "nested" else state,
            path,
            _use_new_zipfile_serialization=form != "old",
        )
    refused(path, f"{path}: ")
    assert not mark.exists()
    if form in ("old", "zip", "nested"):
        refused(path, "expected a state dict, found a pickle that could run code: it asks for")


def test_a_shard_with_code_is_not_run(tmp_path, refused):
    mark, folder = tmp_path / "ran", tmp_path / "model"
    folder.mkdir()
    torch.save({"a": Payload(mark)}, folder / "part.bin")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "part.bin"}}')
    refused(folder, "expected a state dict, found a pickle that could run code")
    assert not mark.exists()


def test_damaged_and_foreign_pytorch_files(tmp_path, refused):
    path = tmp_path / "a.pth"
    torch.save(as_bit_pytorch(ARRAYS), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "expected a PyTorch checkpoint, but it cannot be read", "truncated or damaged")
    torch.save([1, 2], path)
    refused(path, "expected a state dict, or one under model or state_dict", "found list")
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, path)
    refused(path, "found 'epoch', 'args'")
    torch.save({"root.conv.weight": torch.zeros(3, 3).to_sparse()}, path)
    refused(path, "torch.sparse_coo", "expected plain float numbers")
    torch.save({"fc.weight": torch.zeros(3)}, path)
    refused(path, "no tensor has a BiT name", "found 1 others (fc.weight)")


# --- indexes of shards ----------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    """A folder with two shards and their index."""
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {name: np.ascontiguousarray(array) for name, array in as_timm(ARRAYS).items()}
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:20], names[20:])):
        save_file({name: tensors[name] for name in part}, folder / f"{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_read_and_an_index_without_one_is_refused(tmp_path, refused, sharded):
    assert convert(
        sharded.parent, tmp_path / "a.npz", target=Target("npz"), compare=True
    ).weights.passed
    (tmp_path / "a.npz").unlink()
    (sharded.parent / "1.safetensors").unlink()
    refused(sharded.parent, f"{sharded}: expected the shard 1.safetensors in the same folder")
    refused(sharded, "there is no such file. Download it")


@pytest.mark.parametrize("name", ["../0.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_that_leads_elsewhere(refused, sharded, name):
    sharded.write_text(json.dumps({"weight_map": {"stem.conv.weight": name}}))
    refused(sharded.parent, "expected names of files in its own folder", "Do not load this file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON, but it cannot be read"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "expected an index of shards"),
        ('{"weight_map": {"a": 1}}', "expected an index of shards"),
        ("[" * 100_000, "expected JSON, but it cannot be read"),
    ],
)
def test_an_index_that_is_none(refused, sharded, text, said):
    sharded.write_text(text)
    refused(sharded.parent, said)


def test_an_index_that_its_shards_do_not_keep(refused, sharded):
    index = json.loads(sharded.read_text())
    index["weight_map"]["head.fc.scale"] = "1.safetensors"
    sharded.write_text(json.dumps(index))
    refused(sharded, "lists 1 tensors that its shards lack (head.fc.scale, ...)")
    shutil.copy(sharded.parent / "1.safetensors", sharded.parent / "2.safetensors")
    index["weight_map"]["head.fc.scale"] = "2.safetensors"
    sharded.write_text(json.dumps(index))
    refused(sharded, "another shard of model.safetensors.index.json has '")


# --- archives -------------------------------------------------------------------------------------


def write_tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content, change in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in change.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../ran", "a/../../ran", "/tmp/ran", "..", "a\\..\\ran"])
@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_an_archive_that_leads_out_of_itself(tmp_path, refused, name, mode):
    path = write_tar(tmp_path / "a.tar.gz", ("ok/x", b"x", {}), (name, b"owned", {}), mode=mode)
    refused(
        path, "expected paths inside the archive", "which leads out of it", "Do not load this file"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE},
    ],
    ids=["symlink", "hard link", "pipe", "device"],
)
def test_an_archive_with_more_than_files(tmp_path, refused, change):
    path = write_tar(tmp_path / "a.tar.gz", ("variables/variables.index", b"", change))
    refused(path, "is a link, a device or a sparse file")


def test_archives_that_unpack_to_too_much(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 100_000)
    path = write_tar(tmp_path / "a.tar.gz", ("a", bytes(60_000), {}), ("b", bytes(60_000), {}))
    refused(path, "unpacks to 120,000 bytes or more in 2 files")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    path = write_tar(tmp_path / "b.tar.gz", *((str(number), b"", {}) for number in range(5)))
    refused(path, "in 4 files, expected at most")


def test_an_archive_whose_header_would_fill_the_memory(tmp_path, refused):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 8 << 30
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    refused(path, "cannot be read", "a header of 8,589,934,592 bytes")


def test_archives_that_are_none_or_hold_none(tmp_path, refused):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"BiT" * 100))
    refused(path, "expected a tar archive of a module, found text that begins with 'BiTBiT")
    write_tar(path, ("a/variables/notes.txt", random.Random(0).randbytes(100_000), {}))
    whole = path.read_bytes()
    refused(path, f"{path}: in the archive, ")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "expected a tar archive of a module, but it cannot be read", "truncated")
    inner = write_tar(tmp_path / "inner.tar", ("x", b"x", {}), mode="w").read_bytes()
    write_tar(path, ("inner.tar", inner, {}))
    refused(path, f"{path}: in the archive, ", "found an unknown format")


def test_an_archive_of_a_checkpoint_file(tmp_path):
    source = write_npz(tmp_path / "bit.npz", ARRAYS)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(source, arcname="model/bit.npz")
    conversion = convert(
        tmp_path / "a.tar.gz", tmp_path / "b.npz", target=Target("npz"), compare=True
    )
    assert conversion.weights.passed


# --- the command ----------------------------------------------------------------------------------


def test_a_catalogue_name_by_its_h5_file(tmp_path, command, monkeypatch):
    """Mislabelled as public files are; what is in it is said, and counts."""
    served = write_keras(tmp_path / "served.h5", ARRAYS).read_bytes()
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    arguments = ["--from", "h5", "--check", "weights", "--dst", tmp_path / "a.safetensors"]
    with FileServer({"BiT-S-R50x3.h5": served}) as server:
        monkeypatch.setenv("BITZOO_MIRROR", server.url)
        code, out, err = command("--src", "BiT-S-R50x3", *arguments)
    assert code == 0
    assert "downloaded BiT-S-R50x3.h5, 8.2 MB in " in err
    assert "Fetched as BiT-S-R50x3 (R50x3, 1,000 classes), but its tensors are" in " ".join(
        out.split()
    )
    with open_source(tmp_path / "a.safetensors") as source:
        assert "model" not in source.metadata


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--src", "BiT-M-R50x1-ILSVRC2012", "--from", "h5"), "not released as 'h5'"),
        (("--src", "absent.h5", "--from", "h5"), "Leave --from out"),
        (("--src", "absent.h5"), "absent.h5: expected a checkpoint file, found nothing there"),
        (
            ("--src", "absent.h5", "--to", "npz", "--dtype", "float16"),
            "for npz files, which are always float32",
        ),
        (
            ("--src", "absent.h5", "--to", "h5", "--eps-exact"),
            "Use it only to write timm or transformers",
        ),
    ],
)
def test_options_that_do_not_fit(command, arguments, said):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_zip_that_is_neither_numpys_nor_pytorchs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"a\.zip: expected a PyTorch .* no record version"):
        open_source(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("x/version", "3\n")
    with pytest.raises(CheckpointError, match=r"a\.zip: expected a state dict, .* found 'a'\."):
        open_source(tmp_path / "a.zip")
