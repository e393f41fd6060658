"""`convert` and `verify`: fetch if needed -> convert -> prove -> write the report.

`bitzoo.converters` converts one file to another; this module adds addresses, catalogue names,
default outputs and reports.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bitzoo.catalogue.model_info import ModelInfo
from bitzoo.catalogue.registry import ModelSpec, find_spec, get_spec
from bitzoo.converters.convert import Conversion, default_output
from bitzoo.converters.formats.checkpoint_formats import (
    Target,
    choose_format,
    has_known_ending,
)
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import (
    REPORT_NAME,
    Check,
    ParityReport,
    convert_and_prove,
    load_reports,
    save_report,
)
from bitzoo.converters.parity.verify import verify as verify_files
from bitzoo.display import Displayed
from bitzoo.errors import NotServedError, ParityError, UsageError
from bitzoo.fetch.addresses import joined, path_of
from bitzoo.fetch.http import download
from bitzoo.fetch.hub_snapshot import HubAddress, is_hub_address
from bitzoo.files import Progress, cache_dir, check_replaceable, user_path
from bitzoo.locks import file_lock
from bitzoo.portable import valid_name
from bitzoo.progress import shown
from bitzoo.zoo.resolve import (
    address_of,
    fetched,
    identity_of_download,
    is_address,
    is_location,
    locate,
    name_in,
    released_url,
)

__all__ = ["ConversionResult", "convert", "verify"]

_MODULE_FILES = (
    ("variables/variables.index",),
    ("variables/variables.data@1", "variables/variables.data-00000-of-00001"),
    ("saved_model.pb",),
    ("tfhub_module.pb",),
)
"""The files of a released TF-Hub module, each with its possible names, of which the first that the
server has is fetched. Source: the README of google-research/big_transfer has the first name of the
shard; TensorFlow writes the second.
"""


@dataclass(frozen=True, repr=False)
class ConversionResult(Displayed):
    """A converted checkpoint.

    Attributes:
        source: The file that was read; for an address or a name, its copy in the cache.
        source_sha256: SHA-256 of that file.
        output: The file or folder that was written.
        network: Architecture, classes and parameters as a phrase.
        architecture: Name of the architecture, such as ``R50x1``.
        num_classes: Outputs of its head; 0 without a head.
        num_params: Number of parameters, including the head.
        info: What is known about the model.
        notes: What a user should know, as sentences.
        parity: The proof; None if none was requested.
        report: The file with the proof; None if none was requested.
    """

    source: Path
    source_sha256: str
    output: Path
    network: str
    architecture: str
    num_classes: int
    num_params: int
    info: ModelInfo
    notes: tuple[str, ...]
    parity: ParityReport | None
    report: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "source": str(self.source),
            "source_sha256": self.source_sha256,
            "output": str(self.output),
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "num_params": self.num_params,
            "model": self.info.identity.name,
            "info": self.info.to_dict(),
            "notes": list(self.notes),
            "parity": self.parity.to_dict() if self.parity else None,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        proof = "not requested"
        if self.parity:
            logits = ", weights and logits" if self.parity.logits else ", weights"
            proof = f"{'passed' if self.parity.passed else 'FAILED'}{logits}: {self.report}"
        return [
            ("source", self.source),
            ("sha256", self.source_sha256),
            ("network", self.network),
            ("model", self.info.identity),
            ("output", self.output),
            ("proof", proof),
            *(("note", note) for note in self.notes),
        ]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None = None,
    *,
    to: str | None = None,
    source_format: str | None = None,
    dtype: str = "float32",
    eps_exact: bool = False,
    check: str = "logits",
    report: str | os.PathLike[str] | None = None,
    force: bool = False,
    keep_source: bool = False,
    weights: str | None = None,
    progress: Progress | bool | None = None,
) -> ConversionResult:
    """Convert a checkpoint and prove that nothing changed; `bitzoo convert` does the same.

    Args:
        src: A checkpoint in any format that bitzoo reads, its address (http, https or
            ``hub:organisation/name``), or a catalogue name.
        dst: File or folder to write to; default next to the source, or in the working directory if
            the source is fetched.
        to: Format to write: ``safetensors``, ``npz``, ``h5``, ``timm``, ``transformers`` (a
            folder) or ``bit_pytorch``. None for the one of the ending of `dst`, or safetensors if
            it has none.
        source_format: Which released file of a catalogue name: ``npz`` (the default), ``h5`` or
            ``tfhub``.
        dtype: Dtype to write: ``float32``, ``float16`` or ``bfloat16``, to whose nearest numbers
            those of the source are rounded if it lacks them (the record states how far that moved
            them), or ``float64``, which keeps those of a float64 source.
        eps_exact: Whether to multiply the kernels by 10, so that timm or transformers compute
            Google's function; for inference only.
        check: What to prove: ``none``, ``weights``, or ``logits`` for both proofs.
        report: Where to write the proof; default `parity.json` next to the output.
        force: Whether to replace an existing output.
        keep_source: Whether to keep a downloaded source in the cache.
        weights: Which weights of a training checkpoint: ``ema`` (averages over training), ``raw``,
            or the name of their place in the file, as the result's `notes` and error messages list
            them. None for averages if there are any, as in timm.
        progress: As for `bitzoo.finetune`.

    Returns:
        What was read, written and proven.

    Raises:
        UsageError: If options contradict each other, or a path cannot be written.
        CheckpointError: If the source is damaged or unsafe, or contains no BiT network.
        DownloadError: If the source cannot be fetched.
        ParityError: If a proof fails; then no output is left, and the error's `report` has the
            figures.
    """
    place = user_path(dst) if dst else None
    target = Target(choose_format(place, to), dtype, eps_exact)
    wanted = _find_check(check)
    if report and wanted is Check.NONE:
        raise UsageError(
            f'{report}: with `check="none"` there is no proof to report. Leave one of them out.'
        )
    _require_report_name(report)
    url, spec = _find_address(src, source_format)
    local = None if url or is_hub_address(src) else user_path(src)
    measured: ParityReport | None = None

    def keep(proof: ParityReport) -> None:
        nonlocal measured
        measured = proof
        if report and not proof.passed:
            save_report(proof, proof_path)

    with ExitStack() as stack:
        told = stack.enter_context(shown(progress))
        hub = locate(src, weights=weights) if is_hub_address(src) else None
        if hub:
            source = stack.enter_context(open_source(hub.path, weights=weights))
            identity = hub.identity
        elif local:  # opened first, so that its problems are reported before anything else is done
            source, identity = stack.enter_context(open_source(local, weights=weights)), None
        output = _find_output(local or _name_of(src, url, spec), place, target)
        proof_path = _find_report(report) or output.with_name(REPORT_NAME)
        _check_places(local, output, proof_path, force=force, contents=target.format.contents)
        if url:
            path = stack.enter_context(_fetched(url, keep=keep_source))
            source = stack.enter_context(open_source(path, weights=weights))
            identity = identity_of_download(path, spec)
        try:
            conversion, proof = convert_and_prove(
                source,
                output,
                target,
                check=wanted,
                identity=identity,
                force=force,
                hash_output=True,
                progress=told,
                on_report=keep,
                report_path=proof_path,
            )
        except ParityError as error:
            error.report = measured
            raise
    if place and to is None and not (place.is_dir() or has_known_ending(place)):
        note = (
            f"The name {place.name} has no ending of a checkpoint format: a {target.to} file is "
            "written. Give `dst` an ending, or choose with `to`."
        )
        conversion = replace(conversion, notes=(*conversion.notes, note))
    return _result(conversion, proof, proof_path if proof else None)


def verify(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    check: str = "logits",
    report: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    progress: Progress | bool | None = None,
) -> ParityReport:
    """Verify that two checkpoint files hold the same model; `bitzoo verify` does the same.

    Args:
        src: The original, in any format that bitzoo reads.
        dst: What was made from it, in any format that bitzoo reads.
        check: ``weights``, or ``logits`` for both proofs.
        report: Where to write the proof, passed or failed; None for nowhere.
        weights: Which weights of `src`; as for `convert`.
        progress: As for `bitzoo.finetune`.

    Returns:
        The figures; `ParityReport.passed` says whether all are within tolerance, and
        `ParityReport.require` raises if not.

    Raises:
        UsageError: If there would be nothing to prove, or the report cannot be written.
        CheckpointError: If a file cannot be read.
        ParityError: If the files have different architectures.
    """
    wanted = _find_check(check)
    if wanted is Check.NONE:
        raise UsageError('`check="none"` would prove nothing. Use weights or logits.')
    source, output = user_path(src), user_path(dst)
    _require_report_name(report)
    place = _find_report(report)
    _require_different(source=source, output=output, report=place)
    with shown(progress) as told:
        proof = verify_files(source, output, check=wanted, weights=weights, progress=told)
    if place:
        save_report(proof, place)
    return proof


def _find_report(report: str | os.PathLike[str] | None) -> Path | None:
    """Return where the proof goes: `report`, or its own name in the folder `report`."""
    place = user_path(report) if report else None
    return place / REPORT_NAME if place and place.is_dir() else place


def _require_report_name(report: str | os.PathLike[str] | None) -> None:
    if report and has_known_ending(Path(report)):
        raise UsageError(
            f"{report}: a proof is JSON, and this is the name of a checkpoint. Choose another one "
            "for `report`, such as parity.json."
        )


def _find_output(source: Path, dst: Path | None, target: Target) -> Path:
    """Return where to write: `dst`, in the folder `dst`, or next to the source."""
    default = default_output(source, target.format.name)
    if not dst:
        return default
    return dst / default.name if dst.is_dir() and not target.format.weights else dst


def _find_check(name: str) -> Check:
    try:
        return Check(name)
    except ValueError:
        known = ", ".join(check.value for check in Check)
        raise UsageError(f"`check` must be one of {known}, found {name!r}.") from None


def _find_address(
    src: str | os.PathLike[str], source_format: str | None
) -> tuple[str, ModelSpec | None]:
    """Return the address of `src`, empty for a file, and the catalogue entry of a name."""
    if source_format and (is_address(src) or _is_local(src)):
        raise UsageError(
            f'`source_format="{source_format}"` chooses between the released files of a catalogue '
            f"name; {src} is a file or an address, whose format is recognised. Leave "
            "`source_format` out."
        )
    if _is_local(src):
        return "", None
    src = os.fspath(src)
    if is_address(src):
        return src, None
    spec = get_spec(src)
    if source_format in (None, "npz"):
        return released_url(spec), spec
    spec.url(source_format)  # raises, listing the released formats, if this is not one
    return address_of(spec.files[source_format]), spec


def _name_of(src: str | os.PathLike[str], url: str, spec: ModelSpec | None) -> Path:
    """Return what a fetched file is called: as the release of that name, if there is one."""
    if not url:
        return Path(HubAddress.parse(str(src)).repo.partition("/")[2] + ".bin")
    name = name_in(url)
    spec = spec or find_spec(Path(name).stem)
    return Path(f"{spec.name}.npz" if spec else name)


def _is_local(src: str | os.PathLike[str]) -> bool:
    if is_address(src):
        return False
    return is_location(src) or Path(f"{os.fspath(src)}.index").is_file()


@contextmanager
def _fetched(url: str, *, keep: bool) -> Iterator[Path]:
    """Provide the cached copy of a checkpoint, like `fetched`, or of a TF-Hub module's folder."""
    if not path_of(url).endswith("/"):
        with fetched(url, keep=keep) as path:
            yield path
        return
    folder = cache_dir() / "downloads" / "tfhub" / valid_name(name_in(url))
    with file_lock(folder):
        for names in _MODULE_FILES:
            _download_first(url, names, folder)
        yield folder
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _download_first(url: str, names: Sequence[str], folder: Path) -> None:
    """Fetch the first of `names` that the server has."""
    for name in names:
        try:
            # an @ after a host looks like the end of a password, wherever it stands
            download(joined(url, quote(name)), folder / name)
            return
        except NotServedError as error:
            refused = error
    raise refused


def _check_places(
    source: Path | None, output: Path, report: Path, *, force: bool, contents: Sequence[str]
) -> None:
    """Raise what would fail in the end anyway, before gigabytes are fetched and converted."""
    _require_different(source=source, output=output, report=report)
    for path in (output, report):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    check_replaceable(output, option="dst", force=force, contents=contents or None)
    load_reports(report)  # raises if the file is something else


def _require_different(**files: Path | None) -> None:
    places = [os.path.realpath(path) for path in files.values() if path]
    if len(set(places)) < len(places):
        listed = ", ".join(f"{role} {path}" for role, path in files.items() if path)
        raise UsageError(
            f"Expected different files, found {listed}. One would replace the other, or would be "
            "compared with itself. Choose another name."
        )


def _result(
    conversion: Conversion, proof: ParityReport | None, report: Path | None
) -> ConversionResult:
    inventory = conversion.inventory
    return ConversionResult(
        source=conversion.source,
        source_sha256=conversion.sha256,
        output=conversion.output,
        network=f"{inventory.title}, {inventory.num_params:,} parameters",
        architecture=inventory.architecture.name,
        num_classes=inventory.num_classes,
        num_params=inventory.num_params,
        info=conversion.info,
        notes=conversion.notes,
        parity=proof,
        report=report,
    )
