"""A run from before recipes knew pre-training, as it was left when it was killed.

`old_run/` is what that version wrote: the texts as they were, with the places of model and data
replaced. The tensors of its checkpoint are too large to keep; the plain loop makes them again, and
they are written here as that version wrote them.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import old_run_data
import plain_training
import pytest
from checkpoints import as_timm, make_checkpoint, write_npz
from plain_training import Draw, Net
from safetensors.numpy import load_file, save_file

import bitzoo
from bitzoo.data.sampler import BatchPlan
from bitzoo.runs.run_dir import digest_of
from bitzoo.training.recipe import Recipe

OLD = Path(__file__).with_name("old_run")
STEPS, MADE, RESIZE, CROP, BATCH, SEED = 6, 3, 36, 32, 4, 5
LRS = [0.0, 0.003, 0.003, 0.003 / 10, 0.003 / 10, 0.003 / 10 / 10]
FLOAT32 = 2e-5
"""Largest difference from the plain loop in float64, relative to a tensor's largest magnitude."""


def plain_run(steps):
    """Tensors, momenta and losses after some steps."""
    side = old_run_data.SIDE
    kinds = range(len(old_run_data.CLASSES))
    images = [
        plain_training.resized(old_run_data.pixels(kind, number), (0, 0, side, side), RESIZE)
        for kind in kinds
        for number in range(old_run_data.TRAIN)
    ]
    targets = np.eye(len(kinds)).repeat(old_run_data.TRAIN, axis=0)
    plan = BatchPlan(len(images), BATCH, RESIZE, CROP, True, 0.1, SEED)
    batches = []
    for step in range(steps):
        drawn = plan.batch(step)
        boxes = [(top, left, CROP, CROP) for top, left in zip(drawn.top, drawn.left, strict=True)]
        draw = Draw(list(drawn.indices), boxes, list(drawn.flip), drawn.mix, drawn.lam)
        batches.append(plain_training.batch_of(draw, images, targets, CROP))
    tensors = plain_training.draw_tensors(Net(), len(kinds))  # a head of zeros
    given = as_timm(make_checkpoint(num_classes=0))
    for name, array in given.items():
        assert tensors[name].shape == array.shape
        tensors[name] = tensors[name].new_tensor(array)
    optimizer = plain_training.Momentum()
    after, losses, _ = plain_training.train(
        Net(), tensors, batches, LRS[:steps], plain_training.softmax_loss, optimizer
    )
    return after, optimizer.buffers, losses


def write_checkpoint(path, tensors, buffers):
    """As the old version did: a hash of the record, the names and shapes, then of all bytes."""
    arrays = {f"model.{name}": tensor.numpy() for name, tensor in tensors.items()}
    arrays |= {f"momentum.{name}": tensor.numpy() for name, tensor in buffers.items()}
    arrays = {name: np.ascontiguousarray(arrays[name], np.float32) for name in sorted(arrays)}
    record = (OLD / "checkpoint.json").read_text().strip()
    shapes = [[name, list(array.shape)] for name, array in arrays.items()]
    digest = hashlib.sha256(json.dumps([record, shapes]).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    path.parent.mkdir()
    metadata = {"bitzoo_checkpoint": record, "format": "pt", "sha256": digest.hexdigest()}
    save_file(arrays, path, metadata)


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The folder of the run, after its third step; its checkpoint has that step's tensors."""
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    old_run_data.write_data(tmp_path / "data")
    write_npz(tmp_path / "tiny.npz", make_checkpoint(num_classes=0))
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "split.csv"):
        (folder / name).write_bytes((OLD / name).read_bytes())
    record = json.loads((OLD / "run.json").read_text())
    record["options"] |= {"model": str(tmp_path / "tiny.npz"), "data": str(tmp_path / "data")}
    record["numpy"] = ".".join(np.__version__.split(".")[:2])  # another one draws other numbers
    (folder / "run.json").write_text(json.dumps(record))
    tensors, buffers, _ = plain_run(MADE)
    write_checkpoint(folder / "checkpoints" / "step-00000003.safetensors", tensors, buffers)
    return folder


def check_finished(folder, result):
    assert (result.steps, result.stopped) == (STEPS, False)
    wanted, _, losses = plain_run(STEPS)
    found = load_file(folder / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        scale = float(tensor.abs().max())
        assert np.abs(found[name] - tensor.numpy()).max() <= FLOAT32 * scale, name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (OLD / "metrics.jsonl").read_text().splitlines()]
    assert lines[:MADE] == before[:MADE]
    trained = [line for line in lines if line["event"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert [line["lr"] for line in trained] == LRS
    assert [line["loss"] for line in trained] == pytest.approx(losses, rel=1e-5)
    now, then = (json.loads((f / "run.json").read_text()) for f in (folder, OLD))
    for key in ("recipe", "classes", "data", "seed", "dtype", "freeze", "run_id", "started"):
        assert now[key] == then[key], key
    assert "kind" not in now


def test_resume_continues_it(killed):
    check_finished(killed, bitzoo.resume(killed))


def test_the_same_options_are_the_same_run(killed, tmp_path):
    """Had the recipe or the identity a word more, this would be refused as another run."""
    result = bitzoo.finetune(
        tmp_path / "tiny.npz", tmp_path / "data", killed, resolution=(RESIZE, CROP), steps=STEPS,
        batch_size=BATCH, micro_batch=2, checkpoint_every=3, eval_every=0, keep_checkpoints=3,
        mixup=0.1, seed=SEED, resume=True,
    )  # fmt: skip
    check_finished(killed, result)


def test_without_its_record_the_checkpoint_knows_the_options(killed, tmp_path, monkeypatch, caplog):
    """It has only the SHA-256 of them, which one more word would change."""
    record = json.loads((OLD / "run.json").read_text())
    mark = json.loads((OLD / "checkpoint.json").read_text())["meta"]["started_with"]
    about = ("run_id", "started", "options")
    identity = {key: value for key, value in record.items() if key not in about}
    assert digest_of(identity) == mark
    if np.__version__.split(".")[:2] != record["numpy"].split("."):
        pytest.skip("the identity has NumPy's version, so its digest is another one")
    monkeypatch.chdir(tmp_path)  # the model is one of its options, as it was named
    (killed / "run.json").unlink()
    result = bitzoo.finetune(
        "tiny.npz", "data", killed, resolution=(RESIZE, CROP), steps=STEPS,
        batch_size=BATCH, micro_batch=2, checkpoint_every=3, eval_every=0, keep_checkpoints=3,
        mixup=0.1, seed=SEED, resume=True,
    )  # fmt: skip
    assert (result.steps, result.stopped) == (STEPS, False)
    assert "the checkpoint shows that the options are those of the run" in caplog.text
    written = json.loads((killed / "run.json").read_text())
    assert written["recipe"] == record["recipe"]


def test_recipes_are_written_as_before():
    record = json.loads((OLD / "run.json").read_text())["recipe"]
    recipe = Recipe.from_dict(record)
    assert json.dumps(recipe.to_dict()) == json.dumps(record)
    assert [recipe.schedule.lr_at(step) for step in range(STEPS)] == LRS
