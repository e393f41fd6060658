"""A command that is killed at any moment can be repeated, and nothing of it stays behind.

Each series kills a command by SIGKILL at seeded random moments, looks at what is there, and runs
the same command again. BITZOO_TEST_KILLS sets how often; the default suits every run of the tests.
"""

import hashlib
import json
import os
import random
import shutil
import time

import numpy as np
import pytest
from checkpoints import as_timm, make_checkpoint, write_npz
from commands import start
from images import write_digits
from safetensors.numpy import load_file

from bitzoo.converters.parity.verify import REPORT_NAME

KILLS = int(os.environ.get("BITZOO_TEST_KILLS", "3"))
ARRAYS = [make_checkpoint(num_classes=4, seed=seed) for seed in range(2)]
ENDINGS = {
    "safetensors": ".safetensors",
    "npz": "-new.npz",
    "h5": ".h5",
    "timm": "-timm.safetensors",
    "transformers": "-transformers",
    "bit_pytorch": ".pth",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 120 * KILLS)]


def succeed(folder, *words):
    running = start(*words, folder=folder)
    code, out, err = running.next(timeout=300)
    running.process.join(60)
    assert code == 0, err
    assert "Traceback" not in err
    return out


def kill_often(folder, words, seed, *, before=lambda: None, after_kill, again=(), finally_):
    """Kill `bitzoo WORDS` at moments within the time that it takes, and repeat it each time."""
    before()
    succeed(folder, *words, *again)  # the first imports what the others find imported
    before()
    began = time.monotonic()
    succeed(folder, *words, *again)
    longest, rng = time.monotonic() - began, random.Random(seed)
    for _ in range(KILLS):
        before()
        running = start(*words, folder=folder)
        time.sleep(rng.uniform(0, longest))
        if running.process.is_alive():
            running.process.kill()
        running.process.join(60)
        after_kill()
        succeed(folder, *words, *again)
        assert leftovers(folder) == []
        finally_()


def leftovers(folder):
    marks = (".bitzoo-", ".gathered", ".part", ".tmp")
    return [path for path in folder.rglob("*") if any(mark in path.name for mark in marks)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_in(output):
    return output / "model.safetensors" if output.is_dir() else output


def assert_proof_is_of_it(output):
    """There may be no proof, but none of other bytes."""
    path = output.with_name(REPORT_NAME)
    reports = json.loads(path.read_text()) if path.exists() else {}
    if output.exists() and output.name in reports:
        assert reports[output.name]["output"]["sha256"] == sha256(weights_in(output))
    return output.name in reports


@pytest.fixture
def sources(tmp_path):
    for name, arrays in zip("ab", ARRAYS, strict=True):
        (tmp_path / name).mkdir()
        write_npz(tmp_path / name / "bit.npz", arrays)
    return tmp_path


@pytest.mark.parametrize("to", ENDINGS)
def test_replacing_the_conversion_of_another_source(sources, to):
    output = sources / f"bit{ENDINGS[to]}"
    options = ["--dst", output, "--to", to, "--check", "weights", "--force"]
    numbers = []

    def before():
        succeed(sources, "convert", "--src", "a/bit.npz", *options)
        numbers.append(sha256(weights_in(output)))

    def after_kill():
        assert_proof_is_of_it(output)

    def finally_():
        assert assert_proof_is_of_it(output)
        assert sha256(weights_in(output)) != numbers[-1]
        report = json.loads((sources / REPORT_NAME).read_text())[output.name]
        assert report["source"]["sha256"] == sha256(sources / "b/bit.npz")

    words = ["convert", "--src", "b/bit.npz", *options]
    kill_often(sources, words, to, before=before, after_kill=after_kill, finally_=finally_)


def test_a_new_conversion(sources):
    output = sources / "a/bit.safetensors"

    def before():
        output.unlink(missing_ok=True)
        output.with_name(REPORT_NAME).unlink(missing_ok=True)

    def after_kill():
        assert_proof_is_of_it(output)
        if output.exists():  # complete, perhaps without its proof: `convert` would refuse
            output.unlink()

    def finally_():
        assert assert_proof_is_of_it(output)
        for name, array in as_timm(ARRAYS[0]).items():
            np.testing.assert_array_equal(load_file(output)[name], array)

    words = ["convert", "--src", "a/bit.npz"]
    kill_often(sources, words, "new", before=before, after_kill=after_kill, finally_=finally_)


def test_export(sources):
    output = sources / "bit.onnx"
    report = output.with_name("bit.onnx.export.json")
    words = ["export", "a/bit.npz", "--to", "onnx", "--out", output, "--force"]
    kill_often(
        sources,
        words,
        "export",
        after_kill=lambda: None,
        finally_=lambda: json.loads(report.read_text())["passed"],
    )


@pytest.fixture
def trained(tmp_path):
    write_digits(tmp_path / "digits", per_class=8, val_per_class=3, classes=range(4))
    write_npz(tmp_path / "small.npz", ARRAYS[0])
    words = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    words += ["--steps", "6", "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]
    words += ["--checkpoint-every", "1", "--eval-every", "2", "--micro-batch", "8"]
    succeed(tmp_path, *words)
    return tmp_path, words


def test_finetune(trained):
    """The metrics read as those of one run, and the weights are those of an undisturbed one."""
    folder, words = trained
    run = folder / "run"
    expected = load_file(run / "model.safetensors")

    def finally_():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = {event: [r["step"] for r in lines if r["event"] == event] for event in TOLD}
        assert steps == TOLD
        found = load_file(run / "model.safetensors")
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)

    kill_often(
        folder,
        words,
        "finetune",
        before=lambda: shutil.rmtree(run, ignore_errors=True),
        after_kill=lambda: None,
        again=["--resume"],
        finally_=finally_,
    )


TOLD = {"train": [1, 2, 3, 4, 5, 6], "eval": [2, 4, 6]}


@pytest.mark.parametrize("place", [[], ["--folder", "staged"]], ids=["cache", "folder"])
def test_publishing_a_run(trained, place):
    folder, _ = trained
    staged = folder / "staged" if place else folder / "cache/publish/lab--x"
    words = ["publish", "run", "--repo", "lab/x", "--dry-run", "--license", "mit", *place]

    def finally_():
        listed = json.loads((staged / "manifest.json").read_text())["files"]
        for name, stated in listed.items():
            assert sha256(staged / name) == stated["sha256"]

    kill_often(
        folder,
        words,
        f"publish {place}",
        before=lambda: shutil.rmtree(staged, ignore_errors=True),
        after_kill=lambda: None,
        finally_=finally_,
    )
