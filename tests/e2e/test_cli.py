"""The commands as a user types them: real processes, real files, real signals."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import TINY, as_timm, make_checkpoint, write_npz
from PIL import Image
from servers import FileServer
from tutorial_pictures import write_pictures

import bitzoo
from bitzoo.catalogue import registry

BIN = Path(sys.executable).parent
NAMES, RELEASED = 317, 311
DTD = "BiT-M-R50x1-run0-dtd"
SERVED = f"vtab/{DTD}.npz"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """An empty cache, and no way to the real servers."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BITZOO_CACHE", str(folder))
    monkeypatch.setenv("BITZOO_MIRROR", "http://127.0.0.1:9/")
    for name in ("BITZOO_OFFLINE", "BITZOO_HUB_ORG", "PYTHONUNBUFFERED", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="module")
def arrays():
    return make_checkpoint()


@pytest.fixture(scope="module")
def content(arrays, tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("npz") / "x.npz", arrays).read_bytes()


@pytest.fixture
def npz(content, tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    return path


@pytest.fixture
def mirror(monkeypatch, content):
    with FileServer({SERVED: content}) as server:
        monkeypatch.setenv("BITZOO_MIRROR", server.url)
        yield server


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """40 MB: moving it takes long enough to be interrupted."""
    arrays = make_checkpoint(TINY, 1, num_classes=1000)
    return write_npz(tmp_path_factory.mktemp("large") / "large.npz", arrays)


def start(command, *arguments, **options):
    return subprocess.Popen(
        [BIN / command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def execute(command, *arguments, code=0, **options):
    """Run a command to its end; returns stdout and stderr."""
    process = start(command, *arguments, **options)
    printed, warned = process.communicate(timeout=120)
    assert process.returncode == code, printed[-2000:] + warned[-4000:]
    assert "Traceback" not in warned
    return printed, warned


def assert_one_paragraph(error):
    assert error.startswith("error: ")
    assert error.endswith(".\n")
    assert "\n\n" not in error


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_holds(path, arrays):
    found, expected = safetensors.numpy.load_file(path), as_timm(arrays)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


class TestLookingAround:
    def test_help(self):
        printed, _ = execute("bitzoo", "--help")
        for word in ("list", "info", "convert", "verify", "quickstart", "--version", "--debug"):
            assert word in printed

    def test_version(self):
        assert execute("bitzoo", "--version") == (f"bitzoo {bitzoo.__version__}\n", "")

    def test_as_a_module(self):
        command = [sys.executable, "-m", "bitzoo", "--version"]
        assert subprocess.check_output(command, text=True) == f"bitzoo {bitzoo.__version__}\n"

    def test_list(self):
        printed, counted = execute("bitzoo", "list", env={**os.environ, "COLUMNS": "40"})
        header, *rows = printed.splitlines()
        assert header.split() == ["name", "classes", "px", "parameters", "files"]
        assert [row.split()[0] for row in rows] == registry.list_models()
        assert len(rows) == NAMES
        assert counted == f"{NAMES} models\n"
        row = next(row for row in rows if row.startswith("BiT-M-R50x1 "))
        assert row.split()[1:] == ["21,843", "224", "68,256,659", "npz", "h5"]
        # columns line up: the numbers' last digits, the texts' first letters
        ends = {row.index(" npz") for row in rows if " npz" in row}
        assert ends == {header.index(" files")}

    def test_list_some(self):
        printed, _ = execute("bitzoo", "list", "bit_l_*")
        rows = printed.splitlines()[1:]
        assert [row.split()[0] for row in rows] == [f"BiT-L-{arch}" for arch in ARCHS]
        assert all(row.endswith("unreleased") for row in rows)
        assert execute("bitzoo", "list", "bit_l_*", "--released")[1] == (
            "0 models: no released model's name matches 'bit_l_*'. `bitzoo list` shows all.\n"
        )

    def test_list_json(self):
        printed, _ = execute("bitzoo", "list", "--released", "--json")
        records = json.loads(printed)
        names = registry.list_models(released=True)
        assert len(names) == RELEASED
        assert records == [as_json(registry.get_spec(name).to_dict()) for name in names]

    def test_info_of_a_name(self):
        printed, _ = execute("bitzoo", "info", "r50x1_224")
        lines = printed.splitlines()
        assert lines[0] == "name         BiT-R50x1_224"
        for line in (
            "head         1,000 classes of ilsvrc-2012, softmax",
            "images       RGB, the shorter edge resized to 256 px (bicubic), central 224 x",
            "               224 px, scaled to [-1, 1]",
            "files        npz",
            "               https://storage.googleapis.com/bit_models/distill/R50x1_224.npz",
            "scores       top-1 82.8 % on ILSVRC-2012 at 224 px: these weights, by the",
            "               authors",
            "               bitzoo reproduce BiT-R50x1_224 --claim ilsvrc-top1",
            "             top-1 82.82 % on ILSVRC-2012 at 224 px: these weights, evaluated by",
            "               timm",
            "               bitzoo reproduce BiT-R50x1_224 --claim ilsvrc-top1-timm",
            "             top-5 96.526 % on ILSVRC-2012 at 224 px: these weights, evaluated",
            "               by timm",
        ):
            assert line in lines
        assert not any("{" in line or "None" in line for line in lines)

    def test_info_says_what_nobody_checked(self):
        printed, _ = execute("bitzoo", "info", DTD)
        text = " ".join(printed.split())
        assert "unverified The number of classes is the task's; nobody has counted" in text
        assert "class names none: Released without class names; their order is that" in text

    def test_info_json(self):
        printed, _ = execute("bitzoo", "info", "BiT-M-R50x1", "--json")
        assert json.loads(printed) == as_json(registry.get_spec("BiT-M-R50x1").to_dict())

    def test_info_of_a_file(self, npz, tmp_path):
        named = tmp_path / "bit_m_r50x1.npz"
        npz.rename(named)
        assert execute("bitzoo", "info", named)[0] == (
            f"file         {named}\n"
            f"size         {named.stat().st_size:,} bytes\n"
            "network      R(1,1,1,1)x0.5, 10 classes, 2,017,578 parameters\n"
            "tensors      45 float32, with Google's names\n"
            "model        not a known release\n"
            "class names  not known\n"
            "activation   not known\n"
            "images       not known\n"
            "licence      not known\n"
            "note         Named like BiT-M-R50x1 (R50x1, 21,843 classes), but its tensors are\n"
            "               R(1,1,1,1)x0.5 with 10 classes. The tensors decide.\n"
        )
        record = json.loads(execute("bitzoo", "info", named, "--json")[0])
        assert record["depths"] == list(TINY)
        assert (record["width"], record["in_chans"], record["num_classes"]) == (0.5, 3, 10)
        assert (record["model_by_name"], record["agrees_with_name"]) == ("BiT-M-R50x1", False)


ARCHS = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")


def as_json(value):
    return json.loads(json.dumps(value))


class TestConvert:
    def test_default(self, npz, arrays, tmp_path):
        printed, warned = execute("bitzoo-convert", "--src", npz)
        output, report = tmp_path / "own.safetensors", tmp_path / "parity.json"
        assert files_in(tmp_path) == ["own.npz", "own.safetensors", "parity.json"]
        assert_holds(output, arrays)
        # a machine that needs more than two seconds says how far it is
        assert [line for line in warned.splitlines() if "/4 logits" not in line] == []
        lines = printed.splitlines()
        assert f"output   {output}" in lines
        assert f"proof    {report}" in lines
        judged = [line.split()[0] for line in lines if line.endswith(" ok")]
        assert judged[0] == "weights:"
        assert set(judged[1:]) == {"NumPy"}
        assert (
            lines[-1] == f"ok: 45 of 45 tensors, {len(judged) - 1} of {len(judged) - 1} "
            "comparisons of logits"
        )
        assert "every bit equal" in printed
        assert "1 x 224 px" in printed
        assert "2 x 97 px" in printed
        assert "Allowed is a relative L2 distance" in printed
        proof = json.loads(report.read_text())["own.safetensors"]
        assert proof["passed"]
        assert proof["weights"] == {
            "tensors": 45,
            "params": 2_017_578,
            "differing": [],
            "passed": True,
            "rounded_to": None,
            "max_ulp": 0.0,
            "groups": [
                {
                    "source": "float32", "output": "float32", "scale": 1.0, "rounded_to": None,
                    "tensors": 45, "params": 2_017_578, "differing": 0, "max_ulp": None,
                    "infinite": 0, "found": "every bit equal", "allowed": "equal",
                }
            ],
        }  # fmt: skip
        assert {entry["size"] for entry in proof["logits"]} == {224, 97}
        assert all(entry["relative_l2"] < 2e-5 for entry in proof["logits"])

        command = ["verify", npz, output, "--check", "weights", "--json"]
        record = json.loads(execute("bitzoo", *command)[0])
        assert record | {"identity": proof["identity"]} == proof | {"logits": []}
        assert proof["identity"]["name"] is None

    def test_json_is_all_that_stdout_has(self, npz, tmp_path):
        printed, _ = execute("bitzoo", "convert", "--src", npz, "--check", "weights", "--json")
        record = json.loads(printed)
        assert record["output"] == str(tmp_path / "own.safetensors")
        assert (
            record["parity"]
            == json.loads((tmp_path / "parity.json").read_text())["own.safetensors"]
        )
        assert record["parity"]["logits"] == []

    def test_no_check_makes_no_claim(self, npz, arrays, tmp_path):
        printed, _ = execute("bitzoo-convert", "--src", npz, "--check", "none")
        assert "proof    not requested (--check none)\n" in printed
        assert files_in(tmp_path) == ["own.npz", "own.safetensors"]
        assert_holds(tmp_path / "own.safetensors", arrays)

    def test_where_things_go(self, npz, arrays, tmp_path):
        (tmp_path / "out").mkdir()
        options = ["--check", "weights", "--report", tmp_path / "proof.json"]
        execute("bitzoo-convert", "--src", npz, "--dst", tmp_path / "out", *options)
        execute("bitzoo-convert", "--src", npz, "--dst", tmp_path / "x", *options)
        assert files_in(tmp_path) == ["out/own.safetensors", "own.npz", "proof.json", "x"]
        assert_holds(tmp_path / "out/own.safetensors", arrays)
        assert_holds(tmp_path / "x", arrays)
        entries = json.loads((tmp_path / "proof.json").read_text())
        assert {name: entry["passed"] for name, entry in entries.items()} == {
            "own.safetensors": True,
            "x": True,
        }

    def test_an_existing_output(self, npz, arrays, tmp_path):
        output = tmp_path / "own.safetensors"
        output.write_text("mine")
        command = ["bitzoo-convert", "--src", npz, "--check", "weights"]
        _, warned = execute(*command, code=2)
        assert warned == (
            f"error: {output} already exists. Choose another --dst, or replace it with --force.\n"
        )
        assert output.read_text() == "mine"
        execute(*command, "--force")
        assert_holds(output, arrays)

    def test_a_home_folder_may_be_short(self, npz, tmp_path):
        env = {**os.environ, "HOME": str(tmp_path)}
        execute("bitzoo-convert", "--src", "~/own.npz", "--check", "none", env=env)
        assert files_in(tmp_path) == ["own.npz", "own.safetensors"]

    @pytest.mark.parametrize(("by_name", "keep"), [(False, True), (True, False)])
    def test_fetched(self, mirror, arrays, cache, tmp_path, by_name, keep):
        src = "bit_m_r50x1_run0_dtd" if by_name else mirror.url + SERVED
        command = ["bitzoo-convert", "--src", src, "--check", "weights"]
        printed, _ = execute(*command, *(["--keep-source"] if keep else []), cwd=tmp_path)
        assert files_in(tmp_path) == [f"{DTD}.safetensors", "parity.json"]
        assert_holds(tmp_path / f"{DTD}.safetensors", arrays)
        # this one is small, and the converter sees that it is not what its name says
        assert "model    not a known release\n" in printed
        said = "Fetched as" if by_name else "Named like"
        text = " ".join(printed.split())
        assert f"note {said} {DTD} (R50x1, 47 classes), but its tensors are" in text
        kept = [name for name in files_in(cache) if not name.endswith(".lock")]
        expected = [f"{DTD}.npz", f"{DTD}.npz.fetched.json"] if keep else []  # and its origin
        assert [Path(name).name for name in kept] == expected

    def test_an_existing_output_is_seen_before_anything_is_fetched(self, mirror, tmp_path):
        (tmp_path / f"{DTD}.safetensors").write_text("mine")
        _, warned = execute("bitzoo-convert", "--src", DTD, code=2, cwd=tmp_path)
        assert f"{DTD}.safetensors already exists" in warned
        assert mirror.requests == []

    def test_an_address_that_fails(self, mirror, tmp_path):
        _, warned = execute("bitzoo-convert", "--src", mirror.url + "no.npz", code=2, cwd=tmp_path)
        assert_one_paragraph(warned)
        assert f"{mirror.url}no.npz could not be downloaded" in warned
        assert files_in(tmp_path) == []


class TestVerify:
    @pytest.fixture
    def output(self, arrays, tmp_path):
        """Written by the safetensors library."""
        return self.save(tmp_path / "own.safetensors", as_timm(arrays))

    @staticmethod
    def save(path, tensors):
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        safetensors.numpy.save_file(contiguous, path)
        return path

    def test_equal(self, npz, output, tmp_path):
        command = ["verify", npz, output, "--check", "weights", "--report", tmp_path / "p.json"]
        printed, _ = execute("bitzoo", *command)
        assert "every bit equal (allowed: equal) ok\n" in printed
        assert printed.splitlines()[-1] == "ok: 45 of 45 tensors, logits not compared"
        assert json.loads((tmp_path / "p.json").read_text())["own.safetensors"]["passed"]

    def test_two_kernels_swapped(self, npz, output, arrays):
        tensors = as_timm(arrays)
        tensors["norm.weight"], tensors["norm.bias"] = tensors["norm.bias"], tensors["norm.weight"]
        self.save(output, tensors)
        printed, warned = execute("bitzoo", "verify", npz, output, code=1)
        assert "2 tensors differ (allowed: equal) FAILED\n" in printed
        assert printed.splitlines()[-1] == "FAILED: 43 of 45 tensors, logits not compared"
        assert_one_paragraph(warned)
        assert "2 of 45 tensors differ from own.npz: resnet/group_norm/" in warned
        printed, _ = execute("bitzoo", "verify", npz, output, "--json", code=1)
        assert json.loads(printed)["passed"] is False

    def test_another_network(self, npz, output):
        self.save(output, as_timm(make_checkpoint(num_classes=3)))
        _, warned = execute("bitzoo", "verify", npz, output, code=1)
        assert "expected R(1,1,1,1)x0.5 with 10 classes as in" in warned

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["own.npz", "none.safetensors"], "none.safetensors: expected a checkpoint file"),
            (["own.npz", "own.safetensors", "--check", "none"], "would prove nothing"),
            (["own.npz", "own.npz"], "Expected different files"),
            (
                ["own.npz", "own.safetensors", "--report", "own.npz"],
                "own.npz: a proof is JSON, and",
            ),
        ],
    )
    def test_bad_input(self, npz, output, content, tmp_path, arguments, says):
        _, warned = execute("bitzoo", "verify", *arguments, code=2, cwd=tmp_path)
        assert_one_paragraph(warned)
        assert says in warned
        assert npz.read_bytes() == content


class TestErrors:
    @pytest.mark.parametrize(
        ("command", "says"),
        [
            (["bitzoo", "frob"], "No such command 'frob'"),
            (["bitzoo", "list", "--frob"], "No such option"),
            (["bitzoo", "verify", "one"], "Missing argument"),
            (["bitzoo-convert", "--src", "x", "--check", "most"], "'most' is not one of"),
        ],
    )
    def test_usage(self, command, says):
        printed, warned = execute(*command, code=2)
        assert printed == ""
        assert warned.startswith("Usage: ")
        assert says in warned

    @pytest.mark.parametrize("command", [["bitzoo-convert"], ["bitzoo", "convert"]])
    def test_nothing_at_all_shows_the_help(self, command):
        process = start(*command)
        printed, warned = process.communicate(timeout=60)
        assert process.returncode in (0, 2)  # older and newer releases of click
        assert "Usage: " in printed + warned
        assert "--src" in printed + warned
        assert "--check" in printed + warned

    @pytest.mark.parametrize(
        ("src", "says"),
        [
            ("none.npz", "none.npz: expected a checkpoint file, found nothing there: no such file"),
            (".", ".: expected a checkpoint file, found a folder there."),
            ("text.npz", "text.npz: expected a BiT checkpoint"),
            ("cut.npz", "cut.npz: expected an .npz (zip) file, but its directory cannot be read"),
            ("own.safetensors", "Expected different files, found source own.safetensors, output"),
            ("BiT-L-R50x1", "Google never released weights"),
            ("BiT-M-R50x2", "is not a name in the catalogue of BiT checkpoints, and there is no"),
        ],
    )
    def test_bad_source(self, content, arrays, tmp_path, src, says):
        (tmp_path / "text.npz").write_text("no checkpoint at all")
        (tmp_path / "cut.npz").write_bytes(content[:-1000])
        TestVerify.save(tmp_path / "own.safetensors", as_timm(arrays))
        before = files_in(tmp_path)
        printed, warned = execute("bitzoo-convert", "--src", src, code=2, cwd=tmp_path)
        assert printed == ""
        assert_one_paragraph(warned)
        assert says in warned
        assert files_in(tmp_path) == before

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--dst", "no/x.safetensors"], "no/x.safetensors: there is no folder no."),
            (["--report", "no/p.json"], "no/p.json: there is no folder no."),
            (["--report", "own.npz"], "own.npz: a proof is JSON, and this is the name of a"),
            (["--dst", "parity.json"], "parity.json: bitzoo does not write .json files."),
            (["--dst", "parity", "--report", "parity"], "Expected different files"),
            (["--report", "notes.txt"], "notes.txt: expected reports of earlier proofs"),
            (
                ["--check", "none", "--report", "p.json"],
                "with --check none there is no proof to report",
            ),
        ],
    )
    def test_bad_places(self, npz, content, tmp_path, options, says):
        (tmp_path / "notes.txt").write_text("mine")
        _, warned = execute("bitzoo-convert", "--src", "own.npz", *options, code=2, cwd=tmp_path)
        assert_one_paragraph(warned)
        assert says in warned
        assert files_in(tmp_path) == ["notes.txt", "own.npz"]
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert npz.read_bytes() == content

    def test_a_file_that_may_not_be_read(self, npz, tmp_path):
        npz.chmod(0)
        if os.access(npz, os.R_OK):  # root may read everything, but nobody a link to itself
            npz.unlink()
            npz.symlink_to(npz)
        _, warned = execute("bitzoo-convert", "--src", npz, code=2)
        assert_one_paragraph(warned)
        assert str(npz) in warned

    def test_debug_adds_the_traceback(self, tmp_path):
        process = start("bitzoo-convert", "--src", "none.npz", "--debug", cwd=tmp_path)
        _, warned = process.communicate(timeout=60)
        assert process.returncode == 2
        assert warned.startswith("Traceback (most recent call last):")
        assert warned.splitlines()[-1].startswith("error: none.npz: expected a checkpoint file")


class TestSignalsAndPipes:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_an_interrupted_conversion_leaves_nothing(self, large, tmp_path, number):
        process = start(
            "bitzoo-convert",
            "--src",
            large,
            "--dst",
            tmp_path / "x.safetensors",
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # as in a user's shell
        )
        with process:
            deadline = time.monotonic() + 60
            while not files_in(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.002)
            begun = files_in(tmp_path)
            process.send_signal(number)
            printed, warned = process.communicate(timeout=60)
        assert [name[0] for name in begun] == ["."]  # a hidden file, none under the final name
        assert process.returncode == 128 + number
        assert (printed, warned) == ("", "")
        assert files_in(tmp_path) == []

    @pytest.mark.parametrize(
        "command", ["list | head -1", "list --json | head -1", "info BiT-M-R50x1 | true"]
    )
    def test_a_reader_that_leaves(self, command):
        line = f"{BIN / 'bitzoo'} {command}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
        assert done.stderr in ("", f"{NAMES} models\n")

    def test_on_a_terminal(self, npz, tmp_path):
        shown = on_terminal("bitzoo", "list", "*-run0-dsprites*", columns=80)
        assert "BiT-M-R152x4-run0-dsprites-orientation       16" in shown  # 80 columns cut nothing
        shown = on_terminal("bitzoo-convert", "--src", npz, "--check", "weights")
        assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back
        assert "every bit equal" in shown


def on_terminal(command, *arguments, columns=100):
    """Run a command with stdout and stderr on a terminal; returns what it shows."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    words = [BIN / command, *map(str, arguments)]
    process = subprocess.Popen(words, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while block := os.read(master, 1 << 16):
            shown += block
    os.close(master)
    assert process.wait(timeout=60) == 0, shown
    return shown.decode()


@pytest.mark.slow
def test_quickstart(tmp_path):
    started = time.monotonic()
    printed, _ = execute("bitzoo", "quickstart", "--folder", tmp_path / "quick")
    assert time.monotonic() - started < 60
    folder = tmp_path / "quick"
    left = {path.name for path in folder.iterdir()}
    assert left == {"parity.json", "random.npz", "random.safetensors", "digits", "run"}
    for step in ("1. Made ", "numbers are RANDOM", "2. Converted", "3. Loaded it and classified"):
        assert step in printed
    assert printed.count("  ok\n") >= 3
    assert str(folder) in printed.splitlines()[-1]
    model = bitzoo.create_model(folder / "random.safetensors", pretrained=True)
    assert model.num_classes == 1000

    assert "4. Wrote 1,797 handwritten digits" in printed
    assert len(list((folder / "digits/train").glob("*/*.png"))) == 1438
    found = json.loads((folder / "run/evaluation.json").read_text())
    assert found["count"] == len(list((folder / "digits/val").glob("*/*.png"))) == 359
    assert found["top1"] >= 0.7
    assert f"{found['top1']:.1%} of 359 held-out digits classified correctly" in printed
    assert f"worst mistakes: {folder / 'run/report.html'}\n" in printed
    assert (folder / "run/report.html").stat().st_size > 10_000
    assert bitzoo.labels(bitzoo.create_model(folder / "run")) == list("0123456789")

    pictures = {path.name: path for path in write_pictures(folder, tmp_path / "pictures")}
    for name, words in (("loss", {"each step", "held out"}), ("confusion", {"true class"})):
        drawn = ET.parse(pictures[f"tutorial-{name}.svg"]).getroot()
        assert words <= {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    with Image.open(pictures["tutorial-digits.png"]) as strip:
        assert strip.size == (10 * 64 + 9 * 8, 64)
        five = np.asarray(strip)[4::8, 5 * 72 + 4 : 5 * 72 + 64 : 8, 0]
    with Image.open(min((folder / "digits/val/5").iterdir())) as digit:
        assert np.array_equal(five, np.asarray(digit))
