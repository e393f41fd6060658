"""What is run of a SavedModel's graph, and what is not: graphs written by TensorFlow itself."""

import logging

import numpy as np
import pytest
from checkpoints import make_checkpoint

from bitzoo.converters.parity import logits
from bitzoo.converters.parity.reference_tensorflow import forward, load_tensorflow
from bitzoo.converters.parity.serving_graph import GRAPH_NAME, NoWitness, ServingGraph
from bitzoo.converters.parity.verify import convert_and_prove
from bitzoo.errors import ParityError

pytestmark = pytest.mark.slow


ARRAYS = make_checkpoint()
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
MEANS = IMAGES.mean((1, 2))


@pytest.fixture(scope="module")
def tf():
    return load_tensorflow()


@pytest.fixture
def save(tf, tmp_path):
    """Saves a module that serves a function of images, and opens its graph."""

    def saved(function, shape=(None, None, None, 3), scale=1.0, dtype=None):
        module = tf.Module()
        module.scale = tf.Variable(scale)
        spec = tf.TensorSpec(shape, dtype or tf.float32, name="images")
        serve = tf.function(lambda images: function(images, module.scale))
        folder = tmp_path / "module"
        tf.saved_model.save(module, str(folder), signatures=serve.get_concrete_function(spec))
        return ServingGraph(folder / GRAPH_NAME, folder / "variables" / "variables")

    return saved


def test_it_runs_with_the_variables_that_the_checkpoint_has(tf, save):
    graph = save(lambda x, scale: {"means": scale * tf.reduce_mean(x, [1, 2])}, scale=3.0)
    way, found = graph(IMAGES, 3 * MEANS)
    assert way == "signature serving_default, output means, images in [-1, 1]"
    np.testing.assert_allclose(found, 3 * MEANS, rtol=1e-5)
    graph.close()


def test_the_range_of_images_and_the_output_are_found_once(tf, save):
    def serve(x, scale):
        means = tf.reduce_mean(2 * x - 1, [1, 2])
        return {"logits": means[:, None, None], "scores": tf.nn.softmax(means)}

    graph = save(serve)
    way, found = graph(IMAGES, MEANS)
    assert way == "signature serving_default, output logits, images in [0, 1]"
    np.testing.assert_allclose(found, MEANS, atol=1e-6)
    other = graph(IMAGES + 1, np.zeros_like(MEANS))
    assert other[0] == way
    np.testing.assert_allclose(other[1], MEANS + 1, rtol=1e-5)


def test_a_graph_for_images_of_one_size(tf, save):
    graph = save(lambda x, scale: {"y": tf.reduce_mean(x, [1, 2])}, shape=(None, 8, 8, 3))
    assert graph(IMAGES[:, :6, :6], MEANS) is None
    assert graph(IMAGES, MEANS)[0].startswith("signature serving_default, output y")


@pytest.mark.parametrize("depth", ["in the function", "in a function that it calls"])
def test_a_graph_that_writes_a_file_is_not_run(tf, save, tmp_path, depth):
    target = tmp_path / "written"

    def write(x, scale):
        with tf.control_dependencies([tf.io.write_file(str(target), "evil")]):
            return {"y": tf.reduce_mean(x, [1, 2])}

    inner = tf.function(write)
    serve = write if depth == "in the function" else lambda x, scale: inner(x, scale)
    with pytest.raises(NoWitness, match=r"operations that may do more than compute: WriteFile"):
        save(serve)
    assert not target.exists()


def test_a_graph_that_reads_from_an_address_is_not_run(tf, save):
    def read(x, scale):
        (elsewhere,) = tf.raw_ops.RestoreV2(
            prefix="gs://bucket/x", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
        )
        return {"y": tf.reduce_mean(x, [1, 2]) + elsewhere}

    with pytest.raises(NoWitness, match="holds an address"):
        save(read)


def test_numbers_that_spell_an_address_are_numbers(tf, save):
    spelled = np.frombuffer(b"gs://bucket.." + bytes(3), np.float32)[:3]
    graph = save(lambda x, scale: {"y": tf.reduce_mean(x, [1, 2]) + spelled})
    np.testing.assert_allclose(graph(IMAGES, MEANS)[1][1], MEANS[1] + spelled, rtol=1e-5)


def test_what_the_output_does_not_need_is_no_hindrance(tf, tmp_path):
    """Such as the operations that save, or another signature's."""
    module = tf.Module()
    spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
    serve = tf.function(lambda images: {"y": tf.reduce_mean(images, [1, 2])})
    reads = tf.function(lambda path: {"text": tf.io.read_file(path)})
    signatures = {
        "serving_default": serve.get_concrete_function(spec),
        "reads": reads.get_concrete_function(tf.TensorSpec([], tf.string, name="path")),
    }
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    graph = ServingGraph(tmp_path / GRAPH_NAME, tmp_path / "variables" / "variables")
    np.testing.assert_allclose(graph(IMAGES, MEANS)[1], MEANS, rtol=1e-5)


def test_no_signature_for_images(tf, save):
    with pytest.raises(NoWitness, match=r"takes images \(it has: .*serving_default"):
        save(lambda x, scale: {"y": x + scale}, shape=(None, 3))
    with pytest.raises(NoWitness, match="takes images"):
        save(lambda x, scale: {"y": tf.cast(x, tf.float32)}, dtype=tf.string)


def test_outputs_of_another_shape(tf, save):
    graph = save(lambda x, scale: {"y": tf.reduce_mean(x, [1, 2])})
    with pytest.raises(NoWitness, match=r"the shapes \(2, 3\), expected \(2, 5\)"):
        graph(IMAGES, np.zeros((2, 5)))


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"not a graph at all"])
def test_a_damaged_graph(tmp_path, content):
    (tmp_path / GRAPH_NAME).write_bytes(content)
    with pytest.raises(NoWitness, match=r"saved_model\.pb (is damaged|has no graph)"):
        ServingGraph(tmp_path / GRAPH_NAME, tmp_path / "variables")


@pytest.fixture
def module(tf, tmp_path, monkeypatch):
    """Saves ARRAYS as a module whose graph computes with `eps`."""
    monkeypatch.setattr(logits, "PROBES", ((48, 1),))

    def saved(eps, before=lambda images: images):
        root, variables = tf.Module(), {}
        for number, (name, array) in enumerate(ARRAYS.items()):
            variables[name] = tf.Variable(array, name=name)
            setattr(root, f"v{number}", variables[name])
        spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
        serve = tf.function(lambda x: {"logits": forward(variables, before(x), eps=eps)})
        folder = tmp_path / "bit"
        tf.saved_model.save(root, str(folder), signatures=serve.get_concrete_function(spec))
        return folder

    return saved


def test_a_module_whose_graph_computes_something_else_fails_the_proof(module, tmp_path):
    """Its weights are read right; both other oracles agree; its makers ran another function."""
    with pytest.raises(ParityError, match=r"away from the SavedModel's own graph"):
        convert_and_prove(module(eps=1e-2), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_graph_that_must_not_run_leaves_the_other_oracles(tf, module, tmp_path, caplog):
    def print_and_pass(images):
        tf.print("hello")
        return images

    source = module(eps=1e-10, before=print_and_pass)
    with caplog.at_level(logging.WARNING):
        _, report = convert_and_prove(source, tmp_path / "out.safetensors")
    assert report.passed
    assert {proof.oracle.split()[0] for proof in report.logits} == {"NumPy", "TensorFlow"}
    assert "the SavedModel's own graph is no witness: it needs operations" in caplog.text
    assert "PrintV2" in caplog.text
    (sentence,) = report.absent
    assert sentence.startswith("the SavedModel's own graph: it needs operations that may do more")


def test_a_head_of_zeros_hides_the_graph_too(module, tmp_path, monkeypatch):
    for name in [name for name in ARRAYS if "/head/" in name]:
        monkeypatch.setitem(ARRAYS, name, np.zeros_like(ARRAYS[name]))
    _, report = convert_and_prove(module(eps=1e-10), tmp_path / "out.safetensors")
    assert report.passed
    assert {proof.oracle.split()[0] for proof in report.logits} == {"NumPy", "TensorFlow"}
    hidden = "the SavedModel's own graph: the head of zeros hides what is before it"
    assert report.absent == (hidden,)
