"""Builds a run from its settings."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.engine import Engine
from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.gsplat import Gsplat
from sharp_cog.dataset.hub import HubRepo
from sharp_cog.dataset.hub_dataset import HubDataset
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.listing import RangedList
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import RateLimitError, Source
from sharp_cog.dataset.ranges import Ranges
from sharp_cog.dataset.run import Run
from sharp_cog.dataset.store import Store
from sharp_cog.dataset.unsplash import Unsplash, UnsplashApi
from sharp_cog.errors import NotInstalledError
from sharp_cog.pipeline.pipeline import SharpPipeline


def build(settings: DatasetSettings, journal: Journal, sharp: Settings, *, engine: Engine | None = None) -> Run:
    """Return a run that is ready to work.

    Args:
        settings: Settings of the run.
        journal: Journal of the run.
        sharp: Settings of the model.
        engine: Engine to use in place of the one that the settings name.

    Raises:
        NotInstalledError: The settings name a cluster, but Ray is not installed.
        SharpError: The folder of images does not exist, the hub refuses, or the like.
    """
    stop_requested = threading.Event()
    repo = None
    if settings.hf_upload:
        repo = HubRepo(settings.hf_repo_id, settings.hf_repo_type)
        # First, so that a token without rights is reported at once, and not after the first splats.
        repo.create()
    leases = _leases(settings, journal, repo)
    source, source_heartbeat = _source(settings, journal, repo, stop_requested)
    dataset = None
    if repo is not None:
        dataset = HubDataset(
            repo,
            subdir=settings.hf_subdir,
            index_path=settings.hf_index_repo_path,
            cache=settings.run_dir / ".index.jsonl",
            leases=leases if settings.hf_use_locks else None,
        )
    return Run(
        settings,
        journal,
        source,
        engine or _engine(settings, sharp, stop_requested),
        leases=leases,
        dataset=dataset,
        share=Gsplat.of(settings) if settings.gsplat_upload else None,
        source_heartbeat=source_heartbeat,
        stop_requested=stop_requested,
        max_pixels=sharp.max_pixels,
    )


def _leases(settings: DatasetSettings, journal: Journal, repo: HubRepo | None) -> Leases | None:
    store: Store
    if settings.claims_dir:
        store = FolderStore(Path(settings.claims_dir).expanduser())
    elif settings.hf_use_locks and repo is not None:
        store = repo
    else:
        return None
    return Leases(store, journal.owner, stale_s=settings.hf_lock_stale_secs)


def _source(
    settings: DatasetSettings, journal: Journal, repo: HubRepo | None, stop_requested: threading.Event
) -> tuple[Source, Callable[[bool], None] | None]:
    """Return the source and its heartbeat, if it has one."""
    if settings.source == "folder":
        row = {"license": settings.input_license, "user_name": settings.input_author}
        return Folder(Path(settings.input_dir).expanduser(), max_scan=settings.max_scan, row=row), None

    # Waits of an hour end when the run is stopped. The error is the one at which the scan of the source ends quietly.
    def sleep(seconds: float) -> None:
        if stop_requested.wait(seconds):
            raise RateLimitError("the run is stopping and no longer waits for Unsplash", wait_s=0.0)

    start_page = _start_page(settings, journal)
    api = UnsplashApi(
        settings.unsplash_access_key,
        stop_on_rate_limit=settings.stop_on_rate_limit,
        base_url=settings.unsplash_api_url,
        sleep=sleep,
    )
    unsplash = Unsplash(
        api,
        app_name=settings.unsplash_app_name,
        mode="search" if settings.source == "search" else "list",
        queries=settings.queries,
        order_by=settings.order_by,
        per_page=settings.per_page,
        # Pages that are skipped were looked at by earlier runs, and MAX_SCAN counts them too.
        max_scan=max(0, settings.max_scan - (start_page - 1) * settings.per_page) if settings.max_scan else None,
        auto_seek=settings.list_auto_seek,
        seek_back_pages=settings.list_seek_back_pages,
        start_page=start_page,
    )
    if repo is None or not settings.uses_ranges:
        return unsplash, None
    ranges = Ranges(
        repo,
        journal.owner,
        size=settings.range_size,
        page_size=settings.per_page,
        stale_s=settings.range_lock_stale_secs,
    )
    listing = RangedList(unsplash, ranges, journal, max_scan=settings.max_scan)
    return listing, listing.heartbeat


def _start_page(settings: DatasetSettings, journal: Journal) -> int:
    """Return the page at which to continue a list that grows at its end only.

    The page is a few pages before the last one that was read: if photographs were deleted, the rest has moved forward.
    """
    if not settings.list_auto_seek or (settings.source, settings.order_by) != ("list", "oldest"):
        return 1
    num_pages = journal.num_listed(max_gap=settings.per_page) // settings.per_page
    return max(1, num_pages + 1 - settings.list_seek_back_pages)


def _engine(settings: DatasetSettings, sharp: Settings, stop_requested: threading.Event) -> Engine:
    load = functools.partial(SharpPipeline.load, sharp)
    if settings.engine == "local":
        return LocalEngine(load, settings.gaussians_dir, settings.formats, stop_requested=stop_requested)
    try:
        from sharp_cog.dataset.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"clusters need {error.name}: .venv/bin/pip install -e '.[cluster]'") from error
    return RayEngine(load, settings.gaussians_dir, settings.formats, address=settings.ray_address, device=sharp.device)
