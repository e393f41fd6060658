"""How threads wait: chosen by the load, before torch is loaded, unless the user has; and said.

The choice is tested on files of /proc and /sys as the kernel writes them; that it counts, by what
libgomp itself reports when torch loads it (`OMP_DISPLAY_ENV`).
"""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz
from PIL import Image

from bitzoo import openmp_waiting
from bitzoo.models.image_files import open_image
from bitzoo.openmp_waiting import (
    CROWDED_SPINS,
    QUIET_SPINS,
    REASON,
    SETTINGS,
    SPINS,
    Choice,
    Load,
    bundled_runtime,
    choose,
    description,
    measure_load,
    sleeps_at_once,
    team_size,
)
from bitzoo.portable import cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
gnu = pytest.mark.skipif(
    sys.platform != "linux" or not str(bundled_runtime()).startswith("libgomp"),
    reason="this torch has another OpenMP runtime",
)

# --- the choice -----------------------------------------------------------------------------------

QUIET, SLEEP = (QUIET_SPINS, False), (CROWDED_SPINS, True)


@pytest.mark.parametrize(
    ("load", "threads", "processes", "expected", "reason"),
    [
        (Load(2, 0.0, 0.0, math.inf), 2, 1, QUIET, "nothing else needed the processors"),
        (Load(2, 0.2, 0.05), 2, 1, QUIET, "nothing else needed the processors"),
        (Load(2, 1.0, 0.0), 2, 1, SLEEP, "other programs kept 1.0 of the 2 processors busy"),
        (Load(64, 0.5, 0.0), 64, 1, SLEEP, "other programs kept 0.5 of the 64 processors busy"),
        (Load(8, 4.0, 0.0), 4, 1, QUIET, "nothing else needed the processors"),
        (Load(8, 5.0, 0.0), 4, 1, SLEEP, "other programs kept 5.0 of the 8 processors busy"),
        (
            *(Load(2, 0.0, 0.52), 2, 1, SLEEP),
            "programs had to wait for a processor in 52% of the last ten seconds",
        ),
        (
            *(Load(8, 0.0, 0.0, 1.5), 8, 1, SLEEP),
            "a control group allowed 1.5 processors for 8 threads",
        ),
        (Load(8, 0.0, 0.0, 8.0), 8, 1, QUIET, "nothing else needed the processors"),
        (Load(4, 0.0, 0.0), 2, 4, SLEEP, "8 threads were to share 4 processors"),
        (Load(4, 0.0, 0.0), 2, 2, QUIET, "nothing else needed the processors"),
        (Load(2, None, 0.0), 2, 1, QUIET, "nothing else needed the processors"),
        (Load(2), 2, 1, QUIET, "what else ran was unknown"),
    ],
)
def test_the_choice_follows_the_load(load, threads, processes, expected, reason):
    assert choose(load, threads, processes) == Choice(expected[0], reason, expected[1])
    assert 0 == CROWDED_SPINS < QUIET_SPINS


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, 6), ("", 6), ("3", 3), ("3,2", 3), (" 4 ", 4), ("0", 6), ("many", 6)],
)
def test_the_size_of_a_team(variable, expected):
    environment = {} if variable is None else {"OMP_NUM_THREADS": variable}
    assert team_size(environment, 6) == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({SPINS: "0"}, True),
        ({SPINS: "1000"}, False),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, True),
        ({"OMP_WAIT_POLICY": "passive", SPINS: "1000"}, False),
        ({"OMP_WAIT_POLICY": "active"}, False),
    ],
)
def test_other_runtimes_are_to_sleep_too(environment, expected):
    assert sleeps_at_once(environment) == expected


# --- the load -------------------------------------------------------------------------------------

STAT = """\
cpu  6173633 2540831 1744297 2508159 98742 0 17694 143624 0 0
cpu0 {cpu0}
cpu1 {cpu1}
cpu2 {cpu2}
intr 1462898 0 9 0 0 0
ctxt 115315150
btime 1764112345
processes 28343
procs_running 6
procs_blocked 0
softirq 229245890 47011 22057234 8 1584103
"""
FIRST = {
    "cpu0": "2914514 1260995 841905 1485872 33520 0 4085 71629 0 0",
    "cpu1": "3259119 1279836 902392 1022286 65221 0 13608 71995 0 0",
    "cpu2": "1 2 3 4 5 6 7 8 9 10",
}
LATER = {  # 10 ticks on: 6 user and 4 idle; 1 system, 1 steal, 1 irq, 5 idle, 2 iowait; all user
    "cpu0": "2914520 1260995 841905 1485876 33520 0 4085 71629 0 0",
    "cpu1": "3259119 1279836 902393 1022291 65223 1 13608 71996 0 0",
    "cpu2": "11 2 3 4 5 6 7 8 19 10",
}
PRESSURE = """\
some avg10=51.86 avg60=28.72 avg300=11.09 total=34233353182
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""
LOADAVG = "3.28 1.46 0.58 6/164 28343\n"


@pytest.fixture
def system(tmp_path):
    """Write files of /proc and /sys below a folder."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def loaded(system, cpus=(0, 1), later=LATER, **files):
    """The load that these files show, with the ticks of `later` after the pause."""
    root = system(proc__stat=STAT.format(**FIRST), **files)
    return measure_load(root, frozenset(cpus), lambda: system(proc__stat=STAT.format(**later)))


def test_the_load_by_the_files_of_the_kernel(system):
    found = loaded(system, proc__pressure__cpu=PRESSURE, proc__loadavg=LOADAVG)
    assert (found.cpus, found.quota) == (2, None)
    assert found.busy == pytest.approx(0.6 + 0.3)
    assert found.waiting == pytest.approx(0.5186)
    assert loaded(system, cpus=(2,)).busy == 1.0  # another processor, on which this may not run
    assert loaded(system, later=FIRST, proc__loadavg=LOADAVG).busy == 5.0  # no ticks: 6, less us


@pytest.mark.parametrize("content", [None, "", "\n", "cpu0 a b c d\ncpu1", "some\n", "1 2 3 x/y 4"])
def test_what_the_system_does_not_say_is_unknown(tmp_path, content):
    if content is not None:
        for name in ("stat", "loadavg", "pressure/cpu", "self/cgroup"):
            path = tmp_path / "proc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    assert measure_load(tmp_path, frozenset({0, 1}), lambda: None) == Load(2, None, None, None)


def test_the_quota_of_a_control_group(system, tmp_path):
    def quota(**files):
        return measure_load(system(**files), frozenset({0}), lambda: None).quota

    # version 2: as in a container, then the lowest of a chain; then version 1
    assert quota(proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max="max 100000\n") == (
        math.inf
    )
    assert quota(sys__fs__cgroup__cpu_dot_max="150000 100000\n") == 1.5
    group = {
        "proc__self__cgroup": "0::/jobs/a\n",
        "sys__fs__cgroup__cpu_dot_max": "max 100000\n",
        "sys__fs__cgroup__jobs__cpu_dot_max": "75000 100000\n",
        "sys__fs__cgroup__jobs__a__cpu_dot_max": "200000 100000\n",
    }
    assert quota(**group) == 0.75
    old = "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/docker/12\n0::/\n"
    first = {"proc__self__cgroup": old, "sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us": "-1\n"}
    period = {"sys__fs__cgroup__cpu__cpu_dot_cfs_period_us": "100000\n"}
    (tmp_path / "sys/fs/cgroup/cpu.max").unlink()
    assert quota(**first, **period) == math.inf
    assert quota(sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="50000\n") == 0.5


@linux
def test_a_busy_process_is_seen():
    """On the processors that it may use; it is ended by its id."""
    code = "print(flush=True)\nwhile True: pass"
    one = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-I", "-c", code], stdout=-1) as process:
        try:
            os.sched_setaffinity(process.pid, {one})
            process.stdout.readline()
            assert measure_load(cpus=frozenset({one})).busy > 0.5
        finally:
            process.kill()


# --- in processes ---------------------------------------------------------------------------------


def environment(folder, **own):
    """More threads than processors, so that the choice is known, and libgomp's own report."""
    plain = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, REASON)}
    return plain | {
        "BITZOO_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": str(cores() + 1),
        "OMP_DISPLAY_ENV": "VERBOSE",
        **own,
    }


def run(folder, *words, **own):
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment(folder, **own),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def reported(done):
    """What libgomp took for the number of spins."""
    (found,) = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    return int(found)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("waiting")
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3))
    for number in range(8):
        path = folder / f"photos/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(path)
    return folder


REASON_HERE = f"{cores() + 1} threads were to share {cores()} processors"


@gnu
def test_a_command_chooses_before_torch_is_loaded_and_records_it(workspace):
    words = ("finetune", "own.npz", "--data", "photos", "--out", "run", "--steps", "1")
    sizes = ("--batch-size", "4", "--resolution", "32", "--val-fraction", "0.25")
    done = run(workspace, "-m", "bitzoo", *words, *sizes)
    assert reported(done) == CROWDED_SPINS
    said = f"{REASON_HERE}. So threads sleep while they wait for each other: {SPINS}=0. Set it"
    assert " ".join(done.stderr.split()).count(said) == 1
    (session,) = json.loads((workspace / "run/sessions.json").read_text())["sessions"]
    assert session["waiting"] == f"{SPINS}=0, because {REASON_HERE}"
    assert session["waiting"] in (workspace / "run/report.html").read_text()


@gnu
def test_the_users_own_setting_wins(workspace):
    done = run(workspace, "-m", "bitzoo", "predict", "own.npz", "photos/0/0.png", **{SPINS: "77"})
    assert reported(done) == 77
    assert "So threads" not in done.stderr
    assert description({SPINS: "77"}) == "GOMP_SPINCOUNT=77, as the environment says"
    assert description({}) == "as the OpenMP runtime does by default"


@linux
@pytest.mark.parametrize("name", [None, *SETTINGS])
def test_any_setting_of_the_user_wins(monkeypatch, name):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [])
    for each in SETTINGS:
        monkeypatch.delenv(each, raising=False)
    if name:
        monkeypatch.setenv(name, "1")
    openmp_waiting.choose_before_torch()
    assert len(sys.meta_path) == (name is None)


PYTHON = """
import os, threading
import torch
# torch asks for no more threads than there are processors; with one for all, the choice is known
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
import bitzoo
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.data.loader import BatchPlan, Feed, prefetch
from bitzoo.data.dataset import read_dataset
from bitzoo.data.image_store import open_pixels
from bitzoo.data.validation import inspect
from bitzoo.inference.evaluate import evaluate_pixels

def foreign():
    own = {thread.native_id for thread in threading.enumerate()}
    return sum(int(task) not in own for task in os.listdir("/proc/self/task"))

print({line.split()[-1].split("/")[-1] for line in open("/proc/self/maps") if "omp" in line})
before = foreign()
torch.ones(1 << 20).add_(1)
team = foreign() - before
print("team", team == torch.get_num_threads() - 1 > 0)

model = BiT(Architecture((1, 1, 1, 1), 0.5), 3)
bitzoo.optimize(model), bitzoo.optimize(model)
images = inspect(read_dataset("photos"))[0].train
with open_pixels(images, 40, budget_bytes=0) as pixels:  # decoded at each use
    plan = BatchPlan(len(pixels), 64, 40, 32, mixup_alpha=0.2)
    work = [(step, slice(None)) for step in range(4)]
    feed = Feed(pixels, np.zeros(len(pixels), np.int64), 3, torch.device("cpu"))
    found = [foreign() - before for _ in prefetch(plan, work, feed)]
    evaluate_pixels(
        model, pixels, np.zeros(len(pixels), np.int64), ["a", "b", "c"], batch_size=2,
        progress=lambda *_: found.append(foreign() - before),
    )
print("in background", set(found) == {team}, len(found))
ready, ending = threading.Event(), threading.Event()
def with_a_team():
    torch.ones(1 << 20).add_(1)
    ready.set()
    ending.wait()
thread = threading.Thread(target=with_a_team)
thread.start()
ready.wait()
print("one more team", foreign() - before == 2 * team)
ending.set()
thread.join()
"""


@gnu
def test_a_program_is_told_once_and_background_threads_have_no_teams(workspace):
    done = run(workspace, "-c", PYTHON, OPENBLAS_NUM_THREADS="1")
    runtimes, *lines = done.stdout.splitlines()
    assert runtimes == str({bundled_runtime()})
    assert lines == ["team True", "in background True 8", "one more team True"]
    assert reported(done) == 300_000  # libgomp's default, as torch was there before us
    said = " ".join(done.stderr.split())
    assert said.count("torch's threads spin while they wait for each other") == 1
    assert 'Before torch is imported, set os.environ["GOMP_SPINCOUNT"] = "0", or in a' in said


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["torch/lib/libgomp.so.1", "torch/lib/libc10.so"], "libgomp.so.1"),
        (["torch.libs/libgomp-98b21ff3.so.1.0.0"], "libgomp-98b21ff3.so.1.0.0"),
        (["torch/lib/libomp.dylib"], "libomp.dylib"),
        (["torch/lib/libiomp5md.dll"], "libiomp5md.dll"),
        (["torch/lib/libc10.so"], None),
        ([], None),
    ],
)
def test_the_runtime_by_the_files_of_torch(tmp_path, monkeypatch, files, expected):
    for name in ["torch/__init__.py", *files]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    assert bundled_runtime() == expected


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_is_set_or_said(monkeypatch, caplog, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(openmp_waiting, "_told", [])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    before = list(sys.meta_path)
    openmp_waiting.choose_before_torch()
    assert sys.meta_path == before
    openmp_waiting.tell_once(8)
    assert caplog.records == []


@linux
def test_processors_that_are_left_alone_are_spoken_of(monkeypatch, caplog):
    monkeypatch.setattr(openmp_waiting, "cores", lambda: 16)
    for rank, said in (("1", []), ("0", [
        "2 processes with 1 thread each leave most of the 16 processors alone. torchrun decides so "
        "unless OMP_NUM_THREADS is set: OMP_NUM_THREADS=8 would use them all."
    ])):  # fmt: skip
        monkeypatch.setattr(openmp_waiting, "_told", [])
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", rank)
        openmp_waiting.tell_once(1)
        assert [record.getMessage() for record in caplog.records] == said


# --- decoders -------------------------------------------------------------------------------------


def test_a_decoder_of_avif_has_one_thread_unless_the_user_says(tmp_path, monkeypatch):
    avif = pytest.importorskip("PIL.AvifImagePlugin")
    try:
        Image.new("RGB", (64, 64), "red").save(tmp_path / "a.avif")
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    for before, after in ((0, 1), (3, 3)):
        monkeypatch.setattr(avif, "DEFAULT_MAX_THREADS", before)
        with open_image(tmp_path / "a.avif") as image:
            image.load()
        assert after == avif.DEFAULT_MAX_THREADS


def test_a_decoder_of_heif_has_one_thread(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener(decode_threads=4)
    heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(tmp_path / "a.heic")
    code = "from bitzoo.models.image_files import open_image; import sys; open_image(sys.argv[1])"
    code += "; import pillow_heif; print(pillow_heif.options.DECODE_THREADS)"
    words = [sys.executable, "-c", code, str(tmp_path / "a.heic")]
    assert subprocess.check_output(words, text=True) == "1\n"
