"""What another run left is never taken for this one's; options and their differences."""

import json
from typing import Any

import pytest
import torch

from bitzoo.errors import CheckpointError, UsageError
from bitzoo.runs.config import FinetuneConfig
from bitzoo.runs.differences import differences
from bitzoo.runs.job import Job
from bitzoo.runs.run_dir import OUTPUTS, RunDir
from bitzoo.training.checkpointing import latest_checkpoint, save_checkpoint
from bitzoo.training.hyperrule import hyperrule

IDENTITY = {"seed": 0, "classes": ["a", "b"]}
TRAIN = {"event": "train", "step": 1, "loss": 0.5, "lr": 0.1}


def opened(folder, identity=IDENTITY, **how):
    run = RunDir(folder)
    run.open(identity, **{"resume": False, "overwrite": False, **how})
    return run


def save(folder, step, meta):
    save_checkpoint(folder, step, {"a": torch.full((2,), float(step))}, {"loop": {}, **meta})


class TestAnotherRun:
    def test_ids_are_random_and_stay(self, tmp_path):
        first, other = opened(tmp_path / "a"), opened(tmp_path / "b")
        assert first.run_id != other.run_id
        assert opened(tmp_path / "a", resume=True).run_id == first.run_id
        assert opened(tmp_path / "a", overwrite=True).run_id != first.run_id

    def test_its_checkpoint_is_not_used_and_not_lost(self, tmp_path, caplog):
        run, other = opened(tmp_path / "a"), opened(tmp_path / "b")
        save(run.checkpoints, 3, run.mark)
        save(run.checkpoints, 5, other.mark)
        again = opened(tmp_path / "a", resume=True)
        aside = run.checkpoints / "other-run-step-00000005.safetensors"
        assert caplog.messages == [
            f"{aside}: the folder had this checkpoint of another run. It is not used, and was "
            "renamed."
        ]
        assert latest_checkpoint(run.checkpoints).step == 3
        save(run.checkpoints, 6, again.mark)
        save(run.checkpoints, 7, again.mark)
        assert sorted(path.name for path in run.checkpoints.iterdir()) == [
            aside.name,
            "step-00000006.safetensors",
            "step-00000007.safetensors",
        ]

    def test_its_metrics_are_left_out(self, tmp_path, caplog):
        run, other = opened(tmp_path / "a"), opened(tmp_path / "b")
        run.append(TRAIN)
        other._metrics = run._metrics
        other.append({**TRAIN, "step": 2})
        assert run.history() == [TRAIN]
        assert caplog.messages == [
            f"{tmp_path}/a/metrics.jsonl: 1 of 2 lines are of another run and left out."
        ]
        run.rewind(5, 9)
        line = json.loads((tmp_path / "a/metrics.jsonl").read_text())
        assert line == {**TRAIN, "run_id": run.run_id}

    def test_without_its_record_the_id_and_the_changes_are_in_the_checkpoint(self, tmp_path):
        run = opened(tmp_path)
        run.change(2, "lr", 0.1, 0.01)
        save(run.checkpoints, 3, run.mark)
        (tmp_path / "run.json").unlink()
        again = opened(tmp_path, resume=True)
        assert (again.run_id, again.changes) == (run.run_id, run.changes)
        assert json.loads((tmp_path / "run.json").read_text())["changes"] == run.changes

    @pytest.mark.parametrize("changes", [{}, [1], [{"step": -1, "key": "lr", "old": 1, "new": 2}]])
    def test_changes_of_another_form_are_damage(self, tmp_path, changes):
        run = opened(tmp_path)
        run._content["changes"] = changes
        run._write()
        with pytest.raises(UsageError, match="expected `changes` to be a list of what was changed"):
            opened(tmp_path, resume=True)

    def test_a_folder_in_the_place_of_an_output_is_no_output(self, tmp_path):
        run = opened(tmp_path)
        (tmp_path / "split.csv").mkdir()
        (tmp_path / "model.safetensors").symlink_to("nowhere")
        again = opened(tmp_path, overwrite=True)
        assert again.kept == ["split.csv/"]
        assert run.run_id != again.run_id
        assert not (tmp_path / "model.safetensors").is_symlink()

    def test_all_outputs_are_removed_and_the_record_is_the_last(self, tmp_path, monkeypatch):
        run = opened(tmp_path)
        for pattern in OUTPUTS[:-1]:
            path = tmp_path / pattern.replace("[0-9]*", "00000001").replace("*", "1")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        run.open({"seed": 1}, resume=False, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == [OUTPUTS[-1]] == ["run.json"]


BEFORE: dict[str, Any] = {
    **IDENTITY,
    "data": "ab" * 32,
    "recipe": hyperrule(100, (32, 32)).to_dict(),
}


class TestDifferences:
    def changed(self, **options):
        recipe = hyperrule(100, (32, 32)).override(**options)
        return {**BEFORE, "recipe": recipe.to_dict()}

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({}, []),
            ({"lr": 0.001}, ["lr: 0.003 -> 0.001"]),
            ({"steps": 1000}, ["steps: 500 -> 1000"]),  # and what follows from it
            ({"mixup": 0.1, "flip": False}, ["mixup: 0.0 -> 0.1", "flip: true -> false"]),
            ({"crop": 64, "resize": 80}, ["resize: 160 -> 80", "crop: 128 -> 64"]),
        ],
    )
    def test_of_recipes(self, options, says):
        assert sorted(differences(BEFORE, self.changed(**options))) == sorted(says)

    @pytest.mark.parametrize(
        ("now", "says"),
        [
            ({"classes": ["a", "c", "d"]}, "classes: 2 -> 3 (- b, + c, + d)"),
            ({"classes": ["b", "a"]}, "classes: 2 -> 2 (the same in another order)"),
            ({"seed": 7}, "seed: 0 -> 7"),
            ({"new": None}, "new: not there -> null"),
            (
                {"data": "cd" * 32},
                "data: abababababab -> cdcdcdcdcdcd (SHA-256 of images, labels and split)",
            ),
        ],
    )
    def test_of_other_options(self, now, says):
        assert differences(BEFORE, {**BEFORE, **now}) == [says]

    def test_the_present_value_is_no_difference(self):
        changes = [
            {"step": 1, "key": "lr", "old": 0.003, "new": 0.1},
            {"step": 2, "key": "lr", "old": 0.1, "new": 0.001},
        ]
        assert differences(BEFORE, self.changed(lr=0.001), changes) == []
        assert differences(BEFORE, self.changed(), changes) == []
        assert differences(BEFORE, self.changed(lr=0.1), changes) == ["lr: 0.003 -> 0.1"]

    def test_explanations_are_none(self):
        recipe = {**BEFORE["recipe"], "notes": ["in other words"]}
        assert differences(BEFORE, {**BEFORE, "recipe": recipe}) == []

    def test_many_are_counted(self):
        lines = differences({}, {f"key {n:02}": n for n in range(30)})
        assert len(lines) == 21
        assert (lines[0], lines[-1]) == ("key 00: not there -> 0", "and 10 more")


class TestJob:
    def test_is_stored_with_absolute_places(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "x.npz").touch()
        (tmp_path / "photos").mkdir()
        config = FinetuneConfig(resolution=(None, 32), lr=0.1)
        stored = json.loads(json.dumps(Job("x.npz", "photos", config).to_dict("'photos'")))
        assert (stored["model"], stored["data"]) == (f"{tmp_path}/x.npz", f"{tmp_path}/photos")
        found = Job.from_dict(tmp_path / "run.json", "x.npz", stored)
        assert found == Job("x.npz", f"{tmp_path}/photos", config, f"{tmp_path}/x.npz", "'photos'")

    @pytest.mark.parametrize("name", ["BiT-M-R50x1", "https://example.org/x.npz", "hub:lab/x"])
    def test_names_and_addresses_stay(self, name):
        stored = Job(name, "hf:mnist", FinetuneConfig()).to_dict("")
        assert (stored["model"], stored["data"]) == (name, "hf:mnist")

    @pytest.mark.parametrize(
        "data",
        [
            "tfds:dtd@train[:800]+validation[:200]",
            "torchvision:CIFAR10",
            "train=tfds:dtd@train,test=hf:owner/dtd@test",
            {"train": "tfds:dtd@train", "test": "tfds:dtd@test"},
        ],
        ids=str,
    )
    def test_named_data_are_read_again(self, tmp_path, data):
        stored = json.loads(json.dumps(Job("x", data, FinetuneConfig()).to_dict("dtd")))
        assert stored["data"] == data
        assert Job.from_dict(tmp_path / "run.json", "x", stored).data == data

    def test_folders_in_named_data_are_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "saved").mkdir()
        (tmp_path / "photos").mkdir()
        stored = Job("x", "hf:saved@train", FinetuneConfig()).to_dict("")
        assert stored["data"] == f"hf:{tmp_path}/saved@train"
        mixed = {"train": "photos", "val": "hf:saved@val"}
        stored = Job("x", mixed, FinetuneConfig()).to_dict("")
        assert stored["data"] == {"train": f"{tmp_path}/photos", "val": f"hf:{tmp_path}/saved@val"}
        (tmp_path / "photos").rmdir()
        with pytest.raises(UsageError, match="photos, where nothing is now"):
            Job.from_dict(tmp_path / "run.json", "x", stored)

    @pytest.mark.parametrize(
        "damage",
        [
            None,
            [],
            {"config": None},
            {"model": 3},
            {"data": ["x"]},
            {"data_name": None},
            {"config": {"unheard": 1}},
            {"config": {"skip_bad": "yes"}},
            {"config": {"cache_gb": "much"}},
            {"config": {"seed": 1.5}},
        ],
        ids=str,
    )
    def test_damage_is_a_sentence(self, tmp_path, damage):
        good = Job("BiT-M-R50x1", "hf:mnist", FinetuneConfig()).to_dict("mnist")
        options = {**good, **damage} if isinstance(damage, dict) else damage
        with pytest.raises(CheckpointError, match=r"run\.json: expected all options of a run, but"):
            Job.from_dict(tmp_path / "run.json", "BiT-M-R50x1", options)
