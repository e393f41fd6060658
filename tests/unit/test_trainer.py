"""The training loop learns, equals a plain loop, and interruptions do not change its result."""

import os
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from training import (
    CLASSES,
    CROP,
    RESIZE,
    Digits,
    InProcess,
    digits,
    make_data,
    make_model,
    make_recipe,
    resume_and_finish,
    sha256,
    weights_of,
)

from bitzoo.data.loader import BatchPlan, materialize
from bitzoo.errors import FoldedModelError, TensorMismatchError, UsageError
from bitzoo.models.bit import fold
from bitzoo.training import micro_batch_size, trainer
from bitzoo.training.activation_checkpointing import checkpoint_blocks
from bitzoo.training.checkpointing import SaveError, latest_checkpoint
from bitzoo.training.trainer import TrainingError, train
from bitzoo.training.training_config import TrainingConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: two on a busy machine wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(recipe=None, options=None, model=None, data=None, **keywords):
    """Train; return the model, the loss of each step and the result."""
    model = model or make_model()
    log: list[float] = []
    hook = keywords.pop("on_step", lambda metrics: None)

    def on_step(metrics):
        log.append(metrics["loss"])
        hook(metrics)

    pixels, labels = data or make_data()
    options = options or TrainingConfig()
    recipe = recipe or make_recipe()
    result = train(model, recipe, pixels, labels, options, on_step=on_step, **keywords)
    return model, log, result


def stop_at(step):
    """An `on_step` that ends the run after an update as a scheduler does, with SIGTERM."""

    def end(metrics):
        if metrics["step"] == step:
            signal.raise_signal(signal.SIGTERM)

    return end


def assert_close(model, expected, tolerance=1e-5):
    for name, tensor in expected.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def whole():
    """Weights and losses of a run whose batches are not split."""
    torch.set_num_threads(1)
    model, log, _ = run()
    return weights_of(model), log


@pytest.fixture(scope="module")
def uninterrupted():
    """The weights' hash of an uninterrupted run in micro-batches."""
    torch.set_num_threads(1)
    return sha256(run(options=TrainingConfig(micro_batch=4))[0])


class TestLearning:
    def test_digits(self):
        images, labels = digits()
        held_out = torch.from_numpy(images[1400:, 2:34, 2:34]).permute(0, 3, 1, 2) / 127.5 - 1
        recipe = make_recipe(steps=30, batch_size=24, mixup=0, lr=0.01)
        model, log, _ = run(recipe, data=make_data(1400))
        assert log[0] == pytest.approx(np.log(CLASSES), abs=1e-5)  # the head starts at zero
        assert np.mean(log[-5:]) < 0.75 * log[0]
        with torch.no_grad():
            accuracy = (model(held_out).argmax(1).numpy() == labels[1400:]).mean()
        assert accuracy > 0.35  # chance is 0.1

    def test_reports_each_step(self):
        recipe = make_recipe(steps=5, warmup=2, boundaries=(3,))
        seen: list[dict[str, float]] = []
        _, log, result = run(recipe, on_step=seen.append)
        assert [metrics["step"] for metrics in seen] == [1, 2, 3, 4, 5]
        expected = [0, 0.0015, 0.003, 0.003, 0.0003]
        assert [metrics["lr"] for metrics in seen] == pytest.approx(expected, rel=1e-12)
        assert all(metrics["images_per_s"] > 0 for metrics in seen)
        assert (result.step, result.stopped, result.loss) == (5, False, log[-1])
        assert (result.micro_batch, result.checkpoint) == (8, None)
        assert result.images_per_s > 0

    def test_evaluates_as_scheduled_and_continues_training(self):
        evaluated = []
        model = make_model()

        def on_eval(step):
            model.eval()
            evaluated.append((step, fold(model)(torch.zeros(1, 3, CROP, CROP)).tolist()))

        run(model=model, options=TrainingConfig(eval_every=2), on_eval=on_eval)
        assert [step for step, _ in evaluated] == [2, 4]
        assert evaluated[0][1] != evaluated[1][1]
        assert sha256(model) == sha256(run()[0])
        assert not model.training


class TestEqualsPlainLoop:
    RATES = (0.0, 0.003, 0.006, 0.006, 0.0006, 0.0006)  # warmup 2, base 0.006, boundary 3

    @pytest.mark.parametrize(
        ("mixup", "decay", "freeze"), [(0.2, 0, False), (0, 1e-2, False), (0.2, 0, True)]
    )
    def test_weights_and_losses(self, mixup, decay, freeze):
        model, (pixels, labels) = make_model(), make_data()
        names = [name for name, _ in model.named_parameters() if not freeze or "head" in name]
        parameters = [dict(model.named_parameters())[name] for name in names]
        optimizer = torch.optim.SGD(parameters, lr=1, momentum=0.9, weight_decay=decay)
        plan = BatchPlan(40, 8, RESIZE, CROP, True, mixup, seed=5)
        losses = []
        for step, rate in enumerate(self.RATES):
            images, targets = materialize(
                plan.batch(step), slice(0, 8), pixels, labels, CLASSES, CROP
            )
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = -(targets * model(images).log_softmax(1)).sum(1).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        recipe = make_recipe(lr=0.006, warmup=2, boundaries=(3,), mixup=mixup, weight_decay=decay)
        found, log, _ = run(recipe, TrainingConfig(seed=5, freeze=freeze, channels_last=False))
        assert_close(found, weights_of(model))
        assert log == pytest.approx(losses, abs=1e-5)
        moved = {
            n for n, t in weights_of(make_model()).items() if not t.equal(found.state_dict()[n])
        }
        assert moved == set(names)
        assert all(parameter.requires_grad for parameter in found.parameters())


class TestSplits:
    @pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 100])
    def test_micro_batches_only_change_rounding(self, whole, micro_batch):
        model, log, result = run(options=TrainingConfig(micro_batch=micro_batch))
        assert_close(model, whole[0])
        assert log == pytest.approx(whole[1], abs=1e-5)
        assert result.micro_batch == micro_batch

    @pytest.mark.parametrize(
        "options",
        [
            {"recompute_norms": True},
            {"checkpoint_blocks": True},
            {"recompute_norms": True, "checkpoint_blocks": True, "micro_batch": 4},
            {"channels_last": False},
        ],
    )
    def test_memory_options_only_change_rounding(self, whole, options):
        model, log, _ = run(options=TrainingConfig(**options))
        assert_close(model, whole[0])
        assert log == pytest.approx(whole[1], abs=1e-5)
        assert {type(module) for module in model.modules()} == {
            type(module) for module in make_model().modules()
        }

    @pytest.mark.parametrize(
        "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.full_size)]
    )  # CPUs compute float16 slowly
    def test_half_precision_follows_float32(self, whole, dtype):
        model, log, _ = run(options=TrainingConfig(dtype=dtype))
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        assert log == pytest.approx(whole[1], abs=0.05)
        assert log[1:] != whole[1][1:]
        before = weights_of(make_model())
        for name, expected in whole[0].items():
            moved = (expected - before[name]).norm()
            assert (model.state_dict()[name] - expected).norm() < 0.2 * moved + 1e-3, name

    @pytest.mark.full_size
    def test_compiled(self, whole, monkeypatch):
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
        model, log, _ = run(options=TrainingConfig(compile=True))
        assert_close(model, whole[0])
        assert log == pytest.approx(whole[1], abs=1e-5)


class TestOutOfMemory:
    """A device that holds three images; with more, the forward pass runs out of memory."""

    ERRORS = (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    )

    @staticmethod
    def limit(model, error, most=3, after=0):
        forward, calls = model.forward_features, []

        def limited(images):
            calls.append(len(images))
            if images.shape[0] > most and len(calls) > after:
                raise error
            return forward(images)

        model.forward_features = limited
        return model

    @pytest.fixture(autouse=True)
    def no_estimate(self, monkeypatch):
        monkeypatch.setattr(trainer, "choose_micro_batch", lambda forward, image, rows: rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    def test_halves_until_it_fits(self, error, caplog):
        recipe = make_recipe(steps=2)
        model, log, result = run(recipe, model=self.limit(make_model(), error))
        expected = run(recipe, TrainingConfig(micro_batch=2))
        assert result.micro_batch == 2
        assert (sha256(model), log) == (sha256(expected[0]), expected[1])
        assert "Out of memory: continuing with micro-batches of 4 images." in caplog.text
        assert "Out of memory: continuing with micro-batches of 2 images." in caplog.text

    def test_in_the_middle_of_a_run_repeats_that_step(self, whole):
        model, log, result = run(model=self.limit(make_model(), self.ERRORS[0], after=3))
        assert result.micro_batch == 2
        assert log[:3] == whole[1][:3]
        assert log == pytest.approx(whole[1], abs=1e-5)
        assert_close(model, whole[0])

    def test_in_a_later_micro_batch_leaves_no_gradient_behind(self, whole):
        # 8 rows in micro-batches of at most 6 and 2; the error comes in the second one of a step.
        model = make_model()
        forward, calls = model.forward_features, []

        def limited(images):
            calls.append(len(images))
            if len(calls) == 4:
                raise self.ERRORS[0]
            return forward(images)

        model.forward_features = limited
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "choose_micro_batch", lambda forward, image, rows: 6)
            run(model=model, options=TrainingConfig(channels_last=True))  # nothing is measured
        assert calls[:8] == [6, 2, 6, 2, 3, 3, 2, 3]
        assert_close(model, whole[0])

    def test_an_image_that_does_not_fit_is_an_error(self):
        model = self.limit(make_model(), self.ERRORS[0], most=0)
        message = r"^Out of memory on cpu: even one image of 32 x 32 does not fit\. Use `dtype="
        with pytest.raises(TrainingError, match=message):
            run(model=model)

    def test_a_size_that_the_user_chose_is_not_changed(self):
        model = self.limit(make_model(), self.ERRORS[0])
        message = r"a micro-batch of 4 images of 32 x 32 does not fit\. Use a smaller `micro_batch`"
        with pytest.raises(TrainingError, match=message):
            run(model=model, options=TrainingConfig(micro_batch=4))

    def test_other_errors_pass(self):
        model = self.limit(make_model(), RuntimeError("shapes do not fit"))
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            run(model=model)


class TestEstimate:
    def test_counts_what_an_image_adds(self):
        model = make_model().train()
        image = torch.zeros(1, 3, 64, 64)
        one = micro_batch_size.saved_bytes(model, image)
        two = micro_batch_size.saved_bytes(model, image.repeat(2, 1, 1, 1))
        kernels = 4 * sum(parameter.numel() for parameter in model.parameters())
        each = two - one
        assert one - each == pytest.approx(2 * kernels, rel=0.1)  # the raw and standardized ones
        # The stem's map at 32 x 32, 16 x 16 ... as the architecture says; in floats, per image.
        maps = 32 * 32 * 32 + 32 * 34 * 34 + (32 + 32 + 128) * 16 * 16
        assert maps * 4 < each < 6 * maps * 4
        checkpoint_blocks(model)
        assert micro_batch_size.saved_bytes(model, image) < one - 0.3 * each

    @pytest.mark.parametrize(
        ("images_that_fit", "chosen"), [(1000, 100), (100, 100), (99, 50), (30, 25), (1, 1), (0, 1)]
    )
    def test_returns_all_or_a_half_or_a_quarter(self, monkeypatch, images_that_fit, chosen):
        monkeypatch.setattr(
            micro_batch_size, "memory_for_maps", lambda d: images_that_fit * 400 + 10
        )
        weight = torch.ones(1, requires_grad=True)
        image = torch.zeros(1, 4, 5, 5)  # 400 bytes, stored by the square
        assert micro_batch_size.choose_micro_batch(lambda x: (x * weight).square(), image, 100) in (
            chosen,
            -(-chosen // 2),
        )

    def test_memory_of_the_cpu_is_shared_by_its_processes(self, monkeypatch):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        alone = micro_batch_size.memory_for_maps(torch.device("cpu"))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert micro_batch_size.memory_for_maps(torch.device("cpu")) == alone // 4
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 2**20 < alone <= physical / 4


class TestResume:
    @pytest.mark.parametrize("stop", [1, 2, 3, 5])
    def test_at_any_step_bit_for_bit(self, tmp_path, uninterrupted, stop):
        _, _, result = run(
            options=TrainingConfig(micro_batch=4),
            folder=tmp_path,
            on_step=stop_at(stop),
        )
        assert (result.step, result.stopped) == (stop, True)
        start = latest_checkpoint(tmp_path)
        assert start.path == result.checkpoint
        model, log, result = run(model=make_model(seed=9), folder=tmp_path, start=start)
        assert sha256(model) == uninterrupted
        assert (len(log), result.step, result.stopped) == (6 - stop, 6, False)
        assert result.micro_batch == 4  # as in the checkpoint

    @pytest.mark.slow
    def test_in_a_fresh_process(self, tmp_path, uninterrupted):
        options = TrainingConfig(micro_batch=4)
        run(options=options, folder=tmp_path, on_step=stop_at(1))
        found = InProcess(resume_and_finish, str(tmp_path), make_recipe(), options).result()
        assert found == uninterrupted

    def test_past_a_damaged_checkpoint(self, tmp_path, uninterrupted, caplog):
        run(
            options=TrainingConfig(micro_batch=4, checkpoint_every=1),
            folder=tmp_path,
            on_step=stop_at(4),
        )
        newest = tmp_path / "step-00000004.safetensors"
        content = bytearray(newest.read_bytes())
        content[-1] ^= 1
        newest.write_bytes(content)
        start = latest_checkpoint(tmp_path)
        assert start.step == 3
        assert f"{newest} is damaged" in caplog.text
        assert sha256(run(start=start, folder=tmp_path)[0]) == uninterrupted

    def test_of_a_finished_run_changes_nothing(self, tmp_path, uninterrupted):
        options = TrainingConfig(micro_batch=4, checkpoint_every=0)
        _, _, first = run(options=options, folder=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000006.safetensors"]
        model, log, result = run(start=latest_checkpoint(tmp_path), folder=tmp_path)
        assert (log, result.step, result.loss, result.checkpoint) == ([], 6, None, None)
        assert first.checkpoint.exists()
        assert sha256(model) == uninterrupted

    @pytest.mark.full_size
    def test_scaled_float16(self, tmp_path):
        options = TrainingConfig(dtype="float16")
        whole = sha256(run(options=options)[0])
        run(
            options=options,
            folder=tmp_path,
            on_step=stop_at(3),
        )
        start = latest_checkpoint(tmp_path)
        assert start.meta["loop"]["scaler"]["_growth_tracker"] == 3
        assert sha256(run(options=options, start=start)[0]) == whole

    def test_of_another_network_is_refused(self, tmp_path):
        run(folder=tmp_path, on_step=stop_at(1))
        start = latest_checkpoint(tmp_path)
        with pytest.raises(TensorMismatchError, match=r"\+ model.head.fc.bias \(10,\).*- model.he"):
            run(model=make_model(num_classes=12), start=start)

    def test_with_other_threads_warns(self, tmp_path, caplog):
        run(folder=tmp_path, on_step=stop_at(1))
        torch.set_num_threads(2)
        run(make_recipe(steps=2), start=latest_checkpoint(tmp_path))
        assert "The run had threads 1, now it has 2" in caplog.text

    def test_full_disk_ends_the_run_and_keeps_the_last_checkpoint(self, tmp_path, monkeypatch):
        seen = []

        def fill_disk(metrics):
            seen.append(metrics)
            if len(seen) == 3:
                monkeypatch.setattr(os, "fsync", _no_space)

        with pytest.raises(SaveError, match=r"No space left.*stays: .*step-00000002.safetensors"):
            run(options=TrainingConfig(checkpoint_every=2), folder=tmp_path, on_step=fill_disk)
        assert len(seen) == 4
        assert latest_checkpoint(tmp_path).step == 2


def _no_space(*args):
    raise OSError(28, os.strerror(28))


class TestKilled:
    """`kill -9` and resume until the end; then the weights equal the uninterrupted run's."""

    OPTIONS = TrainingConfig(micro_batch=4, checkpoint_every=2)

    def killed_and_resumed(self, folder, recipe, kills, rng):
        for _ in range(kills):
            child = InProcess(resume_and_finish, str(folder), recipe, self.OPTIONS)
            for _ in range(rng.randint(1, 4)):
                child.next()
            time.sleep(rng.random() * 0.1)  # anywhere in a step, or in writing a checkpoint
            child.kill()
        return InProcess(resume_and_finish, str(folder), recipe, self.OPTIONS).result()

    def test_twice(self, tmp_path):
        recipe = make_recipe(steps=30)
        expected = sha256(run(recipe, self.OPTIONS)[0])
        assert self.killed_and_resumed(tmp_path, recipe, 2, random.Random(0)) == expected

    @pytest.mark.full_size
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_five_times(self, tmp_path, seed):
        recipe = make_recipe(steps=80)
        expected = sha256(run(recipe, self.OPTIONS)[0])
        assert self.killed_and_resumed(tmp_path, recipe, 5, random.Random(seed)) == expected


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stop_after_the_step_with_a_checkpoint(self, tmp_path, number, caplog):
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

        def send(metrics):
            if metrics["step"] == 2:
                os.kill(os.getpid(), number)

        _, log, result = run(folder=tmp_path, on_step=send)
        assert (result.step, result.stopped, len(log)) == (2, True, 2)
        assert latest_checkpoint(tmp_path).step == 2
        # by the time that it is heard, the checkpoint may be being written
        assert re.search(f"{number.name}: stopping after this (step|checkpoint)", caplog.text)
        assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def test_the_second_one_acts_immediately(self, tmp_path):
        def send_twice(metrics):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run(folder=tmp_path, on_step=send_twice)
        assert list(tmp_path.iterdir()) == []

    def test_at_the_last_step_the_run_is_finished(self, tmp_path):
        def send(metrics):
            if metrics["step"] == 6:
                os.kill(os.getpid(), signal.SIGTERM)

        assert not run(folder=tmp_path, on_step=send)[2].stopped

    def test_are_not_handled_outside_the_main_thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.append(run(make_recipe(steps=1))[2].step))
        thread.start()
        thread.join()
        assert found == [1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            (
                {"loss": "hinge"},
                "an unknown loss: expected one of distillation, sigmoid_cross_entropy, "
                "softmax_cross_entropy, found 'hinge'",
            ),
            (
                {"optimizer": "adam"},
                "an unknown optimizer: expected one of adamw, sgd, found 'adam'",
            ),
            (
                {"augmentation": "cutout"},
                "an unknown augmentation: expected one of inception_crop, resize_crop, found 'cut",
            ),
            (
                {"loss_options": {"a": 1}},
                r"expected of .* only class_weights balanced, found \{'a': 1\}",
            ),
        ],
    )
    def test_of_unknown_recipes(self, changes, says):
        with pytest.raises(UsageError, match=says):
            run(make_recipe(**changes))

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (np.zeros(39, int), "found 39 labels for 40 images"),
            (np.full(40, 10), "from 0 to 9.*found 10 to 10.*num_classes=11"),
            (np.full(40, -1), "found -1 to -1"),
        ],
    )
    def test_of_labels_that_do_not_fit(self, labels, says):
        with pytest.raises(UsageError, match=says):
            run(data=(make_data()[0], labels))

    def test_of_images_of_another_size(self):
        images = Digits(np.zeros((40, 48, 48, 3), np.uint8))
        with pytest.raises(UsageError, match="expected 40 of edge 36, found 40 of edge 48"):
            run(data=(images, make_data()[1]))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"dtype": "int8"}, "`dtype` must be one of float32, bfloat16, float16, found 'int8'"),
            ({"micro_batch": 0}, "`micro_batch` must be at least 1, found 0"),
            ({"checkpoint_every": -1}, "`checkpoint_every` must be at least 0, found -1"),
        ],
    )
    def test_of_options(self, options, says):
        with pytest.raises(UsageError, match=says):
            TrainingConfig(**options)

    def test_of_a_folded_model(self):
        with pytest.raises(FoldedModelError, match="cannot train"):
            run(model=fold(make_model()))

    def test_to_continue_with_a_loss_that_is_not_finite(self, tmp_path):
        model = make_model()
        with torch.no_grad():
            model.head.fc.bias[0] = float("nan")
        with pytest.raises(TrainingError, match=r"loss at step 0 must be a finite number, found n"):
            run(model=model, folder=tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert not model.training
