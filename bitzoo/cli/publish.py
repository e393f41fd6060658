"""What `bitzoo publish` and `bitzoo card` do and print."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bitzoo.catalogue.registry import get_spec, list_models
from bitzoo.cli.console import print_facts, print_json, print_table, progress_bar, say
from bitzoo.errors import HubError, UsageError
from bitzoo.fetch.hub_client import check_repo, connect
from bitzoo.files import write_json, write_text
from bitzoo.hub.batch import Outcome, publish_many, publish_one
from bitzoo.hub.publish import Options, Plan, Publication, make_plan
from bitzoo.hub.repo_files import card_of
from bitzoo.hub.staging import prepare
from bitzoo.hub.targets import PublishTarget, Released, find_target

PLAN_NAME = "plan.json"
_WILDCARDS = "*?["
_SHORT = 12


def publish(
    model: str,
    *,
    repo: str | None,
    org: str | None,
    folder: Path | None,
    license_id: str | None,
    dry_run: bool,
    yes: bool,
    json: bool,
    **how: Any,
) -> None:
    """Publish one model, or all that a pattern names."""
    options = Options(**how)
    wanted = _wanted(model, repo, org)
    many = len(wanted) > 1 or _is_pattern(model)
    if many and (folder or license_id or repo):
        raise UsageError("--folder, --license and --repo are for one model; a pattern takes --org.")
    if dry_run:
        _dry_run(wanted, options, folder, license_id, json=json)
    elif many:
        _publish_many(wanted, options, yes=yes, json=json)
    else:
        _publish_one(*wanted[0], options, folder, license_id, yes=yes, json=json)


def card(model: str, *, repo: str | None, out: Path | None) -> None:
    """Write the card of a name, a file or a run, to a file or on the screen."""
    subject = find_target(model)
    text = card_of(subject, repo or f"YOUR-NAME/{subject.title}")
    if out is None:
        say(text.rstrip("\n"))
        return
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}. Create it first.")
    write_text(out, text)


def _is_pattern(model: str) -> bool:
    return any(mark in model for mark in _WILDCARDS) and not os.path.exists(model)


def _wanted(model: str, repo: str | None, org: str | None) -> list[tuple[PublishTarget, str]]:
    if (repo is None) == (org is None):
        raise UsageError(
            "Say where to: --repo organisation/name for one model, or --org organisation, where "
            "each keeps its name."
        )
    if _is_pattern(model):
        names = list_models(model, released=True)
        if not names:
            raise UsageError(
                f"{model!r} matches no released model. `bitzoo list {model!r}` shows what matches, "
                "`bitzoo list` all names."
            )
        subjects: list[PublishTarget] = [Released(get_spec(name)) for name in names]
    else:
        subjects = [find_target(model)]
    return [(subject, check_repo(repo or f"{org}/{subject.title}")) for subject in subjects]


def _dry_run(
    wanted: list[tuple[PublishTarget, str]],
    options: Options,
    folder: Path | None,
    license_id: str | None,
    *,
    json: bool,
) -> None:
    """Prepare folders and plans without any network."""
    os.environ["BITZOO_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    plans = []
    for subject, repo in wanted:
        with progress_bar() as progress:
            ready = prepare(subject, repo, folder=folder, license=license_id, progress=progress)
        plan = make_plan(ready, None, options, asked=False)
        write_json(ready.folder / PLAN_NAME, plan.to_dict())
        plans.append(plan)
        if not json:
            _print_plan(plan, options)
    if json:
        print_json([plan.to_dict() for plan in plans] if len(plans) > 1 else plans[0].to_dict())
    else:
        print("Nothing was sent: this was a dry run, and the Hub was not asked.", file=sys.stderr)


def _publish_one(
    subject: PublishTarget,
    repo: str,
    options: Options,
    folder: Path | None,
    license_id: str | None,
    *,
    yes: bool,
    json: bool,
) -> None:
    def confirm(plan: Plan) -> bool:
        if not json:
            _print_plan(plan, options)
        return yes or _ask(f"Publish to {repo}?")

    with _quiet_client(), progress_bar() as progress:
        done = publish_one(
            connect(),
            subject,
            repo,
            options,
            confirm=confirm,
            folder=folder,
            license_id=license_id,
            progress=progress,
        )
    if done is None:
        raise UsageError("Not confirmed; nothing was sent. To publish without being asked: --yes.")
    if json:
        print_json(done.to_dict())
    else:
        _print_done(done)


def _publish_many(
    wanted: list[tuple[PublishTarget, str]], options: Options, *, yes: bool, json: bool
) -> None:
    if not json:
        rows = [
            (
                subject.title,
                repo,
                4 * subject.spec.num_params if isinstance(subject, Released) else 0,
            )
            for subject, repo in wanted
        ]
        print_table(("model", "repository", "bytes at most"), rows)
    if not yes and not _ask(f"Publish {len(wanted)} models?"):
        raise UsageError("Not confirmed; nothing was sent. To publish without being asked: --yes.")

    def tell(outcome: Outcome) -> None:
        done = outcome.publication
        told = f"{done.outcome} {done.commit[:_SHORT]}" if done else f"failed: {outcome.error}"
        print(f"{outcome.repo}: {told}", file=sys.stderr, flush=True)

    with _quiet_client(), progress_bar() as progress:
        outcomes = publish_many(connect(), wanted, options, progress=progress, on_outcome=tell)
    if json:
        print_json([_record(outcome) for outcome in outcomes])
    else:
        _print_summary(outcomes)
    _require_all(outcomes)


def _require_all(outcomes: list[Outcome]) -> None:
    missing = [outcome for outcome in outcomes if outcome.publication is None]
    if not missing:
        return
    error = HubError(
        f"{len(missing)} of {len(outcomes)} models are not published; the table says why. Run the "
        "same command again: what is finished is not sent again."
    )
    error.exit_code = min((o.error.exit_code for o in missing if o.error), default=2)
    raise error


def _record(outcome: Outcome) -> dict[str, Any]:
    done = outcome.publication
    return {
        "model": outcome.subject.title,
        "repo": outcome.repo,
        "error": str(outcome.error) if outcome.error else None,
        "publication": done.to_dict() if done else None,
    }


def _print_summary(outcomes: list[Outcome]) -> None:
    rows: list[tuple[object, ...]] = []
    for outcome in outcomes:
        done = outcome.publication
        if done:
            rows.append((outcome.repo, done.outcome, done.sent, done.commit[:_SHORT]))
        else:
            rows.append((outcome.repo, "failed" if outcome.error else "not tried", 0, ""))
    say("")
    print_table(("repository", "outcome", "bytes sent", "commit"), rows)
    for outcome in outcomes:
        if outcome.error:
            say(f"\n{outcome.error}")


def _print_plan(plan: Plan, options: Options) -> None:
    files = plan.prepared.files
    print_table(
        ("file", "bytes", "SHA-256", "on the Hub"),
        [
            (name, files[name].bytes, files[name].sha256, what)
            for name, what in plan.changes.items()
        ],
    )
    state = plan.state
    facts: list[tuple[str, object]] = [
        ("repository", plan.prepared.repo),
        ("folder", plan.prepared.folder),
    ]
    if state is not None:
        facts.append(("is now at", state.commit or "no commit"))
        facts.append(("visible to", "some (private)" if state.private else "all (public)"))
        if state.others:
            facts.append(("left alone", list(state.others)))
    else:
        facts.append(
            ("visible to", "some (private)" if options.private else "as its owner's default")
        )
    if options.create_pr:
        facts.append(("how", "a pull request"))
    if options.tag:
        facts.append(("tag", options.tag))
    say("")
    print_facts(facts)


def _print_done(done: Publication) -> None:
    if done.outcome == "unchanged":
        say(f"Nothing to do: {done.repo} holds exactly these files (commit {done.commit}).")
    else:
        say(f"{done.outcome.capitalize()}: {done.repo}, commit {done.commit}, checksums verified.")
    if done.pull_request:
        say(f"Pull request: {done.pull_request}")
    if done.tag:
        say(f"Tag: {done.tag}")


def _ask(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:  # no terminal and no answer
        return False


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client's own bars and remarks from mixing with what is printed here."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as client_logging

    level = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        client_logging.set_verbosity(level)
