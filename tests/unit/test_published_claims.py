"""What a folder says about itself is a claim, and only its own files are published."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_npz

import bitzoo
from bitzoo import files
from bitzoo.errors import CheckpointError, ParityError, UsageError
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.files import sha256_of
from bitzoo.hub.proven_weights import prove_file
from bitzoo.hub.publish import card, publish
from bitzoo.hub.repo_manifest import manifest_files, read_note
from bitzoo.hub.upload import Plan
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.zoo.conversion import convert

RELEASE = "BiT-M-R50x1-run0-dtd"


@pytest.fixture(autouse=True, scope="module")
def _small_and_quick(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
        patch.setitem(sys.modules, "tensorflow", None)  # a second oracle, with tests of its own
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_npz(folder / "own.npz", make_checkpoint(num_classes=47))
    convert(folder / "own.npz")
    return folder


@pytest.fixture
def converted(made, tmp_path):
    """A converted file of 47 classes, as the release has, next to its proof."""
    shutil.copytree(made, tmp_path / "converted")
    return tmp_path / "converted" / "own.safetensors"


def state(file, **identity):
    """Write an identity into the proof next to a file, as anyone can."""
    path = file.with_name("parity.json")
    proof = json.loads(path.read_text())
    proof[file.name]["identity"] = {"name": RELEASE, "evidence": "me", **identity}
    path.write_text(json.dumps(proof))


class TestIdentityInAProof:
    @pytest.mark.parametrize("basis", ["google", "manifest", "vouched", "catalogue"])
    def test_it_is_a_claim_whoever_is_said_to_have_established_it(self, converted, basis):
        state(converted, basis=basis)
        text = card(converted)
        assert f"It is called {RELEASE} here, but it is **not established**" in text
        assert "the parity.json next to it says" in text.replace("\\_", "_")
        assert "These are the numbers that Google released" not in text
        assert "license:" not in text

    def test_it_stays_one_in_what_is_published(self, converted, tmp_path):
        state(converted, basis="google")
        plan = publish(converted, repo="lab/x", dry_run=True, folder=tmp_path / "made")
        assert isinstance(plan, Plan)
        assert plan.prepared.info.identity.basis == "stated"
        manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
        assert (manifest["model"], manifest["identity"]["basis"]) == (None, "stated")
        assert not (tmp_path / "made" / "LICENSE").exists()

    def test_of_a_release_with_another_network_it_is_ignored(self, converted):
        state(converted, name="BiT-M-R101x1", basis="google")
        assert "BiT-M-R101x1" not in card(converted)

    def test_of_other_bytes_it_is_ignored(self, converted):
        state(converted, basis="google")
        path = converted.with_name("parity.json")
        proof = json.loads(path.read_text())
        proof[converted.name]["output"]["sha256"] = "0" * 64
        path.write_text(json.dumps(proof))
        assert RELEASE not in card(converted)
        with pytest.raises(ParityError, match="is not the file that was proven"):
            publish(converted, repo="lab/x", dry_run=True)

    @pytest.mark.parametrize("said", [5, [], "x", {"name": 5}, {"name": "x", "basis": "google"}])
    def test_of_another_form(self, converted, said):
        path = converted.with_name("parity.json")
        proof = json.loads(path.read_text())
        proof[converted.name]["identity"] = said
        path.write_text(json.dumps(proof))
        assert "not a released checkpoint" in card(converted).replace("\n", " ")

    @pytest.mark.parametrize("source", [None, 5, {}, {"name": "x", "bytes": "many", "sha256": "y"}])
    def test_a_source_of_another_form(self, converted, source):
        path = converted.with_name("parity.json")
        proof = json.loads(path.read_text())
        proof[converted.name]["source"] = source
        path.write_text(json.dumps(proof))
        with pytest.raises(ParityError, match=r"parity\.json .* does not say what was converted"):
            publish(converted, repo="lab/x", dry_run=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "other.npz"
    return write_npz(path, make_checkpoint(num_classes=47, seed=5))


class TestProofsBesideWeights:
    """Whenever a process is killed, no proof lies beside weights that it does not describe."""

    @pytest.fixture
    def folder(self, made, tmp_path):
        """A prepared folder's weights and proof, of another source than those of the tests."""
        (tmp_path / "folder").mkdir()
        prove_file(made / "own.safetensors", tmp_path / "folder", None)
        return tmp_path / "folder"

    def test_killed_when_the_conversion_has_its_name(self, folder, other, monkeypatch):
        give_name = files._give_name

        def die(temporary, path, **options):
            give_name(temporary, path, **options)
            raise SystemExit("as if killed")

        before = sha256_of(folder / "model.safetensors")
        monkeypatch.setattr(files, "_give_name", die)
        with pytest.raises(SystemExit):
            prove_file(other, folder, None)
        assert sha256_of(folder / "model.safetensors") != before
        assert [path.name for path in folder.iterdir()] == ["model.safetensors"]

    def test_the_proof_of_a_conversion(self, folder, other):
        proven = prove_file(other, folder, None)
        (proof,) = json.loads((folder / "parity.json").read_text()).values()
        assert proof == proven.report
        assert proof["output"]["sha256"] == sha256_of(folder / "model.safetensors")

    def test_killed_while_a_copy_is_written(self, folder, made, monkeypatch):
        def die(source, target):
            Path(target).write_bytes(b"half of it")
            raise SystemExit("as if killed")

        before = sha256_of(folder / "model.safetensors")
        monkeypatch.setattr("shutil.copyfile", die)
        with pytest.raises(SystemExit):
            prove_file(made / "own.safetensors", folder, None)
        assert sha256_of(folder / "model.safetensors") == before
        assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


class TestManifests:
    """Of a prepared folder: data that anyone can write."""

    @pytest.mark.parametrize(
        ("facts", "says"),
        [
            ({"bytes": "5", "sha256": "0" * 64}, "bytes of 'model.safetensors' are '5'"),
            ({"bytes": 5.5, "sha256": "0" * 64}, "bytes of 'model.safetensors' are 5.5"),
            ({"bytes": True, "sha256": "0" * 64}, "bytes of 'model.safetensors' are True"),
            ({"bytes": -1, "sha256": "0" * 64}, "bytes of 'model.safetensors' are -1"),
            ({"bytes": 5, "sha256": 5}, "sha256 of 'model.safetensors' is 5"),
            ({"bytes": 5, "sha256": "A" * 64}, "sha256 of 'model.safetensors' is 'AAAA"),
            ({"bytes": 5}, "KeyError: 'sha256'"),
            ([], "list indices must be integers"),
        ],
    )
    def test_of_other_types(self, tmp_path, facts, says):
        content = {"files": {"model.safetensors": facts}}
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
        with pytest.raises(CheckpointError) as caught:
            manifest_files(tmp_path)
        assert "expected bitzoo's list of files with bytes and sha256" in str(caught.value)
        assert says in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_that_never_end(self, tmp_path):
        os.mkfifo(tmp_path / MANIFEST_NAME)
        with pytest.raises(CheckpointError, match="expected a regular file, found a pipe"):
            manifest_files(tmp_path)
        (tmp_path / MANIFEST_NAME).unlink()
        with pytest.raises(CheckpointError, match=r"there is no such file. Prepare the folder"):
            manifest_files(tmp_path)

    @pytest.mark.parametrize("content", ["[" * 100_000, '{"a": NaN}', "[]", "\xff"])
    def test_notes_of_another_form(self, tmp_path, content):
        (tmp_path / "publication.json").write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"publication\.json: expected (a )?JSON"):
            read_note(tmp_path)

    def test_a_card_without_end(self, run_folder):
        with open(run_folder / "README.md", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(CheckpointError, match="expected a small file of at most 4,194,304"):
            card(run_folder)


@pytest.fixture
def run_folder(tmp_path):
    from bitzoo.zoo.model_folder import write_model_folder

    network = bitzoo.create_model("BiT-M-R50x1", num_classes=3)
    write_model_folder(tmp_path / "run", network, bitzoo.info(network))
    return tmp_path / "run"


class TestLinks:
    @pytest.fixture
    def secret(self, tmp_path):
        (tmp_path / "secret").write_text("---\nx: y\n---\n\n# The secret\n")
        return tmp_path / "secret"

    @pytest.mark.parametrize("name", ["README.md", "metrics.jsonl", "LICENSE", "parity.json"])
    @pytest.mark.parametrize("relative", [False, True])
    def test_out_of_a_run(self, run_folder, secret, name, relative):
        (run_folder / name).symlink_to("../secret" if relative else secret)
        for work in (
            lambda: card(run_folder),
            lambda: publish(run_folder, repo="lab/x", dry_run=True),
        ):
            with pytest.raises(UsageError) as caught:
                work()
            assert str(caught.value) == (
                f"{run_folder / name} is a link to {secret}, outside the folder, whose content "
                "would be published. If that is what you want, put a copy of the file there "
                "instead."
            )

    def test_weights_elsewhere(self, run_folder, tmp_path):
        (run_folder / "model.safetensors").rename(tmp_path / "w")
        (run_folder / "model.safetensors").symlink_to(tmp_path / "w")
        with pytest.raises(UsageError, match="outside the folder"):
            publish(run_folder, repo="lab/x", dry_run=True)

    def test_out_of_a_prepared_folder(self, run_folder, secret, tmp_path):
        publish(run_folder, repo="lab/x", dry_run=True, folder=tmp_path / "made")
        readme = tmp_path / "made" / "README.md"
        readme.unlink()
        readme.symlink_to(secret)
        with pytest.raises(UsageError, match=r"README\.md is a link to"):
            publish(tmp_path / "made", repo="lab/x", dry_run=True)

    def test_within_the_folder(self, run_folder):
        (run_folder / "notes.md").write_text("---\nx: y\n---\n\n# The notes\n")
        (run_folder / "README.md").symlink_to("notes.md")
        assert "# The notes" in card(run_folder)
