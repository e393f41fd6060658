"""From a prepared folder to a commit on the Hub: plan -> upload -> verify -> tag -> note."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import urlsplit

from bitzoo._version import __version__
from bitzoo.display import Displayed, list_names
from bitzoo.errors import HubError, HubUnreachableError, ParityError, UsageError
from bitzoo.fetch.hub_client import hub_errors, own_bars, status_of
from bitzoo.files import write_json
from bitzoo.hub.remote import RemoteFile, RemoteState, read_files, read_state
from bitzoo.hub.repo_manifest import NOTE_NAME, FileRecord, git_sha1, listed_records, read_note
from bitzoo.hub.staging import Prepared

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

What = Literal["new", "changed", "same", "unknown"]
_XET_HOSTS = ("huggingface.co", "hf.co")


@dataclass(frozen=True)
class Options:
    """How to publish.

    Attributes:
        private: Whether a new repository is private; False leaves it to the organisation.
        create_pr: Whether to propose the files in a pull request instead of committing them.
        tag: Name for the commit; None for none.
    """

    private: bool = False
    create_pr: bool = False
    tag: str | None = None

    def __post_init__(self) -> None:
        if self.create_pr and self.tag:
            raise UsageError(
                "`tag` names a commit of the repository, which a pull request is not yet. Leave "
                "out one of `tag` and `create_pr`; tag the commit after the merge."
            )


@dataclass(frozen=True, repr=False)
class Plan(Displayed):
    """What publishing one model would do.

    Attributes:
        prepared: The files.
        state: The repository now; None if there is none, or if the Hub was not asked.
        changes: For each file, how it differs from the repository's.
        options: How to publish.
    """

    prepared: Prepared
    state: RemoteState | None
    changes: Mapping[str, What]
    options: Options = Options()

    @property
    def sent(self) -> tuple[str, ...]:
        """Names of the files that the repository lacks, or has with other contents."""
        return tuple(name for name, what in self.changes.items() if what != "same")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        files = listed_records(self.prepared.files)
        return {
            "repo": self.prepared.repo,
            "folder": str(self.prepared.folder),
            "files": {name: files[name] | {"change": what} for name, what in self.changes.items()},
            "present_commit": self.state.commit if self.state else None,
            "left_alone": list(self.state.others) if self.state else [],
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return the repository, the folder, and how each file differs from the repository's."""
        return [
            ("repository", self.prepared.repo),
            ("folder", self.prepared.folder),
            *self.changes.items(),
        ]


@dataclass(frozen=True, repr=False)
class Publication(Displayed):
    """A model on the Hub.

    Attributes:
        repo: Full name of the repository.
        outcome: ``published``, ``proposed`` in a pull request, or ``unchanged``.
        commit: The commit with the files.
        sent: Bytes that the commit added or replaced.
        pull_request: Its address, if there is one.
        tag: Name of the commit, if requested.
        files: The files.
    """

    repo: str
    outcome: Literal["published", "proposed", "unchanged"]
    commit: str
    sent: int = 0
    pull_request: str | None = None
    tag: str | None = None
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the publication as JSON-ready data."""
        return {
            "repo": self.repo,
            "outcome": self.outcome,
            "commit": self.commit,
            "sent_bytes": self.sent,
            "pull_request": self.pull_request,
            "tag": self.tag,
            "files": listed_records(self.files),
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        rows: list[tuple[str, object]] = [
            ("repository", self.repo),
            ("outcome", self.outcome),
            ("commit", self.commit),
            ("sent", f"{self.sent:,} bytes"),
            ("pull request", self.pull_request),
            ("tag", self.tag),
            ("files", list(self.files)),
        ]
        return [(name, value) for name, value in rows if value not in (None, [])]


def make_plan(
    prepared: Prepared, state: RemoteState | None, options: Options, *, asked: bool = True
) -> Plan:
    """Compare the files with those in the repository.

    Args:
        prepared: The files.
        state: The repository; None if there is none.
        options: How to publish.
        asked: Whether the Hub was asked at all.

    Raises:
        HubError: If the repository does not fit the options.
    """
    repo = prepared.repo
    if asked and options.create_pr and state is None:
        raise HubError(
            f"{repo}: a pull request needs an existing repository, and there is none. Publish "
            "without `create_pr` first, or check the name."
        )
    if options.private and state is not None and not state.private:
        raise HubError(
            f"{repo} exists and is public, and `private` affects only new repositories. Make it "
            "private in its settings, or leave `private` out."
        )
    changes: dict[str, What] = {}
    for name, facts in prepared.files.items():
        there = state.files.get(name) if state else None
        if there is None:
            changes[name] = "new" if asked else "unknown"
        else:
            changes[name] = "same" if _is_same(prepared, name, facts, there) else "changed"
    return Plan(prepared, state, changes, options)


def carry_out(api: HfApi, plan: Plan) -> Publication:
    """Carry out the plan; a plan without changes makes no commit.

    Raises:
        ParityError: If a file is no longer the one that was proven.
        HubUnreachableError: If the connection is lost; the same call continues from there.
        HubError: If the Hub denies the request, or its files differ from what was sent.
    """
    prepared, options = plan.prepared, plan.options
    repo = prepared.repo
    if not plan.sent:
        assert plan.state is not None
        done = Publication(repo, "unchanged", str(plan.state.commit))
    elif earlier := _proposed_already(api, plan):
        done = earlier
    else:
        state = plan.state or _create(api, repo, options)
        done = _commit(api, plan, state)
        _verify(api, plan, done)
    if options.tag:
        _tag(api, repo, done.commit, options.tag)
    result = Publication(
        repo=repo,
        outcome=done.outcome,
        commit=done.commit,
        sent=done.sent,
        pull_request=done.pull_request,
        tag=options.tag,
        files=prepared.files,
    )
    note = prepared.folder / NOTE_NAME
    published = result.to_dict() | {"hub": _host(api)}
    write_json(note, read_note(prepared.folder) | {"published": published})
    return result


def _is_same(prepared: Prepared, name: str, facts: FileRecord, there: RemoteFile) -> bool:
    if there.sha256 is not None:
        return there.sha256 == facts.sha256
    path = prepared.folder / name
    return there.bytes == facts.bytes and path.is_file() and there.git_sha1 == git_sha1(path)


def _create(api: HfApi, repo: str, options: Options) -> RemoteState:
    """Create the repository, and make sure that it is private if requested."""
    try:
        with hub_errors(repo, "publish"):
            api.create_repo(repo, private=True if options.private else None)
    except HubError as error:
        if status_of(error) != 409:
            raise
        # Someone else has just created it, or it exists and is hidden from us.
    state = read_state(api, repo)
    if state is None:
        raise HubError(
            f"{repo}: the name is taken by something that this token cannot see. Choose another "
            "name, or use its owner's token."
        )
    if options.private and not state.private:
        raise HubError(
            f"{repo} should be private but is public. Nothing was uploaded. Make it private in its "
            "settings, then publish again."
        )
    return state


def _commit(api: HfApi, plan: Plan, state: RemoteState) -> Publication:
    prepared, options = plan.prepared, plan.options
    sent = sum(prepared.files[name].bytes for name in plan.sent)
    with ExitStack() as stack:
        operations = [_addition(api, prepared, name, stack) for name in plan.sent]
        try:
            with own_bars(), hub_errors(prepared.repo, "publish"):
                made: CommitInfo = api.create_commit(
                    prepared.repo,
                    operations,
                    commit_message=f"Publish {prepared.title} with bitzoo {__version__}",
                    create_pr=options.create_pr,
                    parent_commit=state.commit,
                )
        except HubUnreachableError:
            now = None if options.create_pr else _if_reachable(api, prepared.repo)
            if now is None or make_plan(prepared, now, Options()).sent:
                raise
            # The commit was made; only the response was lost.
            return Publication(prepared.repo, "published", str(now.commit), sent)
    if options.create_pr:
        return Publication(prepared.repo, "proposed", made.oid, sent, made.pr_url)
    return Publication(prepared.repo, "published", made.oid, sent)


def _if_reachable(api: HfApi, repo: str) -> RemoteState | None:
    try:
        return read_state(api, repo)
    except HubError:
        return None


def _addition(api: HfApi, prepared: Prepared, name: str, stack: ExitStack) -> CommitOperationAdd:
    """Open a file for the upload, and make sure that it is the one that was proven.

    An open file is sent by plain LFS, which every server supports; a path may be sent by Xet, which
    only huggingface.co is known to support.
    """
    from huggingface_hub import CommitOperationAdd

    path = prepared.folder / name
    if urlsplit(api.endpoint).hostname in _XET_HOSTS:
        addition = CommitOperationAdd(name, path)
    else:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        addition = CommitOperationAdd(name, file)
    found = addition.upload_info.sha256.hex()
    if found != prepared.files[name].sha256:
        raise ParityError(
            f"{path}: changed after it was proven. Expected SHA-256 "
            f"{prepared.files[name].sha256}, found {found}. Nothing was committed; remove "
            f"{prepared.folder} and publish again."
        )
    return addition


def _verify(api: HfApi, plan: Plan, done: Publication) -> None:
    """Compare the Hub's files with what was sent."""
    prepared = plan.prepared
    revision = _pr_revision(done.pull_request) or done.commit
    there = read_files(api, prepared.repo, revision)
    wrong = [
        name
        for name, facts in prepared.files.items()
        if name not in there or not _is_same(prepared, name, facts, there[name])
    ]
    if wrong:
        raise HubError(
            f"{prepared.repo}: after commit {done.commit} the Hub's contents of "
            f"{list_names(wrong)} differ from what was sent. Do not use the repository. Publish "
            "again; if that does not help, contact the Hub's support."
        )


def _pr_revision(address: str | None) -> str | None:
    number = address.rstrip("/").rpartition("/")[2] if address else ""
    return f"refs/pr/{number}" if number.isdecimal() else None


def _proposed_already(api: HfApi, plan: Plan) -> Publication | None:
    """Return the pull request that an earlier call opened with exactly these files."""
    note = read_note(plan.prepared.folder).get("published", {})
    address = note.get("pull_request") if isinstance(note, dict) else None
    revision = _pr_revision(address) if isinstance(address, str) else None
    if not plan.options.create_pr or revision is None:
        return None
    try:
        there = read_files(api, plan.prepared.repo, revision)
    except HubUnreachableError:
        raise
    except HubError:
        return None  # closed and gone
    state = RemoteState(None, False, there)
    changes = make_plan(plan.prepared, state, Options()).sent
    if changes:
        return None
    return Publication(plan.prepared.repo, "unchanged", str(note["commit"]), 0, address)


def _tag(api: HfApi, repo: str, commit: str, tag: str) -> None:
    with hub_errors(repo, "publish"):
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}
    if tags.get(tag) == commit:
        return
    if tag in tags:
        raise HubError(
            f"{repo}: the tag {tag} already names commit {tags[tag]}, but these files are in "
            f"{commit}. Choose another `tag`."
        )
    with hub_errors(repo, "publish"):
        api.create_tag(repo, tag=tag, revision=commit)


def _host(api: HfApi) -> str:
    parts = urlsplit(api.endpoint)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"
