"""A run folder whose files are damaged: what can go on goes on, and says what it left out."""

import json
import os

import pytest
import torch

from bitzoo.errors import UsageError
from bitzoo.runs.run_dir import STARTED_WITH, RunDir, digest_of
from bitzoo.training.checkpointing import latest_checkpoint, save_checkpoint

IDENTITY = {"seed": 0, "recipe": {"steps": 6}, "classes": ["a", "ü"]}
TRAIN = {"event": "train", "step": 1, "loss": 0.5, "lr": 0.1, "images_per_s": 3.0}
EVAL = {"event": "eval", "step": 1, "top1": 0.5, "top5": 1.0, "loss": 0.7, "count": 4}


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    made.open(IDENTITY, resume=False, overwrite=False)
    return made


def save(run, step=3, **meta):
    save_checkpoint(run.checkpoints, step, {"a": torch.zeros(2)}, {"loop": {}, **meta})


def resume(run, identity=IDENTITY):
    run.open(identity, resume=True, overwrite=False)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_text(path.read_text()[:20]),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1, 2]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "infinity": lambda path: path.write_text('{"epochs": Infinity}'),
    "without end": lambda path: os.truncate(path, 1 << 40),
    "missing": lambda path: path.unlink(),
    "a pipe": lambda path: in_its_place(path, os.mkfifo),
    "a broken link": lambda path: in_its_place(path, lambda path: path.symlink_to("nowhere")),
}


def in_its_place(path, make):
    path.unlink()
    make(path)


class TestOptions:
    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_damaged_but_known_to_the_checkpoint(self, run, damage, caplog):
        save(run, **{STARTED_WITH: digest_of(IDENTITY)})
        damage(run.folder / "run.json")
        resume(run)
        assert caplog.messages == [
            f"{run.folder / 'run.json'} is missing or damaged, and is written anew: the checkpoint "
            "shows that the options are those of the run."
        ]
        written = json.loads((run.folder / "run.json").read_text())
        assert {key: written[key] for key in IDENTITY} == IDENTITY

    @pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
    def test_damaged_and_other_than_the_checkpoint_knows(self, run, damage):
        save(run, **{STARTED_WITH: digest_of(IDENTITY)})
        damage(run.folder / "run.json")
        with pytest.raises(UsageError, match="was started with other options than these"):
            resume(run, {**IDENTITY, "seed": 1})

    def test_of_an_earlier_version(self, run, caplog):
        save(run)
        (run.folder / "run.json").write_text("{")
        resume(run)
        assert "whether the run was started with the same options cannot be checked" in caplog.text

    def test_without_a_checkpoint(self, run):
        (run.folder / "run.json").write_text("{")
        says = (
            r"run\.json: expected the options of the run as JSON, found something else, and there "
            "is no undamaged checkpoint to continue from. Start again with `overwrite=True`"
        )
        with pytest.raises(UsageError, match=says):
            resume(run)
        run.open(IDENTITY, resume=False, overwrite=True)
        resume(run)

    def test_no_run_at_all(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        for resume in (True, False):
            with pytest.raises(UsageError, match="has files but no run in it"):
                RunDir(tmp_path).open(IDENTITY, resume=resume, overwrite=not resume)

    def test_a_folder_in_the_place_of_the_options(self, run):
        save(run)
        (run.folder / "run.json").unlink()
        (run.folder / "run.json").mkdir()
        with pytest.raises(UsageError, match=r"cannot be used for a run \(.*run.json: Is a direc"):
            resume(run)

    def test_overwriting_can_be_killed_and_repeated(self, run, monkeypatch):
        """`run.json` stays to the last, so that the folder is still known as a run."""
        save(run)
        (run.folder / "metrics.jsonl").write_text("")
        monkeypatch.setattr("bitzoo.runs.run_dir.write_json", lambda *content: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.open(IDENTITY, resume=False, overwrite=True)
        assert [path.name for path in run.folder.iterdir()] == ["run.json"]

    def test_a_run_killed_when_its_last_checkpoint_was_written_is_cleared(self, run):
        """It was not: a run at its end writes no further checkpoint, which would do it."""
        save(run, 6)
        (run.checkpoints / ".bitzoo-00c0ffee00c0ffee.tmp").mkdir()
        resume(run)
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000006.safetensors"]

    def test_started_by_a_process_that_was_killed_at_once(self, tmp_path):
        (tmp_path / "run/.bitzoo-00c0ffee.tmp").mkdir(parents=True)
        RunDir(tmp_path / "run").open(IDENTITY, resume=False, overwrite=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


class TestMetrics:
    def write(self, run, *records, end="\n"):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (run.folder / "metrics.jsonl").write_text("\n".join(lines) + end)

    @pytest.mark.parametrize(
        "line",
        [
            "{",
            "",
            "[1]",
            "null",
            '{"event": "train"}',
            '{"event": "train", "step": "2", "loss": 1, "lr": 1}',
            '{"event": "train", "step": true, "loss": 1, "lr": 1}',
            '{"event": "train", "step": 2.5, "loss": 1, "lr": 1}',
            '{"event": "train", "step": -1, "loss": 1, "lr": 1}',
            '{"event": "train", "step": 2, "loss": null, "lr": 1}',
            '{"event": "eval", "step": 2, "loss": 1}',
            '{"event": ["train"], "step": 2, "loss": 1, "lr": 1}',
            '{"event": "train", "step": ' + "9" * 5000 + "}",
            "\x00\x00\x00",
        ],
    )
    def test_damaged_lines_are_left_out(self, run, line, caplog):
        self.write(run, TRAIN, line, {**TRAIN, "step": 2})
        run.rewind(5, 6)
        assert [record["step"] for record in run.history()] == [1, 2]
        assert caplog.messages == [
            f"{run.folder / 'metrics.jsonl'}: 1 of 3 lines are damaged and left out; the weights "
            "do not depend on them."
        ]

    def test_a_line_that_was_being_written_is_no_damage(self, run, caplog):
        self.write(run, TRAIN, '{"event": "tr', end="")
        run.rewind(5, 6)
        assert run.history() == [TRAIN]
        assert caplog.messages == []

    def test_nothing_stands_twice(self, run):
        """The last evaluation is made again by every run that is continued at its end."""
        later = {**TRAIN, "step": 2}
        self.write(run, TRAIN, EVAL, TRAIN, {**EVAL, "top1": 0.75}, later, {**EVAL, "step": 2})
        run.rewind(2, 2)
        assert run.history() == [TRAIN, {**EVAL, "top1": 0.75}, later]
        run.rewind(1, 2)
        assert run.history() == [TRAIN, {**EVAL, "top1": 0.75}]
        run.rewind(0, 2)
        assert run.history() == []

    def test_a_folder_in_their_place(self, run):
        (run.folder / "metrics.jsonl").mkdir()
        with pytest.raises(UsageError, match=r"metrics.jsonl: Is a directory\). Free some space"):
            run.rewind(0, 6)

    def test_a_pipe_in_their_place(self, run):
        os.mkfifo(run.folder / "metrics.jsonl")
        run.rewind(0, 6)
        run.append(TRAIN)
        assert run.history() == [TRAIN]

    def test_without_end(self, run, caplog):
        self.write(run, TRAIN)
        os.truncate(run.folder / "metrics.jsonl", 1 << 40)
        run.rewind(5, 6)
        assert caplog.messages == [
            f"{run.folder / 'metrics.jsonl'}: expected a small file of at most 268,435,456 bytes, "
            "found more. It is damaged, or not what its name says. It is left out; the weights do "
            "not depend on it."
        ]
        assert run.history() == []

    def test_a_full_disk_is_a_sentence(self, run):
        (run.folder / "metrics.jsonl").symlink_to("/dev/full")
        says = (
            r"run: cannot be used for a run \(.*No space left on device\). Free some space or "
            "repair the disk, then continue with `resume=True`"
        )
        with pytest.raises(UsageError, match=says):
            run.append(TRAIN)


class TestCheckpoints:
    def test_what_is_no_file_is_no_checkpoint(self, run):
        save(run)
        os.mkfifo(run.checkpoints / "step-00000004.safetensors")
        (run.checkpoints / "step-00000005.safetensors").mkdir()
        (run.checkpoints / "step-00000006.safetensors").symlink_to("nowhere")
        found = latest_checkpoint(run.checkpoints)
        assert found is not None
        assert found.step == 3

    def test_a_file_in_place_of_their_folder(self, run):
        run.checkpoints.write_text("")
        assert latest_checkpoint(run.checkpoints) is None
