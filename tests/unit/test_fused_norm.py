"""The compiled group normalization: the same function and gradients, kept over a resume."""

import copy
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from images import write_digits
from training import make_data, make_model, make_recipe, sha256

import bitzoo
from bitzoo.models.layers import GroupNormReLU
from bitzoo.runs.config import Callbacks
from bitzoo.training import fused_norm, memory_layout
from bitzoo.training.activation_checkpointing import recompute_norms
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.fused_norm import FusedGroupNormReLU, fuse_norms, missing
from bitzoo.training.memory_layout import MemoryLayout
from bitzoo.training.trainer import Trainer, train
from bitzoo.training.training_config import TrainingConfig

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which(os.environ.get("CXX", "c++")),
    reason="the operator is compiled on Linux, with a C++ compiler",
)
LAST = torch.channels_last


@pytest.fixture(scope="module", autouse=True)
def operator(tmp_path_factory):
    """Compile it once, into a folder of the tests; it must be there wherever the tests run."""
    before = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = tmp_path_factory.mktemp("extensions")
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    missing.cache_clear()
    assert missing() is None
    yield folder
    if before is None:
        del os.environ["TORCH_EXTENSIONS_DIR"]


def make_layer(channels):
    layer = GroupNormReLU(channels)
    with torch.no_grad():
        layer.weight.uniform_(-1.5, 1.5)
        layer.bias.normal_()
    return layer.train()


def forward_and_backward(layer, x, grad):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(grad)
    return {
        "y": y.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad,
    }  # fmt: skip


class TestNumbers:
    @pytest.mark.parametrize("shape", [(3, 64, 9, 7), (2, 64, 3, 2), (5, 96, 17, 17)])
    @pytest.mark.parametrize("offset", [0.0, 100.0])
    def test_within_float32_of_float64(self, shape, offset):
        """And nearer to it than torch's own operators, whose sums lose digits to a far mean."""
        torch.manual_seed(0)
        layer = make_layer(shape[1])
        x = torch.randn(shape) + offset * torch.randn(shape[1], 1, 1)
        grad = torch.randn(shape)
        wide = copy.deepcopy(layer).double()
        wanted = forward_and_backward(wide, x.double(), grad.double())
        fuse_norms(layer)
        assert type(layer) is FusedGroupNormReLU
        found = forward_and_backward(
            layer, x.contiguous(memory_format=LAST), grad.contiguous(memory_format=LAST)
        )
        for name, tensor in found.items():
            error = (tensor.double() - wanted[name]).norm() / wanted[name].norm()
            assert error < 1e-6, (name, float(error))

    def test_bfloat16_is_float32_rounded(self):
        torch.manual_seed(1)
        layer = fused = make_layer(64)
        x = torch.randn(4, 64, 9, 9).bfloat16().contiguous(memory_format=LAST)
        grad = torch.randn(4, 64, 9, 9).bfloat16().contiguous(memory_format=LAST)
        fuse_norms(fused)
        wide = forward_and_backward(layer, x.float(), grad.float())
        found = forward_and_backward(fused, x, grad)
        assert found["y"].dtype == found["x"].dtype == torch.bfloat16
        for name in ("y", "x"):
            assert torch.equal(found[name], wide[name].bfloat16()), name
        for name in ("weight", "bias"):
            assert torch.equal(found[name], wide[name]), name

    def test_any_number_of_threads(self):
        torch.manual_seed(2)
        layer = make_layer(64)
        fuse_norms(layer)
        x, grad = (torch.randn(7, 64, 15, 15).contiguous(memory_format=LAST) for _ in range(2))
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(forward_and_backward(layer, x, grad))
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            for name, tensor in other.items():
                assert torch.equal(tensor, found[0][name]), name

    def test_what_is_not_finite_stays_so(self):
        layer = make_layer(32)
        fuse_norms(layer)
        x = torch.randn(2, 32, 4, 4).contiguous(memory_format=LAST)
        x[1, 5, 2, 2] = torch.nan
        y = layer(x)
        assert torch.isnan(y[1, 5]).all()
        assert torch.isfinite(y[0]).all()

    @pytest.mark.parametrize("form", ["evaluation", "contiguous", "float64", "float16"])
    def test_everything_else_is_the_plain_layer(self, form):
        torch.manual_seed(3)
        layer = make_layer(64)
        x = torch.randn(2, 64, 8, 8).contiguous(memory_format=LAST)
        if form == "evaluation":
            layer.eval()
        elif form == "contiguous":
            x = x.contiguous()
        elif form == "float64":
            layer, x = layer.double(), x.double()
        else:
            layer, x = layer.half(), x.half()
        wanted = layer(x)
        fuse_norms(layer)
        assert torch.equal(layer(x), wanted)
        fuse_norms(layer, False)
        assert type(layer) is GroupNormReLU

    @pytest.mark.parametrize("recompute", [False, True])
    def test_the_network_and_its_gradients(self, recompute):
        torch.manual_seed(4)
        plain = make_model()
        for parameter in plain.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model = copy.deepcopy(plain).to(memory_format=LAST).train()
        wide = plain.double().train()
        images = torch.randn(3, 3, 64, 64)
        wanted = wide(images.double())
        wanted.square().sum().backward()
        fuse_norms(model)
        recompute_norms(model, recompute)
        logits = model(images.contiguous(memory_format=LAST))
        logits.square().sum().backward()
        assert (logits.double() - wanted).norm() / wanted.norm() < 1e-5
        for (name, found), other in zip(model.named_parameters(), wide.parameters(), strict=True):
            error = (found.grad.double() - other.grad).norm() / other.grad.norm()
            assert error < 1e-4, (name, float(error))


def prefer_fused(monkeypatch):
    """Let training measure all forms, with real passes, and find the compiled operator fastest."""
    real = Trainer.time_pass

    def time_pass(trainer, form, count):
        assert real(trainer, form, count) > 0
        fused = [type(m) is FusedGroupNormReLU for m in trainer._model.modules()]
        assert any(fused) is form.fused
        return 1.0 if form.fused else 2.0

    monkeypatch.setattr(Trainer, "time_pass", time_pass)
    monkeypatch.setattr(memory_layout, "WORTH_MEASURING", 0)


def run(steps=4, model=None, **keywords):
    told: list[MemoryLayout] = []
    model, losses = model or make_model(), []
    pixels, labels = make_data()
    train(
        model, make_recipe(steps=steps), pixels, labels,
        keywords.pop("options", None) or TrainingConfig(),
        on_layout=told.append, on_step=lambda metrics: losses.append(metrics["loss"]), **keywords,
    )  # fmt: skip
    return model, losses, told[0]


class TestTraining:
    def test_resume_is_bit_for_bit(self, monkeypatch, tmp_path):
        prefer_fused(monkeypatch)
        whole, losses, layout = run()
        assert layout.fused
        assert not any(isinstance(m, FusedGroupNormReLU) for m in whole.modules())
        options = TrainingConfig(checkpoint_every=2)

        class KilledError(Exception):
            pass

        def die(metrics):
            if metrics["step"] == 3:
                raise KilledError

        pixels, labels = make_data()
        with pytest.raises(KilledError):
            train(
                make_model(), make_recipe(steps=4), pixels, labels, options,
                folder=tmp_path, on_step=die,
            )  # fmt: skip
        start = latest_checkpoint(tmp_path)
        assert start.meta["loop"]["layout"]["fused_norms"] is True
        monkeypatch.setattr(Trainer, "_measured_layout", None)  # it must not be measured again
        found, rest, layout = run(options=options, folder=tmp_path, start=start)
        assert layout.fused
        assert rest == losses[2:]
        assert sha256(found) == sha256(whole)

    def test_where_it_cannot_be_had(self, monkeypatch, tmp_path, caplog):
        prefer_fused(monkeypatch)
        run(steps=2, folder=tmp_path)
        start = latest_checkpoint(tmp_path)
        monkeypatch.setattr("bitzoo.training.trainer.missing", lambda: "there is no c++")
        with caplog.at_level(logging.WARNING):
            _, _, layout = run(steps=4, start=start)
        assert not layout.fused
        assert "cannot be had here: there is no c++. Training continues with torch's" in caplog.text


class TestWhatIsSaid:
    WHY = "was not tried: there is no ninja. It needs a C++ compiler, and ninja, which pip"

    def test_of_a_missing_operator(self, monkeypatch):
        monkeypatch.setattr(fused_norm, "missing", lambda: "there is no ninja")
        assert self.WHY in fused_norm.describe_missing(make_model())
        assert fused_norm.describe_missing(torch.nn.Linear(2, 2)) == ""
        monkeypatch.setattr(sys, "platform", "darwin")
        assert fused_norm.describe_missing(make_model()) == ""

    def test_of_one_that_is_there(self, monkeypatch):
        monkeypatch.setattr(fused_norm, "missing", lambda: None)
        assert fused_norm.describe_missing(make_model()) == ""

    @pytest.mark.parametrize("measured", [True, False])
    def test_a_long_run_says_it(self, measured, monkeypatch, tmp_path):
        write_digits(tmp_path / "data", per_class=4, val_per_class=1, classes=range(2))
        monkeypatch.setattr(fused_norm, "missing", lambda: "there is no ninja")
        monkeypatch.setattr("bitzoo.training.trainer.missing", lambda: "there is no ninja")
        if measured:
            monkeypatch.setattr(memory_layout, "WORTH_MEASURING", 0)
        said: list[str] = []
        bitzoo.pretrain(
            "R(1,1,1,1)x0.5", tmp_path / "data", tmp_path / "run", steps=1, batch_size=4,
            resolution=32, workers=1, log="none", progress=False,
            callbacks=Callbacks(said.append),
        )  # fmt: skip
        assert any(self.WHY in text for text in said) is measured


def ask_for_it(folder, **environment):
    code = "from bitzoo.training.fused_norm import missing; print(missing())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(folder), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


class TestCompiling:
    def test_is_once_and_quiet(self, operator):
        (library,) = (operator / "bitzoo").glob("*.so")
        before = library.stat()
        assert ask_for_it(operator) == "None"
        assert library.stat().st_mtime_ns == before.st_mtime_ns
        assert sorted(p.suffix for p in library.parent.iterdir()) == [".lock", ".so"]

    def test_without_a_compiler(self, tmp_path):
        assert ask_for_it(tmp_path, CXX="no-such-c++") == "there is no no-such-c++"

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "bitzoo").write_text("a file")
        assert "bitzoo" in ask_for_it(tmp_path)

    def test_a_damaged_library(self, operator, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
        damaged = fused_norm._library()
        damaged.parent.mkdir()
        damaged.write_bytes(b"\x7fELF")
        assert ask_for_it(tmp_path) == f"Could not load this library: {damaged}"
