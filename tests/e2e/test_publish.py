"""`bitzoo publish` from the command line to a stand-in Hub, and back by bitzoo and its peers."""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import TINY, make_checkpoint, write_npz
from hub_server import TOKEN, Account, Fault, HubServer
from huggingface_hub import ModelCard
from publishing import SMALL_NAMES, Workspace
from servers import FileServer
from training import make_model

from bitzoo.catalogue.metadata import Preprocessing
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.inference.metrics import Evaluation
from bitzoo.runs.report.html import RunRecord, write_card
from bitzoo.zoo.model_folder import write_model_folder

DTD = "BiT-M-R50x1-run0-dtd"
CLEVR = {"clevr-distance": 6, "clevr-count": 8}  # in the order of the catalogue
FILES = {"LICENSE", "README.md", "config.json", "manifest.json", "model.safetensors", "parity.json"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def flip_bit(path, position=-5):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npz")
    served = {}
    for number, (task, classes) in enumerate([("dtd", 47), *CLEVR.items()]):
        for run in range(3):
            path = folder / "x.npz"
            write_npz(path, make_checkpoint(num_classes=classes, seed=10 * number + run))
            served[f"vtab/BiT-M-R50x1-run{run}-{task}.npz"] = path.read_bytes()
    with FileServer(served) as server:
        yield server


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, hub, mirror):
    folder = tmp_path_factory.mktemp("workspace")
    write_npz(folder / "own.npz", make_checkpoint(num_classes=5, seed=1))
    with Workspace(folder, hub, BITZOO_MIRROR=mirror.url) as place:
        place.run("convert", "--src", "own.npz")
        yield place


@pytest.fixture(scope="module")
def published(workspace):
    """A released name on the Hub: what the command said."""
    return workspace.run("publish", DTD, "--repo", f"lab/{DTD}", "--yes")


class TestAReleasedName:
    def test_the_repository_holds_what_is_allowed_and_hangs_together(self, hub, mirror, published):
        repo = hub.repos[f"lab/{DTD}"]
        files = repo.files()
        assert files.keys() == FILES - {"LICENSE"}  # from a mirror, whose licence is not known
        assert not repo.private
        assert repo.titles == [f"Publish {DTD} with bitzoo 0.1.0"]
        assert repo.refs["main"] in published.out
        manifest, parity = json.loads(files["manifest.json"]), json.loads(files["parity.json"])
        original = mirror.read(f"vtab/{DTD}.npz")
        assert manifest["source"]["sha256"] == sha256(original)
        assert manifest["source"]["bytes"] == len(original)
        assert manifest["source"]["url"] == f"{mirror.url}vtab/{DTD}.npz"
        assert f"bit_models/vtab/{DTD}.npz" in manifest["source"]["note"]
        for name, facts in manifest["files"].items():
            assert facts == {"bytes": len(files[name]), "sha256": sha256(files[name])}, name
        assert manifest["files"].keys() == files.keys() - {"README.md", "manifest.json"}
        proof = parity["model.safetensors"]
        assert proof["passed"]
        assert {224, 97} == {logits["size"] for logits in proof["logits"]}
        assert proof["output"]["sha256"] == sha256(files["model.safetensors"])
        assert manifest["command"] == f"bitzoo publish {DTD} --repo lab/{DTD}"
        assert (manifest["model"], manifest["identity"]["basis"]) == (None, "mirror")

    def test_with_a_publisher_who_vouches_it_has_the_licence_of_the_release(self, hub, workspace):
        workspace.run("publish", DTD, "--repo", "lab/vouched", "--yes", "--vouch")
        files = hub.repos["lab/vouched"].files()
        assert files.keys() == FILES
        assert files["LICENSE"].startswith(b" " * 33 + b"Apache License")
        manifest = json.loads(files["manifest.json"])
        assert (manifest["model"], manifest["identity"]["basis"]) == (DTD, "vouched")
        assert manifest["command"] == f"bitzoo publish {DTD} --repo lab/vouched --vouch"

    def test_the_commit_is_noted_and_the_copy_gone(self, hub, workspace, published):
        folder = workspace.cache / "publish" / f"lab--{DTD}"
        note = json.loads((folder / "publication.json").read_text())["published"]
        assert note["commit"] == hub.repos[f"lab/{DTD}"].refs["main"]
        assert note["outcome"] == "published"
        assert not (folder / "model.safetensors").exists()

    def test_again_makes_no_commit_and_fetches_nothing(self, hub, mirror, workspace, published):
        commits, uploads = len(hub.repos[f"lab/{DTD}"].commits), hub.uploads()
        fetched = len(mirror.requests)
        again = workspace.run("publish", DTD, "--repo", f"lab/{DTD}", "--yes")
        assert f"Nothing to do: lab/{DTD} holds exactly these files" in again.out
        assert len(hub.repos[f"lab/{DTD}"].commits) == commits
        assert hub.uploads() == uploads
        assert len(mirror.requests) == fetched

    def test_again_from_another_machine_makes_no_commit(self, hub, mirror, workspace, published):
        commits = len(hub.repos[f"lab/{DTD}"].commits)
        again = workspace.run(
            "publish",
            DTD,
            "--repo",
            f"lab/{DTD}",
            "--yes",
            BITZOO_CACHE=str(workspace.folder / "other"),
        )
        assert "Nothing to do" in again.out
        assert len(hub.repos[f"lab/{DTD}"].commits) == commits

    def test_a_tag_is_put_once_and_never_moved(self, hub, workspace, published):
        repo = hub.repos[f"lab/{DTD}"]
        for _ in range(2):
            workspace.run("publish", DTD, "--repo", repo.name, "--yes", "--tag", "v1")
        assert repo.tags == {"v1": repo.refs["main"]}
        repo.tags["old"] = "0" * 40
        refused = workspace.run(
            "publish", DTD, "--repo", repo.name, "--yes", "--tag", "old", code=2
        )
        assert "the tag old already names commit 000" in refused.err
        assert "Choose another --tag" in refused.err

    def test_other_files_of_the_repository_are_left_alone_and_named(self, hub, workspace):
        hub.add_repo("lab/full", {"weights.bin": b"pickle", "config.json": b"{}"})
        done = workspace.run("publish", "own.npz", "--repo", "lab/full", "--yes")
        assert re.search(r"left alone +weights\.bin", done.out)
        assert re.search(r"config\.json .* changed", done.out)
        assert hub.repos["lab/full"].files()["weights.bin"] == b"pickle"


class TestDryRun:
    def test_it_touches_no_network_and_leaves_folder_and_plan(self, hub, mirror, workspace):
        asked = len(hub.requests), len(mirror.requests)
        out = workspace.folder / "out"
        done = workspace.run(
            "publish", "own.npz", "--repo", "lab/dry", "--dry-run", "--folder", out
        )
        assert (len(hub.requests), len(mirror.requests)) == asked
        assert "Nothing was sent: this was a dry run" in done.err
        plan = json.loads((out / "plan.json").read_text())
        assert plan["repo"] == "lab/dry"
        # its licence is not known, so none is claimed
        assert plan["files"].keys() == FILES - {"LICENSE"}
        for name, facts in plan["files"].items():
            assert facts["sha256"] == sha256((out / name).read_bytes()), name
            assert facts["change"] == "unknown"

    def test_a_name_must_be_on_this_disk(self, mirror, workspace):
        asked = len(mirror.requests)
        words = ["publish", "BiT-M-R50x1-run2-dtd", "--repo", "lab/x", "--dry-run"]
        refused = workspace.run(*words, code=2)
        assert "BiT-M-R50x1-run2-dtd is not on this disk" in refused.err
        assert "--keep-source" in refused.err
        assert len(mirror.requests) == asked
        cache = {"BITZOO_CACHE": str(workspace.folder / "kept")}
        workspace.run(
            "convert", "--src", "BiT-M-R50x1-run2-dtd", "--keep-source", "--dst", "d.safetensors",
            **cache,
        )  # fmt: skip
        asked = len(mirror.requests)
        assert "model.safetensors" in workspace.run(*words, **cache).out
        assert len(mirror.requests) == asked

    def test_the_folder_itself_can_be_published(self, hub, workspace):
        out = workspace.folder / "prepared"
        workspace.run("publish", "own.npz", "--repo", "lab/prepared", "--dry-run", "--folder", out)
        (out / "secret.txt").write_text("mine")
        workspace.run("publish", out, "--repo", "lab/prepared", "--yes")
        assert hub.repos["lab/prepared"].files().keys() == FILES - {"LICENSE"}
        assert (out / "model.safetensors").exists()
        refused = workspace.run("publish", out, "--repo", "lab/elsewhere", "--yes", code=2)
        assert "is prepared for lab/prepared, which its card and manifest name" in refused.err


class TestOneChangedBit:
    def test_in_the_prepared_weights(self, hub, workspace):
        out = workspace.folder / "flipped"
        words = ["publish", "own.npz", "--repo", "lab/flipped", "--folder", out]
        workspace.run(*words, "--dry-run")
        flip_bit(out / "model.safetensors")
        for refused in (
            workspace.run(*words, "--yes", code=1),
            workspace.run("publish", out, "--repo", "lab/flipped", "--yes", code=1),
        ):
            assert f"{out / 'model.safetensors'}: changed after it was proven" in refused.err
            assert "The file is not published" in refused.err
        assert "lab/flipped" not in hub.repos

    def test_in_a_converted_file_beside_its_proof(self, hub, workspace, tmp_path):
        for name in ("own.safetensors", "parity.json"):
            shutil.copy(workspace.folder / name, tmp_path)
        flip_bit(tmp_path / "own.safetensors")
        words = ["publish", tmp_path / "own.safetensors", "--repo", "lab/beside", "--yes"]
        refused = workspace.run(*words, code=1)
        assert "own.safetensors is not the file that was proven" in refused.err
        assert "convert the source again" in refused.err
        shutil.copy(workspace.folder / "own.safetensors", tmp_path)
        workspace.run(*words)
        sent = hub.repos["lab/beside"].files()["model.safetensors"]
        assert sent == (workspace.folder / "own.safetensors").read_bytes()
        manifest = json.loads(hub.repos["lab/beside"].files()["manifest.json"])
        assert manifest["source"]["name"] == "own.npz"

    def test_in_another_file(self, workspace):
        out = workspace.folder / "config"
        workspace.run("publish", "own.npz", "--repo", "lab/c", "--dry-run", "--folder", out)
        flip_bit(out / "config.json")
        refused = workspace.run("publish", out, "--repo", "lab/c", "--yes", code=2)
        assert "config.json: changed after it was proven" in refused.err

    def test_a_failed_proof_is_not_published(self, workspace):
        out = workspace.folder / "failed"
        workspace.run("publish", "own.npz", "--repo", "lab/f", "--dry-run", "--folder", out)
        parity = json.loads((out / "parity.json").read_text())
        parity["model.safetensors"]["passed"] = False
        text = json.dumps(parity)
        (out / "parity.json").write_text(text)
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["files"]["parity.json"] = {
            "bytes": len(text), "sha256": sha256(text.encode())
        }  # fmt: skip
        (out / "manifest.json").write_text(json.dumps(manifest))
        refused = workspace.run("publish", out, "--repo", "lab/f", "--yes", code=1)
        assert "parity.json does not show model.safetensors equal to its source" in refused.err


class TestBeforeAnythingIsSent:
    def test_it_asks(self, hub, workspace):
        refused = workspace.run("publish", "own.npz", "--repo", "lab/asked", typed="n\n", code=2)
        assert "Publish to lab/asked? [y/N]" in refused.err
        assert "Not confirmed; nothing was sent" in refused.err
        workspace.run("publish", "own.npz", "--repo", "lab/asked", typed="", code=2)
        assert "lab/asked" not in hub.repos
        workspace.run("publish", "own.npz", "--repo", "lab/asked", typed="y\n")
        assert "lab/asked" in hub.repos

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["own.npz"], "--repo organisation/name for one model, or --org"),
            (["own.npz", "--repo", "x"], "expected the full name of a repository"),
            (["own.npz", "--repo", "lab/a b"], "is not a valid Hub repository name"),
            (["BiT-L-R50x1", "--repo", "lab/x"], "Google never released"),
            (["BiT-X-*", "--org", "lab"], "matches no released model"),
            (["nothing", "--org", "lab"], "not a name in the catalogue"),
            (["own.npz", "--org", "lab", "--tag", "v", "--create-pr"], "tag the commit after"),
            (["https://host/x.npz", "--org", "lab"], "Fetch it first with"),
            (["BiT-M-*", "--repo", "lab/x"], "a pattern takes --org"),
            (["own.npz", "--repo", "lab/x", "--org", "lab"], "Give the destination"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, hub, workspace, words, message):
        asked = len(hub.requests)
        assert message in workspace.run("publish", *words, "--yes", code=2).err
        assert len(hub.requests) == asked

    def test_a_licence_is_stated_only_where_none_is_known(self, hub, workspace):
        words = ["publish", "own.npz", "--repo", "lab/mit", "--yes", "--license"]
        workspace.run(*words, "mit")
        files = hub.repos["lab/mit"].files()
        assert ModelCard(files["README.md"].decode()).data["license"] == "mit"
        assert json.loads(files["config.json"])["pretrained_cfg"]["license"] == "mit"
        assert "LICENSE" not in files
        refused = workspace.run("publish", DTD, "--repo", "lab/mit", "--license", "mit", code=2)
        assert "--license is for files and runs. A released model has its own" in refused.err

    def test_a_folder_of_the_users_is_not_written_over(self, workspace):
        folder = workspace.folder / "theirs"
        folder.mkdir()
        (folder / "config.json").write_text("theirs")
        words = ["publish", "own.npz", "--repo", "lab/x", "--dry-run", "--folder", folder]
        assert "which bitzoo did not write" in workspace.run(*words, code=2).err
        assert (folder / "config.json").read_text() == "theirs"

    def test_a_token_is_needed_and_never_shown(self, hub, workspace):
        words = ["publish", "own.npz", "--repo", "lab/t", "--yes"]
        none = workspace.run(*words, code=2, HF_TOKEN="")
        assert "no token for the Hub was found" in none.err
        assert "hf auth login" in none.err
        # the stand-in repeats the token it was sent, as a careless server might
        for debug in ([], ["--debug"]):
            wrong = workspace.run(*words, *debug, code=2, HF_TOKEN="hf_ThisOneWasRevokedLongAgo")
            assert "the Hub does not accept the token (401)" in wrong.err
            assert "hf auth login --force" in wrong.err

    def test_rights_are_needed(self, hub, workspace):
        reader = "hf_ReaderTokenWithoutWriteAccess"
        hub.accounts[reader] = Account("reader", ("lab",), write=False)
        hub.add_repo("lab/readable")
        uploads = len(hub.uploads())
        for repo in ("lab/readable", "lab/not-there", "elsewhere/x"):
            refused = workspace.run(
                "publish", "own.npz", "--repo", repo, "--yes", code=2, HF_TOKEN=reader
            )
            assert "status 403" in refused.err
            assert f"write access to {repo.partition('/')[0]}" in refused.err
        assert len(hub.uploads()) == uploads

    def test_a_taken_name_and_a_gated_one(self, hub, workspace):
        hub.add_repo("others/hidden", private=True)
        hub.add_repo("others/gated", gated=True)
        hub.accounts["hf_OneMoreToken12"] = Account("others-friend", ("friends",))
        gated = workspace.run("publish", "own.npz", "--repo", "others/gated", "--yes", code=2)
        assert "gated: its owners decide" in gated.err
        assert "Ask for access" in gated.err
        hub.faults.append(Fault("POST", "/api/repos/create", 409))
        taken = workspace.run("publish", "own.npz", "--repo", "others/hidden", "--yes", code=2)
        assert "the name is taken by something that this token cannot see" in taken.err

    def test_privacy_is_checked(self, hub, workspace):
        words = ["publish", "own.npz", "--yes", "--private", "--repo"]
        workspace.run(*words, "lab/private")
        assert hub.repos["lab/private"].private
        hub.add_repo("lab/public")
        assert "exists and is public" in workspace.run(*words, "lab/public", code=2).err
        hub.drop_privacy = True
        refused = workspace.run(*words, "lab/leaky", code=2)
        hub.drop_privacy = False
        assert "should be private but is public. Nothing was uploaded" in refused.err
        assert hub.repos["lab/leaky"].files() == {}


class TestWhenThingsGoWrong:
    @pytest.fixture(autouse=True)
    def fresh(self, hub):
        hub.blobs.clear()
        yield
        assert not hub.faults
        hub.chunk_size = None

    def publish(self, workspace, repo, code=0):
        return workspace.run("publish", "own.npz", "--repo", repo, "--yes", code=code)

    def test_a_cut_upload_goes_on(self, hub, workspace):
        hub.faults.append(Fault("PUT", "/lfs/", cut_after=100_000))
        self.publish(workspace, "lab/cut")
        sent = hub.repos["lab/cut"].files()["model.safetensors"]
        assert sha256(sent) == hub.uploads()[-1]

    def test_in_parts_with_one_cut(self, hub, workspace):
        hub.chunk_size = 1 << 20
        hub.faults.append(Fault("PUT", "/part/3$", cut_after=1000))
        self.publish(workspace, "lab/parts")
        parts = [path for path in hub.paths("PUT") if "/part/" in path]
        numbers = [int(path.rpartition("/")[2]) for path in parts]
        assert numbers == [1, 2, 3, *range(3, max(numbers) + 1)]
        sent = hub.repos["lab/parts"].files()["model.safetensors"]
        assert sent == hub.repos["lab/cut"].files()["model.safetensors"]

    def test_a_lost_answer_to_the_commit_is_no_second_commit(self, hub, workspace):
        hub.faults.append(Fault("POST", "/commit/", then_cut=True))
        assert "Published" in self.publish(workspace, "lab/lost").out
        assert len(hub.repos["lab/lost"].titles) == 1

    def test_a_stale_parent_is_reported_and_the_next_try_sends_nothing_twice(self, hub, workspace):
        hub.faults.append(Fault("POST", "/commit/", 412))
        refused = self.publish(workspace, "lab/stale", code=2)
        assert "The repository changed since the plan was made, and nothing was" in refused.err
        assert "Run the same command again" in refused.err
        sent = hub.uploads()
        self.publish(workspace, "lab/stale")
        assert hub.uploads() == sent
        assert len(hub.repos["lab/stale"].titles) == 1

    def test_a_commit_in_between_is_not_overwritten(self, hub, workspace):
        """The real 412: the parent that the plan saw is no longer the newest commit."""
        repo = hub.add_repo("lab/raced")

        def race():
            repo.commit({"config.json": b"another's"}, "in between", "main")

        hub.faults.append(Fault("POST", "/commit/", action=race))
        assert "status 412" in self.publish(workspace, "lab/raced", code=2).err
        assert repo.files() == {"config.json": b"another's"}

    @pytest.mark.parametrize("status", [503, 429])
    def test_a_hub_that_cannot_answer(self, hub, workspace, status):
        hub.faults.append(Fault("GET", "/api/models/lab/busy", status))
        refused = self.publish(workspace, "lab/busy", code=2)
        assert f"the Hub cannot answer now (status {status}" in refused.err
        assert "Run the same command again later" in refused.err

    def test_a_hub_without_first_commits_and_questions_of_rights_will_do(self, hub, workspace):
        hub.bare = True
        try:
            assert "Published" in self.publish(workspace, "lab/bare").out
            assert "Nothing to do" in self.publish(workspace, "lab/bare").out
        finally:
            hub.bare = False
        assert len(hub.repos["lab/bare"].commits) == 1

    def test_what_the_hub_garbled_is_noticed(self, hub, workspace):
        hub.add_repo("lab/garbled")
        real = hub.blobs

        class Garbling(dict):
            def __getitem__(self, oid):
                return super().__getitem__(oid)[:-1] + b"!"

        hub.blobs = Garbling()
        try:
            refused = self.publish(workspace, "lab/garbled", code=2)
        finally:
            hub.blobs = real
        assert "the Hub's contents of model.safetensors differ from what was sent" in refused.err


class TestPullRequest:
    def test_it_is_opened_once_and_main_stays(self, hub, workspace):
        repo = hub.add_repo("others/open")
        words = ["publish", "own.npz", "--repo", "others/open", "--yes", "--create-pr"]
        done = workspace.run(*words)
        assert f"Pull request: {hub.url}/others/open/discussions/1" in done.out
        assert repo.files() == {}
        assert repo.files("refs/pr/1").keys() == FILES - {"LICENSE"}
        assert "Nothing to do" in workspace.run(*words).out
        assert "refs/pr/2" not in repo.refs

    def test_it_needs_a_repository(self, workspace):
        words = ["publish", "own.npz", "--repo", "lab/none", "--yes", "--create-pr"]
        assert "a pull request needs an existing repository" in workspace.run(*words, code=2).err


class TestMany:
    @pytest.mark.slow
    def test_killed_and_run_again_it_ends_complete_and_sends_nothing_twice(
        self, hub, mirror, workspace
    ):
        hub.blobs.clear()
        words = ["publish", "BiT-M-R50x1-run?-clevr-*", "--org", "my-org", "--yes"]
        names = [f"BiT-M-R50x1-run{run}-{task}" for run in range(3) for task in CLEVR]
        repos = [f"my-org/{name}" for name in names]
        before = len(hub.uploads())
        with Workspace(workspace.folder, hub, BITZOO_MIRROR=mirror.url) as victim:
            kill = functools.partial(os.kill, victim.worker().pid, signal.SIGKILL)
            commit = f"/api/models/{repos[2]}/commit/"
            hub.faults.append(Fault("POST", commit, cut_after=0, action=kill))
            with pytest.raises(EOFError, match="-9"):
                victim.run(*words)
        finished = [repo for repo in repos if repo in hub.repos and hub.repos[repo].files()]
        assert finished == repos[:2]
        assert len(hub.uploads()) == before + 3  # the third was sent, but not committed
        left = {repo: dict(hub.repos[repo].commits) for repo in finished}
        done = workspace.run(*words)
        for repo in repos:
            assert hub.repos[repo].files().keys() == FILES - {"LICENSE"}
            assert len(hub.repos[repo].titles) == 1
            outcome = "unchanged" if repo in finished else "published"
            assert re.search(rf"^{re.escape(repo)} +{outcome} ", done.out, re.MULTILINE)
        for repo, commits in left.items():
            assert hub.repos[repo].commits == commits
        sent = hub.uploads()[before:]
        assert len(sent) == len(set(sent)) == 6

    def test_one_that_fails_does_not_stop_the_others(self, hub, mirror, workspace):
        hub.faults.append(Fault("POST", "/api/models/my-org/BiT-M-R50x1-run1-dtd/commit", 403))
        words = ["publish", "BiT-M-R50x1-run[01]-dtd", "--org", "my-org", "--yes"]
        done = workspace.run(*words, code=2)
        assert re.search(r"my-org/BiT-M-R50x1-run0-dtd +published", done.out)
        assert re.search(r"my-org/BiT-M-R50x1-run1-dtd +failed", done.out)
        assert "1 of 2 models are not published" in done.err
        again = workspace.run(*words)
        assert re.search(r"my-org/BiT-M-R50x1-run0-dtd +unchanged +0", again.out)

    def test_a_hub_that_goes_away_ends_it(self, hub, workspace):
        hub.faults.append(Fault("GET", "/api/models/lab/BiT-M-R50x1-run0", 503))
        done = workspace.run("publish", "BiT-M-R50x1-run[01]-dtd", "--org", "lab", "--yes", code=2)
        assert re.search(r"lab/BiT-M-R50x1-run0-dtd +failed", done.out)
        assert re.search(r"lab/BiT-M-R50x1-run1-dtd +not tried", done.out)
        assert TOKEN not in done.out


FROM_PYTHON = (
    SMALL_NAMES
    + """
import json, os
import bitzoo
from bitzoo.errors import UsageError
plans = []
def confirm(plan):
    plans.append(plan)
    return len(plans) > 1
plan = bitzoo.publish("own.npz", repo="lab/python", dry_run=True, folder="planned")
assert "BITZOO_OFFLINE" not in os.environ
try:
    bitzoo.publish("own.npz", repo="lab/python", confirm=confirm)
except UsageError as error:
    print(error)
first = bitzoo.publish("own.npz", repo="lab/python", confirm=confirm)
again = bitzoo.publish("own.npz", repo="lab/python", confirm=confirm)
told = []
names = "BiT-M-R50x1-run[01]-dtd"
many = bitzoo.publish(names, org="my-org", confirm=confirm, on_result=told.append)
assert told == many
for run in range(2):  # a dry run fetches nothing
    name = f"BiT-M-R50x1-run{run}-dtd"
    bitzoo.convert(name, f"{name}.kept", check="none", keep_source=True)
dry = bitzoo.publish(names, org="nobody", dry_run=True)
print(json.dumps({
    "plan": plan.to_dict(), "confirmed": [type(plan).__name__ for plan in plans],
    "batch": [repo for _, repo in plans[-1].targets],
    "first": first.to_dict(), "again": again.to_dict(), "many": many.to_dicts(),
    "dry": [[result.outcome, result.plan.to_dict()["repo"]] for result in dry],
}))
"""
)


@pytest.mark.slow
def test_publishing_from_python(hub, workspace):
    """Without a question unless one is given, and without a word."""
    process = workspace.start(FROM_PYTHON)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    refused, record = out.splitlines()
    assert refused == "Not confirmed; nothing was sent."
    found = json.loads(record)
    assert found["plan"] == json.loads((workspace.folder / "planned/plan.json").read_text())
    assert found["confirmed"] == ["Plan", "Plan", "BatchPlan"]
    assert (found["first"]["outcome"], found["again"]["outcome"]) == ("published", "unchanged")
    assert (
        found["again"]["commit"] == found["first"]["commit"] == hub.repos["lab/python"].refs["main"]
    )
    repos = [f"my-org/BiT-M-R50x1-run{run}-dtd" for run in range(2)]
    assert found["batch"] == [result["repo"] for result in found["many"]] == repos
    for result in found["many"]:
        commit = hub.repos[result["repo"]].refs["main"]
        assert (result["error"], result["publication"]["commit"]) == (None, commit)
    assert found["dry"] == [["planned", repo.replace("my-org", "nobody")] for repo in repos]
    assert not any(repo.startswith("nobody/") for repo in hub.repos)


class TestARun:
    @pytest.fixture
    def photos(self, workspace):
        """What a fine-tuning run leaves, as its own writers write it; with things to keep back."""
        classes = ["robin", "wren", "kite"]
        network = make_model(num_classes=len(classes))
        folder = workspace.folder / "runs" / "photos"
        known = ModelInfo(
            network.architecture.name,
            len(classes),
            base=Identity("BiT-M-R50x1", "google", "the test"),
            own_names=tuple(classes),
            activation="softmax",
            preprocessing=Preprocessing(64, 64, "bilinear", True, "the recipe of this run"),
        )
        write_model_folder(folder, network, known)
        logits = 2 * np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
        history = [{"event": "train", "step": i, "loss": 3 - i, "lr": 0.1} for i in range(3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))
        record = RunRecord(
            title="photos", model="BiT-M-R50x1", architecture=network.architecture.name,
            image_size=64, classes=classes, dataset="birds", data=[("train images", "12")],
            recipe=[("rule", "paper")], base="BiT-M-R50x1", info=known, history=history,
            evaluation=Evaluation.of_logits(classes, np.array([0, 1, 2, 2]), logits),
        )  # fmt: skip
        write_card(folder / "README.md", record)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "optimizer.pt").write_bytes(b"pickle")
        return folder

    def test_its_card_tells_data_recipe_counts_curves_and_base(self, hub, workspace, photos):
        workspace.run("publish", "runs/photos", "--repo", "me-org/x", "--yes", code=2)  # not ours
        workspace.run("publish", "runs/photos", "--repo", "lab/photos", "--yes")
        files = hub.repos["lab/photos"].files()
        assert files.keys() == FILES - {"LICENSE"}
        assert files["model.safetensors"] == (photos / "model.safetensors").read_bytes()
        assert json.loads(files["config.json"]) == json.loads((photos / "config.json").read_text())
        card = files["README.md"].decode()
        data = ModelCard(card).data
        assert data["base_model"] == "timm/resnetv2_50x1_bit.goog_in21k"
        assert data["base_model_relation"] == "finetune"
        for expected in (
            "| top-1 accuracy | 75.00 % | 3 of 4 |",
            "| train images | 12 |",
            "| rule | paper |",
            "Training loss over the steps: `█▅▁`",
            'bitzoo.create_model("hub:lab/photos", pretrained=True)',
        ):
            assert expected in card
        proof = json.loads(files["parity.json"])["model.safetensors"]
        assert proof["output"]["sha256"] == sha256(files["model.safetensors"])
        assert (
            "Nothing to do" in workspace.run("publish", photos, "--repo", "lab/photos", "--yes").out
        )

    def test_a_folder_of_transformers_is_a_file_like_any_other(self, hub, workspace):
        workspace.run("convert", "--src", "own.npz", "--to", "transformers", "--dst", "hf-folder")
        workspace.run("publish", "hf-folder", "--repo", "lab/other", "--yes")
        files = hub.repos["lab/other"].files()
        assert files.keys() == FILES - {"LICENSE"}
        assert json.loads(files["config.json"])["num_classes"] == 5
        proof = json.loads(files["parity.json"])["model.safetensors"]
        assert proof["weights"]["differing"] == []

    def test_the_card_alone(self, workspace, photos):
        shown = workspace.run("card", photos, "--repo", "lab/photos").out
        assert "Nothing is proven yet" in shown
        workspace.run("card", "BiT-M-R50x1", "--out", workspace.folder / "card.md")
        text = (workspace.folder / "card.md").read_text()
        assert "# BiT-M-R50x1" in text
        assert "hub:YOUR-NAME/BiT-M-R50x1" in text
        assert "`own.npz`" in workspace.run("card", "own.npz").out
        missing = workspace.run(
            "card", "BiT-M-R50x1", "--out", workspace.folder / "no/card.md", code=2
        )
        assert "there is no folder" in missing.err


@pytest.mark.full_size
def test_a_released_r50x1_in_three_libraries(tmp_path):
    """At its real size, 21,843 classes: published, loaded by name, published again."""
    name = "BiT-M-R50x1"
    npz = write_npz(tmp_path / "x.npz", make_checkpoint((3, 4, 6, 3), 1, 21843)).read_bytes()
    with (
        HubServer() as hub,
        FileServer({f"{name}.npz": npz}) as mirror,
        Workspace(tmp_path, hub, BITZOO_MIRROR=mirror.url) as workspace,
    ):
        hub.chunk_size = 64 << 20
        words = ["-m", "bitzoo", "publish", name, "--repo", f"lab/{name}", "--yes"]
        for outcome in ("Published: lab", "Nothing to do: lab"):
            done = subprocess.run(
                [sys.executable, *words], env=workspace.environment, capture_output=True, text=True,
                timeout=280, check=True,
            )  # fmt: skip
            assert outcome in done.stdout
        repo = hub.repos[f"lab/{name}"]
        assert len(repo.titles) == 1
        process = workspace.start(FULL_SIZE)
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-3000:]
    found = json.loads(out.splitlines()[-1])
    assert found["bitzoo"] <= 1e-6
    assert found["again"] == 0
    assert found["timm"] < 2e-5
    assert found["transformers"] < 2e-5
    assert found["label"] == "organism, being"


FULL_SIZE = """
import json, timm, torch, bitzoo
from transformers import AutoModelForImageClassification
torch.manual_seed(0)
images = torch.rand(2, 3, 224, 224) * 2 - 1
before = bitzoo.create_model("x.npz", pretrained=True)
after = bitzoo.create_model("hub:lab/BiT-M-R50x1", pretrained=True)
again = bitzoo.create_model("hub:lab/BiT-M-R50x1@main", pretrained=True)
peer = timm.create_model("hf-hub:lab/BiT-M-R50x1", pretrained=True).eval()
auto = AutoModelForImageClassification.from_pretrained("lab/BiT-M-R50x1").eval()
with torch.no_grad():
    expected = before(images)
    found = {
        "bitzoo": (after(images) - expected).abs().max().item(),
        "again": (again(images) - expected).abs().max().item(),
        "timm": ((peer(images) - expected).norm() / expected.norm()).item(),
        "transformers": ((auto(images).logits - expected).norm() / expected.norm()).item(),
        "label": auto.config.id2label[0],
    }
print(json.dumps(found))
"""


PEERS = """
import json, re, sys
sys.modules["tensorflow"] = None
import numpy as np, timm, torch
from PIL import Image
from bitzoo.models.architecture import ARCHITECTURES, Architecture
tiny = Architecture((1, 1, 1, 1), 1)
ARCHITECTURES[tiny.name] = tiny
from timm.models import _registry
from timm.models.resnetv2 import _create_resnetv2_bit

def entry(pretrained=False, **arguments):
    return _create_resnetv2_bit(
        "resnetv2_50x1_bit", pretrained, layers=list(tiny.depths), width_factor=1, **arguments
    )

_registry._model_entrypoints["resnetv2_" + tiny.name[1:] + "_bit"] = entry
torch.set_num_threads(1)
"""
"""Gives timm the tiny network under the name that bitzoo writes for it."""


@pytest.fixture(scope="module")
def numbers(workspace, hub):
    """Logits of one image: by each library from the Hub, and by bitzoo before publishing."""
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (260, 300, 3), dtype=np.uint8)
    Image.fromarray(picture).save(workspace.folder / "photo.png")
    write_npz(workspace.folder / "peer.npz", make_checkpoint(TINY, 1, 7, seed=3))
    script = (
        PEERS
        + """
import bitzoo
from bitzoo.cli.main import main
sys.argv[1:] = ["publish", "peer.npz", "--repo", "lab/peer", "--yes"]
try:
    main()
except SystemExit as end:
    assert not end.code
from transformers import AutoImageProcessor, AutoModelForImageClassification
before = bitzoo.create_model("peer.npz", pretrained=True)
image = bitzoo.create_transform(before)("photo.png")[None]
after = bitzoo.create_model("hub:lab/peer", pretrained=True)
peer = timm.create_model("hf-hub:lab/peer", pretrained=True).eval()
auto = AutoModelForImageClassification.from_pretrained("lab/peer").eval()
config = timm.data.resolve_model_data_config(peer)
transform = timm.data.create_transform(**config, is_training=False)
picture = Image.open("photo.png").convert("RGB")
with torch.no_grad():
    found = {
        "before": before(image),
        "bitzoo": after(bitzoo.create_transform(after)("photo.png")[None]),
        "timm": peer(image),
        "timm's own transform": peer(transform(picture)[None]),
        "transformers": auto(image).logits,
        "processor": auto(**AutoImageProcessor.from_pretrained("lab/peer")(
            picture, return_tensors="pt")).logits,
    }
print(json.dumps({name: logits[0].double().tolist() for name, logits in found.items()}))
picture.save("photo.jpg", "PNG")
import huggingface_hub
card = huggingface_hub.hf_hub_download("lab/peer", "README.md")
for snippet in re.findall(r"```python\\n(.*?)```", open(card).read(), re.DOTALL):
    exec(snippet, {})
"""
    )
    process = workspace.start(script)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    *_, line, snippets = out.partition("{")
    text, _, printed = (line + snippets).partition("\n")
    return {k: np.array(v) for k, v in json.loads(text).items()} | {"snippets": printed}


@pytest.mark.full_size  # not by its size: importing three libraries takes half a minute
class TestPeers:
    def test_bitzoo_computes_what_it_did_before(self, numbers):
        np.testing.assert_allclose(numbers["bitzoo"], numbers["before"], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("peer", ["timm", "timm's own transform", "transformers", "processor"])
    def test_peers_agree_within_their_eps(self, numbers, peer):
        """eps 1e-8 for 1e-10: 1e-6 of the logits on kernels of this scale, and rounding."""
        expected = numbers["before"]
        distance = np.linalg.norm(numbers[peer] - expected) / np.linalg.norm(expected)
        assert distance < 2e-5, distance
        assert np.abs(expected).max() > 0.1

    def test_the_snippets_of_the_card_run(self, hub, numbers):
        """bitzoo prints an index a line, timm and transformers a tensor each."""
        card = hub.repos["lab/peer"].files()["README.md"].decode()
        assert card.count("```python") == 3
        assert "timm and transformers have no name for this architecture" not in card
        lines = numbers["snippets"].splitlines()
        top = np.argsort(-numbers["before"])[:5].tolist()
        assert [int(line.split()[0]) for line in lines[:5]] == top
        assert numbers["snippets"].count(f"indices=tensor({top})") == 2
