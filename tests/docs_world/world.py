"""The small world in which a page runs: servers on 127.0.0.1, an environment, a folder a page.

`SUBSTITUTES` is all that is changed in what a reader types. Apart from that commands run as they
stand; `pip` and `make` are stand-ins that check what is asked of them and install or build nothing
(`stand_ins/`).
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from checkpoints import make_checkpoint, write_npz
from hub_server import HubServer
from servers import FileServer

import bitzoo
from bitzoo.catalogue.registry import BASE_URL, ModelSpec, get_spec, list_models
from docs_world.given import MAKERS
from docs_world.modules import write_module
from docs_world.peer_repos import PEERS

HERE = Path(__file__).parent
CODE = Path(bitzoo.__file__).parent.parent
SMALL: Mapping[str, Any] = runpy.run_path(str(HERE / "small" / "sitecustomize.py"), run_name="")

_SYSTEM = ("/usr/local/bin", "/usr/bin", "/bin")

SUBSTITUTES = (BASE_URL, "https://mirror.example/bit_models/")
"""Addresses that the bucket's stand-in answers for, where a page types them."""


class Bucket(FileServer):
    """Google's bucket: any released file, made when it is asked for, as small as its network."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self._known: dict[str, dict[str, str]] = {}
        self._specs = {
            path: (get_spec(name), kind)
            for name in list_models(released=True)
            for kind, path in get_spec(name).files.items()
        }

    def read(self, path: str) -> bytes | None:
        """The content of a released file; None if there is none of that name."""
        module, folder, _ = path.partition(".tfhub/")
        release = module + folder
        if release in self._specs and not (self.folder / release).exists():
            self._make(release, *self._specs[release])
        return super().read(path)

    def validators(self, path: str, content: bytes) -> dict[str, str]:
        """As of any file, computed once: nothing in a bucket changes."""
        if path not in self._known:
            self._known[path] = super().validators(path, content)
        return self._known[path]

    def _make(self, path: str, spec: ModelSpec, kind: str) -> None:
        arrays = arrays_of(spec)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "npz":
            write_npz(target, arrays)
        elif kind == "h5":
            from formats import write_keras  # imports torch

            write_keras(target, arrays)
        elif kind == "tfhub":
            write_module(target, arrays)


def arrays_of(spec: ModelSpec) -> dict[str, Any]:
    """A released file of the small world: random numbers, which only depend on the name."""
    depths = SMALL["DEPTHS"][spec.arch_name]
    seed = zlib.crc32(spec.name.encode())
    return make_checkpoint(depths, SMALL["WIDTH"], spec.num_classes, seed=seed)


class World:
    """The servers, and what pages are given, which is made once.

    Args:
        folder: Where everything of it lies.
        forks: Whether commands are forked from one process; else each imports torch itself.

    Attributes:
        store: Folder of what is made for all pages.
        bucket: Google's bucket.
        hub: The Hugging Face Hub; empty at the start of each page.
    """

    def __init__(self, folder: Path, *, forks: bool = True) -> None:
        made_by = b"".join(path.read_bytes() for path in sorted(HERE.rglob("*.py")))
        self.store = folder / f"store-{zlib.crc32(made_by):08x}"  # a folder may be used again
        (folder / "bucket").mkdir(parents=True, exist_ok=True)
        self.store.mkdir(exist_ok=True)
        self.bucket = Bucket(folder / "bucket")
        self.hub = HubServer()
        self.socket = folder / "forks"
        self._may_fork = forks and hasattr(os, "pidfd_open")
        self._forks: subprocess.Popen[str] | None = None

    def __enter__(self) -> World:
        self.bucket.__enter__()
        self.hub.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._forks:
            assert self._forks.stdin
            assert self._forks.stdout
            self._forks.stdin.close()
            try:
                self._forks.wait(10)
            except subprocess.TimeoutExpired:
                self._forks.kill()
                self._forks.wait(10)
            self._forks.stdout.close()
        self.hub.__exit__(kind, error, trace)
        self.bucket.__exit__(kind, error, trace)

    def environment(self, own: Path) -> dict[str, str]:
        """The environment of a page whose home, caches and temporary files are in `own`."""
        for name in ("home", "tmp"):
            (own / name).mkdir(parents=True, exist_ok=True)
        path = [
            HERE / "stand_ins",
            Path(sys.executable).parent,
            "/usr/local/bin",
            "/usr/bin",
            "/bin",
        ]
        return {
            "PATH": os.pathsep.join(map(str, path)),
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "small", HERE.parent, CODE))),
            "HOME": str(own / "home"),
            "TMPDIR": str(own / "tmp"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONDONTWRITEBYTECODE": "1",
            "BITZOO_CACHE": str(own / "cache"),
            "BITZOO_MIRROR": self.bucket.url,
            "BITZOO_DATA": str(own / "torchvision"),
            "GLOO_SOCKET_IFNAME": "lo",
            **self.hub.environment(),
        }

    def processes(self, given: tuple[str, ...]) -> dict[str, str]:
        """What an environment says of how commands start, and whether there is TensorFlow."""
        found = {"BITZOO_DOCS_TENSORFLOW": "1"} if "tensorflow" in given else {}
        if self._may_fork:
            if not self._forks:
                self._start_forks()
            found["DOCS_FORK_SERVER"] = str(self.socket)
        return found

    def _start_forks(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._forks = subprocess.Popen(
            [sys.executable, "-m", "docs_world.fork_server", str(self.socket)],
            env=self.environment(self.socket.parent / "server"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._forks.stdout
        if self._forks.stdout.readline() != "ready\n":
            raise RuntimeError("the fork server did not start")

    def clear_hub(self) -> None:
        """Empty the Hub."""
        self.hub.repos.clear()
        self.hub.blobs.clear()
        self.hub.requests.clear()

    def furnish(self, folder: Path, own: Path, given: tuple[str, ...]) -> None:
        """Put what a page is given where its reader has it.

        Args:
            folder: Where the page works.
            own: Where its home is.
            given: The names.

        Raises:
            KeyError: If nobody knows how to make it.
        """
        places = {
            "tfds": own / "home" / "tensorflow_datasets",
            "hf": own / "home" / ".cache" / "huggingface" / "datasets",
            "torchvision": own / "torchvision",
        }
        for name in given:
            key = name.rstrip("/")
            if key.removeprefix("hub:") in PEERS:
                release, make = PEERS[key.removeprefix("hub:")]
                self.hub.add_repo(key.removeprefix("hub:"), make(arrays_of(get_spec(release))))
                continue
            if key not in MAKERS:
                raise KeyError(f"`given` has {name!r}; known are {', '.join(sorted(MAKERS))}")
            made = self.store / key
            if not made.exists():
                made.parent.mkdir(parents=True, exist_ok=True)
                MAKERS[key](self, made)
            library = places.get(key.partition(":")[0])
            target = library or folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            if made.is_dir():
                shutil.copytree(made, target, dirs_exist_ok=True)
            elif made.is_file():
                shutil.copy(made, target)

    def text(self, typed: str) -> str:
        """What is run in place of what is typed."""
        for address in SUBSTITUTES:
            typed = typed.replace(address, self.bucket.url)
        return typed
