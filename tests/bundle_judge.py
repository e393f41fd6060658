"""TensorFlow as the judge of its own checkpoints; a script, run in a process of its own.

python tests/bundle_judge.py write folder      checkpoints of several forms
python tests/bundle_judge.py read prefix...    every tensor of each, into PREFIX.judged.npz
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
KINDS = ("float32", "float64", "float16", "bfloat16", "int8", "int64", "uint16", "complex64")


def write(folder):
    rng = np.random.default_rng(0)
    with tf.Graph().as_default(), v1.Session() as session:
        for kind in KINDS:
            values = (100 * rng.standard_normal((3, 5, 2))).astype(np.float32)
            v1.get_variable(kind, initializer=tf.cast(values, kind))
        v1.get_variable("text", initializer=tf.constant(["", "a" * 300, "\0\xff"]))
        v1.get_variable("flags", initializer=tf.constant([True, False, True]))
        v1.get_variable("scalar", initializer=tf.constant(7.5))
        v1.get_variable("empty", initializer=tf.zeros([0, 4]))
        v1.get_variable("odd.name-x/y_z", initializer=0.5)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "kinds"))
        v1.train.Saver(sharded=True).save(session, str(folder / "sharded"))
    with tf.Graph().as_default(), v1.Session() as session:
        for name, shape, parts in (("rows", [70, 3], [3, 1]), ("columns", [2, 9], [1, 4])):
            partitioner = lambda parts=parts, **_: parts  # noqa: E731
            with v1.variable_scope("p", partitioner=partitioner, reuse=v1.AUTO_REUSE):
                v1.get_variable(name, shape, initializer=v1.random_normal_initializer())
        v1.get_variable("plain", initializer=rng.standard_normal(4).astype(np.float32))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "partitioned"))
        v1.train.Saver(sharded=True).save(session, str(folder / "partitioned_sharded"))
    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"CPU": 3})) as s:
        for number in range(7):
            with tf.device(f"/cpu:{number % 3}"):
                v1.get_variable(f"v{number}", initializer=rng.standard_normal((number, 2)))
        s.run(v1.global_variables_initializer())
        v1.train.Saver(sharded=True).save(s, str(folder / "three_shards"))


def read(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    arrays = {}
    for key, dtype in reader.get_variable_to_dtype_map().items():
        if dtype != tf.string:
            array = reader.get_tensor(key)
            arrays[key] = array.astype(np.float32) if dtype == tf.bfloat16 else array
    np.savez(prefix.with_name(f"{prefix.name}.judged.npz"), **arrays)


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    for path in paths:
        {"write": write, "read": read}[what](Path(path))
