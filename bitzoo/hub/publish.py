"""`publish` and `card`: one model, or all that match a pattern, one after another.

Finished parts are neither made nor sent again, so the same call completes an interrupted one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitzoo.catalogue.registry import get_spec, list_models
from bitzoo.display import Displayed
from bitzoo.errors import BitzooError, HubError, HubUnreachableError, UsageError
from bitzoo.fetch.hub_client import check_repo, connect
from bitzoo.files import Progress, user_path, write_json
from bitzoo.hub.remote import check_access
from bitzoo.hub.repo_files import card_of
from bitzoo.hub.staging import Prepared, drop_weights, prepare
from bitzoo.hub.targets import PublishTarget, Released, find_target
from bitzoo.hub.upload import Options, Plan, Publication, carry_out, make_plan
from bitzoo.progress import shown
from bitzoo.zoo.resolve import WEIGHTS_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["BatchPlan", "PublishResult", "PublishResults", "card", "publish"]

PLAN_NAME = "plan.json"
_WILDCARDS = "*?["


@dataclass(frozen=True, repr=False)
class BatchPlan(Displayed):
    """Which models would be published, and where.

    Attributes:
        targets: Models, with the full names of their repositories.
    """

    targets: tuple[tuple[PublishTarget, str], ...]

    def display_rows(self) -> list[tuple[str, object]]:
        """Return a row per model."""
        return [(target.title, repo) for target, repo in self.targets]


@dataclass(frozen=True, repr=False)
class PublishResult(Displayed):
    """The outcome for one model of several.

    Attributes:
        target: The model.
        repo: Full name of the repository.
        plan: For a dry run, what would be done.
        publication: What was done; None if it failed or was not tried.
        error: The error; None if there was none, or if it was not tried.
    """

    target: PublishTarget
    repo: str
    plan: Plan | None = None
    publication: Publication | None = None
    error: BitzooError | None = None

    @property
    def outcome(self) -> str:
        """``published``, ``proposed``, ``unchanged``, ``planned``, ``failed`` or ``not tried``."""
        if self.publication:
            return self.publication.outcome
        return "failed" if self.error else "planned" if self.plan else "not tried"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "model": self.target.title,
            "repo": self.repo,
            "error": str(self.error) if self.error else None,
            "publication": self.publication.to_dict() if self.publication else None,
        }

    def display_rows(self) -> list[tuple[str, object]]:
        """Return readable names and values."""
        rows: list[tuple[str, object]] = [
            ("model", self.target.title),
            ("repository", self.repo),
            ("outcome", self.outcome),
        ]
        if self.publication:
            rows.append(("commit", self.publication.commit))
        return rows + ([("error", self.error)] if self.error else [])


class PublishResults(Displayed, list[PublishResult]):
    """One result per model, in the order of the catalogue."""

    def display_rows(self) -> list[tuple[str, object]]:
        """Return a row per model."""
        return [(result.repo, result.error or result.outcome) for result in self]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return JSON-ready data: `PublishResult.to_dict` of each."""
        return [result.to_dict() for result in self]

    def require(self) -> None:
        """Raise if a model is not published.

        Raises:
            HubError: With the number of such models.
        """
        missing = [result for result in self if result.outcome in ("failed", "not tried")]
        if not missing:
            return
        error = HubError(
            f"{len(missing)} of {len(self)} models are not published; the results say why. "
            "Re-running is safe: files already uploaded are skipped."
        )
        error.exit_code = min((r.error.exit_code for r in missing if r.error), default=2)
        raise error


def publish(
    model: str | os.PathLike[str],
    *,
    repo: str | None = None,
    org: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    confirm: Callable[[Plan | BatchPlan], bool] | None = None,
    folder: str | os.PathLike[str] | None = None,
    license: str | None = None,  # noqa: A002
    vouch: bool = False,
    progress: Progress | bool | None = None,
    on_result: Callable[[PublishResult], None] | None = None,
) -> Plan | Publication | PublishResults:
    """Publish a model to the Hugging Face Hub, proven for exactly the bytes that are sent.

    `bitzoo publish` does the same. Re-running is safe: files already uploaded are skipped.

    Args:
        model: A catalogue name or a pattern of names (``BiT-M-*``), a checkpoint file, a run
            folder, or a folder that a dry run prepared.
        repo: Full name of the repository, ``organisation/name``, for one model.
        org: Organisation or user, instead of `repo`; each model keeps its name there.
        private: Whether a new repository is private; False leaves it to the organisation.
        create_pr: Whether to propose the files in a pull request instead of committing them.
        tag: Name for the commit, such as ``v1``.
        dry_run: Whether only to prepare folder and plan, without the network.
        confirm: Called with the plan, or for a pattern once with all models and repositories; False
            stops. None publishes without asking.
        folder: Where to stage the files of one model; default a folder in the cache.
        license: SPDX identifier of a file's or run's licence, which only its owner knows.
        vouch: Whether you vouch that the weights are the release that their name or address refers
            to, where bitzoo cannot establish it; the card says so.
        progress: As for `bitzoo.finetune`.
        on_result: For a pattern, called after each model.

    Returns:
        What was done. For a dry run, the `Plan`, which is also in `plan.json` in the folder. For a
        pattern, one result per model: one that fails does not stop the others, and
        `PublishResults.require` raises if any failed.

    Raises:
        UsageError: If options contradict each other, or `confirm` returned False.
        ParityError: If a proof fails, or a file changed after it was proven.
        HubUnreachableError: If the connection is lost; the same call continues from there.
        HubError: If the Hub denies the request.
    """
    options = Options(private, create_pr, tag)
    name = os.fspath(model)
    targets = _find_targets(name, repo, org)
    is_batch = len(targets) > 1 or _is_pattern(name)
    if is_batch and (folder or license or repo):
        raise UsageError("`folder`, `license` and `repo` are for one model; a pattern takes `org`.")
    place = user_path(folder) if folder else None
    with shown(progress) as report:
        staging = _Staging(place, license, vouch, report)
        if dry_run:
            with _offline():
                results = _plan_all(targets, options, staging, on_result if is_batch else None)
            return results if is_batch else _only_plan(results)
        if is_batch:
            _require_confirmed(confirm is None or confirm(BatchPlan(tuple(targets))))
            return _publish_batch(connect(), targets, options, staging, on_result)
        (target,) = targets
        return _publish_one(connect(), *target, options, staging, confirm)


def card(
    model: str | os.PathLike[str],
    *,
    repo: str | None = None,
    license: str | None = None,  # noqa: A002
    vouch: bool = False,
) -> str:
    """Return the model card of a model, as `bitzoo card` prints it.

    Args:
        model: A catalogue name, a checkpoint file, a run folder, or a folder that a dry run of
            `bitzoo.publish` prepared.
        repo: Full name of the repository, ``organisation/name``, for the snippets.
        license: SPDX identifier of a file's or run's licence, which only its owner knows.
        vouch: As for `publish`.

    Returns:
        Markdown with the Hub's metadata in front.

    Raises:
        UsageError: If `license` is given for a release, which has its own, or if `vouch` is given
            for a model that does not refer to a release.
        BitzooError: As reading the model raises.
    """
    target = find_target(os.fspath(model))
    repo = check_repo(repo) if repo else f"YOUR-NAME/{target.title}"
    return card_of(target, repo, license=license, vouch=vouch)


def _is_pattern(model: str) -> bool:
    return any(mark in model for mark in _WILDCARDS) and not os.path.exists(model)


def _find_targets(model: str, repo: str | None, org: str | None) -> list[tuple[PublishTarget, str]]:
    """Return the models that `model` refers to, each with its repository."""
    if (repo is None) == (org is None):
        raise UsageError(
            'Give the destination: `repo="organisation/name"` for one model, or '
            '`org="organisation"`, where each model keeps its name.'
        )
    if _is_pattern(model):
        names = list_models(model, released=True)
        if not names:
            raise UsageError(
                f"{model!r} matches no released model. `bitzoo list {model!r}` shows what matches, "
                "`bitzoo list` all names."
            )
        named: list[PublishTarget] = [Released(get_spec(name)) for name in names]
    else:
        named = [find_target(model)]
    return [(target, check_repo(repo or f"{org}/{target.title}")) for target in named]


@dataclass(frozen=True)
class _Staging:
    """How the files of a repository are staged."""

    folder: Path | None
    license: str | None
    vouch: bool
    progress: Progress | None

    def prepare(self, target: PublishTarget, repo: str, *, weights: bool = True) -> Prepared:
        return prepare(
            target,
            repo,
            folder=self.folder,
            license=self.license,
            vouch=self.vouch,
            weights=weights,
            progress=self.progress,
        )


@contextmanager
def _offline() -> Iterator[None]:
    """Keep bitzoo from fetching anything within the context; preparing asks no Hub anyway."""
    before = os.environ.get("BITZOO_OFFLINE")
    os.environ["BITZOO_OFFLINE"] = "1"
    try:
        yield
    finally:
        del os.environ["BITZOO_OFFLINE"]
        if before is not None:
            os.environ["BITZOO_OFFLINE"] = before


def _plan_all(
    targets: Sequence[tuple[PublishTarget, str]],
    options: Options,
    staging: _Staging,
    on_result: Callable[[PublishResult], None] | None,
) -> PublishResults:
    """Prepare folders and plans, without asking the Hub."""
    results = PublishResults()
    for target, repo in targets:
        prepared = staging.prepare(target, repo)
        plan = make_plan(prepared, None, options, asked=False)
        write_json(prepared.folder / PLAN_NAME, plan.to_dict())
        results.append(PublishResult(target, repo, plan))
        if on_result:
            on_result(results[-1])
    return results


def _only_plan(results: PublishResults) -> Plan:
    (result,) = results
    assert result.plan is not None
    return result.plan


def _publish_one(
    api: HfApi,
    target: PublishTarget,
    repo: str,
    options: Options,
    staging: _Staging,
    confirm: Callable[[Plan], bool] | None,
) -> Publication:
    """Publish one model; check access to the Hub before gigabytes are processed."""
    state = check_access(api, repo, write=not options.create_pr)
    plan = make_plan(staging.prepare(target, repo, weights=False), state, options)
    if WEIGHTS_NAME in plan.sent and not plan.prepared.has_weights:
        plan = make_plan(staging.prepare(target, repo), state, options)
    _require_confirmed(not plan.sent or confirm is None or confirm(plan))
    done = carry_out(api, plan)
    drop_weights(plan.prepared)
    return done


def _publish_batch(
    api: HfApi,
    targets: Sequence[tuple[PublishTarget, str]],
    options: Options,
    staging: _Staging,
    on_result: Callable[[PublishResult], None] | None,
) -> PublishResults:
    """Publish one model after another, until the Hub cannot be reached."""
    results = PublishResults()
    reachable = True
    for target, repo in targets:
        result = PublishResult(target, repo)
        if reachable:
            try:
                done = _publish_one(api, target, repo, options, staging, None)
                result = PublishResult(target, repo, publication=done)
            except BitzooError as error:
                result = PublishResult(target, repo, error=error)
                reachable = not isinstance(error, HubUnreachableError)
            if on_result:
                on_result(result)
        results.append(result)
    return results


def _require_confirmed(confirmed: bool) -> None:
    if not confirmed:
        raise UsageError("Not confirmed; nothing was sent.")
