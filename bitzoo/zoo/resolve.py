"""Where weights come from: names, paths, folders and addresses -> a checkpoint file on this disk.

The weights of a catalogue name come from the first source that has them: the local cache of
converted files; the Hugging Face organisation in ``BITZOO_HUB_ORG``, if set; Google's bucket (or
``BITZOO_MIRROR``), whose file is fetched, checked, converted with its weights proven, and cached.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitzoo.catalogue.model_info import Identity, ModelInfo
from bitzoo.catalogue.registry import BASE_URL, ModelSpec, find_spec
from bitzoo.converters.formats.foreign import name_folder
from bitzoo.converters.formats.hf_folder import WEIGHT_FILES, parts_of
from bitzoo.converters.formats.timm_config import RECORD_KEY
from bitzoo.converters.identify import identify
from bitzoo.converters.model_record import COMPANIONS
from bitzoo.converters.open import is_checkpoint_folder, open_source
from bitzoo.errors import (
    BitzooError,
    CheckpointError,
    HubError,
    StorageError,
    UsageError,
    reason_of,
)
from bitzoo.fetch.addresses import joined, path_of
from bitzoo.fetch.http import base_url, download, forget, how_fetched
from bitzoo.fetch.hub_client import MANIFEST_NAME
from bitzoo.fetch.hub_snapshot import HubAddress, fetch_snapshot, is_hub_address
from bitzoo.files import cache_dir, user_path
from bitzoo.locks import claimed, file_lock, lock_of
from bitzoo.portable import valid_name
from bitzoo.progress import shown
from bitzoo.small_files import parse_json, read_json

WEIGHTS_NAME = "model.safetensors"
_RUN_NAME, _REPEATS_NAME = "run.json", "repeats.json"
"""Records in the folder of a run, and of runs with several seeds (`bitzoo.runs`)."""
_HUB_PAGE = re.compile(r"https://(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?(?:tree/main/?)?")
_SUFFIXES = (
    *(".npz", ".safetensors", ".h5", ".hdf5", ".keras", ".pth", ".pt", ".bin", ".ckpt", ".index"),
    *(".gz", ".tgz", ".tar", ".zip", ".onnx", ".pt2", ".xml", ".pb", ".json"),
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic"),
)
"""Endings of files, of whatever kind: no checkpoint is called so, so what has one is a path."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A checkpoint on this disk.

    Attributes:
        path: The file, or the folder of a checkpoint of several files.
        identity: Which release it is, if the origin of its bytes says so; None leaves it to the
            file itself.
    """

    path: Path
    identity: Identity | None = None


def is_location(text: str | os.PathLike[str]) -> bool:
    """Whether `text` is a path or an address rather than a catalogue name."""
    if not isinstance(text, str):
        return True
    if "/" in text and find_spec(text) and not os.path.exists(text):
        return False  # a handle of TensorFlow Hub
    if "/" in text or os.sep in text or text.lower().endswith(_SUFFIXES) or is_hub_address(text):
        return True
    return find_spec(text) is None and os.path.exists(text)


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether `text` is a web address."""
    is_web = isinstance(text, str) and text.startswith(("http://", "https://"))
    return (
        is_web and find_spec(str(text)) is None
    )  # the address of a TensorFlow Hub module is a name


def locate(place: str | os.PathLike[str], *, weights: str | None = None) -> Located:
    """Return the checkpoint at a path, in a folder, or behind an address (fetched and cached).

    Progress goes where the surrounding `bitzoo.progress.shown` says, as in all of this module.

    Args:
        place: A file; a folder with `model.safetensors` and optionally `config.json`, or any other
            folder that `open_source` reads; an http(s) URL; ``hub:organisation/name@revision`` for
            a repository of the Hugging Face Hub, also with timm's prefix ``hf-hub:``.
        weights: Which weights will be read; see `open_source`.

    Raises:
        UsageError: If it is the address of a page, or not an address in the Hub.
        CheckpointError: If there is no checkpoint, or it is not what its manifest says.
        DownloadError: If the address cannot be fetched.
        HubError: If the Hub does not have it, denies access, or cannot be reached.
    """
    if is_hub_address(place):
        address = HubAddress.parse(str(place))
        path = fetch_snapshot(address, WEIGHT_FILES, COMPANIONS, parts_of)
        identity = manifest_identity(path.parent, str(address))
        return Located(path if path.name == WEIGHTS_NAME else path.parent, identity)
    if is_address(place):
        _require_file_address(str(place))
        path = fetch(str(place), weights=weights)
        return Located(path, identity_of_download(path))
    path = user_path(place)
    if not path.is_dir():
        return Located(path)
    file = path / WEIGHTS_NAME
    if not (file.is_file() or is_checkpoint_folder(path)):
        _refuse_run_without_weights(path)
        what, advice = name_folder(path) or ("none of these", "Give the checkpoint file itself.")
        raise CheckpointError(
            f"{path}: expected a folder with {WEIGHTS_NAME}, as conversions and runs write it, or "
            f"a folder of transformers or TensorFlow; found {what}. {advice}"
        )
    return Located(file if file.is_file() else path)


def _refuse_run_without_weights(path: Path) -> None:
    """Raise for the folder of a run, or of several, that has no weights of its own."""
    runs = [path / _RUN_NAME, path / _REPEATS_NAME]
    if not any(record.is_file() for record in runs):
        return
    weights = next(iter(sorted(path.glob(f"seed-*/{WEIGHTS_NAME}"))), None)
    if weights is not None:
        raise CheckpointError(
            f"{path}: expected one model, found the folder of repeated runs. Give one of them, as "
            f"{weights.parent}."
        )
    raise CheckpointError(
        f"{path}: expected a run that has ended, whose weights are in {WEIGHTS_NAME}; found one "
        "without: it was stopped, it is still training, or its weights were removed. If it was "
        f"stopped, `bitzoo resume {shlex.quote(str(path))}` goes on with it."
    )


def _require_file_address(url: str) -> None:
    """Raise for the address of a repository's page, which people copy from their browser."""
    match = _HUB_PAGE.fullmatch(url)
    if match:
        raise UsageError(
            f"{url} is the page of a repository of the Hugging Face Hub. To load its weights, "
            f"write hub:{match[1]}."
        )


def identity_of_download(path: Path, spec: ModelSpec | None = None) -> Identity | None:
    """Return which release a fetched file is, according to its origin; None if not known.

    Args:
        path: The file that `download` wrote.
        spec: The release that was requested; None for an address that the user gave, which is
            recognised only if it is in Google's bucket.
    """
    how = how_fetched(path)
    if how is None:
        return Identity(spec.name, "mirror", "from an unknown address") if spec else None
    at_google = how.url.startswith(BASE_URL)
    if spec is None and at_google:
        spec = find_spec(PurePosixPath(name_in(how.url)).stem)
        if spec is None or how.url not in {spec.url(kind) for kind in spec.files}:
            return None
    if spec is None:
        return None
    if at_google and how.checked:
        return Identity(spec.name, "google", how.url)
    unchecked = "" if how.checked else ", whose server stated no checksum"
    return Identity(spec.name, "mirror", how.url + unchecked)


def manifest_identity(folder: Path, where: str) -> Identity | None:
    """Return which release a folder's weights are according to its manifest; None if not stated.

    Args:
        folder: The folder with the manifest. The caller has checked that its weights are the bytes
            that the manifest lists.
        where: Name of the folder in the evidence.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        identity = Identity.from_dict(read_json(path).get("identity") or {})
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Publish the folder again."
        ) from error
    if identity.name is None:
        return None
    if identity.basis == "vouched":  # by its publisher, which nobody else need believe
        return identity.as_claim(f"the manifest of {where}")
    if not identity.established:
        return identity
    return Identity(identity.name, "manifest", f"{where}: {identity.basis}, {identity.evidence}")


def fetch(url: str, *, weights: str | None = None) -> Path:
    """Return the cached copy of the checkpoint at `url`; fetch it if there is none."""
    path = _cached(url)
    if not path.is_file() or _mark_of(path).is_file():
        with fetched(url), open_source(path, weights=weights) as source:
            identify(source)
            source.sha256()  # reads all of it, which verifies the checksums inside an npz
    return path


@contextmanager
def fetched(url: str, *, keep: bool = True) -> Iterator[Path]:
    """Provide the cached copy of the checkpoint at `url` to one process at a time.

    If the body finds it damaged, it is removed, so that the next try fetches it again; after other
    errors it is kept for the next try.

    Args:
        url: An http(s) address.
        keep: Whether to keep the file after the body.

    Raises:
        DownloadError: If it cannot be fetched.
    """
    path = _cached(url)
    with ExitStack() as stack:
        try:  # not the file's own lock, which the download takes
            stack.enter_context(file_lock(path.parent))
        except StorageError:
            if not path.is_file():
                raise
            keep = True  # a cache that cannot be written, but has the file
        with suppress(OSError):
            if keep:
                _mark_of(path).unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _mark_of(path).touch()
        download(url, path)
        try:
            yield path
        except CheckpointError:
            with suppress(OSError):
                _forget(path)
            raise
        if not keep:
            _forget(path)


def _mark_of(path: Path) -> Path:
    """Return the file by which a download is known that nobody wants to keep.

    It is made before the download, so that a process that is killed leaves it behind.
    """
    return path.with_name(f"{path.name}.unwanted")


def _forget(path: Path) -> None:
    forget(path)
    _mark_of(path).unlink(missing_ok=True)


def _forget_left(spec: ModelSpec) -> None:
    """Remove the download of a release that a process killed after its conversion left behind.

    What somebody chose to keep stays, and so does what another process is using.
    """
    with suppress(BitzooError, OSError):
        path = _cached(released_url(spec))
        if _mark_of(path).is_file():
            with claimed(lock_of(path.parent)) as free:
                if free:
                    _forget(path)


def name_in(url: str) -> str:
    """Return the file name in an address.

    Raises:
        DownloadError: If it is not an http or https address.
    """
    name = PurePosixPath(path_of(url)).name
    return "checkpoint" if name in ("", "..") else name


def _cached(url: str) -> Path:
    name = name_in(url)
    key = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_dir() / "downloads" / key / valid_name(name)


def released_url(spec: ModelSpec) -> str:
    """Return the address of a released `.npz` in Google's bucket or the mirror.

    Raises:
        WeightsUnavailableError: If Google never released it.
    """
    spec.url("npz")  # raises, with the reason, for a checkpoint that was never released
    return address_of(spec.files["npz"])


def address_of(file: str) -> str:
    """Return the address of a released file in Google's bucket or the mirror.

    Args:
        file: Its path there, as in `ModelSpec.files`.

    Raises:
        DownloadError: If BITZOO_MIRROR is not an address.
    """
    return joined(base_url(), file)


def find_weights(spec: ModelSpec) -> Located:
    """Return a catalogue entry's weights as a safetensors file, from the first source that has it.

    Args:
        spec: The catalogue entry.

    Raises:
        WeightsUnavailableError: If the weights were never released.
        DownloadError: If no source can be reached.
        CheckpointError: If the fetched file is damaged or has another architecture.
        ParityError: If the converted weights differ from the original.
    """
    if kept := kept_weights(spec):
        _forget_left(spec)
        return kept
    url, target = released_url(spec), _place_of(spec)
    with file_lock(target):
        if kept := kept_weights(spec):
            return kept
        if published := _from_hub(spec):
            return published
        with fetched(url, keep=False) as source, shown(None) as report:
            _check_is(spec, source)
            identity = identity_of_download(source, spec)
            # not at the top: most models are on this disk already, and need no proof
            from bitzoo.converters.parity.verify import REPORT_NAME, Check, convert_and_prove

            convert_and_prove(
                source,
                target,
                check=Check.WEIGHTS,
                identity=identity,
                progress=report,
                report_path=target.with_name(REPORT_NAME),
            )
    return Located(target, identity)


def _place_of(spec: ModelSpec) -> Path:
    return cache_dir() / "models" / spec.name / WEIGHTS_NAME


def kept_weights(spec: ModelSpec) -> Located | None:
    """Return the converted file of a release in the cache; None if there is none.

    The cache is bitzoo's own, so the identity in the file's record is trusted: bitzoo wrote it when
    it made the file.
    """
    target = _place_of(spec)
    if not target.is_file():
        return None
    with open_source(target) as source:
        text = source.metadata.get(RECORD_KEY)
    try:
        record = ModelInfo.from_dict(parse_json(text)) if text else None
    except (ValueError, RecursionError) as error:  # CheckpointError is a ValueError
        raise CheckpointError(
            f"{target}: expected bitzoo's record about a model in it, but it cannot be read "
            f"({reason_of(error)}). Remove the file, and load the model again."
        ) from error
    return Located(target, record.identity if record else None)


def _check_is(spec: ModelSpec, path: Path) -> None:
    with open_source(path) as source:
        inventory = identify(source)
    if not spec.fits(inventory.architecture, inventory.num_classes):
        raise CheckpointError(
            f"{path}: fetched as {spec.name}, expected {spec.arch_name} with "
            f"{spec.num_classes:,} classes, found {inventory.title}. Another model was published "
            "under this name; to load it as what it is, give its address instead of the name."
        )


def _from_hub(spec: ModelSpec) -> Located | None:
    """Return the weights from the configured organisation on the Hub, or None if it lacks them."""
    organisation = os.environ.get("BITZOO_HUB_ORG", "").strip()
    if not organisation:
        return None
    repository = f"{organisation}/{spec.name}"
    try:
        address = HubAddress.parse(repository)
        folder = fetch_snapshot(address, [WEIGHTS_NAME]).parent
    except (HubError, UsageError) as error:
        _log.warning(
            "%s cannot be loaded from the Hub (%s); using Google's file instead.",
            repository,
            error,
        )
        return None
    _check_is(spec, folder / WEIGHTS_NAME)
    identity = manifest_identity(folder, str(address))
    return Located(
        folder / WEIGHTS_NAME, identity or Identity(spec.name, "mirror", f"the Hub: {repository}")
    )
