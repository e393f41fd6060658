"""Checkpoints written by TensorFlow and Keras themselves; a script, run in a process of its own.

    python tests/tensorflow_files.py weights.npz folder [traced]

The network has the attributes and layer names of the released TensorFlow 2 code (google-research/
big_transfer, bit_tf2/models.py), which is what decides the names in its files. It is written for
Keras 2, which `tf_keras` goes on with; TensorFlow 2.2 runs this file too.
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

try:
    import tf_keras as keras
except ImportError:
    keras = tf.keras


OLD = tf.__version__.startswith(("2.2.", "2.3."))
"""Later ones call variables the same, and cannot save them by name: then only object paths tell."""
FORMS = [("called", True), ("built", False)] if OLD else [("called", True)]
"""How a network comes by its variables: called on data, or built for a shape."""


class GroupNorm(keras.layers.Layer):
    def build(self, shape):
        self.gamma = self.add_weight("gamma", shape=(shape[-1],))
        self.beta = self.add_weight("beta", shape=(shape[-1],))
        self.built = True

    def call(self, x):
        shape = tf.shape(x)
        groups = tf.reshape(x, [shape[0], shape[1], shape[2], 32, x.shape[-1] // 32])
        mean, variance = tf.nn.moments(groups, [1, 2, 4], keepdims=True)
        normal = tf.reshape((groups - mean) * tf.math.rsqrt(variance + 1e-5), shape)
        return normal * self.gamma + self.beta


class StdConv(keras.layers.Layer):
    def __init__(self, filters, size, stride=1, **options):
        super().__init__(**options)
        self.filters, self.size, self.stride = filters, size, stride

    def build(self, shape):
        self.kernel = self.add_weight(
            "kernel", shape=(self.size, self.size, shape[-1], self.filters)
        )
        self.built = True

    def compute_output_shape(self, shape):
        return (*shape[:3], self.filters)

    def call(self, x):
        mean, variance = tf.nn.moments(self.kernel, [0, 1, 2], keepdims=True)
        kernel = (self.kernel - mean) / tf.sqrt(variance + 1e-10)
        return tf.nn.conv2d(x, kernel, self.stride, "VALID")


class Pad(keras.layers.Layer):
    def __init__(self, by, **options):
        super().__init__(**options)
        self.by = by

    def call(self, x):
        return tf.pad(x, [[0, 0], [self.by] * 2, [self.by] * 2, [0, 0]])


class Unit(keras.layers.Layer):
    def __init__(self, filters, stride, **options):
        super().__init__(**options)
        self.filters, self.stride = filters, stride
        relu, sequential = keras.layers.ReLU, keras.Sequential
        self._proj = None
        self._unit_a = sequential([GroupNorm(name="group_norm"), relu()], name="a")
        self._unit_a_conv = StdConv(filters, 1, name="a/standardized_conv2d")
        conv = StdConv(filters, 3, stride, name="standardized_conv2d")
        self._unit_b = sequential([GroupNorm(name="group_norm"), relu(), Pad(1), conv], name="b")
        conv = StdConv(4 * filters, 1, name="standardized_conv2d")
        self._unit_c = sequential([GroupNorm(name="group_norm"), relu(), conv], name="c")

    def build(self, shape):
        if self.stride > 1 or shape[-1] != 4 * self.filters:
            name = "a/proj/standardized_conv2d"
            self._proj = StdConv(4 * self.filters, 1, self.stride, name=name)
        self.built = True

    def call(self, x):
        y = self._unit_a(x)
        shortcut = x if self._proj is None else self._proj(y)
        return self._unit_c(self._unit_b(self._unit_a_conv(y))) + shortcut


class Network(keras.Model):
    def __init__(self, depths, channels, outputs, **options):
        super().__init__(**options)
        conv = StdConv(channels, 7, 2, name="standardized_conv2d")
        pool = keras.layers.MaxPool2D(3, 2)
        self._root = keras.Sequential([Pad(3), conv, Pad(1), pool], name="root_block")
        self._blocks = []
        for block, depth in enumerate(depths):
            units = [
                Unit(channels << block, 2 if block and not unit else 1, name=f"unit{unit + 1:02d}")
                for unit in range(depth)
            ]
            self._blocks.append(keras.Sequential(units, name=f"block{block + 1}"))
        self._pre_head = [
            GroupNorm(name="group_norm"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
        self._head = keras.layers.Dense(outputs, name="head/dense") if outputs else None

    def call(self, x):
        x = self._root(x)
        for block in self._blocks:
            x = block(x)
        for layer in self._pre_head:
            x = layer(x)
        return self._head(x) if self._head else x


def released_names(network):
    """npz name -> variable, by walking the network's attributes."""
    found = {"root_block/standardized_conv2d/kernel": network._root.layers[1].kernel}
    for block, units in enumerate(network._blocks, start=1):
        for number, unit in enumerate(units.layers, start=1):
            at = f"block{block}/unit{number:02d}"
            parts = {"a": unit._unit_a, "b": unit._unit_b, "c": unit._unit_c}
            for branch, part in parts.items():
                found[f"{at}/{branch}/group_norm/gamma"] = part.layers[0].gamma
                found[f"{at}/{branch}/group_norm/beta"] = part.layers[0].beta
                last = unit._unit_a_conv if branch == "a" else part.layers[-1]
                found[f"{at}/{branch}/standardized_conv2d/kernel"] = last.kernel
            if unit._proj is not None:
                found[f"{at}/a/proj/standardized_conv2d/kernel"] = unit._proj.kernel
    found["group_norm/gamma"] = network._pre_head[0].gamma
    found["group_norm/beta"] = network._pre_head[0].beta
    if network._head:
        found["head/conv2d/kernel"] = network._head.kernel
        found["head/conv2d/bias"] = network._head.bias
    return {f"resnet/{name}": variable for name, variable in found.items()}


def make_network(arrays, on_data):
    """The network that has these weights, built without data or called on some."""
    units = {name.split("/")[1:3][0] + name.split("/")[2] for name in arrays if "/unit" in name}
    depths = [sum(unit.startswith(f"block{block}") for unit in units) for block in range(1, 5)]
    head = arrays.get("resnet/head/conv2d/bias")
    channels = arrays["resnet/root_block/standardized_conv2d/kernel"].shape[-1]
    network = Network(depths, channels, 0 if head is None else len(head), name="resnet")
    if on_data:
        network(tf.zeros([1, 64, 64, 3]))
    else:
        network.build((None, 64, 64, 3))
    variables = released_names(network)
    assert set(variables) == set(arrays)
    for name, variable in variables.items():
        variable.assign(arrays[name].reshape(variable.shape))
    return network


def write_tf1(arrays, folder):
    """A Saver's checkpoint after training, and a module as TF-Hub 1 lays it out."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        saved = {name: v1.get_variable(name, initializer=array) for name, array in arrays.items()}
        loss = sum(tf.reduce_sum(variable**2) for variable in saved.values())
        step = v1.train.get_or_create_global_step()
        train = v1.train.MomentumOptimizer(0.0, 0.9).minimize(loss, step)
        session.run(v1.global_variables_initializer())
        session.run(train)  # at a rate of 0: slots fill, weights stay
        v1.train.Saver().save(session, str(folder / "tf1" / "model.ckpt"), step)
    module = folder / "module"
    with tf.Graph().as_default(), v1.Session() as session:
        saved = {name: v1.get_variable(name, initializer=array) for name, array in arrays.items()}
        images = v1.placeholder(tf.float32, [None, None, None, 3])
        pooled, logits = compute(saved, 2 * images - 1)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(module))
        signature = v1.saved_model.predict_signature_def(
            {"images": images}, {"default": logits, "pooled": pooled}
        )
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        builder.save()
    (module / "tfhub_module.pb").write_bytes(b"\x08\x03")


def compute(variables, x):
    """Pooled features and logits of variables with the released names, for x in [-1, 1]."""
    padded = {7: 3, 3: 1, 1: 0}

    def conv(x, name, stride=1):
        kernel = variables[f"resnet/{name}/standardized_conv2d/kernel"]
        mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
        by = [padded[int(kernel.shape[0])]] * 2
        kernel = (kernel - mean) / tf.sqrt(variance + 1e-10)
        return tf.nn.conv2d(tf.pad(x, [[0, 0], by, by, [0, 0]]), kernel, stride, "VALID")

    def norm(x, name):
        shape, channels = tf.shape(x), int(x.shape[-1])
        groups = tf.reshape(x, [shape[0], shape[1], shape[2], 32, channels // 32])
        mean, variance = tf.nn.moments(groups, [1, 2, 4], keepdims=True)
        normal = tf.reshape((groups - mean) * tf.math.rsqrt(variance + 1e-5), shape)
        gamma, beta = (variables[f"resnet/{name}group_norm/{kind}"] for kind in ("gamma", "beta"))
        return tf.nn.relu(normal * gamma + beta)

    x = conv(x, "root_block", 2)
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    for unit in sorted({name[7:20] for name in variables if "/unit" in name}):
        stride = 2 if unit.endswith("/unit01") and not unit.startswith("block1") else 1
        y = norm(x, f"{unit}/a/")
        has_projection = f"resnet/{unit}/a/proj/standardized_conv2d/kernel" in variables
        shortcut = conv(y, f"{unit}/a/proj", stride) if has_projection else x
        y = conv(norm(conv(y, f"{unit}/a"), f"{unit}/b/"), f"{unit}/b", stride)
        x = conv(norm(y, f"{unit}/c/"), f"{unit}/c") + shortcut
    pooled = tf.reduce_mean(norm(x, ""), [1, 2])
    kernel = variables.get("resnet/head/conv2d/kernel")
    if kernel is None:
        return pooled, pooled
    kernel = tf.reshape(kernel, kernel.shape[-2:])
    return pooled, tf.matmul(pooled, kernel) + variables["resnet/head/conv2d/bias"]


def write_objects(network, folder, name):
    """A checkpoint of objects after training, and Keras's own form of it."""
    optimizer = keras.optimizers.SGD(0.0, momentum=0.9)
    variables = network.trainable_variables
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in variables])
    checkpoint = tf.train.Checkpoint(model=network, optimizer=optimizer)
    checkpoint.save(str(folder / f"{name}_checkpoint" / "ckpt"))
    network.save_weights(str(folder / f"{name}_weights" / "weights"), save_format="tf")


def write_modules(network, arrays, folder):
    """SavedModels whose variables have the released names, and whose are all called `variable`.

    Plain modules under the network's attributes: to save its Keras layers takes half a minute.
    """
    objects = {id(variable): name for name, variable in released_names(network).items()}
    for form in ("unique", "ambiguous"):
        root, by_name = tf.Module(), {}
        for path, variable in paths(network):
            *above, last = path
            parent = root
            for step in above:
                if not hasattr(parent, step):
                    setattr(parent, step, tf.Module())
                parent = getattr(parent, step)
            name = objects[id(variable)]
            called = name.replace("conv2d/bias", "dense/bias").replace("head/conv2d", "head/dense")
            values = arrays[name].reshape(variable.shape)
            by_name[name] = tf.Variable(values, name=called if form == "unique" else None)
            setattr(parent, last, by_name[name])
        signatures = serving(by_name)
        tf.saved_model.save(root, str(folder / f"{form}_saved_model"), signatures=signatures)


def serving(variables):
    """A signature as TensorFlow 2 saves it; these modules take images in [-1, 1]."""
    spec = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
    serve = tf.function(lambda images: {"logits": compute(variables, images)[1]})
    return serve.get_concrete_function(spec)


def paths(network):
    """Attributes that lead to each variable, as Keras names them in a checkpoint."""
    yield ("_root", "layer_with_weights-0", "kernel"), network._root.layers[1].kernel
    for block, units in enumerate(network._blocks):
        for number, unit in enumerate(units.layers):
            at = ("_blocks", str(block), f"layer_with_weights-{number}")
            for branch in "abc":
                part = getattr(unit, f"_unit_{branch}")
                for kind in ("gamma", "beta"):
                    variable = getattr(part.layers[0], kind)
                    yield (*at, f"_unit_{branch}", "layer_with_weights-0", kind), variable
            yield (*at, "_unit_a_conv", "kernel"), unit._unit_a_conv.kernel
            for branch in "bc":
                variable = getattr(unit, f"_unit_{branch}").layers[-1].kernel
                yield (*at, f"_unit_{branch}", "layer_with_weights-1", "kernel"), variable
            if unit._proj is not None:
                yield (*at, "_proj", "kernel"), unit._proj.kernel
    for kind in ("gamma", "beta"):
        yield ("_pre_head", "0", kind), getattr(network._pre_head[0], kind)
    if network._head:
        yield ("_head", "kernel"), network._head.kernel
        yield ("_head", "bias"), network._head.bias


def load_ours(network, arrays, path):
    """Whether Keras, which goes by position, loads bitzoo's h5 file into the right places."""
    for variable in network.variables:
        variable.assign(tf.zeros_like(variable))
    network.load_weights(str(path))
    return all(
        np.array_equal(variable.numpy().reshape(-1), arrays[name].reshape(-1))
        for name, variable in released_names(network).items()
    )


def main(source, folder, *, traced):
    with np.load(source) as file:
        arrays = {name: file[name] for name in file.files}
    write_tf1(arrays, folder)
    for name, on_data in FORMS:
        network = make_network(arrays, on_data)
        if OLD:
            network.save_weights(str(folder / f"{name}.h5"), save_format="h5")
        images = np.random.default_rng(1).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
        np.save(folder / f"{name}_logits.npy", network(images).numpy())
        write_objects(network, folder, name)
        if traced:
            tf.saved_model.save(network, str(folder / f"{name}_saved_model"))
        if (folder / "ours.h5").is_file():
            loads = load_ours(network, arrays, folder / "ours.h5")
            (folder / f"{name}_loads_ours").write_text(str(loads))
    write_modules(network, arrays, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), traced="traced" in sys.argv[3:])
