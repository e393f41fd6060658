"""What `bitzoo convert` and `bitzoo verify` do."""

from __future__ import annotations

from pathlib import Path

from bitzoo.console import print_facts, print_json, print_report, progress_bar
from bitzoo.converters.parity import (
    REPORT_NAME,
    Check,
    Report,
    convert_and_prove,
    save_report,
)
from bitzoo.converters.parity import verify as verify_pair
from bitzoo.converters.pipeline import Conversion, default_output
from bitzoo.errors import UsageError
from bitzoo.registry import find_spec, get_spec
from bitzoo.weights import fetch, fetch_released, is_address, is_location


def convert(
    src: str,
    dst: Path | None,
    *,
    check: str,
    report: Path | None,
    force: bool,
    keep_source: bool,
    json: bool,
) -> None:
    """Fetch if needed, convert, prove, write the report, and say what happened."""
    source, name, fetched = _find_source(src)
    output = dst or (Path(f"{name or source.stem}.safetensors") if fetched else None)
    output = output or default_output(source)
    if output.resolve() == source.resolve():
        raise UsageError(f"{source}: the output would replace its own source. Choose --dst.")

    def show(proof: Report) -> None:
        if report and not proof.passed:
            save_report(proof, report)
        if not json and not proof.passed:
            print_report(proof)

    with progress_bar() as progress:
        conversion, proof = convert_and_prove(
            source,
            output,
            check=Check(check),
            force=force,
            model=name,
            progress=progress,
            on_report=show,
        )
    if proof:
        save_report(proof, report or output.with_name(REPORT_NAME))
    if fetched and not keep_source:
        source.unlink()
    if json:
        print_json(_record(conversion, proof))
        return
    _print(conversion, proof)
    if proof:
        print_report(proof)


def verify(src: Path, dst: Path, *, check: str, report: Path | None, json: bool) -> None:
    """Prove a pair, write the report if asked, and fail if a proof fails."""
    if check == Check.NONE.value:
        raise UsageError("verify --check none would prove nothing; use weights or logits.")
    with progress_bar() as progress:
        proof = verify_pair(src, dst, check=Check(check), progress=progress)
    if report:
        save_report(proof, report)
    if json:
        print_json(proof.to_dict())
    else:
        print_report(proof)
    proof.require()


def _find_source(src: str) -> tuple[Path, str | None, bool]:
    """Return the file to convert, its catalogue name if known, and whether it was fetched."""
    if is_address(src):
        spec = find_spec(Path(src).stem)
        return fetch(src), spec.name if spec else None, True
    if is_location(src):
        return Path(src), None, False
    spec = get_spec(src)
    return fetch_released(spec), spec.name, True


def _record(conversion: Conversion, proof: Report | None) -> dict[str, object]:
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


def _print(conversion: Conversion, proof: Report | None) -> None:
    inventory = conversion.inventory
    facts: list[tuple[str, object]] = [
        ("source", conversion.source),
        ("sha256", conversion.sha256),
        ("network", f"{inventory.title}, {inventory.num_params:,} parameters"),
        ("model", conversion.model or "not a released file, as far as its name says"),
        ("output", conversion.output),
    ]
    if conversion.notes:
        facts.append(("note", conversion.notes))
    if proof is None:
        facts.append(("proof", "none was asked for (--check none)"))
    print_facts(facts)
