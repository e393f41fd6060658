"""Hub snapshots: pinned, checked against the manifest, available offline, quick to give up."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import as_timm, make_checkpoint
from hub_server import TOKEN, Account, Fault, HubServer

from bitzoo.errors import UsageError
from bitzoo.fetch.hub_snapshot import HubAddress, is_hub_address
from bitzoo.zoo.resolve import is_location

LOCATE = """
import json, logging, os, sys, time
from bitzoo.errors import BitzooError
from bitzoo.zoo.resolve import locate
warned = []
logging.getLogger("bitzoo").addHandler(logging.Handler())
logging.getLogger("bitzoo").handlers[0].emit = lambda record: warned.append(record.getMessage())
before = dict(os.environ)
for line in sys.stdin:
    places, settings = json.loads(line)
    answers = []
    warned.clear()
    for place, own in places:
        os.environ.clear()
        os.environ.update(before | settings | own)
        started = time.monotonic()
        try:
            found = locate(place)
            config = found.path.with_name("config.json")
            answer = [str(found.path), json.loads(config.read_text()) if config.is_file() else {}]
        except BitzooError as error:
            answer = [f"{type(error).__name__}: {error}", {}]
        answers.append([*answer, time.monotonic() - started])
    print(json.dumps([answers, "\\n".join(warned)]), flush=True)
"""
"""Program that locates the places of each input line, in a long-lived process."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    tensors = as_timm(make_checkpoint(num_classes=3))
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(contiguous, path)
    return path.read_bytes()


@pytest.fixture
def files(weights):
    stated = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    return {
        "model.safetensors": weights,
        "config.json": b'{"architecture": "mine"}',
        "manifest.json": json.dumps({"files": {"model.safetensors": stated}}).encode(),
    }


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(server):
    server.repos.clear()
    server.requests.clear()
    yield server
    assert not server.faults


@contextmanager
def locating(**environment):
    """Start a process that locates places; yields the function that asks it."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCATE],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(places, **settings):
        listed = [place if isinstance(place, tuple) else (place, {}) for place in places]
        print(json.dumps([listed, settings]), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert TOKEN not in answer
        return json.loads(answer)

    with process:
        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def process(server, tmp_path_factory):
    home = str(tmp_path_factory.mktemp("hf"))
    with locating(**server.environment(None), HF_HOME=home) as ask:
        yield ask


@pytest.fixture
def load(process, tmp_path):
    """Locate places; a place may have its own settings."""

    def run(*places, token=""):
        return process(places, BITZOO_CACHE=str(tmp_path / "cache"), HF_TOKEN=token)

    return run


OFFLINE = {"BITZOO_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("hub:lab/x", "lab/x", "main"),
        ("hub:lab/x@v1", "lab/x", "v1"),
        ("hub:lab/x@refs/pr/1", "lab/x", "refs/pr/1"),
    ],
)
def test_addresses(text, repo, revision):
    assert HubAddress.parse(text) == HubAddress(repo, revision)
    assert str(HubAddress.parse(text)) == text
    assert is_hub_address(text)
    assert is_location(text)


@pytest.mark.parametrize("text", ["hub:", "hub:x", "hub:a/b/c", "hub:lab/..", "hub:lab/a b@v1"])
def test_invalid_repository_names(text):
    with pytest.raises(
        UsageError, match=r"is not a valid Hub repository name|expected the full name"
    ):
        HubAddress.parse(text)


def test_files_are_fetched_once_then_available_offline(hub, load, files, weights):
    repo = hub.add_repo("lab/x", files)
    (first, second, offline), err = load("hub:lab/x", "hub:lab/x", ("hub:lab/x", OFFLINE))
    assert first[:2] == second[:2] == offline[:2]
    assert first[1] == {"architecture": "mine"}
    assert repo.refs["main"] in first[0]
    assert Path(first[0]).read_bytes() == weights
    assert err == ""
    gets = [path for path in hub.paths("GET") if "/resolve/" in path]
    assert sorted(path.rpartition("/")[2] for path in gets) == sorted(files)


def test_a_revision_is_pinned(hub, load, files):
    repo = hub.add_repo("lab/x", files)
    commit = repo.tags["v1"] = repo.refs["main"]
    repo.commit(files | {"config.json": b'{"architecture": "later"}'}, "later", "main")
    asked = ["hub:lab/x@v1", f"hub:lab/x@{commit}", "hub:lab/x"]
    (tag, pinned, main), _ = load(*asked)
    assert tag[1] == pinned[1] == {"architecture": "mine"}
    assert main[1] == {"architecture": "later"}
    assert commit in tag[0]
    # a cached commit needs no request
    before = len(hub.requests)
    load(asked[1])
    assert len(hub.requests) == before


def test_bytes_other_than_the_manifests_are_refused_and_removed(hub, load, files):
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    repo = hub.add_repo("lab/x", files | {"model.safetensors": bytes(damaged)})
    stated = json.loads(files["manifest.json"])["files"]["model.safetensors"]["sha256"]
    (found, offline), _ = load("hub:lab/x", ("hub:lab/x", OFFLINE))
    assert found[0].startswith("CheckpointError: hub:lab/x: expected model.safetensors with")
    assert stated in found[0]
    assert hashlib.sha256(damaged).hexdigest() in found[0]
    assert "tell its owners" in found[0]
    assert "is not in the cache" in offline[0]
    repo.commit(files, "repaired", "main")
    (repaired,), _ = load("hub:lab/x")
    assert repaired[1] == {"architecture": "mine"}


def test_flipped_bits_in_the_cache_are_detected(hub, load, files):
    hub.add_repo("lab/x", files)
    (found,), _ = load("hub:lab/x")
    path = os.path.realpath(found[0])
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    os.chmod(path, 0o644)
    Path(path).write_bytes(content)
    (refused, again), _ = load("hub:lab/x", "hub:lab/x")
    assert refused[0].startswith("CheckpointError: hub:lab/x: expected")
    assert again[:2] == found[:2]


def test_a_missing_manifest_is_a_warning(hub, load, files):
    del files["manifest.json"]
    hub.add_repo("lab/x", files)
    (found,), err = load("hub:lab/x")
    assert found[1] == {"architecture": "mine"}
    assert "hub:lab/x has no manifest.json, so its weights cannot be checked." in err


@pytest.mark.parametrize(
    "manifest",
    [b"[]", b"{}", b"no json", b'{"files": {"model.safetensors": {"sha256": "x"}}}'],
)
def test_a_manifest_of_another_form_is_refused(hub, load, files, manifest):
    hub.add_repo("lab/x", files | {"manifest.json": manifest})
    (found,), _ = load("hub:lab/x")
    assert found[0].startswith("HubError: hub:lab/x: its manifest.json does not state the SHA-256")


def test_errors_say_what_to_do(hub, load, files):
    hub.add_repo("lab/private", files, private=True)
    hub.add_repo("lab/gated", files, gated=True)
    hub.add_repo("lab/empty", {})
    hub.accounts["hf_StrangersToken12"] = Account("stranger")
    asked = [
        "hub:lab/none",
        "hub:lab/private",
        "hub:lab/gated",
        "hub:lab/empty",
        "hub:lab/empty@v9",
    ]
    (none, private, gated, empty, revision), _ = load(*asked, token="hf_StrangersToken12")
    for found in (none, private):
        assert "is not on the Hub, or it is private and this token cannot see it" in found[0]
    assert "it is gated: its owners decide" in gated[0]
    assert "it lacks an expected file" in empty[0]
    assert "lab/empty@v9: it has no such branch, tag or commit" in revision[0]
    (nobody,), _ = load("hub:lab/private")
    assert "hf auth login" in nobody[0]
    (owner, member), _ = load("hub:lab/private", "hub:lab/gated", token=TOKEN)
    assert owner[1] == member[1] == {"architecture": "mine"}


def test_a_cut_download_is_continued(hub, load, files, weights):
    hub.add_repo("lab/x", files)
    hub.faults.append(Fault("GET", "model.safetensors", cut_after=len(weights) // 2))
    (found,), _ = load("hub:lab/x")
    assert Path(found[0]).read_bytes() == weights


def test_an_unreachable_hub_is_given_up_quickly(hub, load, files, tmp_path):
    hub.add_repo("lab/x", files)
    (there,), _ = load("hub:lab/x")
    nowhere = {**hub.environment(), "HF_ENDPOINT": "http://127.0.0.1:9"}  # no server
    with locating(**nowhere, BITZOO_CACHE=str(tmp_path / "cache")) as ask:
        (cached, missing), err = ask(["hub:lab/x", "hub:lab/other"])
    assert cached[:2] == there[:2]
    assert "the Hub cannot be reached" in err
    assert "Using the cached files" in err
    assert missing[0].startswith("HubUnreachableError: lab/other: the Hub cannot be reached")
    assert cached[2] + missing[2] < 5


def test_cached_files_are_used_if_the_hub_fails(hub, load, files):
    hub.add_repo("lab/x", files)
    (there,), _ = load("hub:lab/x")
    hub.faults.append(Fault("GET", "/api/models/", 503))
    (cached,), err = load("hub:lab/x")
    assert cached[:2] == there[:2]
    assert "cannot answer now (status 503" in err
