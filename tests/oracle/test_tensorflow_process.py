"""TensorFlow in a process of its own: what it computes, how it dies, and that nothing else does."""

import contextlib
import logging
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_npz

from bitzoo.converters.parity import logits, reference_tensorflow, tensorflow_process
from bitzoo.converters.parity.reference_tensorflow import KERNEL_EPS, load_tensorflow
from bitzoo.converters.parity.serving_graph import GRAPH_NAME, NoWitness, ServingGraph
from bitzoo.converters.parity.tensorflow_process import TensorFlowProcess
from bitzoo.converters.parity.verify import convert_and_prove

pytestmark = pytest.mark.slow


ARRAYS = make_checkpoint()
IMAGES = np.random.default_rng(0).uniform(-1, 1, (1, 40, 40, 3)).astype(np.float32)
MEANS = IMAGES.mean((1, 2))
SIZE = sum(array.nbytes for array in ARRAYS.values())


@pytest.fixture(scope="module")
def child():
    with contextlib.closing(TensorFlowProcess(SIZE)) as process:
        yield process


def forward(child, tensors=ARRAYS, dtype="float64"):
    return child.forward(tensors, IMAGES, dtype=dtype, eps=KERNEL_EPS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_computes_the_same_bits_as_here(child, dtype):
    here = reference_tensorflow.forward(ARRAYS, IMAGES, dtype=dtype).numpy()
    found = forward(child, dtype=dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, here, rtol=1e-12 if dtype == "float64" else 1e-4)


def test_numbers_in_any_order_and_precision_arrive(child):
    expected = forward(child)
    odd = {name: np.asfortranarray(array.astype(">f8")) for name, array in ARRAYS.items()}
    np.testing.assert_allclose(forward(child, odd), expected, rtol=1e-12)


def test_an_error_of_tensorflow_is_a_sentence_and_the_next_request_works(child):
    wrong = {**ARRAYS, "resnet/group_norm/gamma": np.zeros(7, np.float32)}
    with pytest.raises(NoWitness, match=r"TensorFlow fails \(InvalidArgumentError: "):
        forward(child, wrong)
    assert np.isfinite(forward(child)).all()


# --- graphs that must not or cannot be run --------------------------------------------------------


@pytest.fixture
def save(tmp_path):
    """Saves a module that serves a function of images and of an inner function."""
    tf = load_tensorflow()

    def saved(function, inner=None):
        module = tf.Module()
        module.scale = tf.Variable(1.0)
        within = tf.function(inner or (lambda images: images))
        spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
        serve = tf.function(lambda images: {"y": function(within(images)) * module.scale})
        signature = serve.get_concrete_function(spec)
        tf.saved_model.save(module, str(tmp_path / "module"), signatures=signature)
        return tmp_path / "module" / GRAPH_NAME, tmp_path / "module" / "variables" / "variables"

    return saved


def means(images):
    return load_tensorflow().reduce_mean(images, [1, 2])


def test_a_graph_runs_in_it(child, save):
    graph, prefix = save(means)
    way, found = child.run_graph(graph, prefix, IMAGES, MEANS)
    assert way == "signature serving_default, output y, images in [-1, 1]"
    np.testing.assert_allclose(found, MEANS, rtol=1e-5)


def filled(images):
    tf = load_tensorflow()
    return means(images) + tf.reduce_sum(tf.fill([1 << 33], tf.reduce_max(images)))


def tiled(images):
    tf = load_tensorflow()
    return means(images) + tf.reduce_sum(tf.tile(tf.reshape(images, [-1]), [1 << 22]))


@pytest.mark.parametrize("greedy", [filled, tiled])
def test_a_graph_that_fills_the_memory_is_no_witness(child, save, greedy):
    """It took 17 to 69 GB, of this process and of the machine."""
    assert child.memory < 3 << 30
    graph, prefix = save(greedy)
    with pytest.raises(NoWitness, match=r"OOM|out of memory|bad_alloc|GB of memory"):
        child.run_graph(graph, prefix, IMAGES, MEANS)
    assert np.isfinite(forward(child)).all()


def change_calls(graph, change):
    """Rewrites which function each call in a SavedModel's functions goes to."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString(graph.read_bytes())
    changed = 0
    for function in saved.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op in ("PartitionedCall", "StatefulPartitionedCall"):
                node.attr["f"].func.name = change(function, node)
                changed += 1
    assert changed
    graph.write_bytes(saved.SerializeToString())


def test_a_function_that_calls_itself_is_no_witness(child, save):
    """TensorFlow follows it until its stack ends, and the process with it."""
    graph, prefix = save(means)
    change_calls(graph, lambda function, node: function.signature.name)
    with pytest.raises(NoWitness, match=r"^its function \S+ calls itself$"):
        child.run_graph(graph, prefix, IMAGES, MEANS)
    with pytest.raises(NoWitness, match="calls itself"):
        ServingGraph(graph, prefix)


def test_functions_that_double_are_no_witness(tmp_path):
    """Each calls the next one twice: forty of them are 10^12 operations."""
    from bitzoo.converters.parity.serving_graph import _check_calls

    load_tensorflow()
    from tensorflow.core.framework.graph_pb2 import GraphDef

    graph = GraphDef()
    for number in range(40):
        function = graph.library.function.add()
        function.signature.name = f"f{number}"
        for twice in range(2):
            node = function.node_def.add(name=f"n{twice}", op="PartitionedCall")
            node.attr["f"].func.name = f"f{number + 1}"
    with pytest.raises(NoWitness, match=r"its function f\d+ is of more than 1,000,000 operations"):
        _check_calls(graph)


# --- its end --------------------------------------------------------------------------------------


def test_its_death_is_a_sentence_and_the_next_request_starts_another(child):
    class Deadly(dict):
        def __getitem__(self, name):
            process = child._child._process
            if name.endswith("block2/unit01/b/group_norm/gamma") and process.poll() is None:
                os.kill(process.pid, signal.SIGSEGV)
                process.wait()
            return super().__getitem__(name)

    with pytest.raises(NoWitness, match=r"^TensorFlow died \(SIGSEGV\), which had 2\.\d GB"):
        forward(child, Deadly(ARRAYS))
    assert np.isfinite(forward(child)).all()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="looks at another process's limits")
def test_it_has_limits_of_memory_and_time(child):
    forward(child)
    pid = child._child._process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_DATA), resource.prlimit(pid, resource.RLIMIT_CPU)
    assert limits[0][0] == child.memory
    assert 60 <= limits[1][0] <= 200
    assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0


def test_one_that_never_answers_is_ended(monkeypatch):
    monkeypatch.setattr(tensorflow_process, "_WAIT", 0)
    child = TensorFlowProcess(SIZE)
    with pytest.raises(NoWitness, match=r"was ended after 60 s of processor time"):
        forward(child)
    child.close()


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(pid):
    end = time.monotonic() + 60
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pid)


PARENT = """
import sys
from bitzoo.converters.parity.tensorflow_process import TensorFlowProcess
child = TensorFlowProcess(1)
if sys.argv[1] == "loaded":
    child.version
print(child._child._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="tells processes by /proc")
@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGKILL, "loading"), (signal.SIGKILL, "loaded"), (signal.SIGINT, "loading")],
)
def test_it_does_not_outlive_its_parent(number, when):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, when],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(number)
        parent.wait()
        assert wait_for_end(pid)


def test_it_ends_with_its_use():
    child = TensorFlowProcess(1)
    pid = child._child._process.pid
    child.close()
    assert not alive(pid)
    child.close()


# --- in a proof -----------------------------------------------------------------------------------


def test_a_proof_names_the_oracles_that_did_not_testify(tmp_path, monkeypatch, caplog):
    """TensorFlow gets no memory to speak of; the reference proves the logits alone."""
    monkeypatch.setattr(logits, "PROBES", ((33, 1),))
    monkeypatch.setattr(tensorflow_process, "SPARE_MEMORY", -(64 << 20) * (os.cpu_count() or 1))
    monkeypatch.setattr(tensorflow_process, "NETWORKS", 5)
    source = write_npz(tmp_path / "a.npz", ARRAYS)
    with caplog.at_level(logging.WARNING):
        _, report = convert_and_prove(source, tmp_path / "a.safetensors")
    assert report.passed
    assert {proof.oracle.split()[0] for proof in report.logits} == {"NumPy"}
    (sentence,) = report.absent
    assert sentence.startswith("TensorFlow's forward pass: ")
    assert report.to_dict()["logits_absent"] == [sentence]
    assert ("no witness", sentence) in report.display_rows()
    assert f"a.npz: TensorFlow's forward pass is no witness: {sentence.partition(': ')[2]}." in (
        caplog.text
    )
