"""The parts of a run, put together as its settings say."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.engine import Engine
from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.gsplat import Gsplat
from sharp_cog.dataset.hub import HubRepo
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.listing import RangedList
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import RateLimitError, Source
from sharp_cog.dataset.publish import Publisher
from sharp_cog.dataset.ranges import RangeDirs, Ranges
from sharp_cog.dataset.run import Run
from sharp_cog.dataset.store import Store
from sharp_cog.dataset.unsplash import Unsplash
from sharp_cog.dataset.unsplash_api import UnsplashApi
from sharp_cog.errors import NotInstalledError
from sharp_cog.pipeline.pipeline import SharpPipeline


def build(settings: DatasetSettings, journal: Journal, sharp: Settings, *, engine: Engine | None = None) -> Run:
    """A run that is ready to work.

    Args:
        settings: Of the run.
        journal: Its own.
        sharp: Of the model.
        engine: Another one than the settings name.

    Raises:
        NotInstalledError: A cluster is to be used, but Ray is not there.
        SharpError: The folder of pictures is not there, the hub refuses, or the like.
    """
    stopping = threading.Event()
    repo = None
    if settings.hf_upload:
        repo = HubRepo(settings.hf_repo_id, settings.hf_repo_type)
        repo.create()
    claims = _claims(settings, journal, repo)
    source, look_after = _source(settings, journal, repo, stopping)
    publisher = None
    if repo is not None:
        publisher = Publisher(
            repo,
            subdir=settings.hf_subdir,
            index_path=settings.hf_index_repo_path,
            cache=settings.run_dir / ".index.jsonl",
            claims=claims if settings.hf_use_locks else None,
        )
    return Run(
        settings,
        journal,
        source,
        engine or _engine(settings, sharp, stopping),
        claims=claims,
        publisher=publisher,
        share=Gsplat.of(settings) if settings.gsplat_upload else None,
        look_after=look_after,
        stopping=stopping,
        max_pixels=sharp.max_pixels,
    )


def _claims(settings: DatasetSettings, journal: Journal, repo: HubRepo | None) -> Claims | None:
    store: Store
    if settings.claims_dir:
        store = FolderStore(Path(settings.claims_dir).expanduser())
    elif settings.hf_use_locks and repo is not None:
        store = repo
    else:
        return None
    return Claims(
        store,
        journal.owner,
        locks_dir=settings.hf_locks_dir,
        done_dir=settings.hf_done_dir,
        stale_s=settings.hf_lock_stale_secs,
    )


def _source(
    settings: DatasetSettings, journal: Journal, repo: HubRepo | None, stopping: threading.Event
) -> tuple[Source, Callable[[bool], None] | None]:
    """The source, and what looks after it while the run goes on."""
    if settings.source == "folder":
        told = {"license": settings.input_license, "user_name": settings.input_author}
        return Folder(Path(settings.input_dir).expanduser(), max_scan=settings.max_scan, told=told), None

    def sleep(seconds: float) -> None:
        if stopping.wait(seconds):
            raise RateLimitError("the run is to end, and does not wait for Unsplash any longer", wait_s=0.0)

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
        max_scan=max(0, settings.max_scan - (start_page - 1) * settings.per_page) if settings.max_scan else None,
        auto_seek=settings.list_auto_seek,
        seek_back_pages=settings.list_seek_back_pages,
        start_page=start_page,
    )
    if repo is None or not settings.uses_ranges:
        return unsplash, None
    ranges = Ranges(
        store=repo,
        owner=journal.owner,
        size=settings.range_size,
        page_size=settings.per_page,
        dirs=RangeDirs(
            locks=settings.range_locks_dir.strip("/"),
            done=settings.range_done_dir.strip("/"),
            progress=settings.range_progress_dir.strip("/"),
            abandoned=settings.range_abandoned_dir.strip("/"),
        ),
        stale_s=settings.range_lock_stale_secs,
    )
    listing = RangedList(unsplash, ranges, journal, max_scan=settings.max_scan)
    return listing, listing.look_after


def _start_page(settings: DatasetSettings, journal: Journal) -> int:
    """Where to go on in a list whose beginning stays: some pages back, since photographs in it may be deleted."""
    if not settings.list_auto_seek or (settings.source, settings.order_by) != ("list", "oldest"):
        return 1
    num_pages = journal.num_listed(max_gap=settings.per_page) // settings.per_page
    return max(1, num_pages + 1 - settings.list_seek_back_pages)


def _engine(settings: DatasetSettings, sharp: Settings, stopping: threading.Event) -> Engine:
    load = functools.partial(SharpPipeline.load, sharp)
    if settings.engine == "local":
        return LocalEngine(load, settings.gaussians_dir, settings.formats, stopping=stopping)
    try:
        from sharp_cog.dataset.ray_engine import RayEngine
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"clusters need {error.name}: .venv/bin/pip install -e '.[cluster]'") from error
    return RayEngine(load, settings.gaussians_dir, settings.formats, address=settings.ray_address, device=sharp.device)
