"""A disk that fills up: a sentence, exit code 2, and nothing half-written under a final name.

RLIMIT_FSIZE stands in for the disk: the system then refuses to write past that many bytes of a
file, with an error of its own.
"""

import errno
import json
import os
import resource

import commands
import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from images import write_digits
from safetensors.numpy import load_file
from servers import FileServer
from training import InProcess

from bitzoo.converters.parity import verify
from bitzoo.converters.parity.verify import REPORT_NAME, Check, convert_and_prove
from bitzoo.errors import UsageError
from bitzoo.files import sha256_of

ARRAYS = make_checkpoint(num_classes=4)
LIMIT = 1_000_000
FORMATS = ["safetensors", "npz", "h5", "timm", "transformers", "bit_pytorch"]


def run_limited(report, words, folder, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return commands._run(report, words, folder)


def refused(folder, *words, limit=LIMIT, **environment):
    """Run `bitzoo WORDS` until a file exceeds the limit; returns what it says."""
    environment = {"BITZOO_CACHE": str(folder / "cache"), **environment}
    arguments = (run_limited, list(map(str, words)), str(folder), limit)
    code, _, err = InProcess(*arguments, environment=environment).result()
    assert code == 2, err
    assert "Traceback" not in err
    assert "File too large" in err
    assert [path for path in folder.rglob("*") if ".bitzoo-" in path.name] == []
    return err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_converting(tmp_path, to):
    write_npz(tmp_path / "a.npz", ARRAYS)
    said = refused(tmp_path, "convert", "--src", "a.npz", "--dst", "out", "--to", to)
    assert said == "error: out: cannot be written (File too large).\n"
    assert names(tmp_path) == ["a.npz"]


def test_replacing_keeps_the_old_output_and_its_proof(tmp_path):
    write_npz(tmp_path / "a.npz", ARRAYS)
    words = ["convert", "--src", "a.npz", "--check", "weights", "--to", "bit_pytorch", "--force"]
    assert commands.start(*words, folder=tmp_path).result()[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    refused(tmp_path, *words)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_proof_that_does_not_fit_leaves_no_output(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "a.npz", ARRAYS)

    def refuse(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make(force=False):
        report = tmp_path / REPORT_NAME
        convert_and_prove(
            source, tmp_path / "a.safetensors", check=Check.WEIGHTS, report_path=report, force=force
        )

    with monkeypatch.context() as full:
        full.setattr(verify, "write_json", refuse)
        with pytest.raises(UsageError, match=r"parity\.json: cannot be written \(No space left"):
            make()
    assert names(tmp_path) == ["a.npz"]
    make()
    written = (tmp_path / REPORT_NAME).read_bytes()
    with monkeypatch.context() as full:
        full.setattr(verify, "write_json", refuse)
        with pytest.raises(UsageError, match="No space left"):
            make(force=True)
    assert names(tmp_path) == ["a.npz", "a.safetensors", REPORT_NAME]
    assert (tmp_path / REPORT_NAME).read_bytes() == written


def test_at_no_moment_a_proof_of_another_file(tmp_path, monkeypatch):
    """Whatever is renamed when, and if the rename of the output fails, the old proof is back."""
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    output, report = tmp_path / "a.safetensors", tmp_path / REPORT_NAME
    replace, moments = os.replace, []

    def watched(start, end):
        replace(start, end)
        listed = json.loads(report.read_text()) if report.exists() else {}
        moments.append(output.name in listed)
        if output.exists() and output.name in listed:
            found = listed[output.name]["output"]["sha256"]
            assert found == sha256_of(output)

    def refused_output(start, end):
        if end == output:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(start, end)

    def make(force):
        convert_and_prove(
            source, output, check=Check.WEIGHTS, report_path=report, force=force, hash_output=True
        )

    make(False)
    first = report.read_text()
    write_npz(source, make_checkpoint(num_classes=4, seed=1))
    monkeypatch.setattr(os, "replace", watched)
    make(True)
    assert False in moments  # the old proof goes before the new output comes
    second = report.read_text()
    assert second != first
    monkeypatch.setattr(os, "replace", refused_output)
    with pytest.raises(UsageError, match=r"a\.safetensors: cannot be written \(Input/output error"):
        make(True)
    assert report.read_text() == second


def test_fetching(tmp_path):
    write_npz(tmp_path / "BiT-M-R50x1.npz", ARRAYS)
    content = (tmp_path / "BiT-M-R50x1.npz").read_bytes()
    with FileServer({"BiT-M-R50x1.npz": content}) as server:
        url = server.url + "BiT-M-R50x1.npz"
        said = refused(tmp_path, "convert", "--src", url, "--dst", "out.safetensors")
    assert "Free some space there, or point BITZOO_CACHE at a folder on a larger disk." in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture
def data(tmp_path):
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3, classes=range(4))
    write_npz(tmp_path / "small.npz", ARRAYS)
    return tmp_path


WORDS = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run", "--steps", "2",
         "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]  # fmt: skip


def test_a_checkpoint(data):
    said = refused(data, *WORDS)
    assert "Checkpoint step-00000002.safetensors cannot be written to run/checkpoints" in said
    assert "There is no earlier checkpoint. Free some space" in said
    assert commands.start(*WORDS, "--resume", folder=data).result()[0] == 0


def test_what_a_finished_run_writes_and_publishes(data):
    assert commands.start(*WORDS, folder=data).result()[0] == 0
    run = data / "run"
    before = load_file(run / "model.safetensors")
    said = refused(data, *WORDS, "--resume")
    assert said.startswith("error: run: cannot be used for a run (run/model.safetensors: File too")
    assert "then continue with --resume" in said
    assert commands.start(*WORDS, "--resume", folder=data).result()[0] == 0
    for name, tensor in load_file(run / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, before[name])
    refused(data, "publish", "run", "--repo", "lab/x", "--dry-run", "--folder", "staged")
    assert not (data / "staged/manifest.json").exists()


def test_decoded_images(data):
    """The cache is left out; a run does not depend on it."""
    words = [*WORDS, "--resolution", "200,160", "--freeze"]
    environment = {"BITZOO_CACHE": str(data / "cache")}
    arguments = (run_limited, list(map(str, words)), str(data), LIMIT)
    code, _, err = InProcess(*arguments, environment=environment).result()
    assert code == 2  # the weights do not fit either
    assert [path for path in data.rglob("*") if ".bitzoo-" in path.name] == []
    assert [path for path in data.rglob("*.rows") if path.stat().st_size > LIMIT] == []
    assert err.count("Images are decoded at every step: the cache ") == 1
