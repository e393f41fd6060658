"""`bitzoo publish` and `bitzoo card`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitzoo.cli.command import Command, describe_error
from bitzoo.cli.completers import complete_model
from bitzoo.cli.console import ask, print_facts, print_json, print_table, progress_bar, say
from bitzoo.cli.options import PATH, debug_option, json_option
from bitzoo.errors import UsageError

if TYPE_CHECKING:
    from bitzoo.hub.publish import BatchPlan, PublishResult, PublishResults
    from bitzoo.hub.upload import Plan, Publication

_SHORT = 12

vouch_option = click.option(
    "--vouch",
    is_flag=True,
    help="Vouch that it is the release that its name refers to; the card says so.",
)


@click.command("publish", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.option("--repo", help="Repository, organisation/name, for one model.")
@click.option("--org", help="Organisation or user; each model keeps its name there.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--create-pr", is_flag=True, help="Propose the files in a pull request.")
@click.option("--tag", help="Name for the commit, such as v1.")
@click.option("--dry-run", is_flag=True, help="Write folder and plan; use no network.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--folder", type=PATH, help="Folder to stage the files in; default: in the cache.")
@click.option("--license", help="SPDX id of the licence of your file or run.")
@vouch_option
@json_option
@debug_option
def publish(
    model: str,
    repo: str | None,
    org: str | None,
    private: bool,
    create_pr: bool,
    tag: str | None,
    dry_run: bool,
    yes: bool,
    folder: Path | None,
    license: str | None,  # noqa: A002
    vouch: bool,
    json: bool,
) -> None:
    """Publish MODEL to the Hugging Face Hub.

    MODEL is a catalogue name or a pattern of names, a checkpoint file, or a run folder. Re-running
    is safe: files already uploaded are skipped.
    """
    from bitzoo.hub import publish as hub

    def confirm(plan: Plan | BatchPlan) -> bool:
        if isinstance(plan, hub.BatchPlan):
            show, question = partial(_print_batch, plan), f"Publish {len(plan.targets)} models?"
        else:
            show, question = partial(_print_plan, plan), f"Publish to {plan.prepared.repo}?"
        if not json:
            show()
        if yes or ask(question):
            return True
        raise UsageError("Not confirmed; nothing was sent. Use --yes to skip the question.")

    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_quiet_client())
        done = hub.publish(
            model,
            repo=repo,
            org=org,
            private=private,
            create_pr=create_pr,
            tag=tag,
            dry_run=dry_run,
            confirm=confirm,
            folder=folder,
            license=license,
            vouch=vouch,
            progress=stack.enter_context(progress_bar()),
            on_result=None if dry_run else _tell,
        )
    _print(done, json=json)
    if isinstance(done, hub.PublishResults):
        done.require()


@click.command("card", cls=Command, no_args_is_help=True)
@click.argument("model", shell_complete=complete_model)
@click.option("--repo", help="Repository, organisation/name, for the snippets.")
@click.option("--license", help="SPDX id of the licence of your file or run.")
@vouch_option
@click.option("--out", type=PATH, help="File to write; default: print the card.")
@json_option
@debug_option
def card(
    model: str,
    repo: str | None,
    license: str | None,  # noqa: A002
    vouch: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Write the model card of MODEL.

    MODEL is a catalogue name, a checkpoint file, or a run folder.
    """
    from bitzoo.files import write_text
    from bitzoo.hub import publish as hub

    with progress_bar():
        text = hub.card(model, repo=repo, license=license, vouch=vouch)
    if out is not None:
        if not out.parent.is_dir():
            raise UsageError(f"{out}: there is no folder {out.parent}. Create it first.")
        write_text(out, text)
    if json:
        print_json({"card": text, "path": None if out is None else str(out)})
    elif out is None:
        say(text.rstrip("\n"))


def _print(done: Plan | Publication | PublishResults, *, json: bool) -> None:
    from bitzoo.hub.publish import PublishResults
    from bitzoo.hub.upload import Plan

    if isinstance(done, Plan):
        _print_plans([done], json=json)
    elif isinstance(done, PublishResults):
        if plans := [result.plan for result in done if result.plan]:
            _print_plans(plans, json=json)
        elif json:
            print_json(done.to_dicts())
        else:
            _print_summary(done)
    elif json:
        print_json(done.to_dict())
    else:
        _print_done(done)


def _print_plans(plans: Sequence[Plan], *, json: bool) -> None:
    if json:
        print_json([plan.to_dict() for plan in plans] if len(plans) > 1 else plans[0].to_dict())
        return
    for plan in plans:
        _print_plan(plan)
    say("Nothing was sent: this was a dry run, and the Hub was not asked.", error=True)


def _tell(result: PublishResult) -> None:
    done = result.publication
    outcome = (
        f"{done.outcome} {done.commit[:_SHORT]}"
        if done
        else f"failed: {describe_error(result.error)}"
    )
    say(f"{result.repo}: {outcome}", error=True)


def _print_batch(plan: BatchPlan) -> None:
    from bitzoo.hub.targets import Released

    rows = [
        (target.title, repo, 4 * target.spec.num_params)
        for target, repo in plan.targets
        if isinstance(target, Released)
    ]
    print_table(("model", "repository", "bytes at most"), rows)


def _print_summary(results: PublishResults) -> None:
    rows: list[tuple[object, ...]] = []
    for result in results:
        done = result.publication
        sent, commit = (done.sent, done.commit[:_SHORT]) if done else (0, "")
        rows.append((result.repo, result.outcome, sent, commit))
    say("")
    print_table(("repository", "outcome", "bytes sent", "commit"), rows)
    for result in results:
        if result.error:
            say(f"\n{describe_error(result.error)}")


def _print_plan(plan: Plan) -> None:
    files, options = plan.prepared.files, plan.options
    print_table(
        ("file", "bytes", "SHA-256", "on the Hub"),
        [
            (name, files[name].bytes, files[name].sha256[:_SHORT], what)
            for name, what in plan.changes.items()
        ],
    )
    say("SHA-256 in full: --json, and manifest.json")
    state = plan.state
    facts: list[tuple[str, object]] = [
        ("repository", plan.prepared.repo),
        ("folder", plan.prepared.folder),
        *_known_facts(plan),
    ]
    if state is not None:
        facts.append(("is now at", state.commit or "no commit"))
        facts.append(("visible to", "restricted (private)" if state.private else "all (public)"))
        if state.others:
            facts.append(("left alone", list(state.others)))
    else:
        facts.append(
            ("visible to", "restricted (private)" if options.private else "its owner's default")
        )
    if options.create_pr:
        facts.append(("how", "a pull request"))
    if options.tag:
        facts.append(("tag", options.tag))
    say("")
    print_facts(facts)


def _known_facts(plan: Plan) -> list[tuple[str, object]]:
    """Return what is claimed about the model: which release it is, and its licence."""
    info = plan.prepared.info
    if info is None:
        return [("licence", "as its card says")]
    licence = info.license or "not stated; state it with --license"
    facts: list[tuple[str, object]] = [("identity", info.identity), ("licence", licence)]
    if info.identity.name and not info.identity.established:
        left_out = "its scores and licence; if it is that release, vouch for it with --vouch"
        facts.append(("left out", left_out))
    return facts


def _print_done(done: Publication) -> None:
    if done.outcome == "unchanged":
        say(f"Nothing to do: {done.repo} holds exactly these files (commit {done.commit}).")
    else:
        say(f"{done.outcome.capitalize()}: {done.repo}, commit {done.commit}, checksums verified.")
    if done.pull_request:
        say(f"Pull request: {done.pull_request}")
    if done.tag:
        say(f"Tag: {done.tag}")


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Silence the client's own messages."""
    import logging

    from huggingface_hub.utils import logging as client_logging

    level = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client_logging.set_verbosity(level)
