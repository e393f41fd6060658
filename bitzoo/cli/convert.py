"""What `bitzoo convert` and `bitzoo verify` do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from bitzoo.catalogue.registry import find_spec, get_spec
from bitzoo.cli.console import print_facts, print_json, print_report, progress_bar, say
from bitzoo.converters.convert import Conversion, default_output
from bitzoo.converters.formats.checkpoint_formats import Target
from bitzoo.converters.open import open_source
from bitzoo.converters.parity.verify import (
    REPORT_NAME,
    Check,
    ParityReport,
    convert_and_prove,
    drop_report,
    load_reports,
    save_report,
)
from bitzoo.converters.parity.verify import verify as verify_pair
from bitzoo.errors import NotServedError, UsageError
from bitzoo.fetch.http import base_url, download
from bitzoo.files import cache_dir, check_replaceable, file_lock
from bitzoo.zoo.resolve import (
    fetched,
    identity_of_download,
    is_address,
    is_location,
    name_in,
    released_url,
)

_SUFFIXES = (".npz", ".safetensors", ".h5", ".hdf5", ".pth", ".pt", ".bin", ".gz", ".tgz", ".tar")
_MODULE_FILES = (
    ("variables/variables.index",),
    ("variables/variables.data@1", "variables/variables.data-00000-of-00001"),
    ("saved_model.pb",),
    ("tfhub_module.pb",),
)
"""What a released module consists of, under the first name that is served; source: the README of
google-research/big_transfer, which has the shard under the first, and TensorFlow writes the other.
"""


def convert(
    src: str,
    dst: Path | None,
    *,
    to: str,
    kind: str | None,
    dtype: str,
    eps_exact: bool,
    check: str,
    report: Path | None,
    force: bool,
    keep_source: bool,
    json: bool,
) -> None:
    """Fetch if needed, convert, prove, write the report, and say what happened."""
    target = Target(to, dtype, eps_exact)
    url, name = _address(src, kind)
    local = None if url else Path(src).expanduser()
    if local:
        open_source(local).close()  # says what is wrong with it before anything else does
    output = default_output(local or Path(f"{name}.npz" if name else name_in(url)), to)
    if dst:
        output = dst / output.name if dst.is_dir() and not target.format.weights else dst
    proof_path = report or output.with_name(REPORT_NAME)
    if report and check == Check.NONE.value:
        raise UsageError(f"{report}: --check none proves nothing to report. Leave one of them out.")
    _check_places(local, output, proof_path, force=force, folder=target.format.contents)

    def show(proof: ParityReport) -> None:
        if report and not proof.passed:
            save_report(proof, report)
        if not json and not proof.passed:
            print_report(proof)

    lent = nullcontext(local) if local else _fetched(url, keep=keep_source)
    with lent as source, progress_bar() as progress:
        conversion, proof = convert_and_prove(
            source,
            output,
            target,
            check=Check(check),
            identity=identity_of_download(source, get_spec(name)) if name and url else None,
            force=force,
            progress=progress,
            on_report=show,
        )
        if proof:
            save_report(proof, proof_path)
        else:
            drop_report(proof_path, output.name)
    if json:
        print_json(_record(conversion, proof))
    else:
        _print(conversion, proof, proof_path)


def verify(src: Path, dst: Path, *, check: str, report: Path | None, json: bool) -> None:
    """Prove a pair, write the report if asked, and fail if a proof fails."""
    if check == Check.NONE.value:
        raise UsageError("verify --check none would prove nothing; use weights or logits.")
    _require_different(source=src, output=dst, report=report)
    with progress_bar() as progress:
        proof = verify_pair(
            src.expanduser(), dst.expanduser(), check=Check(check), progress=progress
        )
    if report:
        save_report(proof, report)
    if json:
        print_json(proof.to_dict())
    else:
        print_report(proof)
    proof.require()


def _address(src: str, kind: str | None) -> tuple[str, str | None]:
    """Return where to fetch `src` from, empty for a file, and its catalogue name if known.

    Args:
        src: A file, an address or a catalogue name.
        kind: Which of a name's released files.
    """
    if kind and (is_address(src) or _is_local(src)):
        raise UsageError(
            f"--from {kind} chooses between the released files of a catalogue name; {src} is a "
            "file or an address, whose format is recognised. Leave --from out."
        )
    if is_address(src):
        spec = find_spec(Path(name_in(src)).stem)
        return src, spec.name if spec else None
    if _is_local(src):
        return "", None
    spec = get_spec(src)
    if kind in (None, "npz"):
        return released_url(spec), spec.name
    spec.url(kind)  # says what there is, if it was not released so
    return base_url() + spec.files[kind], spec.name


def _is_local(src: str) -> bool:
    looks = src.lower().endswith(_SUFFIXES)  # even if nothing is there, which is then said
    return looks or is_location(src) or Path(f"{src}.index").is_file()


@contextmanager
def _fetched(url: str, *, keep: bool) -> Iterator[Path]:
    """Lend the cached copy of a checkpoint, as `fetched`, or of a module's folder."""
    if not url.endswith("/"):
        with fetched(url, keep=keep) as path:
            yield path
        return
    folder = cache_dir() / "downloads" / "tfhub" / Path(url).name
    with file_lock(folder):
        for names in _MODULE_FILES:
            _download_first(url, names, folder)
        yield folder
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _download_first(url: str, names: Sequence[str], folder: Path) -> None:
    """Fetch the first of some files that the server has."""
    for name in names:
        try:
            download(url + name, folder / name)
            return
        except NotServedError as error:
            refused = error
    raise refused


def _check_places(
    source: Path | None, output: Path, report: Path, *, force: bool, folder: Sequence[str]
) -> None:
    """Refuse what could only fail in the end, before gigabytes are fetched and converted."""
    _require_different(source=source, output=output, report=report)
    for path in (output, report):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    if folder:
        check_replaceable(output, force=force, contents=folder)
    elif output.exists() and not force:
        raise UsageError(f"{output} already exists. Choose another --dst, or replace it: --force.")
    load_reports(report)  # raises if something else lies there


def _require_different(**files: Path | None) -> None:
    places = [os.path.realpath(path.expanduser()) for path in files.values() if path]
    if len(set(places)) < len(places):
        listed = ", ".join(f"{role} {path}" for role, path in files.items() if path)
        raise UsageError(
            f"Expected different files, found {listed}. One would replace the other, or be "
            "compared with itself: choose another name."
        )


def _record(conversion: Conversion, proof: ParityReport | None) -> dict[str, object]:
    inventory = conversion.inventory
    return {
        "source": str(conversion.source),
        "source_sha256": conversion.sha256,
        "output": str(conversion.output),
        "architecture": inventory.architecture.name,
        "num_classes": inventory.num_classes,
        "num_params": inventory.num_params,
        "model": conversion.model,
        "notes": list(conversion.notes),
        "parity": proof.to_dict() if proof else None,
    }


def _print(conversion: Conversion, proof: ParityReport | None, proof_path: Path) -> None:
    inventory = conversion.inventory
    facts: list[tuple[str, object]] = [
        ("source", conversion.source),
        ("sha256", conversion.sha256),
        ("network", f"{inventory.title}, {inventory.num_params:,} parameters"),
        ("model", conversion.model or "not a released file, as far as its name says"),
        ("output", conversion.output),
        ("proof", proof_path if proof else "none was asked for (--check none)"),
    ]
    if conversion.notes:
        facts.append(("note", conversion.notes))
    print_facts(facts)
    if proof:
        say("")
        print_report(proof)
