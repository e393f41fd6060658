"""A small network, small images of digits and short recipes, for every test that trains.

`InProcess` runs a function in its own process. These are forked from a server that has imported
torch already, so all but the first start in milliseconds.
"""

import hashlib
import multiprocessing
import os
import signal
import socket
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bitzoo.data.image_store import Pixels
from bitzoo.models.architecture import Architecture
from bitzoo.models.bit import BiT
from bitzoo.training.checkpointing import latest_checkpoint
from bitzoo.training.recipe import Recipe, Schedule
from bitzoo.training.trainer import train

RESIZE, CROP, CLASSES = 36, 32, 10
SMALL = Architecture((1, 1, 1, 1), 0.5)

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["torch", "torch._dynamo", "sklearn.datasets", "bitzoo.runs.finetune", "bitzoo.hub.publish"]
)


class Digits(Pixels):
    """Images in memory; records which were requested."""

    def __init__(self, images):
        self.size = images.shape[1]
        self.images = images
        self.asked = []

    def __len__(self):
        return len(self.images)

    def rows(self, indices):
        self.asked.extend(np.ravel(indices).tolist())
        return [self.images[index] for index in np.ravel(indices)]

    def close(self):
        self.images = None


@lru_cache
def digits(size=RESIZE):
    """scikit-learn's digits as RGB: uint8 (1797, size, size, 3), and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    gray = (data.images * 255 / 16).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        for image in gray
    ]
    return np.repeat(np.stack(large)[..., None], 3, axis=3), data.target


def make_data(count=40):
    images, labels = digits()
    return Digits(images[:count]), labels[:count]


def make_recipe(steps=6, batch_size=8, lr=0.003, mixup=0.2, **changes):
    schedule = Schedule(lr, steps, changes.pop("warmup", 0), changes.pop("boundaries", ()))
    return Recipe("test", RESIZE, CROP, batch_size, schedule, mixup_alpha=mixup, **changes)


def make_model(seed=0, num_classes=CLASSES, architecture=SMALL):
    model = BiT(architecture, num_classes)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def sha256(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class InProcess:
    """Runs a module's function in its own process, with one thread.

    The function's first argument is a function that reports an object to this process; its return
    value is reported last.
    """

    def __init__(self, function, *args, environment=None, **keywords):
        self.reading, writing = _server.Pipe(duplex=False)
        args = (writing, function, args, keywords, environment or {})
        self.process = _server.Process(target=_report, args=args, daemon=True)
        self.process.start()
        writing.close()

    def next(self, timeout=60):
        """Return the next reported object; EOFError if there is none left."""
        if not self.reading.poll(timeout):
            raise TimeoutError(f"nothing reported for {timeout} seconds")
        return self.reading.recv()

    def result(self):
        """Wait until the process ends, and return the last reported object."""
        reported = []
        try:
            while True:
                reported.append(self.next(timeout=240))  # the first waits for torch's import
        except EOFError:
            self.process.join(60)
            assert self.process.exitcode == 0, self.process.exitcode
            return reported[-1]

    def kill(self):
        self.process.kill()
        self.process.join(60)
        assert self.process.exitcode == -signal.SIGKILL


def in_processes(count, function, *args, own=(), **keywords):
    """Run a function in the processes of one gloo group, and return what each returns.

    Args:
        count: How many.
        function: As for `InProcess`.
        args: Its arguments.
        own: Keywords of the single processes, in their order.
        keywords: Those of all.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        given = {**keywords, **(own[rank] if own else {})}
        processes.append(InProcess(function, *args, environment=environment, **given))
    return [process.result() for process in processes]


def _report(pipe, function, args, keywords, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    pipe.send(function(pipe.send, *args, **keywords))
    pipe.close()


def resume_and_finish(report, folder, recipe, options):
    """Resume from the newest checkpoint, or start; report each step, then the weights' hash."""
    model, start = make_model(), latest_checkpoint(Path(folder))
    pixels, labels = make_data()
    train(
        model, recipe, pixels, labels, options,
        folder=Path(folder), start=start, on_step=lambda m: report(m["step"]),
    )  # fmt: skip
    return sha256(model)
