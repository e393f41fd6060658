"""The two proofs of parity: what they say of good conversions, and that they catch planted errors.

Each error that a converter or a network could make is planted, in the output, in the key mapping or
in the network, and the proof that should catch it must fail. The figures themselves are compared
with a network in tests/oracle/networks.py that shares no code with bitzoo.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import as_timm, make_checkpoint, timm_name, write_npz
from oracle.networks import run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from bitzoo.cli import main
from bitzoo.converters import convert, key_mapping, state_dict
from bitzoo.converters import identify as inventory
from bitzoo.converters.identify import identify
from bitzoo.converters.open import open_source
from bitzoo.converters.parity import logits as logits_proof
from bitzoo.converters.parity import reference_tensorflow
from bitzoo.converters.parity import verify as parity
from bitzoo.converters.parity import weights as weights_proof
from bitzoo.converters.parity.verify import Check, convert_and_prove, verify
from bitzoo.errors import CheckpointError, ParityError
from bitzoo.models import layers
from bitzoo.models.architecture import Role

DEEPER = (2, 1, 1, 1)
HE = make_checkpoint(DEEPER)
TINY_STD = make_checkpoint(DEEPER, kernel_std=0.001, seed=1)
FLOAT64, FLOAT32 = 1e-11, 1e-3
PROMISED = {"he": 2e-5, 0.001: 1e-4}
"""Relative L2 of float32 logits at kernel std, which the project promises and R50x1 keeps."""
ORACLE = f"NumPy {np.__version__} float64 reference"
SMALL_PROBES = ((48, 1), (33, 2))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small run no faster with more, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_oracle(monkeypatch):
    """As where TensorFlow is not installed; tests/oracle/test_tensorflow.py has the second one."""
    monkeypatch.setattr(reference_tensorflow, "is_installed", lambda: False)


@pytest.fixture
def default_probes():
    """Asks for the images that a user's conversion is proven with."""


@pytest.fixture(autouse=True)
def small_probes(request, monkeypatch):
    """Smaller images, which show every planted error too and cost a tenth."""
    if "default_probes" not in request.fixturenames:
        monkeypatch.setattr(logits_proof, "PROBES", SMALL_PROBES)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a.npz and a.safetensors, the good conversion of it; to be copied."""
    folder = tmp_path_factory.mktemp("good")
    source = write_npz(folder / "a.npz", HE)
    convert.convert(source)
    return folder


@pytest.fixture
def pair(good, tmp_path):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    return tmp_path / "a.npz", tmp_path / "a.safetensors"


def rewrite(path, change):
    """Change the tensors of a safetensors file; `change` gets them by name."""
    tensors = load_file(path)
    change(tensors)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, path, {"format": "pt"})


def prove(source, output):
    """Both proofs, each on its own."""
    with open_source(source) as first, open_source(output) as second:
        files = first, identify(first), second, identify(second)
        return weights_proof.prove_weights(*files), logits_proof.prove_logits(*files)


def largest_distance(logits):
    """Precision -> relative L2."""
    distance: dict[str, float] = {}
    for proof in logits:
        distance[proof.dtype] = max(distance.get(proof.dtype, 0), proof.relative_l2)
        assert proof.passed == (proof.relative_l2 <= proof.tolerance)
    return distance


# --- good conversions -----------------------------------------------------------------------------


@pytest.mark.usefixtures("default_probes")
@pytest.mark.parametrize(
    ("depths", "width", "kernel_std"),
    [((1, 1, 1, 1), 0.5, "he"), (DEEPER, 0.5, "he"), (DEEPER, 0.5, 0.001)],
)
def test_a_good_conversion_and_its_figures(tmp_path, depths, width, kernel_std):
    arrays = make_checkpoint(depths, width, kernel_std=kernel_std, seed=5)
    source = write_npz(tmp_path / "a.npz", arrays)
    conversion, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert report.weights.differing == ()
    assert report.weights.tensors == len(arrays)
    assert report.weights.params == sum(array.size for array in arrays.values())
    assert [(p.dtype, p.size, p.images) for p in report.logits] == [
        ("float64", 224, 1),
        ("float32", 224, 1),
        ("float64", 97, 2),
        ("float32", 97, 2),
    ]
    for proof in report.logits:
        limit = 1e-12 if proof.dtype == "float64" else PROMISED[kernel_std]
        assert 0 < proof.relative_l2 < limit
        assert proof.top1_equal == proof.images
        assert proof.oracle == f"{ORACLE} on the source's own names"
    assert conversion.output == tmp_path / "a.safetensors"


@pytest.mark.parametrize("arrays", [HE, TINY_STD])
def test_the_figures_are_those_of_another_implementation(tmp_path, monkeypatch, arrays):
    """The oracle's largest logit and the distance of a wrong network, computed outside bitzoo."""
    source = write_npz(tmp_path / "a.npz", arrays)
    output = convert.convert(source).output
    monkeypatch.setattr(layers.Stem, "pool", lambda self, x: F.max_pool2d(x, 3, 2, padding=1))
    with open_source(source) as first, open_source(output) as second:
        logits = logits_proof.prove_logits(first, identify(first), second, identify(second))
    for proof in logits:
        rng = np.random.default_rng(logits_proof.SEED)
        images = rng.uniform(-1, 1, (proof.images, proof.size, proof.size, 3)).astype(np.float32)
        right, wrong = (
            run(arrays, images.transpose(0, 3, 1, 2), root_padding=padding).logits
            for padding in (0.0, -float("inf"))
        )
        assert proof.max_logit == pytest.approx(right.abs().max().item(), rel=1e-12)
        precision = 1e-9 if proof.dtype == "float64" else 1e-2
        distance = ((wrong - right).norm() / right.norm()).item()
        assert proof.relative_l2 == pytest.approx(distance, rel=precision)
        assert proof.max_abs == pytest.approx((wrong - right).abs().max().item(), rel=precision)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_input_channels(tmp_path, in_chans):
    source = write_npz(tmp_path / "a.npz", make_checkpoint(in_chans=in_chans))
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert len(report.logits) == 4


def test_without_a_head_pooled_features_are_compared(tmp_path):
    arrays = make_checkpoint(num_classes=0)
    source = write_npz(tmp_path / "a.npz", arrays)
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    images = (
        np.random.default_rng(logits_proof.SEED).uniform(-1, 1, (1, 48, 48, 3)).astype(np.float32)
    )
    pooled = run(arrays, images.transpose(0, 3, 1, 2)).pooled
    assert report.passed
    assert report.logits[0].max_logit == pytest.approx(pooled.max().item(), rel=1e-12)


def test_a_head_of_zeros_does_not_hide_the_network(tmp_path):
    """As training starts; its logits are equal whatever the network does."""
    head = {
        "resnet/head/conv2d/kernel": np.zeros((1, 1, 1024, 10), np.float32),
        "resnet/head/conv2d/bias": np.zeros(10, np.float32),
    }
    source = write_npz(tmp_path / "a.npz", HE | head)
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert report.logits[0].oracle.endswith("without its head of zeros")
    assert report.logits[0].relative_l2 > 0
    swapped = swap("stages.0.blocks.0.norm2.weight", "stages.0.blocks.0.norm3.weight")
    rewrite(tmp_path / "a.safetensors", swapped)
    _, logits = prove(source, tmp_path / "a.safetensors")
    assert min(proof.relative_l2 for proof in logits) > 1e-3


def test_a_safetensors_source_is_no_witness_for_the_names(pair, tmp_path):
    _, report = convert_and_prove(pair[1], tmp_path / "b.safetensors")
    assert report.passed
    assert {proof.oracle for proof in report.logits} == {f"{ORACLE} on mapped names"}


@pytest.mark.full_size
@pytest.mark.usefixtures("default_probes")
@pytest.mark.parametrize("kernel_std", ["he", 0.001])
@pytest.mark.parametrize(
    ("depths", "width"), [((3, 4, 6, 3), 1), ((3, 8, 36, 3), 2)], ids=["R50x1", "R152x2"]
)
def test_full_size(tmp_path, depths, width, kernel_std):
    source = write_npz(tmp_path / "a.npz", make_checkpoint(depths, width, 21843, kernel_std))
    _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    distances = {(proof.dtype, proof.size): proof.relative_l2 for proof in report.logits}
    for (dtype, _), distance in distances.items():
        assert distance < (1e-12 if dtype == "float64" else PROMISED[kernel_std]), distances


# --- errors in the output -------------------------------------------------------------------------


def swap(one, other):
    def change(tensors):
        assert tensors[one].shape == tensors[other].shape
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return change


def transpose(name, *axes):
    def change(tensors):
        before = tensors[name]
        tensors[name] = before.transpose(axes)
        assert tensors[name].shape == before.shape

    return change


def flip(name, index=0, bit=0):
    def change(tensors):
        tensors[name].reshape(-1).view(np.uint32)[index] ^= np.uint32(1 << bit)

    return change


UNIT = "stages.0.blocks.0"
KERNELS = (f"{UNIT}.conv3.weight", f"{UNIT}.downsample.conv.weight")
IN_OUTPUT = {
    "two kernels swapped": (swap(*KERNELS), KERNELS),
    "kernels of two units swapped": (
        swap(f"{UNIT}.conv2.weight", "stages.0.blocks.1.conv2.weight"),
        (f"{UNIT}.conv2.weight", "stages.0.blocks.1.conv2.weight"),
    ),
    "scales swapped": (
        swap(f"{UNIT}.norm2.weight", f"{UNIT}.norm3.weight"),
        (f"{UNIT}.norm2.weight", f"{UNIT}.norm3.weight"),
    ),
    "scale and shift swapped": (swap("norm.weight", "norm.bias"), ("norm.weight", "norm.bias")),
    "square 1x1 kernel transposed": (
        transpose(f"{UNIT}.conv1.weight", 1, 0, 2, 3),
        (f"{UNIT}.conv1.weight",),
    ),
    "3x3 kernel: out and in": (
        transpose("stages.3.blocks.0.conv2.weight", 1, 0, 2, 3),
        ("stages.3.blocks.0.conv2.weight",),
    ),
    "3x3 kernel: height and width": (
        transpose(f"{UNIT}.conv2.weight", 0, 1, 3, 2),
        (f"{UNIT}.conv2.weight",),
    ),
    "3x3 kernel: both": (
        transpose(f"{UNIT}.conv2.weight", 1, 0, 3, 2),
        (f"{UNIT}.conv2.weight",),
    ),
    "stem: height and width": (transpose("stem.conv.weight", 0, 1, 3, 2), ("stem.conv.weight",)),
    "one sign": (flip("head.fc.weight", 77, bit=31), ("head.fc.weight",)),
    "one exponent": (flip("norm.bias", 5, bit=26), ("norm.bias",)),
}


@pytest.mark.parametrize("error", IN_OUTPUT)
def test_an_error_in_the_output_fails_each_proof_on_its_own(pair, error):
    change, touched = IN_OUTPUT[error]
    source, output = pair
    rewrite(output, change)
    weights, logits = prove(source, output)
    assert {timm_name(name) for name in weights.differing} == set(touched)
    assert not weights.passed
    assert not any(proof.passed for proof in logits if proof.dtype == "float64")
    assert largest_distance(logits)["float64"] > 100 * FLOAT64
    report = verify(source, output)
    assert not report.passed
    assert report.logits == ()  # the bits have spoken
    with pytest.raises(ParityError, match=rf"{len(touched)} of \d+ tensors differ from a\.npz"):
        report.require()


@pytest.mark.parametrize("name", ["stem.conv.weight", "norm.weight", "head.fc.bias", KERNELS[0]])
def test_one_flipped_bit_fails_the_proof_of_weights(pair, name):
    """The last bit of one number: logits in float32 could not tell."""
    source, output = pair
    rewrite(output, flip(name, index=-1, bit=0))
    report = verify(source, output, check=Check.WEIGHTS)
    assert [timm_name(found) for found in report.weights.differing] == [name]
    with pytest.raises(ParityError, match=f"{report.weights.differing[0]}.*Expected every bit"):
        report.require()


def test_a_sign_of_zero_is_a_bit_too(tmp_path):
    arrays = HE | {"resnet/head/conv2d/bias": np.zeros(10, np.float32)}
    source = write_npz(tmp_path / "a.npz", arrays)
    output = convert.convert(source).output
    rewrite(output, flip("head.fc.bias", 4, bit=31))
    assert verify(source, output, check=Check.WEIGHTS).weights.differing == (
        "resnet/head/conv2d/bias",
    )


def test_many_differences_are_summed_up(pair):
    source, output = pair
    rewrite(output, lambda tensors: [flip(name)(tensors) for name in tensors])
    report = verify(source, output)
    assert len(report.weights.differing) == len(HE)
    with pytest.raises(ParityError, match=f"and {len(HE) - 5} more. Expected every bit equal"):
        report.require()


# --- errors in the network ------------------------------------------------------------------------


def logits_only_fail(source, output, *, least):
    report = verify(source, output)
    distance = largest_distance(report.logits)
    assert report.weights.passed
    assert not report.passed
    assert distance["float64"] > least
    with pytest.raises(ParityError, match=r"does not compute what a\.npz does"):
        report.require()
    return distance


def plant_eps(monkeypatch, eps):
    right = layers.standardize_kernel
    monkeypatch.setattr(layers, "standardize_kernel", lambda weight: right(weight, eps))


def test_eps_of_other_libraries_at_small_kernels(tmp_path, monkeypatch):
    source = write_npz(tmp_path / "a.npz", TINY_STD)
    output = convert.convert(source).output
    plant_eps(monkeypatch, 1e-8)
    distance = logits_only_fail(source, output, least=1e-3)
    assert distance["float32"] > FLOAT32


def test_eps_of_other_libraries_at_he_scaled_kernels(pair, monkeypatch):
    """Below what float32 can show, which is why a network in float64 is compared too."""
    plant_eps(monkeypatch, 1e-8)
    distance = logits_only_fail(*pair, least=100 * FLOAT64)
    assert distance["float32"] < FLOAT32


def test_the_right_eps_passes_the_same_way(pair, monkeypatch):
    plant_eps(monkeypatch, 1e-10)
    assert verify(*pair).passed


@pytest.mark.usefixtures("default_probes")
def test_a_padded_max_pool(pair, monkeypatch):
    monkeypatch.setattr(layers.Stem, "pool", lambda self, x: F.max_pool2d(x, 3, 2, padding=1))
    logits_only_fail(*pair, least=1e-4)


def test_a_stride_in_the_wrong_place(pair, monkeypatch):
    """As the paper that invented the unit has it, on the first 1x1."""
    real = layers.Unit.__init__

    def misplaced(self, *arguments, **options):
        real(self, *arguments, **options)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride

    monkeypatch.setattr(layers.Unit, "__init__", misplaced)
    logits_only_fail(*pair, least=1e-2)


def test_another_eps_in_group_normalization(pair, monkeypatch):
    real = layers.GroupNormReLU.__init__

    def other(self, channels):
        real(self, channels)
        self.eps = 1e-6

    monkeypatch.setattr(layers.GroupNormReLU, "__init__", other)
    logits_only_fail(*pair, least=100 * FLOAT64)


def test_logits_that_are_no_numbers(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(
        layers.Head, "forward", lambda self, x, pre_logits=False: x[:, :10, 0, 0] * torch.nan
    )
    report = verify(*pair)
    assert report.weights.passed
    assert not report.passed
    with pytest.raises(ParityError, match=f"nan away from {ORACLE}"):
        report.require()
    parity.save_report(report, tmp_path / "r.json")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    saved = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert saved["a.safetensors"]["logits"][0]["relative_l2"] is None


# --- errors in the key mapping -------------------------------------------------------------------


@pytest.fixture
def fresh_table():
    key_mapping._patterns.cache_clear()
    yield
    key_mapping._patterns.cache_clear()


def swap_rows(monkeypatch, one, other):
    rows = key_mapping.TABLE[one]["timm"], key_mapping.TABLE[other]["timm"]
    monkeypatch.setitem(key_mapping.TABLE[one], "timm", rows[1])
    monkeypatch.setitem(key_mapping.TABLE[other], "timm", rows[0])
    key_mapping._patterns.cache_clear()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Role.NORM_SCALE, Role.NORM_SHIFT),
        (Role.FINAL_NORM_SCALE, Role.FINAL_NORM_SHIFT),
    ],
)
def test_swapped_rows_of_the_table(tmp_path, monkeypatch, fresh_table, one, other):
    """The mapping and its way back agree, so weights seem right; only logits tell."""
    source = write_npz(tmp_path / "a.npz", HE)
    with monkeypatch.context() as planted:
        swap_rows(planted, one, other)
        with pytest.raises(ParityError, match=r"does not compute what a\.npz does"):
            convert_and_prove(source, tmp_path / "a.safetensors")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz"]
        _, report = convert_and_prove(source, tmp_path / "b.safetensors", check=Check.WEIGHTS)
        assert report.passed
        logits_only_fail(source, tmp_path / "b.safetensors", least=1e-2)
    key_mapping._patterns.cache_clear()
    assert convert_and_prove(source, tmp_path / "a.safetensors")[1].passed
    assert not verify(source, tmp_path / "b.safetensors").passed


def test_a_table_that_confuses_the_second_and_third_norm(tmp_path, monkeypatch):
    def confused(name):
        before, mark, after = name.partition(".norm")
        return before + mark + after.translate(str.maketrans("23", "32"))

    def wrong_name(slot, format_):
        name = key_mapping.name_of(slot, format_)
        return confused(name) if format_ == "timm" else name

    def wrong_slot(name, format_):
        return key_mapping.slot_of(confused(name) if format_ == "timm" else name, format_)

    source = write_npz(tmp_path / "a.npz", make_checkpoint())
    for module in (convert, logits_proof, state_dict, inventory):
        monkeypatch.setattr(module, "name_of", wrong_name)
    monkeypatch.setattr(inventory, "slot_of", wrong_slot)
    output = convert.convert(source).output
    right = as_timm(make_checkpoint())
    found = load_file(output)
    assert found[f"{UNIT}.norm2.bias"].tolist() == right[f"{UNIT}.norm3.bias"].tolist()
    logits_only_fail(source, output, least=1e-2)


# --- pairs that are no pairs ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (make_checkpoint(), r"expected R\(2,1,1,1\)x0.5 with 10 classes.*found R\(1,1,1,1\)x0.5"),
        (make_checkpoint(DEEPER, num_classes=9), r"10 classes as in .*found .* with 9 classes"),
        (make_checkpoint(DEEPER, num_classes=0), "found .* with no head"),
        (make_checkpoint(DEEPER, in_chans=4), "found .* and 4 input channels"),
    ],
)
def test_another_architecture(tmp_path, other, said):
    source = write_npz(tmp_path / "a.npz", HE)
    output = convert.convert(write_npz(tmp_path / "b.npz", other)).output
    with pytest.raises(ParityError, match=said):
        verify(source, output, check=Check.WEIGHTS)


def test_a_gray_stem_is_not_three_equal_channels(tmp_path):
    """Which NumPy would broadcast, and find every bit equal."""
    stem = "resnet/root_block/standardized_conv2d/kernel"
    gray = make_checkpoint(in_chans=1)
    color = gray | {stem: np.repeat(gray[stem], 3, axis=2)}
    output = convert.convert(write_npz(tmp_path / "gray.npz", gray)).output
    with pytest.raises(ParityError, match=r"found .* with 10 classes and 1 input channels"):
        verify(write_npz(tmp_path / "color.npz", color), output, check=Check.WEIGHTS)


def test_a_damaged_output_is_no_pair(pair):
    source, output = pair
    output.write_bytes(output.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: its tensors end at byte"):
        verify(source, output)


# --- reports and exit codes -----------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """A command in this process: arguments -> exit code, stdout, stderr."""
    monkeypatch.setattr(main, "exit_on_signals", lambda: None)

    def call(*arguments):
        program = "bitzoo" if arguments[0] == "verify" else "bitzoo-convert"
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main.main() if program == "bitzoo" else main.convert_main()
        return exit_.value.code or 0, *capsys.readouterr()

    return call


def test_exit_code_0_and_the_report_beside_the_output(tmp_path, command):
    source = write_npz(tmp_path / "a.npz", HE)
    code, out, err = command("--src", source)
    assert code == 0, err  # which has lines of progress on a slow machine
    assert out.count(" ok") == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.safetensors", "parity.json"]
    report = json.loads((tmp_path / "parity.json").read_text())["a.safetensors"]
    assert report["passed"] is True
    assert report["architecture"] == "R(2,1,1,1)x0.5"
    assert report["num_classes"] == 10
    assert report["seed"] == 2020
    assert report["source"]["bytes"] == source.stat().st_size
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata()["source_sha256"] == report["source"]["sha256"]
    (group,) = report["weights"].pop("groups")
    assert (group["source"], group["output"], group["found"]) == (
        "float32",
        "float32",
        "every bit equal",
    )
    assert report["weights"] == {
        "tensors": len(HE),
        "params": sum(array.size for array in HE.values()),
        "differing": [],
        "passed": True,
        "rounded_to": None,
        "max_ulp": 0.0,
    }
    limits = [(proof["dtype"], proof["tolerance"], proof["size"]) for proof in report["logits"]]
    assert limits == [
        ("float64", FLOAT64, 48),
        ("float32", FLOAT32, 48),
        ("float64", FLOAT64, 33),
        ("float32", FLOAT32, 33),
    ]
    assert "relative L2 distance" in report["logits_rule"]
    assert command("verify", source, tmp_path / "a.safetensors")[0] == 0


def test_exit_code_1_and_no_output(tmp_path, command, monkeypatch):
    source = write_npz(tmp_path / "a.npz", TINY_STD)
    plant_eps(monkeypatch, 1e-8)
    code, out, err = command("--src", source, "--report", tmp_path / "failed.json")
    assert code == 1
    assert err.startswith("error: a.safetensors: float64 logits at 48 px are ")
    assert "do not use the output" in err
    assert "Traceback" not in err
    assert out.count("FAILED") >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "failed.json"]
    saved = json.loads((tmp_path / "failed.json").read_text())["a.safetensors"]
    assert saved["passed"] is False
    assert saved["weights"]["passed"] is True
    assert saved["logits"][0]["passed"] is False


def test_exit_code_1_keeps_what_was_there_before(pair, command, monkeypatch):
    source, output = pair
    before = output.read_bytes()
    plant_eps(monkeypatch, 1e-8)
    assert command("--src", source, "--force")[0] == 1
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.npz", "a.safetensors"]


def test_exit_code_1_of_verify(pair, command):
    source, output = pair
    rewrite(output, swap(*KERNELS))
    code, out, err = command("verify", source, output, "--report", output.with_name("v.json"))
    assert code == 1
    assert "2 of 54 tensors differ from a.npz" in err
    assert "resnet/block1/unit01/c/standardized_conv2d/kernel" in err
    assert "FAILED" in out
    saved = json.loads(output.with_name("v.json").read_text())["a.safetensors"]
    assert (saved["passed"], saved["logits"]) == (False, [])


def test_exit_code_2(pair, command, tmp_path):
    source, output = pair
    assert command("verify", source, tmp_path / "none.safetensors")[0] == 2
    assert command("verify", source, output, "--check", "none")[0] == 2
    assert command("--src", source)[0] == 2  # the output is there already
    assert command("--src", source, "--check", "thrice")[0] == 2
    (tmp_path / "bad.npz").write_bytes(b"PK")
    assert command("--src", tmp_path / "bad.npz")[0] == 2
    assert command("verify", tmp_path / "bad.npz", output)[0] == 2
