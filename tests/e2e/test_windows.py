"""What needs no POSIX system runs without one: simulated, since no test runs on Windows itself."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from as_on_windows import MISSING, OS_LACKS, SIGNAL_LACKS
from checkpoints import as_timm, make_checkpoint, write_npz
from images import write_digits
from safetensors.numpy import load_file

import bitzoo
from bitzoo.portable import valid_name
from bitzoo.training.checkpointing import latest_checkpoint

pytestmark = pytest.mark.slow


PACKAGE = Path(bitzoo.__file__).parent
SIMULATED = Path(__file__).parents[1] / "as_on_windows.py"

GUARDED = {
    "portable": "asks for every name",
    "locks": "catches the missing module",
    "cli/signals": "asks for `setitimer`; makes its list of those that are there",
    "interrupts": "asks for the name",
    "data/decode_workers": "asks for the signal",
    "data/file_ranges": "asks for the name",
    "inference/processes": "asks for `alarm`",
    "limited_process": "runs only where there is `setitimer`, and says so elsewhere",
    "converters/parity/tensorflow_process": "asks for `poll`, and says so elsewhere",
    "converters/parity/tensorflow_worker": "runs only where `tensorflow_process` starts it",
}
"""Module -> why it may use names that Windows has not."""


def posix_names(path):
    """Names of a module's code that Windows has not: modules, and attributes of `os`, `signal`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & MISSING
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & MISSING
            lacks = {"os": OS_LACKS, "signal": SIGNAL_LACKS}.get(node.module or "", set())
            found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name in lacks}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = {"os": OS_LACKS, "signal": SIGNAL_LACKS, "select": {"poll", "epoll"}}
            if node.attr in lacking.get(node.value.id, set()):
                found.add(f"{node.value.id}.{node.attr}")
    return found


def test_posix_names_stand_only_where_they_are_guarded():
    found = {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): names
        for path in PACKAGE.rglob("*.py")
        if (names := posix_names(path))
    }
    assert {module: names for module, names in found.items() if module not in GUARDED} == {}
    assert set(GUARDED) - set(found) == set()  # none is listed in vain


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import fcntl", {"fcntl"}),
        ("from resource import getrusage", {"resource"}),
        ("import os\nos.pread(1, 2, 3)", {"os.pread"}),
        ("from signal import SIGHUP", {"signal.SIGHUP"}),
        ("import os\nos.replace(a, b)", set()),
    ],
)
def test_the_search_finds_them(tmp_path, code, names):
    (tmp_path / "module.py").write_text(code)
    assert posix_names(tmp_path / "module.py") == names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    write_npz(folder / "small.npz", make_checkpoint(num_classes=4))
    write_digits(folder / "digits", per_class=6, val_per_class=2, classes=range(4))
    return folder


def run(folder, *words):
    environment = {"BITZOO_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SIMULATED), *words],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_simulation_hides_what_it_should(folder):
    code = (
        f"import sys; sys.path.insert(0, {str(SIMULATED.parent)!r})\n"
        "import as_on_windows; as_on_windows.install()\n"
        "from bitzoo import locks, portable, files\n"
        "from bitzoo.cli import signals\n"
        "print(locks.fcntl, locks.msvcrt.LK_NBLCK, portable.os.name, hasattr(files.os, 'getuid'))\n"
        "print(portable.NO_FOLLOW, portable.OPENS_FOLDERS, portable.preadv is portable._preadv)\n"
        "print([number.name for number in signals._SIGNALS])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None 2 nt False", "0 False True", "['SIGINT', 'SIGTERM']"]


def test_looking_around(folder):
    assert "convert" in run(folder, "--help").stdout
    assert "BiT-M-R50x1" in run(folder, "list").stdout
    assert json.loads(run(folder, "info", "BiT-M-R50x1", "--json").stdout)["num_classes"] == 21843
    assert json.loads(run(folder, "info", "small.npz", "--json").stdout)["num_classes"] == 4


def test_converting_and_predicting(folder):
    converted = run(folder, "convert", "--src", "small.npz", "--dst", "small.safetensors")
    assert converted.returncode == 0, converted.stderr
    found = load_file(folder / "small.safetensors")
    for name, array in as_timm(make_checkpoint(num_classes=4)).items():
        np.testing.assert_array_equal(found[name], array)
    back = run(folder, "convert", "--src", "small.safetensors", "--dst", "back.npz")
    assert back.returncode == 0, back.stderr
    assert run(folder, "verify", "small.npz", "back.npz", "--check", "weights").returncode == 0
    words = ["predict", "small.safetensors", "digits/val/0", "--format", "json"]
    simulated = run(folder, *words)
    assert simulated.returncode == 0, simulated.stderr
    plain = subprocess.run(
        [sys.executable, "-m", "bitzoo", *words],
        cwd=folder, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert json.loads(simulated.stdout) == json.loads(plain.stdout)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".bitzoo")] == []


def test_fine_tuning(folder):
    words = ["finetune", "--model", "small.npz", "--data", "digits", "--out", "run"]
    words += ["--steps", "4", "--batch-size", "8", "--lr", "0.03", "--resolution", "36,32"]
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr
    assert latest_checkpoint(folder / "run/checkpoints").step == 4
    assert "run: 4 steps, top-1 " in done.stdout
    assert list((folder / "cache/pixels").rglob("*.*"))  # the cache was used


def test_what_cannot_be_bounded_is_refused_with_the_reason(folder):
    converted = run(folder, "convert", "--src", "small.npz", "--dst", "x.safetensors", "--force")
    assert converted.returncode == 0
    made = subprocess.run(
        [sys.executable, "-m", "bitzoo", "convert", "--src", "small.npz", "--dst", "small.h5"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    refused = run(folder, "info", "small.h5")
    assert refused.returncode == 2
    assert "which Windows cannot do. Convert it on Linux or macOS" in refused.stderr


class TestLocks:
    CODE = (
        f"import sys; sys.path.insert(0, {str(SIMULATED.parent)!r})\n"
        "import as_on_windows; as_on_windows.install()\n"
        "from pathlib import Path\nfrom bitzoo.locks import *\n"
    )

    @pytest.mark.parametrize("kind", ["file_lock", "folder_lock"])
    def test_they_keep_processes_apart(self, tmp_path, kind):
        place = tmp_path if kind == "folder_lock" else tmp_path / "thing"
        code = self.CODE + (
            "import time\n"
            f"with {kind}(Path(sys.argv[1])):\n"
            "    print('in', flush=True)\n    time.sleep(float(sys.argv[2]))\n"
            "    print('out', flush=True)\n"
        )
        command = [sys.executable, "-c", code, str(place)]
        with subprocess.Popen([*command, "2"], stdout=-1, text=True) as first:
            assert first.stdout.readline() == "in\n"
            with subprocess.Popen([*command, "0"], stdout=-1, stderr=-1, text=True) as second:
                assert "Waiting for another process" in second.stderr.readline()
                assert second.stdout.readline() == "in\n"
                assert first.poll() is not None or first.stdout.readline() == "out\n"

    def test_what_was_abandoned_a_day_ago_is_free(self, tmp_path):
        left = tmp_path / "left"
        left.mkdir()
        code = self.CODE + "with claimed(Path(sys.argv[1])) as free:\n    print(free)"
        command = [sys.executable, "-c", code, str(left)]
        assert subprocess.check_output(command) == b"False\n"
        os.utime(left, (0, 0))
        assert subprocess.check_output(command) == b"True\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BiT-M-R50x1.npz", "BiT-M-R50x1.npz"),
        ("a:b?c*.npz", "a_b_c_.npz"),
        ("back\\slash", "back_slash"),
        ("ends. ", "ends__"),
        ("CON.npz", "_CON.npz"),
        ("com1", "_com1"),
        ("comb", "comb"),
    ],
)
def test_names_from_addresses_are_valid_everywhere(name, expected):
    assert valid_name(name) == expected
