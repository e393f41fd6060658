"""`bitzoo.<name>`: each command is a documented, typed function whose result shows itself."""

import inspect
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz

import bitzoo
from bitzoo.catalogue.class_names import class_names
from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.protocols import Claim, Protocol
from bitzoo.catalogue.registry import find_spec
from bitzoo.catalogue.run_info import TeacherInfo
from bitzoo.cli.main import app
from bitzoo.converters.dtypes import CHECKPOINT_DTYPES
from bitzoo.converters.formats.checkpoint_formats import FORMATS
from bitzoo.converters.parity import logits, reference_tensorflow
from bitzoo.converters.parity.deviation import Deviation
from bitzoo.converters.parity.logits import LogitsProof
from bitzoo.converters.parity.verify import Check, ParityReport
from bitzoo.converters.parity.weights import WeightsProof
from bitzoo.display import MAX_LINES, Displayed
from bitzoo.errors import CheckpointError, HubError, ParityError, UsageError
from bitzoo.exporters import export_formats
from bitzoo.exporters.export import ExportReport, Judged
from bitzoo.exporters.quantize import Quantization
from bitzoo.hub.publish import BatchPlan, PublishResult, PublishResults
from bitzoo.hub.repo_manifest import FileRecord
from bitzoo.hub.staging import Prepared
from bitzoo.hub.targets import CheckpointFile
from bitzoo.hub.upload import Plan, Publication
from bitzoo.inference.backends import BACKENDS
from bitzoo.inference.exports import EXPORT_DTYPES
from bitzoo.inference.int8_report import Compared, Int8Report, Speed
from bitzoo.inference.metrics import Evaluation
from bitzoo.inference.optimize import COMPUTE_DTYPES
from bitzoo.inference.predict import Guess, Prediction, Predictions
from bitzoo.models import layers
from bitzoo.models.architecture import ARCHITECTURES, Architecture
from bitzoo.runs.distill import DistillResult
from bitzoo.runs.fewshot import Method
from bitzoo.runs.fewshot_result import FewShotResult, Trial
from bitzoo.runs.finetune import FinetuneResult
from bitzoo.runs.measuring import Measured
from bitzoo.runs.pretrain import PretrainResult
from bitzoo.runs.probe_result import Probed, ProbeResult
from bitzoo.runs.reproduce import Reproduction
from bitzoo.runs.study_cell import Score
from bitzoo.runs.study_grid import Cell, StudyPlan
from bitzoo.runs.study_result import StudyResult
from bitzoo.runs.teaching import Teaching
from bitzoo.runs.vtab_result import RunScore, TaskScore, VtabResult
from bitzoo.training.hyperrule import Edition, hyperrule
from bitzoo.zoo.conversion import ConversionResult

FUNCTIONS = sorted(set(bitzoo.__all__) - {"ModelInfo", "ModelSpec", "__version__"})
COMMANDS = {
    "card": "card",
    "convert": "convert",
    "distill": "distill",
    "evaluate": "evaluate",
    "export": "export",
    "fewshot": "fewshot",
    "finetune": "finetune",
    "hyperrule": "hyperrule",
    "info": "info",
    "list": "list_models",
    "predict": "predict",
    "pretrain": "pretrain",
    "probe": "probe",
    "publish": "publish",
    "reproduce": "reproduce",
    "resume": "resume",
    "study": "study",
    "verify": "verify",
    "vtab": "vtab",
}
"""Command -> the function that does the same."""

PRINTING = {"version", "json", "format", "debug", "yes", "list_"}
"""Options that decide only what is asked and printed."""

GIVEN_IN_TWO_WAYS = {"arch", "model", "models", "src", "student"}
"""What a command works on: its first argument, or an option."""


# --- functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_documented_and_typed(name):
    function = getattr(bitzoo, name)
    assert isinstance(function, types.FunctionType)
    signature = inspect.signature(function)
    doc = inspect.getdoc(function)
    assert "\nArgs:\n" in doc
    # a section, or the first words where returning something is all it does
    assert "\nReturns:\n" in doc or re.match(r"(Return|The) ", doc)
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), parameter
        assert re.search(rf"^ +{parameter.name}: \S", doc, re.MULTILINE), parameter


def test_every_name_resolves_and_no_other():
    assert set(FUNCTIONS) | {"ModelInfo", "ModelSpec"} == set(bitzoo._HOMES)
    assert dir(bitzoo) == sorted(bitzoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bitzoo.nonsense  # noqa: B018


IMPORT_ALL = """
import importlib, pkgutil, sys, types
sys.modules["tensorflow"] = None
import bitzoo
for module in pkgutil.walk_packages(bitzoo.__path__, "bitzoo."):
    if module.name != "bitzoo.__main__":
        importlib.import_module(module.name)
print(*(name for name in bitzoo.__all__ if isinstance(getattr(bitzoo, name), types.FunctionType)))
print(*(name for name in vars(bitzoo) if name in bitzoo.__all__))
"""


def test_importing_submodules_leaves_functions_alone():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    functions, shadowed = done.stdout.splitlines()
    assert functions.split() == FUNCTIONS
    assert shadowed.split() == ["__version__"]


# --- commands -------------------------------------------------------------------------------------


def given(command):
    """What a command passes on if only what it needs is given, by name."""
    words = []
    for parameter in command.params:
        alone = command.name == "reproduce" and parameter.name == "model_argument"
        if parameter.required or alone or parameter.name == "src_argument":
            value = {"num_examples": "5", "to": "onnx"}.get(parameter.name, "x")
            words += (
                [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
            )
    return command.make_context("x", words).params


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_options_are_its_functions_parameters(name):
    command, function = app.commands[name], getattr(bitzoo, COMMANDS[name])
    printing = PRINTING | ({"out"} if name == "card" else set())
    parameters = dict(inspect.signature(function).parameters)
    if name == "hyperrule":  # with --measure, `forecast`, where a resolution is that of training
        printing = printing | {"measure"}
        parameters["image_size"] = parameters.pop("resolution")
        ahead = inspect.signature(bitzoo.forecast).parameters
        assert set(ahead) - {option.name for option in command.params} == {"progress"}
        parameters = {**ahead, **parameters}
        for needed in ("data", "num_examples", "image_size"):  # one way or the other
            parameters[needed] = parameters[needed].replace(default=None)
    values = {name.removesuffix("_argument"): value for name, value in given(command).items()}
    named = {option.name.removesuffix("_argument") for option in command.params}
    assert named - printing <= set(parameters)
    for option in command.params:
        if option.name.removesuffix("_argument") in GIVEN_IN_TWO_WAYS:
            continue
        default = parameters[option.name].default if option.name not in printing else None
        if option.name not in printing and not option.required:
            assert (values[option.name] or None) == (default or None), option.name


def test_every_command_is_a_function():
    assert set(app.commands) - set(COMMANDS) == {"completion", "quickstart"}


@pytest.mark.parametrize(
    ("command", "option", "known"),
    [
        ("convert", "to", FORMATS),
        ("convert", "dtype", CHECKPOINT_DTYPES),
        ("convert", "check", [check.value for check in Check]),
        ("verify", "check", [check.value for check in Check]),
        ("export", "to", export_formats.FORMATS),
        ("export", "dtype", EXPORT_DTYPES),
        ("evaluate", "dtype", COMPUTE_DTYPES),
        ("evaluate", "backend", BACKENDS),
        ("predict", "dtype", COMPUTE_DTYPES),
        ("predict", "backend", BACKENDS),
        ("fewshot", "dtype", COMPUTE_DTYPES),
        ("fewshot", "edition", get_args(Edition)),
        ("fewshot", "method", get_args(Method)),
        ("finetune", "dtype", COMPUTE_DTYPES),
        ("finetune", "edition", get_args(Edition)),
        ("hyperrule", "edition", get_args(Edition)),
        ("probe", "dtype", COMPUTE_DTYPES),
        ("probe", "backend", BACKENDS),
        ("reproduce", "edition", get_args(Edition)),
        ("reproduce", "dtype", COMPUTE_DTYPES),
    ],
)
def test_choices_are_what_the_library_knows(command, option, known):
    (found,) = (param for param in app.commands[command].params if param.name == option)
    assert set(found.type.choices) == set(known)  # type: ignore[attr-defined]


# --- results --------------------------------------------------------------------------------------

EVIL = "<script>alert('x')</script>\n\x1b[2J"


def prepared():
    files = {f"{EVIL}{number}": FileRecord(7, "ab" * 32) for number in range(20)}
    return Prepared("lab/x", EVIL, Path(EVIL), files, kept=True)


def results():
    labels, logits = np.array([0, 1, 1, 0]), np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    evaluation = Evaluation.of_logits([EVIL, "b"], labels, logits)
    prediction = Prediction(EVIL, tuple(Guess(EVIL, n, 0.5) for n in range(30)))
    target = CheckpointFile(Path(f"{EVIL.replace(chr(47), chr(92))}.npz"))
    plan = Plan(prepared(), None, dict.fromkeys(prepared().files, "new"))
    publication = Publication("lab/x", "published", "c" * 40, 7, EVIL, "v1", prepared().files)
    result = PublishResult(target, "lab/x", error=UsageError(EVIL))
    known = ModelInfo(
        "R50x1", 2, identity=Identity(None, "unknown", EVIL), own_names=(EVIL, "b"), license=EVIL
    )
    run = FinetuneResult(
        Path(EVIL), hyperrule(100, (32, 32)), 500, False, evaluation, images_per_s=1234.5
    )
    figure = Claim(
        EVIL, EVIL, "top-1", EVIL, 9.5, EVIL, EVIL, Protocol("evaluate", EVIL), remarks=(EVIL,)
    )
    measured = Measured(9.0, 8.0, 10.0, EVIL, (9.0,), 7, EVIL, {EVIL: 9.0}, {EVIL: EVIL})
    return [
        ConversionResult(
            Path(EVIL), "ab" * 32, Path("out"), "R50x1 with 10 classes", "R50x1", 10, 1,
            known, (EVIL,) * 20, None, None,
        ),
        evaluation,
        known,
        prediction,
        Predictions([prediction] * 1000),
        Prediction(EVIL, error=EVIL),
        ExportReport(
            Path(EVIL), "onnx", "float32",
            {"architecture": EVIL, "exact_with": EVIL, "model_info": known.to_json()},
            tuple(
                Judged(
                    setting, {EVIL: EVIL}, EVIL, EVIL, EVIL, 5e-4,
                    (Deviation(224, 1, 1e-6, 1e-5, 9.0, 1),) * 20,
                )
                for setting in ("defaults", EVIL)
            ),
        ),
        Int8Report(
            Path(EVIL), "onnx", {"architecture": EVIL, "model_info": known.to_json()},
            Quantization(EVIL, {EVIL: EVIL}, 17, 17),
            Compared(200, 180, 179, 3, 2, 190, 0.03), 0.01, {}, {"images": 300}, EVIL,
            (Speed(1, (1.0, 1.0), (2.0, 2.0)),), {"runtime": EVIL}, (9, 3), {EVIL: "ab" * 32},
            (EVIL,) * 20,
        ),
        plan,
        publication,
        BatchPlan(((target, "lab/x"),) * 50),
        result,
        PublishResults([result] * 50),
        ParityReport(
            {"name": EVIL}, {"name": EVIL}, "R50x1", 2, WeightsProof(153, 9, (EVIL,) * 20),
            (LogitsProof(224, 1, 1e-6, 1e-5, 9.0, 1, EVIL, "float32"),) * 20,
        ),
        Reproduction(figure, measured, (EVIL,) * 20, Path(EVIL)),
        Reproduction(figure, None, ()),
        run,
        FinetuneResult(Path("a"), run.recipe, 9, True, None, 0.0, (run, run)),
        PretrainResult(Path(EVIL), run.recipe, 500, False, evaluation, 9.0),
        DistillResult(
            Path(EVIL), run.recipe, 500, False, evaluation, 9.0,
            teaching=Teaching(
                (TeacherInfo(EVIL, "ab" * 32, EVIL, EVIL, EVIL),) * 20, 2.0, 7, 6, 5, 4
            ),
        ),
        FewShotResult(
            Path(EVIL), {"method": EVIL, "model": EVIL}, (1, 5), 20, EVIL,
            tuple(Trial(1, run, run, 9, run, 30, EVIL, 5, {EVIL: {"from": 1.0, "to": EVIL}})
                  for run in range(20)), (EVIL,),
        ),
        ProbeResult(
            EVIL, (EVIL, "b"), EVIL, {EVIL: EVIL},
            (
                *(Probed(f"{EVIL}{n}", "done", correct=n, count=20) for n in range(20)),
                Probed(EVIL, "failed", EVIL),
            ),
            (EVIL,), (EVIL,), Path(EVIL), Path(EVIL),
        ),
        VtabResult(
            EVIL, Path(EVIL),
            {"dtd": TaskScore("dtd", EVIL, (RunScore(0, EVIL, 1, 2),) * 3, (EVIL,))},
            {"svhn": EVIL}, (EVIL,) * 20, stopped=True,
        ),
        StudyResult(
            Path(EVIL),
            StudyPlan(
                EVIL, EVIL, EVIL, EVIL, (EVIL,), ("norm",),
                tuple(Cell({"norm": f"{n}{EVIL}"}, 0, "R50x1", {}, ()) for n in range(20)),
                (), (EVIL,),
            ),
            {
                Cell({"norm": f"{n}{EVIL}"}, 0, "R50x1", {}, ()).name: {EVIL: Score(0.5, 1, 2)}
                for n in range(20)
            },
            {EVIL: EVIL},
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_shows_itself_in_a_few_harmless_lines(result):
    text, html = repr(result), result._repr_html_()
    assert str(result) == text
    lines = text.splitlines()
    assert lines[0] == type(result).__name__
    assert 2 <= len(lines) <= MAX_LINES
    assert all(line.isprintable() for line in lines)
    assert html.startswith("<table>")
    assert html.count("<tr>") == len(lines) - 1
    assert "<script" not in html
    assert "script" not in text or "&lt;script&gt;" in html
    if hasattr(result, "to_dict"):
        json.dumps(result.to_dict(), allow_nan=False)


def leaves(kind):
    """The classes below one of which no other class is a special case."""
    below = kind.__subclasses__()
    return [leaf for sub in below for leaf in leaves(sub)] if below else [kind]


def test_results_are_all_shown():
    shown = {type(result) for result in results()}
    ours = {kind for kind in leaves(Displayed) if kind.__module__.startswith("bitzoo.")}
    assert ours == shown


def test_what_is_left_out_is_counted():
    class Many(Displayed):
        def display_rows(self):
            return [(f"n{number}", (1, "two")) for number in range(1234)]

    assert repr(Many()).splitlines() == [
        "Many",
        *(f"  n{number}   1, two" for number in range(8)),
        "  ...  and 1,226 more",
    ]
    assert (
        Many()
        ._repr_html_()
        .startswith("<table><caption>Many</caption><tr><th>n0</th><td>1, two</td></tr>")
    )


def test_figures_of_an_evaluation():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    assert repr(Evaluation.of_logits("abc", np.array([0, 1, 2, 2]), logits)) == (
        "Evaluation\n"
        "  top-1              50.00% (2 of 4 images)\n"
        "  95 % interval      15.00% to 85.00%\n"
        "  balanced accuracy  66.67%\n"
        "  macro F1           50.00%\n"
        "  loss               1.0514\n"
        "  classes            3"
    )


def test_some_models_that_are_not_published():
    target, failed = CheckpointFile(Path("x.npz")), HubError("refused")
    done = PublishResult(target, "a/x", publication=Publication("a/x", "unchanged", "c"))
    PublishResults([done]).require()
    results = PublishResults([done, PublishResult(target, "a/y", error=failed)])
    assert [result.outcome for result in results] == ["unchanged", "failed"]
    with pytest.raises(HubError, match="1 of 2 models are not published") as refused:
        results.require()
    assert refused.value.exit_code == 2
    failed.exit_code = 1
    with pytest.raises(HubError) as refused:
        results.require()
    assert refused.value.exit_code == 1


# --- one implementation ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def execute(*words):
    """Run `bitzoo` in this process; returns the exit code."""
    with pytest.raises(SystemExit) as ended:
        app.main(list(map(str, words)), prog_name="bitzoo")
    return ended.value.code or 0


def as_json(result):
    return json.loads(json.dumps(result.to_dict()))


def test_a_transformers_folder_is_the_same_from_both(folder, monkeypatch):
    """With the class names of a release, which only its catalogue entry knows."""
    monkeypatch.setitem(ARCHITECTURES, "R50x1", Architecture((1, 1, 1, 1), 0.5))
    name = "BiT-M-R50x1-ILSVRC2012"
    write_npz(folder / f"{name}.npz", make_checkpoint(num_classes=1000))
    result = bitzoo.convert(folder / f"{name}.npz", "a", to="transformers", check="none")
    assert (result.output, result.info.identity.name) == (Path("a"), name)
    words = ("convert", "--src", f"{name}.npz", "--to", "transformers", "--dst", "b")
    assert execute(*words, "--check", "none") == 0
    config = json.loads((folder / "a/config.json").read_text())
    assert list(config["id2label"].values()) == class_names(find_spec(name).label_set)
    for path in (folder / "a").iterdir():
        assert path.read_bytes() == (folder / "b" / path.name).read_bytes(), path.name


def test_converting_from_python(folder, capsys):
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3))
    calls = []
    result = bitzoo.convert("own.npz", check="weights", progress=lambda *call: calls.append(call))
    assert result.output == Path("own.safetensors")
    assert (result.architecture, result.num_classes) == ("R(1,1,1,1)x0.5", 3)
    assert result.parity.passed
    assert list(dict.fromkeys(task for task, _, _ in calls)) == ["convert", "hash"]
    assert calls[-1][1] == calls[-1][2]
    stored = json.loads((folder / "parity.json").read_text())
    assert stored == {"own.safetensors": as_json(result.parity)}
    assert result.report == Path("parity.json")
    assert capsys.readouterr() == ("", "")
    assert execute("convert", "--src", "own.npz", "--check", "weights", "--json", "--force") == 0
    assert json.loads(capsys.readouterr().out) == as_json(result)
    assert repr(result).splitlines() == [
        "ConversionResult",
        "  source   own.npz",
        f"  sha256   {result.source_sha256}",
        f"  network  R(1,1,1,1)x0.5 with 3 classes, {result.num_params:,} parameters",
        "  model    not a known release",
        "  output   own.safetensors",
        "  proof    passed, weights: parity.json",
    ]


def test_verifying_from_python(folder, capsys):
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3))
    bitzoo.convert("own.npz", check="none")
    proof = bitzoo.verify("own.npz", "own.safetensors", check="weights", report="p.json")
    assert proof.passed
    assert execute("verify", "own.npz", "own.safetensors", "--check", "weights", "--json") == 0
    assert json.loads(capsys.readouterr().out) == as_json(proof)
    write_npz(folder / "other.npz", make_checkpoint(num_classes=3, seed=1))
    proof = bitzoo.verify("other.npz", "own.safetensors", check="weights", report="p.json")
    assert not proof.passed  # says so, and raises only if asked
    assert json.loads((folder / "p.json").read_text()) == {"own.safetensors": as_json(proof)}
    with pytest.raises(ParityError, match=r"tensors differ from other\.npz"):
        proof.require()


def test_a_failed_proof_comes_with_its_figures(folder, monkeypatch, capsys):
    """The network of another eps, at small kernels; on smaller images, by one oracle."""
    monkeypatch.setattr(logits, "PROBES", ((48, 1), (33, 1)))
    monkeypatch.setattr(reference_tensorflow, "is_installed", lambda: False)
    right = layers.standardize_kernel
    monkeypatch.setattr(layers, "standardize_kernel", lambda weight: right(weight, 1e-8))
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3, kernel_std=0.001))
    with pytest.raises(ParityError, match="float64 logits at 48 px are") as failed:
        bitzoo.convert("own.npz", report="p.json")
    report = failed.value.report
    assert isinstance(report, ParityReport)
    assert report.weights.passed
    assert not report.logits[0].passed
    stored = json.loads((folder / "p.json").read_text())
    assert stored == {"own.safetensors": as_json(report)}
    assert not (folder / "own.safetensors").exists()
    assert execute("convert", "--src", "own.npz") == 1
    out, err = capsys.readouterr()
    assert out.count("FAILED") >= 2
    assert err == f"error: {failed.value}\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"check": "most"}, "`check` must be one of none, weights, logits, found 'most'"),
        ({"to": "onnx"}, "`to` must be one of .*, found 'onnx'"),
        ({"dtype": "int8"}, "`dtype` must be one of .*, found 'int8'"),
        ({"dst": "none/x"}, "there is no folder none"),
    ],
)
def test_what_click_would_refuse_is_refused(folder, options, says):
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3))
    with pytest.raises(UsageError, match=says):
        bitzoo.convert("own.npz", **options)
    assert [path.name for path in folder.iterdir()] == ["own.npz"]


def test_a_path_is_never_taken_for_a_name(folder):
    with pytest.raises(CheckpointError, match="expected a checkpoint file, found a folder there"):
        bitzoo.convert(Path())
    with pytest.raises(CheckpointError, match="expected a checkpoint file, found nothing there"):
        bitzoo.convert(Path("BiT-M-R50x1"))


def test_a_card_is_the_same_from_both(folder, capsys):
    write_npz(folder / "own.npz", make_checkpoint(num_classes=3))
    for model in ("BiT-M-R50x1", folder / "own.npz"):
        text = bitzoo.card(model, repo="lab/x")
        assert execute("card", model, "--repo", "lab/x") == 0
        assert capsys.readouterr().out == text.rstrip("\n") + "\n"
    assert "\nlicense: mit\n" in bitzoo.card("own.npz", license="mit")
    assert "\nlicense: mit\n" not in bitzoo.card("own.npz")
    with pytest.raises(UsageError, match="`license` is for files and runs"):
        bitzoo.card("BiT-M-R50x1", license="mit")
