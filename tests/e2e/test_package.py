"""Wheel and sdist work away from the checkout, beside a `converters.py` of the user's own."""

import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz

ROOT = Path(__file__).parents[2]
OUTER = ["converters", "model_cards"]
"""Names that stand at the top of the checkout too, and may be a user's own."""


def run(*command, cwd, **env):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist; `build` without a choice makes it first and the wheel from it, beside it."""
    dist = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", dist, ROOT, cwd=dist)
    return next(dist.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist):
    return next(sdist.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the installed wheel and nothing else."""
    site = tmp_path_factory.mktemp("site")
    pip = ["-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target"]
    run(*pip, site, wheel, cwd=site)
    return site


@pytest.fixture
def elsewhere(tmp_path):
    """A user's folder, whose modules shadow top-level packages of the same names."""
    for name in OUTER:
        (tmp_path / f"{name}.py").write_text("OWNER = 'the user'\n")
    return tmp_path


def shipped_files():
    """What the wheel must hold: every file of the package."""
    paths = [path for path in (ROOT / "bitzoo").rglob("*") if path.is_file()]
    return {p.relative_to(ROOT).as_posix() for p in paths if "__pycache__" not in p.parts}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        contents = {info.filename: archive.read(info) for info in members}
    package = {name for name in contents if ".dist-info/" not in name}
    assert package == shipped_files()
    assert {"bitzoo/py.typed", "bitzoo/converters/key_mapping.py"} <= package
    for name in package:
        assert contents[name] == (ROOT / name).read_bytes(), name
    assert not any(stat.S_ISLNK(info.external_attr >> 16) for info in members)


def test_a_wheel_from_the_checkout_is_the_wheel_from_the_sdist(wheel, tmp_path):
    run("-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    direct = next(tmp_path.glob("*.whl"))
    assert direct.name == wheel.name
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(direct) as theirs:
        assert {name: ours.read(name) for name in ours.namelist()} == {
            name: theirs.read(name) for name in theirs.namelist()
        }


def test_the_sdist_holds_what_a_packager_needs(sdist):
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    needed = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"]
    assert {*needed, "Makefile", "tests/e2e/test_package.py"} <= set(members)
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert not {name for name in members if name.startswith((".venv", ".git/"))}


def test_the_metadata_names_the_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}
        commands = archive.read(names["entry_points.txt"]).decode().split("\n")
        metadata = archive.read(names["METADATA"]).decode().split("\n")
    assert {
        "bitzoo = bitzoo.cli.main:main",
        "bitzoo-convert = bitzoo.cli.main:convert_main",
    } <= set(commands)
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_imports_come_from_the_wheel_and_leave_the_users_modules_alone(site, elsewhere):
    script = """
import bitzoo, bitzoo.converters.key_mapping, bitzoo.model_cards
import converters, model_cards
ours = [bitzoo, bitzoo.converters, bitzoo.converters.key_mapping, bitzoo.model_cards]
print(*[module.__file__ for module in ours], sep="\\n")
print(converters.OWNER, model_cards.OWNER, sep="\\n")
"""
    printed = run("-c", script, cwd=elsewhere, PYTHONPATH=str(site)).splitlines()
    assert printed == [
        f"{site}/bitzoo/__init__.py",
        f"{site}/bitzoo/converters/__init__.py",
        f"{site}/bitzoo/converters/key_mapping.py",
        f"{site}/bitzoo/model_cards/__init__.py",
        "the user",
        "the user",
    ]


def test_the_command_runs_from_the_wheel(site, elsewhere):
    printed = run("-m", "bitzoo", "list", "--json", cwd=elsewhere, PYTHONPATH=str(site))
    names = [entry["name"] for entry in json.loads(printed)]
    assert "BiT-M-R50x1" in names


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows which files are committed")
def test_a_source_archive_without_links_installs_and_converts(tmp_path):
    """Where links are not supported, a forge's .zip unpacks them as files with their target."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    unpacked, links = tmp_path / "bitzoo-main", []
    for name in filter(None, names.split("\0")):
        target = unpacked / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.write_text(os.readlink(ROOT / name))
            links.append(name)
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    assert links == ["converters"]
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    run(*pip, "--target", site, ".", cwd=unpacked)
    write_npz(tmp_path / "own.npz", make_checkpoint(num_classes=3))
    words = ["convert", "--src", "own.npz", "--check", "weights"]
    environment = {"PYTHONPATH": str(site)}
    where = run("-c", "import bitzoo; print(bitzoo.__file__)", cwd=tmp_path, **environment)
    assert where.strip() == f"{site}/bitzoo/__init__.py"
    run("-m", "bitzoo", *words, cwd=tmp_path, **environment)
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["own.safetensors"]["passed"]
