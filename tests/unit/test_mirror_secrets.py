"""BITZOO_MIRROR: a mirror that is no address is told, and its password and token stay secret."""

import json
import logging
import sys

import pytest
from checkpoints import make_checkpoint, write_npz
from servers import Fault, FileServer

import bitzoo
from bitzoo.cli.main import app
from bitzoo.errors import DownloadError
from bitzoo.fetch import http
from bitzoo.hub.publish import card, publish
from bitzoo.hub.upload import Plan
from bitzoo.models.architecture import ARCHITECTURES, Architecture

DTD = "BiT-M-R50x1-run0-dtd"
SECRETS = (b"s3same", b"t0ken", b"czNzYW1l")


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch, tmp_path):
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # a second oracle, with its own tests
    monkeypatch.setattr(http, "_sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("mirror", "message"),
    [
        ("http://[::1", "BITZOO_MIRROR=http://[::1 cannot be used: Invalid host."),
        ("ftp://host", "BITZOO_MIRROR=ftp://host cannot be used: expected a URL that starts"),
        ("/data/bit", "BITZOO_MIRROR=/data/bit cannot be used: expected a URL that starts with"),
        ("http://host:port", "BITZOO_MIRROR=http://host:*** cannot be used: Invalid port."),
        ("http://me:s3/same@host", "BITZOO_MIRROR=http://***@host cannot be used: it has an @"),
        ("http://me:s3#same@host", "BITZOO_MIRROR=http://***@host cannot be used: it has an @"),
        ("http://me:s3?same@host", "BITZOO_MIRROR=http://***@host cannot be used: it has an @"),
        ("http://me:s3same", "BITZOO_MIRROR=http://me:*** cannot be used: Invalid port."),
    ],
)
@pytest.mark.parametrize(
    "words", [["convert", "--src", DTD], ["predict", DTD, "x.png"], ["info", "http://[::1/a.npz"]]
)
def test_no_address(monkeypatch, capsys, tmp_path, mirror, message, words):
    monkeypatch.setenv("BITZOO_MIRROR", mirror)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        app.main(words)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    if words[0] == "info":
        assert "error: http://[::1/a.npz cannot be downloaded: Invalid host." in error
    else:
        assert f"error: {message}" in error
    assert "Traceback" not in error
    assert "same" not in error


def test_a_cache_that_cannot_be_written_but_has_the_file(tmp_path):
    write_npz(tmp_path / "x.npz", make_checkpoint(num_classes=5))
    with FileServer(tmp_path) as server:
        url = server.url + "x.npz"
        bitzoo.convert(url, "a.safetensors", check="none", keep_source=True)
        (folder,) = (tmp_path / "cache" / "downloads").glob("*/x.npz")
        lock = folder.parent.with_name(folder.parent.name + ".lock")
        lock.unlink()
        lock.mkdir()  # fails as a read-only disk does, also for root
        bitzoo.convert(url, "b.safetensors", check="none")
        assert len(server.requests) == 1
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert folder.is_file()


def secrets_in(folder):
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [(path, s) for s in SECRETS if s in content or s in str(path).encode()]
    return found


def test_no_secret_is_written_or_said(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    write_npz(tmp_path / "x.npz", make_checkpoint(num_classes=47))
    with FileServer({f"bit/vtab/{DTD}.npz": (tmp_path / "x.npz").read_bytes()}) as server:
        mirror = server.url.replace("//", "//me:s3same@") + "bit?key=t0ken-of-ours"
        monkeypatch.setenv("BITZOO_MIRROR", mirror)
        server.faults += [Fault(cut_after=50_000), Fault(status=404)]
        with pytest.raises(DownloadError) as caught:
            bitzoo.convert(DTD)
        assert not secrets_in(tmp_path)  # of a part, too
        result = bitzoo.convert(DTD, keep_source=True)
        plan = publish(DTD, repo="lab/x", dry_run=True)
        assert server.requests[-1].headers["authorization"] == "Basic bWU6czNzYW1l"
        model = bitzoo.create_model(DTD, pretrained=True)
    assert isinstance(plan, Plan)
    address = f"{server.url}bit/vtab/{DTD}.npz?***"
    manifest = json.loads((plan.prepared.folder / "manifest.json").read_text())
    assert manifest["source"]["url"] == address
    assert result.info.identity.evidence == address == model.info.identity.evidence
    said = [str(caught.value), *caplog.messages, json.dumps(result.to_dict()), str(plan.to_dict())]
    said += [repr(result), repr(model.info), card(result.output)]
    for secret in SECRETS:
        assert secret.decode() not in "\n".join(said)
    assert not secrets_in(tmp_path)
