"""torch.fx, torch.jit and torchvision on the network, and copies of an optimized one."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from checkpoints import as_timm, make_checkpoint, write_npz
from packaging.version import Version
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import bitzoo
from bitzoo.errors import FoldedModelError, LayoutError, UsageError
from bitzoo.inference import optimize
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT, FeatureExtractor, fold

DEPTHS = (2, 1, 1, 1)
SHAPES = ((2, 3, 64, 49), (1, 3, 33, 70), (5, 3, 32, 32), (1, 3, 20, 20))
NETWORKS = {
    "classifier": lambda: classifier(10),
    "encoder": lambda: classifier(0),
    "folded": lambda: fold(classifier(10)),
    "recomputing": lambda: recomputing(),
    "dilated": lambda: BiT(Architecture(DEPTHS, 0.5), output_stride=8).eval(),
    "features": lambda: FeatureExtractor(Architecture(DEPTHS, 0.5)).eval(),
    "some features": lambda: FeatureExtractor(Architecture(DEPTHS, 0.5), (3, 0)).eval(),
    "folded features": lambda: fold(FeatureExtractor(Architecture(DEPTHS, 0.5)).eval()),
}


def classifier(num_classes):
    model = BiT(Architecture(DEPTHS, 0.5), num_classes)
    state = as_timm(make_checkpoint(DEPTHS, 0.5, num_classes))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model.eval()


def recomputing():
    model = classifier(10)
    model.set_grad_checkpointing()
    return model


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(autouse=True)
def no_advice():
    """torch advises against its scripts; people use them all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def require_equal(found, expected):
    if isinstance(expected, torch.Tensor):
        found, expected = [found], [expected]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_fx_traces_it(name):
    model = NETWORKS[name]()
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        for shape in SHAPES:
            require_equal(traced(images(*shape)), model(images(*shape)))
    with pytest.raises(LayoutError, match=r"found shape \(3, 64, 49\)"):
        traced(images(3, 64, 49))


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="torch.fx 2.13 cannot pickle this trace"
)
def test_a_trace_can_be_stored():
    model = classifier(10)
    stored = pickle.dumps(torch.fx.symbolic_trace(model))
    require_equal(pickle.loads(stored)(images(2, 3, 40, 40)), model(images(2, 3, 40, 40)))


def test_a_trace_trains_as_the_network_does():
    model, twin = classifier(10).train(), classifier(10).train()
    torch.fx.symbolic_trace(twin)(images(2, 3, 40, 40)).square().sum().backward()
    model(images(2, 3, 40, 40)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, twin.get_parameter(name).grad), name


@pytest.mark.parametrize("name", NETWORKS)
def test_jit_compiles_it(name):
    model = NETWORKS[name]()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    with torch.no_grad():
        loaded = torch.jit.load(file)
        for shape in SHAPES:
            require_equal(loaded(images(*shape)), model(images(*shape)))


@pytest.mark.parametrize("features_only", [False, True])
def test_jit_compiles_what_create_model_gives(tmp_path, features_only):
    """Its network has a record, which no script can hold."""
    place = write_npz(tmp_path / "a.npz", make_checkpoint(DEPTHS, 0.5, 10))
    model = bitzoo.create_model(place, True, features_only=features_only).eval()
    assert model.info is not None
    x = images(2, 3, 40, 40)
    with torch.no_grad():
        for form in (model, bitzoo.fold(model), copy.deepcopy(model)):
            require_equal(torch.jit.script(form)(x), form(x))
    require_equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_a_script_refuses_another_layout():
    with pytest.raises(torch.jit.Error, match=r"with 3 channels, found shape \[2, 64, 64, 3\]"):
        torch.jit.script(classifier(10))(images(2, 64, 64, 3))


def test_jit_traces_it():
    model, x = classifier(10), images(2, 3, 40, 40)
    traced = torch.jit.trace(model, x)
    require_equal(traced(x), model(x))


def test_torchvision_extracts_features():
    model = classifier(10)
    places = ["stem.conv.conv2d", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    names = get_graph_node_names(model)[1]
    assert [name for name in places if not any(n.startswith(name) for n in names)] == []
    extracted = create_feature_extractor(model, places)
    with torch.no_grad():
        found = extracted(images(2, 3, 64, 49))
        expected = model.forward_intermediates(images(2, 3, 64, 49))
        require_equal([found[name] for name in places[:-1]], expected)
        require_equal(found["head"], model(images(2, 3, 64, 49)))
    with pytest.raises(FoldedModelError, match="Use the original model"):
        create_feature_extractor(fold(model), places)


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_copies_of_an_optimized_model(backend):
    optimized = optimize(classifier(10), backend=backend)
    assert copy.copy(optimized) is optimized
    assert copy.deepcopy({"model": optimized})["model"] is optimized
    with pytest.raises(UsageError, match=r"cannot be pickled .* call bitzoo\.optimize on it where"):
        pickle.dumps(optimized)
    with pytest.raises(UsageError, match="cannot be pickled"):
        torch.save({"model": optimized}, io.BytesIO())
