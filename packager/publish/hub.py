"""Publishing a bundle on the Hub: check everything, send, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packager.bundle import read_manifest
from packager.hub.client import ask, client, endpoint, silence
from packager.hub.remote import check_repo_id
from packager.hub.transfer import suited_transfer
from packager.progress import Progress, Silent
from packager.publish.check import check_bundle, check_cards, check_no_local_paths
from packager.publish.plan import PublishedRepo, RepoPlan, name_warnings, plan_repos
from packager.publish.readback import check_published
from packager.publish.right import check_rights
from packager.publish.state import (
    RepoState,
    choose_private,
    file_states,
    is_base_gated,
    read_state,
    stale_files,
)
from packager.publish.upload import upload


def publish_hub(
    bundle: Path,
    repo: str,
    *,
    private: bool | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> tuple[PublishedRepo, ...]:
    """Publishes the adapter and merged targets of a bundle, one repository each.

    Before the first byte the whole bundle is hashed against its manifest, the cards are
    validated, and the token's rights are checked. After the last one the commit is read back.

    Args:
        bundle: What `lorapack release` wrote.
        repo: `USER/NAME`; see `plan_repos` for what several targets are called.
        private: True or False for new repositories; None for private if the base is gated, else
            for the account's default. An existing repository's visibility is never changed.
        dry_run: Do every check that needs no write, and return what would be sent.
        progress: Told of stages and bytes.

    Returns:
        One value per repository, in the manifest's order.

    Raises:
        BundleError: The bundle is not what its manifest says.
        HubError: A name, card, right or visibility does not fit; the Hub refuses; somebody else
            committed; or what is read back is not what was sent.
    """
    told = progress or Silent()
    manifest = read_manifest(bundle)
    plans = plan_repos(manifest, check_repo_id(repo))
    for plan in plans:
        check_repo_id(plan.repo)
    check_bundle(bundle, manifest, told)
    check_no_local_paths(bundle, manifest, plans)
    for line in name_warnings(manifest.base.license, plans):
        told.say(line)
    with silence():
        told.stage("asking the Hub")
        states = [read_state(plan.repo) for plan in plans]
        check_rights((plan.repo, state.exists) for plan, state in zip(plans, states, strict=True))
        check_cards(bundle, manifest, plans)
        gated = is_base_gated(manifest.base)
        drafts = [
            _draft(bundle, plan, state, private=private, gated=gated)
            for plan, state in zip(plans, states, strict=True)
        ]
        if dry_run:
            return tuple(draft for draft, _ in drafts)
        return tuple(
            _publish(bundle, plan, state, draft, visibility, told)
            for plan, state, (draft, visibility) in zip(plans, states, drafts, strict=True)
        )


def _draft(
    bundle: Path, plan: RepoPlan, state: RepoState, *, private: bool | None, gated: bool
) -> tuple[PublishedRepo, bool | None]:
    visibility = choose_private(plan, state, private=private, gated=gated)
    draft = PublishedRepo(
        repo=plan.repo,
        url=f"{endpoint()}/{plan.repo}",
        target=plan.target.target,
        name=plan.target.name,
        commit=None,
        private=bool(visibility),
        existed=state.exists,
        files=file_states(bundle / plan.target.path, plan, state),
        removed=stale_files(plan, state),
    )
    return draft, visibility


def _publish(
    bundle: Path,
    plan: RepoPlan,
    state: RepoState,
    draft: PublishedRepo,
    visibility: bool | None,
    progress: Progress,
) -> PublishedRepo:
    if not state.exists:
        ask(lambda: client().create_repo(plan.repo, private=visibility, exist_ok=True))
        state = read_state(plan.repo)
        # Made by somebody else in this moment: then it may not be as it was asked for.
        choose_private(plan, state, private=visibility, gated=False)
    folder = bundle / plan.target.path
    with suited_transfer(plan.repo):
        commit = upload(folder, plan, state, draft.files, draft.removed, progress)
    progress.stage(f"reading back {plan.repo}")
    check_published(plan, commit)
    return replace(draft, commit=commit, private=state.private)
