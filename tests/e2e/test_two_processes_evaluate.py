"""`bitzoo evaluate` in the processes of torchrun: each its share, and together what one finds."""

import json
import os
import subprocess
import sys

import pytest
from checkpoints import make_checkpoint, write_npz
from images import write_digits

pytestmark = pytest.mark.slow


CLASSES = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network with numbered outputs, and 11 images."""
    folder = tmp_path_factory.mktemp("place")
    write_npz(folder / "small.npz", make_checkpoint(num_classes=CLASSES))
    write_digits(folder / "data", per_class=4, classes=range(CLASSES), size=20)
    next((folder / "data" / "1").glob("*.png")).unlink()
    return folder


def start(folder, *words, processes=2, cache="cache"):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
    launch = [*torchrun, f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    return subprocess.Popen(
        [*launch, "-m", "bitzoo", *map(str, words)],
        cwd=folder,
        env={**os.environ, "BITZOO_CACHE": str(folder / cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_find_what_one_finds(place):
    words = ("evaluate", "small.npz", "--data", "data", "--json", "--batch-size", "2")
    started = [start(place, *words, processes=count, cache=f"cache-{count}") for count in (2, 1)]
    (both, alone), codes = (
        zip(*(run.communicate(timeout=240) for run in started), strict=True),
        [run.returncode for run in started],
    )
    assert codes == [0, 0], alone
    two, one = map(json.loads, both)  # one document: only the first process prints
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert two.pop("loss") > 0
    assert one.pop("loss") > 0
    assert two == one
    assert two["count"] == 11
    assert [row["count"] for row in two["per_class"]] == [4, 3, 4]
    assert list((place / "cache-2").rglob("*.rows"))


def test_what_a_person_reads(place):
    run = start(place, "evaluate", "small.npz", "--data", "data", "--outputs", "all", processes=1)
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    *_, interval, last = out.splitlines()
    assert interval.startswith("95 % interval of top-1: ")
    assert "of 11: all images of the data set)" in last
    said = " ".join(out.split())
    assert "matched by number: the data set's classes are 0 to 2, taken as the outputs'" in said
    assert max(map(len, out.splitlines())) <= 80


def test_none_waits_for_one_that_failed(place):
    """A damaged image is the share of one process alone, and an error of both."""
    import shutil

    shutil.copytree(place / "data", place / "damaged")
    victim = sorted((place / "damaged").rglob("*.png"))[3]  # of the second process
    victim.write_bytes(victim.read_bytes()[:60])
    run = start(place, "evaluate", "small.npz", "--data", "damaged")
    out, err = run.communicate(timeout=240)
    assert run.returncode == 1, err  # torchrun's own
    assert out == ""
    assert err.count(f"{victim.parent.name}/{victim.name}") >= 1
    assert "Traceback (most recent call last):\n  File" not in err.split("error: ")[0]
    ignored = start(place, "evaluate", "small.npz", "--data", "damaged", "--skip-bad", "--json")
    out, err = ignored.communicate(timeout=240)
    assert ignored.returncode == 0, err
    found = json.loads(out)
    assert found["count"] == 10
    assert sum(map(len, found["skipped"].values())) == 1
