"""Records that are whole but not what bitzoo writes: each is refused, or made again, by name."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

import bitzoo
from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.vtab_tasks import TASKS
from bitzoo.data.problems import DatasetError
from bitzoo.data.tfds_prepared import find_prepared
from bitzoo.errors import CheckpointError, UsageError
from bitzoo.model_cards.run_card import complete_draft
from bitzoo.model_cards.text import validate_card
from bitzoo.runs import vtab
from bitzoo.runs.config import FinetuneConfig
from bitzoo.runs.job import Job
from bitzoo.runs.probe_features import MEASURED_NAME, _measured
from bitzoo.training.checkpointing import Checkpoint, latest_checkpoint, save_checkpoint
from bitzoo.training.continuation import loop_of
from bitzoo.training.model_selection import ModelSelection

LOOP = {"micro_batch": 4, "processes": 1, "scaler": {}, "layout": {"channels_last": True}}


class TestCheckpoints:
    def test_one_under_another_name_is_not_taken_for_that_step(self, tmp_path, caplog):
        save_checkpoint(tmp_path, 4, {"a": torch.ones(2)}, {})
        later = save_checkpoint(tmp_path, 8, {"a": torch.ones(2)}, {})
        later.rename(tmp_path / "step-00000012.safetensors")
        assert latest_checkpoint(tmp_path).step == 4
        assert "it is of step 8, which its name does not say" in caplog.text

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
    def test_other_dtypes_are_not_rounded_in_silence(self, tmp_path, caplog, dtype):
        save_checkpoint(tmp_path, 4, {"a": torch.ones(2)}, {})
        record = json.dumps({"step": 8, "meta": {}})
        about = {"bitzoo_checkpoint": record, "sha256": "0" * 64}
        save_file({"a": torch.ones(2, dtype=dtype)}, tmp_path / "step-00000008.safetensors", about)
        assert latest_checkpoint(tmp_path).step == 4
        assert "where a run writes float32" in caplog.text

    @pytest.mark.parametrize(
        "changes",
        [
            {"micro_batch": "4"},
            {"micro_batch": 0},
            {"processes": True},
            {"updates": -1},
            {"scaler": {"scale": 2.0}},
            {"scaler": [1]},
            {"layout": {"channels_last": 1}},
            {"layout": {"channels_last": True, "seconds": {"contiguous": 2.0}}},
            {"selection": {"best": {"step": 4, "top1": float("nan"), "loss": 0.5}}},
            {"selection": {"evaluations": "2"}},
        ],
    )
    def test_what_no_loop_records_is_refused_with_the_file(self, tmp_path, changes):
        start = Checkpoint(8, {}, {"loop": LOOP}, tmp_path / "step-00000008.safetensors")
        assert loop_of(start) == LOOP
        start.meta["loop"] = LOOP | changes
        with pytest.raises(CheckpointError, match=r"step-00000008\.safetensors: .*delete it"):
            loop_of(start)

    def test_infinite_losses_are_a_loops_own(self):
        record = {"best": {"step": 4, "top1": 1, "loss": float("inf")}, "evaluations": 1}
        assert ModelSelection(None, record).best.loss == float("inf")


INDEX = {
    "name": "photos",
    "results": [
        {
            "dataset": {"name": "Photos", "type": "photos"},
            "metrics": [{"type": "accuracy", "value": 0.5}],
            "task": {"type": "image-classification"},
        }
    ],
}


class TestCards:
    def complete(self, front):
        return complete_draft(
            f"---\n{front}\n---\n\n# A card\n",
            repo="me/it",
            info=ModelInfo("R50x1", 3, license="mit"),
            history=[{"event": "train", "step": 1, "loss": 10**400, "lr": 0.1}],
            proof=None,
        )

    def front(self, text):
        return text.removeprefix("---\n").split("\n---")[0]

    @pytest.mark.parametrize("license_", ["apache-2.0", ["apache-2.0"], {"name": "x"}, None])
    def test_results_and_order_stay_when_the_licence_is_set(self, license_):
        given = {"tags": ["a"], "license": license_, "model-index": [INDEX], "datasets": "one"}
        found = yaml.safe_load(self.front(self.complete(yaml.safe_dump(given, sort_keys=False))))
        assert found == given | {"license": "mit"}
        assert list(found) == list(given)

    def test_comments_stay(self):
        front = "# mine\nlicense: apache-2.0  # was\ntags: [a]  # one"
        expected = "# mine\nlicense: mit\ntags: [a]  # one"
        assert self.front(self.complete(front)) == expected
        assert self.front(self.complete("tags: [a]")) == "tags: [a]\nlicense: mit"

    @pytest.mark.parametrize(
        ("front", "why"),
        [
            ("a: &a [x]\nb: *a", "an alias"),
            ("a: " + "[" * 3_000 + "]" * 3_000, "nested"),
            ("- a", "expected key: value"),
        ],
    )
    def test_what_cannot_be_used_is_said_of_the_file(self, front, why):
        for check in (self.complete, lambda text: validate_card(f"---\n{text}\n---\n")):
            with pytest.raises(UsageError, match=rf"README\.md: .*{why}"):
                check(front)


def test_a_report_with_a_strange_record_is_named(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "a.onnx.export.json").write_text('{"model_info": {"architecture": 5}}')
    with pytest.raises(CheckpointError, match=r"a\.onnx\.export\.json: .*Export the model again"):
        bitzoo.info(str(tmp_path / "a.onnx"))


@pytest.mark.parametrize("rate", [10**400, True, "1", -1, None])
def test_a_speed_that_is_none_is_measured_again(tmp_path, rate):
    (tmp_path / MEASURED_NAME).write_text(json.dumps({"images_per_s": rate, "memory_bytes": rate}))
    assert _measured(tmp_path) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"overrides": {"lr": 5}}},
        {"recipe": {"overrides": {"lr": {"from": 1}}}},
        {"recipe": {"overrides": [1]}},
        {"changes": 7},
        {"changes": [{"step": 1}]},
        {"options": {"model": "a", "data_name": "b", "config": "abc"}},
    ],
)
def test_a_run_of_vtab_that_says_too_little_is_done_again(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(vtab, "task_title", lambda task: "a title")
    task = next(iter(TASKS.values()))
    job = Job("BiT-M-R50x1", f"vtab:{task.name}", FinetuneConfig())
    overrides = {"lr": {"from": 1, "to": 2}}
    record = {"finished": {}, "options": job.to_dict("a title"), "recipe": {"overrides": overrides}}
    (tmp_path / "evaluation.json").write_text('{"correct": 1, "count": 2}')
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert vtab._finished(job, tmp_path, task)[1:] == (1, 2)
    (tmp_path / "run.json").write_text(json.dumps(record | changes))
    assert vtab._finished(job, tmp_path, task) is None


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_no_module_is_imported_that_a_prepared_data_set_names(tmp_path, monkeypatch, key):
    (tmp_path / "strange_features.py").write_text("raise AssertionError('it was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data/insects/1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "insects", "version": "1.0.0"}')
    (folder / "features.json").write_text(json.dumps({key: "strange_features.F", "content": {}}))
    with pytest.raises(
        DatasetError, match=r"'strange_features\.F', whose module TFDS would import"
    ):
        find_prepared("insects")
