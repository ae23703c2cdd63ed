"""The parts of a run, put together as its settings say."""

from __future__ import annotations

from pathlib import Path

from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import Source
from sharp_cog.dataset.run import Engine, Run
from sharp_cog.dataset.settings import DatasetSettings
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.serving.settings import Settings


def build(settings: DatasetSettings, journal: Journal, sharp: Settings, *, engine: Engine | None = None) -> Run:
    """A run that is ready to work.

    Args:
        settings: Of the run.
        journal: Its own.
        sharp: Of the model.
        engine: Another one than the settings name.
    """
    claims = publisher = None
    if settings.hf_upload:
        from sharp_cog.dataset.claims import HubClaims
        from sharp_cog.dataset.hub import HubRepo
        from sharp_cog.dataset.publish import Publisher

        repo = HubRepo(settings.hf_repo_id, settings.hf_repo_type)
        repo.create()
        if settings.hf_use_locks:
            claims = HubClaims(
                repo,
                journal.fact("owner"),
                locks_dir=settings.hf_locks_dir,
                done_dir=settings.hf_done_dir,
                stale_s=settings.hf_lock_stale_secs,
            )
        publisher = Publisher(repo, subdir=settings.hf_subdir, index_path=settings.hf_index_repo_path, claims=claims)
    return Run(
        settings,
        journal,
        _source(settings),
        engine or _engine(settings, sharp),
        claims=claims,
        publisher=publisher,
        max_pixels=sharp.max_pixels,
    )


def _source(settings: DatasetSettings) -> Source:
    return Folder(Path(settings.input_dir).expanduser())


def _engine(settings: DatasetSettings, sharp: Settings) -> Engine:
    return LocalEngine(lambda: SharpPipeline.load(sharp), settings.run_dir / "gaussians", settings.formats)
