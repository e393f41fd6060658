"""Many repositories, one after another; what is finished is neither made nor sent again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitzoo.errors import BitzooError, HubUnreachableError
from bitzoo.files import Progress
from bitzoo.hub.publish import Options, Plan, Publication, carry_out, make_plan
from bitzoo.hub.remote import check_access
from bitzoo.hub.staging import Prepared, drop_weights, prepare
from bitzoo.hub.targets import PublishTarget
from bitzoo.zoo.resolve import WEIGHTS_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Outcome:
    """What became of one repository.

    Attributes:
        subject: What was to be published.
        repo: Where.
        publication: What was done; None if it failed or was not tried.
        error: What went wrong; None if nothing did, or if it was not tried.
    """

    subject: PublishTarget
    repo: str
    publication: Publication | None = None
    error: BitzooError | None = None


def publish_one(
    api: HfApi,
    subject: PublishTarget,
    repo: str,
    options: Options,
    *,
    confirm: Callable[[Plan], bool],
    folder: Path | None = None,
    license_id: str | None = None,
    progress: Progress | None = None,
) -> Publication | None:
    """Publish one model; see `prepare` and `carry_out` for the steps and what they raise.

    Args:
        api: The client.
        subject: What to publish.
        repo: Full name of the repository.
        options: How.
        confirm: Asked with the plan if there is anything to do; False stops.
        folder: Where the files are put together.
        license_id: SPDX identifier, where bitzoo does not know it.
        progress: Called as bytes move.

    Returns:
        What was done; None if it was not confirmed.
    """

    def prepared(weights: bool) -> Prepared:
        return prepare(
            subject,
            repo,
            folder=folder,
            license=license_id,
            weights=weights,
            progress=progress,
        )

    state = check_access(api, repo, write=not options.create_pr)  # before gigabytes move
    plan = make_plan(prepared(weights=False), state, options)
    if WEIGHTS_NAME in plan.sent and not plan.prepared.has_weights:
        plan = make_plan(prepared(weights=True), state, options)
    if plan.sent and not confirm(plan):
        return None
    done = carry_out(api, plan, options)
    drop_weights(plan.prepared)
    return done


def publish_many(
    api: HfApi,
    wanted: Sequence[tuple[PublishTarget, str]],
    options: Options,
    *,
    progress: Progress | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Publish one model after another; one that fails does not stop the others.

    A Hub that cannot be reached does: the rest is not tried.

    Args:
        api: The client.
        wanted: What to publish, and to which repositories.
        options: How; for all the same.
        progress: Called as bytes move.
        on_outcome: Called after each.

    Returns:
        An outcome each, in order.
    """
    outcomes: list[Outcome] = []
    reachable = True
    for subject, repo in wanted:
        outcome = Outcome(subject, repo)
        if reachable:
            try:
                done = publish_one(
                    api, subject, repo, options, confirm=lambda plan: True, progress=progress
                )
                outcome = Outcome(subject, repo, done)
            except BitzooError as error:
                outcome = Outcome(subject, repo, None, error)
                reachable = not isinstance(error, HubUnreachableError)
            if on_outcome:
                on_outcome(outcome)
        outcomes.append(outcome)
    return outcomes
