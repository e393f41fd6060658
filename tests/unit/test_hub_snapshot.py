"""Hub snapshots: pinned, checked against the manifest, available offline, quick to give up."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import as_timm, make_checkpoint
from hub_server import TOKEN, Account, Fault, HubServer
from scripted_server import CERTIFICATE, ScriptedServer, head

import bitzoo
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.fetch.hub_snapshot import HubAddress, is_hub_address
from bitzoo.hub.publish import card
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


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_the_prefix_of_timm_means_the_same(prefix):
    assert HubAddress.parse(f"{prefix}lab/x@v1") == HubAddress("lab/x", "v1")
    assert is_hub_address(f"{prefix}lab/x")
    assert is_location(f"{prefix}lab/x")


@pytest.mark.parametrize("revision", ["v1.0", "feature/x", "refs/pr/1", "a" * 40, "release-1_2+3"])
def test_revisions(revision):
    assert HubAddress.parse(f"hub:lab/x@{revision}").revision == revision


@pytest.mark.parametrize(
    "revision",
    [
        "", "..", ".", "a/../b", "/main", "main/", "a//b", "../../etc", " ", "a b", "a\nb", "a\x00",
        "a\x1b[1m", "a?b", "a#b", "a%2e%2e", "a\\b", "a:b", "@{1}", "-x", "x.lock", "a.", "\u202e",
        "x" * 300,
    ],
)  # fmt: skip
def test_invalid_revisions(revision):
    with pytest.raises(UsageError) as caught:
        HubAddress.parse(f"hub:lab/x@{revision}")
    assert "expected a branch, a tag or a commit after the @, found" in str(caught.value)
    assert str(caught.value).endswith("Leave out the @ for the branch main: hub:lab/x")
    assert str(caught.value).isprintable()


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
    [
        b"[]",
        b"{}",
        b"no json",
        b"[" * 100_000,
        b'{"files": NaN}',
        b'{"files": {"model.safetensors": {"sha256": "x"}}}',
    ],
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


def standard_cache(folder, repo, files, ref="main", commit="c" * 40):
    """A repository as `hf download` leaves it: blobs, links to them, and what a branch names."""
    place = folder / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    (place / "refs").mkdir(exist_ok=True)
    if ref:
        (place / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def offline(home):
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with locating(**settings, HF_HUB_OFFLINE="1") as ask:
        yield ask


class TestStandardCache:
    """HF_HUB_CACHE, which other programs fill; nothing is on a Hub here."""

    def test_by_branch_tag_and_commit(self, offline, home, files, tmp_path):
        commit = "1234567890" * 4
        snapshot = standard_cache(home / "hub", "lab/x", files, "v1", commit)
        standard_cache(home / "hub", "lab/x", files, "main")
        asked = ["hub:lab/x@v1", f"hub:lab/x@{commit}", "hub:lab/x", "hf-hub:lab/x@v1"]
        found, err = offline(asked, BITZOO_CACHE=str(tmp_path / "cache"))
        ours = str(snapshot / "model.safetensors")
        theirs = ours.replace(commit, "c" * 40)
        assert [answer[0] for answer in found] == [ours, ours, theirs, ours]
        assert err == ""

    def test_what_is_not_there(self, offline, tmp_path):
        (found,), _ = offline(["hub:lab/none"], BITZOO_CACHE=str(tmp_path / "cache"))
        assert found[0] == (
            "HubUnreachableError: hub:lab/none is not in the cache, and HF_HUB_OFFLINE forbids "
            "contacting the Hub. Unset it, or point BITZOO_CACHE or HF_HUB_CACHE at a folder that "
            "has it."
        )

    def test_a_damaged_file_is_told_and_left(self, offline, home, files, tmp_path):
        damaged = {**files, "model.safetensors": files["model.safetensors"][:-1] + b"x"}
        snapshot = standard_cache(home / "hub", "lab/damaged", damaged)
        (found,), _ = offline(["hub:lab/damaged"], BITZOO_CACHE=str(tmp_path / "cache"))
        assert found[0].startswith("CheckpointError: hub:lab/damaged: expected model.safetensors")
        assert f"Remove {snapshot / 'model.safetensors'}, which another program" in found[0]
        assert (snapshot / "model.safetensors").is_file()

    def test_an_index_that_leads_out(self, offline, home, tmp_path):
        for number, name in enumerate(["../x.safetensors", "/etc/passwd", "a/b", ".."]):
            index = json.dumps({"weight_map": {"stem.conv.weight": name}}).encode()
            standard_cache(
                home / "hub", f"lab/out{number}", {"model.safetensors.index.json": index}
            )
            (found,), _ = offline([f"hub:lab/out{number}"], BITZOO_CACHE=str(tmp_path / "cache"))
            assert "expected names of files in its own folder, found" in found[0]

    def test_the_hub_is_asked_and_nothing_is_fetched_twice(self, hub, files, tmp_path):
        repo = hub.add_repo("lab/x", files)
        home = tmp_path / "home"
        snapshot = standard_cache(home / "hub", "lab/x", files, None, repo.refs["main"])
        settings = {**hub.environment(None), "HF_HOME": str(home)}
        with locating(**settings, BITZOO_CACHE=str(tmp_path / "cache")) as ask:
            (found,), _ = ask(["hub:lab/x"])
        assert found[0] == str(snapshot / "model.safetensors")
        assert not [path for path in hub.paths("GET") if "/resolve/" in path]


def test_a_cache_that_cannot_be_written(hub, load, files, tmp_path):
    """A file where the folder of notes should be fails as a read-only disk does, also for root."""
    hub.add_repo("lab/x", files)
    (first,), _ = load("hub:lab/x")
    notes = tmp_path / "cache" / "hub-checked"
    for note in notes.iterdir():
        note.unlink()
    notes.rmdir()
    notes.write_text("")
    before = len(hub.requests)
    (again, offline), err = load("hub:lab/x", ("hub:lab/x", OFFLINE))
    assert first[:2] == again[:2] == offline[:2]
    assert err == ""
    assert len(hub.requests) == before + 1  # what main names now


def test_a_copied_cache(hub, load, files, tmp_path):
    hub.add_repo("lab/x", files)
    load("hub:lab/x")
    shutil.copytree(tmp_path / "cache" / "hub", tmp_path / "copy" / "hub")  # without links
    settings = {**OFFLINE, "BITZOO_CACHE": str(tmp_path / "copy")}
    (found,), err = load(("hub:lab/x", settings))
    assert found[0].startswith(str(tmp_path / "copy"))
    assert err == ""


@pytest.fixture(scope="module")
def tensors():
    return {
        name: np.ascontiguousarray(array)
        for name, array in as_timm(make_checkpoint(num_classes=3)).items()
    }


@pytest.fixture(scope="module")
def shards(tensors):
    names = sorted(tensors)
    parts = {"a-1.safetensors": names[::2], "b-2.safetensors": names[1::2]}
    where = {name: part for part, own in parts.items() for name in own}
    return {part: safetensors.numpy.save({n: tensors[n] for n in own}) for part, own in
            parts.items()} | {
        "model.safetensors.index.json": json.dumps({"weight_map": where}).encode(),
        "config.json": b"{}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def pickled(tensors):
    import torch

    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, file)
    return {"pytorch_model.bin": file.getvalue(), "config.json": b"{}"}


class TestOtherForms:
    """What others publish: shards with an index, and PyTorch's own files."""

    @pytest.mark.parametrize("form", ["shards", "pickled"])
    def test_from_the_hub_and_then_offline(self, hub, load, tensors, request, form):
        files = request.getfixturevalue(form)
        hub.add_repo("lab/x", files | {"optimizer.bin": b"x", "other.safetensors": b"x"})
        (found, offline), err = load("hub:lab/x", ("hub:lab/x", OFFLINE))
        assert found[:2] == offline[:2]
        assert err.count("has no manifest.json") == 2  # once for each call
        gets = [path.rpartition("/")[2] for path in hub.paths("GET") if "/resolve/" in path]
        assert sorted(set(gets) - {"manifest.json"}) == sorted(files)
        self.check(Path(found[0]), tensors)

    @pytest.mark.parametrize("form", ["shards", "pickled"])
    def test_from_a_folder(self, tensors, tmp_path, request, form):
        for name, content in request.getfixturevalue(form).items():
            (tmp_path / name).write_bytes(content)
        self.check(tmp_path, tensors)

    def check(self, folder, tensors):
        model = bitzoo.create_model(folder, pretrained=True)
        state = model.state_dict()
        assert state.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(state[name].numpy(), array)

    def test_a_lost_shard(self, hub, load, shards):
        hub.add_repo("lab/x", {k: v for k, v in shards.items() if k != "b-2.safetensors"})
        (found,), _ = load("hub:lab/x")
        assert found[0].startswith("HubError: lab/x: it lacks an expected file")

    def test_a_shard_that_is_a_link_out(self, shards, tmp_path):
        (tmp_path / "folder").mkdir()
        for name, content in shards.items():
            (tmp_path / "folder" / name).write_bytes(content)
        (tmp_path / "folder" / "b-2.safetensors").rename(tmp_path / "elsewhere")
        (tmp_path / "folder" / "b-2.safetensors").symlink_to("../elsewhere")
        with pytest.raises(CheckpointError, match="expected a shard in the folder of its index"):
            bitzoo.create_model(tmp_path / "folder", pretrained=True)

    def test_none_of_them(self, hub, load):
        hub.add_repo("lab/x", {"tf_model.h5": b"x"})
        (found,), _ = load("hub:lab/x")
        assert found[0].startswith("HubError: hub:lab/x: it lacks an expected file, model.safetens")


class TestNames:
    def test_a_bare_name_gets_a_hint(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for work in (
            lambda: bitzoo.create_model("lab/net", pretrained=True),
            lambda: bitzoo.convert("lab/net"),
            lambda: card("lab/net"),
            lambda: bitzoo.info("timm/resnetv2_50x1_bit.goog_in21k"),
        ):
            with pytest.raises(CheckpointError, match=r"Check the path\. For a repository .* hub:"):
                work()
        for path in ("lab/net.npz", "./lab/a/b", "/lab"):
            with pytest.raises(CheckpointError) as caught:
                bitzoo.create_model(path, pretrained=True)
            assert "hub:" not in str(caught.value)

    @pytest.mark.parametrize("tail", ["", "/", "/tree/main"])
    def test_the_address_of_a_page_gets_a_hint(self, tail):
        with pytest.raises(UsageError, match=r"page of a repository .* write hub:lab/x\."):
            bitzoo.create_model(f"https://huggingface.co/lab/x{tail}", pretrained=True)


class TestHostileHub:
    """A server that is none, or lies."""

    @pytest.fixture
    def ask(self, tmp_path):
        """Locate lab/x at a server that answers as a script says."""

        def run(script, *, tls=False, **settings):
            with ScriptedServer(script, tls=tls) as server:
                own = {"HF_ENDPOINT": server.url.rstrip("/"), "HF_HOME": str(tmp_path / "home")}
                own |= {"BITZOO_CACHE": str(tmp_path / "cache"), "SSL_CERT_FILE": str(CERTIFICATE)}
                with locating(**(own | settings)) as ask:
                    (found,), _ = ask(["hub:lab/x"])
            assert not list((tmp_path / "cache").rglob("*.safetensors"))
            return found[0], server

        return run

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ([], "has another form than expected"),
            ({}, "has another form than expected"),
            ({"id": "lab/x", "sha": 5, "siblings": []}, "expected the Hub to name a commit of 40"),
            ({"id": "lab/x", "sha": "../../x"}, "expected the Hub to name a commit of 40"),
            ({"id": "lab/x", "sha": "a" * 40, "siblings": 5}, "has another form than expected"),
            ({"id": "lab/x", "sha": "a" * 40, "siblings": [5]}, "has another form than expected"),
            ("<html>Log in</html>", "has another form than expected"),
        ],
    )
    def test_answers_of_another_form(self, ask, answer, message):
        body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        reply = head("200 OK", Content_Length=len(body), Content_Type="application/json") + body
        found, _ = ask(lambda talk, _: talk.sendall(reply))
        assert found.startswith("HubError: ")
        assert message in found
        assert "committed" not in found

    def test_https_to_http(self, ask):
        lead = head("302 Found", Location="http://127.0.0.1:9/api/models/lab/x", Content_Length=0)
        found, _ = ask(lambda talk, _: talk.sendall(lead), tls=True)
        assert "leads from https to http://127.0.0.1:9/api/models/lab/x" in found

    def test_a_zip_bomb(self, ask):
        bomb = gzip.compress(bytes(30_000_000))
        reply = head("200 OK", Content_Encoding="gzip", Content_Length=len(bomb)) + bomb
        found, server = ask(lambda talk, _: talk.sendall(reply))
        assert "expected an unencoded answer, found one in gzip encoding" in found
        assert "accept-encoding: identity" in server.requests[0].lower()

    def test_an_endless_answer(self, ask):
        def endless(talk, request):
            talk.sendall(head("200 OK"))
            while True:
                talk.sendall(bytes(1 << 20))

        found, _ = ask(endless)
        assert "the answer has more than 67,108,864 bytes" in found

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"HF_ENDPOINT": "http://[::1"}, "HF_ENDPOINT=http://[::1 cannot be used: Invalid"),
            ({"HF_ENDPOINT": "ftp://host"}, "HF_ENDPOINT=ftp://host cannot be used: expected"),
            ({"SSL_CERT_FILE": "/none"}, "SSL_CERT_FILE=/none cannot be used: there is no"),
            ({"ALL_PROXY": "socks://h:1", "NO_PROXY": ""}, "only version 5 is supported"),
            (
                {"ALL_PROXY": "http://me:s3same@127.0.0.1:9", "NO_PROXY": ""},
                "through the proxy http://127.0.0.1:9 (ALL_PROXY)",
            ),
            ({"HF_ENDPOINT": "http://me:s3same@127.0.0.1:9"}, "the Hub cannot be reached"),
            ({"HF_ENDPOINT": "http://me:s3/same@127.0.0.1:9"}, "write / as %2F"),
        ],
    )
    def test_settings(self, ask, settings, message):
        found, _ = ask(lambda talk, _: None, **settings)
        assert found.startswith("HubUnreachableError: ")
        assert message in found
        for secret in ("s3same", "s3/same", "/same@"):
            assert secret not in found

    @pytest.mark.parametrize("entries", ["[::1],127.0.0.0/8", "*", "a b,[::1]:80, 127.0.0.1"])
    def test_odd_exceptions_from_a_proxy(self, hub, files, tmp_path, entries):
        hub.add_repo("lab/x", files)
        own = {**hub.environment(None), "HF_HOME": str(tmp_path), "NO_PROXY": entries}
        with locating(**own, BITZOO_CACHE=str(tmp_path), ALL_PROXY="http://127.0.0.1:9") as ask:
            (found,), _ = ask(["hub:lab/x"])
        # The Hub's client reads the list itself: it agrees, or it cannot be reached that way.
        assert found[1] == {"architecture": "mine"} or "the Hub cannot be reached" in found[0]
