"""Where the weights of a name come from: the cache, the Hub, Google's bucket or a mirror."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import TINY, as_timm, make_checkpoint, write_npz
from hub_server import HubServer
from servers import Fault, FileServer

import bitzoo
from bitzoo.catalogue.registry import get_spec
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.errors import CheckpointError, DownloadError, WeightsUnavailableError
from bitzoo.locks import file_lock
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.zoo import resolve
from bitzoo.zoo.resolve import fetch, fetched, find_weights, is_location

DTD = "BiT-M-R50x1-run0-dtd"
SERVED = f"vtab/{DTD}.npz"
SETTINGS = ("BITZOO_MIRROR", "BITZOO_OFFLINE", "BITZOO_HUB_ORG", "HF_HUB_OFFLINE")

FIND_WEIGHTS = """
import json, os, sys
from bitzoo.models.architecture import ARCHITECTURES, Architecture
ARCHITECTURES["R50x1"] = Architecture((1, 1, 1, 1), 0.5)
from bitzoo.errors import BitzooError
from bitzoo.catalogue.registry import get_spec
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.zoo.resolve import find_weights
for settings in sys.argv[2:]:
    os.environ.update(json.loads(settings))
    try:
        print(find_weights(get_spec(sys.argv[1])).path)
    except BitzooError as error:
        print(f"{type(error).__name__}: {error}")
"""
"""Finds a name's weights once for each further argument, the environment to find them in."""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_names(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture(TINY, 0.5))


@pytest.fixture(scope="module")
def arrays():
    return make_checkpoint(num_classes=47)


@pytest.fixture(scope="module")
def content(arrays, tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("npz") / "x.npz", arrays).read_bytes()


@pytest.fixture
def mirror(monkeypatch, content):
    with FileServer({SERVED: content}) as server:
        monkeypatch.setenv("BITZOO_MIRROR", server.url)
        yield server


def gets(server):
    return [request.path for request in server.requests if request.method == "GET"]


def files_in(folder):
    """All files but locks, which stay, and the notes that fetching leaves beside a file."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    notes = {f"{name}.{kind}" for name in found for kind in ("fetched.json", "unwanted")}
    return sorted(name for name in found if not name.endswith(".lock") and name not in notes)


def assert_holds(path, arrays):
    """As read by the safetensors library."""
    found, expected = safetensors.numpy.load_file(path), as_timm(arrays)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)


def start_find_weights(name, *environments, **env):
    return subprocess.Popen(
        [sys.executable, "-c", FIND_WEIGHTS, name, *map(json.dumps, environments)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_released_name_end_to_end(cache, monkeypatch, tmp_path, caplog):
    """At its real size: fetched, checked, converted, proven, kept, and there offline."""
    arrays = make_checkpoint((3, 4, 6, 3), 1, num_classes=47)
    npz = write_npz(tmp_path / "released.npz", arrays).read_bytes()
    with FileServer({SERVED: npz}) as server:
        monkeypatch.setenv("BITZOO_MIRROR", server.url)
        model = bitzoo.create_model("bit_m_r50x1_run0_dtd", pretrained=True)
        bitzoo.create_model(DTD, pretrained=True, num_classes=0)
        assert gets(server) == [SERVED]
    assert not model.training
    assert (model.info.identity.name, model.num_classes) == (DTD, 47)
    assert model.info.identity.basis == "mirror"  # not Google's address, whatever it holds
    assert model.info.license is None
    assert bitzoo.create_transform(model).crop == 384
    for name, array in as_timm(arrays).items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array, name)

    folder = f"models/{DTD}"
    assert files_in(cache) == [f"{folder}/model.safetensors", f"{folder}/parity.json"]
    assert_holds(cache / folder / "model.safetensors", arrays)
    report = json.loads((cache / folder / "parity.json").read_text())["model.safetensors"]
    assert report["passed"]
    assert report["source"]["sha256"] == hashlib.sha256(npz).hexdigest()
    assert report["weights"]["params"] == 23_596_655

    monkeypatch.setenv("BITZOO_OFFLINE", "1")
    again = bitzoo.create_model(DTD, pretrained=True)
    assert again.info.path == str(cache / folder / "model.safetensors")
    assert again.info.identity == model.info.identity
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DownloadError, match="BITZOO_OFFLINE forbids"):
        bitzoo.create_model(DTD, pretrained=True)


@pytest.mark.usefixtures("small_names")
@pytest.mark.parametrize("record", ["[" * 100_000, "5", '{"architecture": NaN}', "{"])
def test_a_damaged_record_in_the_cache_is_a_sentence(cache, arrays, record):
    place = cache / "models" / DTD / "model.safetensors"
    place.parent.mkdir(parents=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in as_timm(arrays).items()}
    safetensors.numpy.save_file(tensors, place, {RECORD_KEY: record})
    with pytest.raises(CheckpointError, match=r"expected bitzoo's record .* Remove the file, and"):
        find_weights(get_spec(DTD))


@pytest.mark.usefixtures("small_names")
class TestLeftDownloads:
    """A process that is killed after its conversion has not yet removed what it downloaded."""

    @pytest.fixture
    def killed(self, mirror, monkeypatch):
        def die(path):
            raise SystemExit("as if killed")

        with monkeypatch.context() as patch:
            patch.setattr(resolve, "_forget", die)
            with pytest.raises(SystemExit):
                find_weights(get_spec(DTD))

    def test_the_next_run_removes_it(self, cache, killed):
        downloads = [name for name in files_in(cache) if name.startswith("downloads/")]
        assert any(name.endswith(f"{DTD}.npz") for name in downloads)
        found = find_weights(get_spec(DTD))
        assert files_in(cache) == [f"models/{DTD}/model.safetensors", f"models/{DTD}/parity.json"]
        assert found.path.parent == cache / "models" / DTD
        left = [path for path in (cache / "downloads").rglob("*") if path.is_file()]
        assert {path.suffix for path in left} == {".lock"}

    def test_not_while_another_process_is_using_it(self, cache, killed, mirror):
        before = files_in(cache)
        with file_lock(resolve._cached(mirror.url + SERVED).parent):
            find_weights(get_spec(DTD))
        assert files_in(cache) == before

    def test_what_somebody_keeps_stays(self, cache, killed, mirror, content):
        path = fetch(mirror.url + SERVED)
        find_weights(get_spec(DTD))
        assert path.read_bytes() == content
        assert gets(mirror) == [SERVED]


class TestMirror:
    pytestmark = pytest.mark.usefixtures("small_names")

    def test_a_file_of_another_class_count_is_not_kept(self, cache, mirror, tmp_path):
        other = write_npz(tmp_path / "other.npz", make_checkpoint(num_classes=46))
        mirror.put(SERVED, other.read_bytes())
        with pytest.raises(
            CheckpointError,
            match=rf"fetched as {DTD}, expected R50x1 with 47 classes, found .* with 46 classes.*"
            "give its address instead of the name",
        ):
            find_weights(bitzoo.get_spec(DTD))
        assert files_in(cache) == []

    def test_what_is_damaged_is_fetched_again(self, cache, mirror, content, arrays):
        mirror.md5 = None  # so that only the npz itself can tell
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        mirror.put(SERVED, bytes(damaged))
        with pytest.raises(CheckpointError, match="CRC-32"):
            find_weights(bitzoo.get_spec(DTD))
        assert files_in(cache) == []
        mirror.put(SERVED, content)
        assert_holds(find_weights(bitzoo.get_spec(DTD)).path, arrays)

    def test_a_download_outlives_a_full_disk(self, cache, mirror, arrays, monkeypatch):
        def no_room(*_, **__):
            raise bitzoo.errors.UsageError("model.safetensors: its disk has 0 free.")

        with monkeypatch.context() as patch:
            patch.setattr("bitzoo.converters.parity.verify.convert_and_prove", no_room)
            with pytest.raises(bitzoo.errors.UsageError, match="0 free"):
                find_weights(bitzoo.get_spec(DTD))
        assert [name.rpartition("/")[2] for name in files_in(cache)] == [f"{DTD}.npz"]
        assert_holds(find_weights(bitzoo.get_spec(DTD)).path, arrays)
        assert gets(mirror) == [SERVED]

    def test_two_processes_fetch_once(self, mirror, arrays):
        mirror.drip = (1 << 20, 0.1)
        processes = [start_find_weights(DTD, {}) for _ in range(2)]
        results = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], results
        paths = {printed.strip() for printed, _ in results}
        assert len(paths) == 1
        assert_holds(paths.pop(), arrays)
        assert gets(mirror) == [SERVED]

    def test_the_mirror_lacks_it(self, mirror):
        with pytest.raises(DownloadError, match=rf"{mirror.url}vtab/.*-run1-dtd\.npz.* 404"):
            find_weights(bitzoo.get_spec("BiT-M-R50x1-run1-dtd"))

    def test_never_released(self, mirror):
        with pytest.raises(WeightsUnavailableError, match=r"BiT-L-R50x1 .*never released"):
            find_weights(bitzoo.get_spec("BiT-L-R50x1"))
        assert mirror.requests == []


class TestAddresses:
    def test_fetched_once_and_kept(self, mirror, cache, content):
        path = fetch(mirror.url + SERVED)
        assert path.read_bytes() == content
        assert path.name == f"{DTD}.npz"
        assert fetch(mirror.url + SERVED) == path
        assert gets(mirror) == [SERVED]

    @pytest.mark.parametrize("served", [b"<html>not found</html>", b"PK\x03\x04 and no more"])
    def test_what_is_no_checkpoint_is_not_kept(self, mirror, cache, served):
        mirror.put(SERVED, served)
        with pytest.raises(CheckpointError, match=r"expected|truncated"):
            fetch(mirror.url + SERVED)
        assert files_in(cache) == []

    def test_a_damaged_one_is_not_kept(self, mirror, cache, content):
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        mirror.put(SERVED, bytes(damaged))
        with pytest.raises(CheckpointError, match="CRC-32"):
            fetch(mirror.url + SERVED)
        assert files_in(cache) == []

    def test_an_interrupted_one_goes_on(self, mirror, cache, content, monkeypatch):
        monkeypatch.setattr("bitzoo.fetch.http._sleep", lambda _: None)
        mirror.faults += [Fault(cut_after=1_000_000)]
        assert fetch(mirror.url + SERVED).read_bytes() == content
        assert mirror.requests[1].headers["range"] == "bytes=1000000-"

    @pytest.mark.parametrize(("keep", "left"), [(True, 1), (False, 0)])
    def test_lent(self, mirror, cache, keep, left):
        with fetched(mirror.url + SERVED, keep=keep) as path:
            assert path.is_file()
        assert len(files_in(cache)) == left

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("BiT-M-R50x1", False),
            ("bit_m_r50x1.npz", True),
            ("BIT.SAFETENSORS", True),
            ("runs/photos", True),
            ("https://host/x", True),
            ("no such name", False),
            ("x" * 300, False),
            ("a\0b", False),
        ],
    )
    def test_what_is_a_place(self, text, expected):
        assert is_location(text) is expected

    def test_a_folder_is_a_place_but_not_one_called_like_a_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in ("photos", "BiT-M-R50x1"):
            (tmp_path / name).mkdir()
        assert is_location("photos")
        assert not is_location("BiT-M-R50x1")


class TestFoldersWithoutWeights:
    def test_a_run_that_has_not_ended(self, tmp_path):
        folder = tmp_path / "my run"
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        with pytest.raises(CheckpointError, match=f"bitzoo resume '{folder}'` goes on with it"):
            resolve.locate(folder)

    def test_a_folder_of_another_kind_is_named(self, tmp_path):
        (tmp_path / ".metadata").write_bytes(b"")
        with pytest.raises(
            CheckpointError, match=r"found a distributed checkpoint of torch .*Join"
        ):
            resolve.locate(tmp_path)

    def test_repeated_runs(self, tmp_path):
        (tmp_path / "repeats.json").write_text("{}")
        for seed in (1, 2):
            (tmp_path / f"seed-{seed}").mkdir()
            (tmp_path / f"seed-{seed}" / "model.safetensors").write_bytes(b"")
        (tmp_path / "seed-0").mkdir()  # has not ended
        with pytest.raises(CheckpointError, match=f"repeated runs. .*, as {tmp_path}/seed-1"):
            resolve.locate(tmp_path)


class TestHub:
    """In a process of its own: the client reads its settings when it is imported."""

    @pytest.fixture
    def published(self, arrays, tmp_path):
        with HubServer() as hub:
            hub.add_repo(f"lab/{DTD}", {"model.safetensors": self.saved(arrays, tmp_path)})
            yield hub

    @staticmethod
    def saved(arrays, folder):
        tensors = {name: np.ascontiguousarray(array) for name, array in as_timm(arrays).items()}
        safetensors.numpy.save_file(tensors, folder / "published.safetensors")
        return (folder / "published.safetensors").read_bytes()

    @staticmethod
    def find(hub, *environments):
        process = start_find_weights(DTD, *environments, **hub.environment(None))
        printed, warned = process.communicate(timeout=120)
        assert process.returncode == 0, warned
        return printed.splitlines(), warned

    def test_weights_come_from_there_and_stay(self, cache, published, mirror, arrays):
        repo = published.repos[f"lab/{DTD}"]
        weights = repo.files()["model.safetensors"]
        stated = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
        manifest = json.dumps({"files": {"model.safetensors": stated}}).encode()
        repo.commit(repo.files() | {"manifest.json": manifest}, "manifest", "main")
        lab = {"BITZOO_HUB_ORG": "lab"}
        (first, second, offline), warned = self.find(
            published, lab, lab, lab | {"BITZOO_OFFLINE": "1"}
        )
        assert first == second == offline
        assert first.startswith(str(cache / "hub"))
        assert_holds(first, arrays)
        fetched = [path for path in published.paths("GET") if "/resolve/" in path]
        assert sum("model.safetensors" in path for path in fetched) == 1
        assert mirror.requests == []
        assert warned == ""

    def test_else_from_google(self, cache, published, mirror, arrays):
        (missing, kept), warned = self.find(
            published, {"BITZOO_HUB_ORG": "elsewhere"}, {"BITZOO_HUB_ORG": "lab"}
        )
        assert missing == kept == str(cache / "models" / DTD / "model.safetensors")
        assert_holds(missing, arrays)
        assert f"elsewhere/{DTD} cannot be loaded from the Hub" in warned
        assert "using Google's file instead" in warned
        assert gets(mirror) == [SERVED]
        assert not any("/resolve/" in path for path in published.paths("GET"))

    def test_nowhere(self, published, monkeypatch):
        with FileServer({}) as empty:
            monkeypatch.setenv("BITZOO_MIRROR", empty.url)
            found, warned = self.find(
                published,
                {"BITZOO_HUB_ORG": "not a name"},
                {"BITZOO_HUB_ORG": "elsewhere", "BITZOO_OFFLINE": "1"},
            )
        assert found[0].startswith(f"NotServedError: {empty.url}{SERVED} could not be downloaded")
        assert "BITZOO_OFFLINE forbids" in found[1]
        assert warned.count("cannot be loaded from the Hub") == 2

    def test_another_model_under_the_name(self, published, mirror, tmp_path):
        other = self.saved(make_checkpoint(num_classes=3), tmp_path)
        published.add_repo(f"lab/{DTD}", {"model.safetensors": other})
        (found,), _ = self.find(published, {"BITZOO_HUB_ORG": "lab"})
        assert found.startswith("CheckpointError: ")
        assert "expected R50x1 with 47 classes, found R(1,1,1,1)x0.5 with 3 classes" in found
        assert mirror.requests == []
