"""The settings of a dataset run: flags, environment variables, a `.env` file, in this order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.config.settings import MAX_NUMBER, path_of
from sharp_cog.errors import SettingError
from sharp_cog.text import quoted, redact

SOURCES = ("folder", "search", "list")
ORDERS = ("latest", "oldest", "popular", "relevant")
ORDERS_BY_SOURCE = {"list": ("latest", "oldest", "popular"), "search": ("latest", "relevant")}
"""As the Unsplash API has them."""
ENGINES = ("local", "ray")
REPO_TYPES = ("dataset", "model")
UNUSED_VARIABLES = ("ML_SHARP_DIR", "CONDA_ENV_NAME")
"""Of older pipelines, which started Apple's program for every picture."""

_FOLDERS = ("input_dir", "runs_dir", "control_dir", "claims_dir")
_COUNT = (0, 10**9)
_DEVICE = (re.compile("default|auto|cpu|mps|cuda(:[0-9]+)?"), "choose default, cuda, cuda:1, cpu or mps")
_ADDRESS = (re.compile(r"https?://(\[[0-9A-Fa-f:.]+\](:\d+)?|[^][/?# ]+)([/?#].*)?"), "give an http or https address")
_REPO_ID = (re.compile("[A-Za-z0-9._-]+/[A-Za-z0-9._-]+"), "give an owner and a name, such as you/splats")
_IN_REPO = (re.compile(r"(?!.*\.\.)[^ ]*[^/ ][^ ]*"), "give a path in the repository")
_FILE_NAME = (re.compile(r"[^./\\][^/\\]{,199}"), "give the name of a file, without folders")
_BOOLS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "bool": "0|1", "tuple[str, ...]": "A,B"}


def _setting(variable: str, default: Any, help_text: str, **rest: Any) -> Any:
    """A field with its environment variable and a line of help."""
    return field(
        default=default, metadata={"variable": variable, "help": help_text, **rest}, repr="KEY" not in variable
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSettings:
    """Settings of a run. Each field's metadata holds its variable and what it means.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    source: str = _setting("SOURCE", "folder", "folder: pictures of your own; search, list: Unsplash", choices=SOURCES)
    input_dir: str = _setting("SHARP_INPUT_DIR", "", "the folder of pictures, with its folders")
    input_license: str = _setting("SHARP_INPUT_LICENSE", "", "licence of those pictures, for the index")
    input_author: str = _setting("SHARP_INPUT_AUTHOR", "", "who took them, for the index")
    run_id: str = _setting("RUN_ID", "main", "name of the run; the same name goes on with it", pattern=_FILE_NAME)
    runs_dir: str = _setting("RUNS_DIR", "runs", "where runs lie")
    formats: tuple[str, ...] = _setting("FORMATS", ("ply",), "formats of splats, with commas, such as ply,spz")
    max_images: int = _setting("MAX_IMAGES", 0, "splats that the run is to have in all; 0 is no limit", range=_COUNT)
    max_scan: int = _setting("MAX_SCAN", 0, "photographs to look at, known ones too; 0 is no limit", range=_COUNT)
    engine: str = _setting("ENGINE", "local", "local: this machine; ray: a cluster", choices=ENGINES)
    ray_address: str = _setting("RAY_ADDRESS", "", "of a Ray cluster; without, one is started here")
    device: str = _setting("SHARP_DEVICE", "default", "default, cuda, cuda:1, cpu or mps", pattern=_DEVICE)

    unsplash_access_key: str = _setting("UNSPLASH_ACCESS_KEY", "", "key of the Unsplash API; no flag: others see those")
    unsplash_app_name: str = _setting("UNSPLASH_APP_NAME", "sharp_cog", "your application's name there")
    unsplash_api_url: str = _setting(
        "UNSPLASH_API_URL", "https://api.unsplash.com", "address of the API", pattern=_ADDRESS
    )
    queries: tuple[str, ...] = _setting("QUERIES", (), "what to search for, with commas")
    order_by: str = _setting("ORDER_BY", "latest", "list: latest, oldest, popular; search: latest, relevant")
    per_page: int = _setting("PER_PAGE", 30, "photographs a page", range=(1, 30))
    list_auto_seek: bool = _setting("LIST_AUTO_SEEK", True, "jump over pages of the list that are known already")
    list_seek_back_pages: int = _setting("LIST_SEEK_BACK_PAGES", 2, "pages to go back after a jump", range=(0, 1000))
    stop_on_rate_limit: bool = _setting("STOP_ON_RATE_LIMIT", False, "end at the rate limit; else wait for the hour")

    control_dir: str = _setting("CONTROL_DIR", "", "folder of the next two; without, the run's own")
    pause_file: str = _setting("PAUSE_FILE", "PAUSE", "while it is there, nothing new is begun", pattern=_FILE_NAME)
    stop_file: str = _setting("STOP_FILE", "STOP", "once it is there, the run ends as by Ctrl-C", pattern=_FILE_NAME)
    log_gpu_mem: bool = _setting("LOG_GPU_MEM", False, "write gpu_mem_log.csv")
    download_queue_max: int = _setting("DOWNLOAD_QUEUE_MAX", 8, "pictures to fetch ahead", range=(1, 10**4))
    upload_queue_max: int = _setting("UPLOAD_QUEUE_MAX", 64, "splats that may wait for upload", range=(1, 10**4))
    upload_workers: int = _setting("UPLOAD_WORKERS", 2, "threads that upload and share", range=(1, 64))

    hf_upload: bool = _setting("HF_UPLOAD", False, "publish to the Hugging Face hub, with the token HF_TOKEN")
    hf_repo_id: str = _setting("HF_REPO_ID", "", "your repository there, such as you/splats", pattern=_REPO_ID)
    hf_repo_type: str = _setting("HF_REPO_TYPE", "dataset", "its type, dataset or model", choices=REPO_TYPES)
    hf_formats: tuple[str, ...] = _setting("HF_FORMATS", (), "formats of splats that are published; without, all")
    hf_subdir: str = _setting("HF_SUBDIR", "photos", "folder of pictures and splats in it")
    hf_index_repo_path: str = _setting("HF_INDEX_REPO_PATH", "data/train.jsonl", "its index", pattern=_IN_REPO)
    hf_index_flush_every: int = _setting("HF_INDEX_FLUSH_EVERY", 100, "photographs a commit", range=(1, 10**4))
    hf_index_flush_secs: float = _setting("HF_INDEX_FLUSH_SECS", 600.0, "or seconds, whichever comes first")

    hf_use_locks: bool = _setting("HF_USE_LOCKS", False, "share the work with all clients of the repository")
    claims_dir: str = _setting("CLAIMS_DIR", "", "share it by a folder that all clients see instead, without a hub")
    claim_batch: int = _setting("CLAIM_BATCH", 100, "photographs claimed at once", range=(1, 1000))
    hf_locks_dir: str = _setting("HF_LOCKS_DIR", "locks", "folder of locks", pattern=_IN_REPO)
    hf_done_dir: str = _setting("HF_DONE_DIR", "done", "folder of marks of what is done", pattern=_IN_REPO)
    hf_lock_stale_secs: float = _setting("HF_LOCK_STALE_SECS", 21_600.0, "after which a lock counts no more")
    range_size: int = _setting("RANGE_SIZE", 300, "photographs a range, for list and oldest", range=(1, 10**6))
    range_lock_min_images: int = _setting(
        "RANGE_LOCK_MIN_IMAGES", 30, "no ranges where MAX_IMAGES is less", range=_COUNT
    )
    range_lock_stale_secs: float = _setting("RANGE_LOCK_STALE_SECS", 21_600.0, "after which its lock counts no more")
    range_locks_dir: str = _setting("RANGE_LOCKS_DIR", "ranges/locks", "folder of locks of ranges", pattern=_IN_REPO)
    range_done_dir: str = _setting("RANGE_DONE_DIR", "ranges/done", "of marks of what is done", pattern=_IN_REPO)
    range_progress_dir: str = _setting("RANGE_PROGRESS_DIR", "ranges/progress", "of how far they are", pattern=_IN_REPO)
    range_abandoned_dir: str = _setting(
        "RANGE_ABANDONED_DIR", "ranges/abandoned", "of those given up", pattern=_IN_REPO
    )

    gsplat_upload: bool = _setting("GSPLAT_UPLOAD", False, "share each splat at gsplat.org")
    gsplat_base: str = _setting("GSPLAT_BASE", "https://gsplat.org", "its address", pattern=_ADDRESS)
    gsplat_expiration_type: str = _setting("GSPLAT_EXPIRATION_TYPE", "1week", "how long it stays there")
    gsplat_use_small_ply: bool = _setting("GSPLAT_USE_SMALL_PLY", True, "share a small .ply; else the whole splat")
    gsplat_filter_visibility: int = _setting(
        "GSPLAT_FILTER_VISIBILITY", 20_000, "Gaussians in it, the most visible", range=(1, 10**9)
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check(setting.metadata["variable"], setting.metadata, getattr(self, setting.name), str(setting.type))
            if setting.name in _FOLDERS:
                path_of(setting.metadata["variable"], getattr(self, setting.name))
        for name in self.formats:
            if name not in OUTPUT_FORMATS:
                raise SettingError(f"FORMATS has {quoted(name)}: choose from {', '.join(OUTPUT_FORMATS)}")
        if not self.formats:
            raise SettingError("FORMATS is empty: name at least one format")
        for name in self.hf_formats:
            if name not in self.formats:
                raise SettingError(
                    f"HF_FORMATS has {quoted(name)}, which FORMATS ({','.join(self.formats)}) has not: add it"
                )
        if self.source == "folder" and not self.input_dir:
            raise SettingError("SHARP_INPUT_DIR is not set: name the folder of pictures, or choose another SOURCE")
        if self.source != "folder" and not self.unsplash_access_key:
            raise SettingError(
                f"UNSPLASH_ACCESS_KEY is not set: SOURCE={self.source} asks the Unsplash API, which needs one"
            )
        orders = ORDERS_BY_SOURCE.get(self.source, ORDERS)
        if self.order_by not in orders:
            raise SettingError(
                f"ORDER_BY is {quoted(self.order_by)}, for SOURCE={self.source}: choose one of {', '.join(orders)}"
            )
        if self.source == "search" and not self.queries:
            raise SettingError("QUERIES is not set: say what to search for, with commas between")
        if self.hf_upload and not self.hf_repo_id:
            raise SettingError("HF_REPO_ID is not set: HF_UPLOAD=1 needs a repository of yours, such as you/splats")
        if self.hf_use_locks and not self.hf_upload:
            raise SettingError(
                "HF_USE_LOCKS is set without HF_UPLOAD=1: locks lie in the repository that is published to"
            )
        if self.hf_use_locks and self.claims_dir:
            raise SettingError("CLAIMS_DIR and HF_USE_LOCKS are both set: choose one place for the claims")

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.runs_dir).expanduser() / self.run_id

    @property
    def images_dir(self) -> Path:
        """The run's pictures."""
        return self.run_dir / "images"

    @property
    def gaussians_dir(self) -> Path:
        """The run's splats."""
        return self.run_dir / "gaussians"

    @property
    def uses_ranges(self) -> bool:
        """Whether clients go through ranges of a list that is the same for all of them."""
        is_large = not self.max_images or self.max_images >= self.range_lock_min_images
        return self.hf_use_locks and self.source == "list" and self.order_by == "oldest" and is_large

    @classmethod
    def build(cls, environment: Mapping[str, str], flags: argparse.Namespace | None = None) -> DatasetSettings:
        """Settings from flags and the environment; what comes first counts.

        Raises:
            SettingError: A value is bad.
        """
        return cls(**_given(fields(cls), environment, flags))

    @classmethod
    def of_run(cls, environment: Mapping[str, str], flags: argparse.Namespace | None = None) -> DatasetSettings:
        """Settings of which only the place of the run counts, whatever else is set.

        Raises:
            SettingError: RUNS_DIR or RUN_ID is bad.
        """
        places = [setting for setting in fields(cls) if setting.name in ("run_id", "runs_dir")]
        return cls(input_dir=".", **_given(places, environment, flags))


def add_flags(command: argparse.ArgumentParser) -> None:
    """A flag for every setting; keys are not taken, since a command line is seen by others."""
    for setting in fields(DatasetSettings):
        variable = setting.metadata["variable"]
        if "KEY" in variable:
            continue
        default = setting.default
        shown = ",".join(default) if isinstance(default, tuple) else str(default).lower() if default != "" else "none"
        command.add_argument(
            f"--{setting.name.replace('_', '-')}",
            metavar=_METAVARS[str(setting.type)],
            # A switch needs no value: `--hf-upload` is `--hf-upload 1`.
            nargs="?" if setting.type == "bool" else None,
            const="1" if setting.type == "bool" else None,
            help=f"{setting.metadata['help']} (default: {shown}; {variable})",
        )


def _given(
    settings: Iterable[Field[Any]], environment: Mapping[str, str], flags: argparse.Namespace | None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        variable = setting.metadata["variable"]
        flag = getattr(flags, setting.name, None)
        text = environment.get(variable, "").strip() if flag is None else str(flag).strip()
        if text or flag is not None:
            values[setting.name] = _read(variable, text, str(setting.type))
    return values


def _read(variable: str, text: str, type_: str) -> Any:
    if type_.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        if type_ == "bool":
            return _BOOLS[text.lower()]
        return {"int": int, "float": float}.get(type_, str)(text)
    except (KeyError, ValueError):
        wanted = {"bool": "1 or 0", "int": "a whole number", "float": "a number"}[type_]
        raise SettingError(f"{variable} is {quoted(text)}: give {wanted}") from None


def _check(variable: str, about: Mapping[str, Any], value: Any, type_: str) -> None:
    choices = about.get("choices")
    if choices and value not in choices:
        raise SettingError(f"{variable} is {quoted(value)}: choose one of {', '.join(choices)}")
    if type_ == "float" and not 0 < value <= MAX_NUMBER:
        raise SettingError(f"{variable} is {value}: give a positive number of at most {MAX_NUMBER:g}")
    if "range" in about:
        low, high = about["range"]
        if not low <= value <= high:
            raise SettingError(f"{variable} is {quoted(value)}: give a number from {low} to {high}")
    if "pattern" in about and value:
        pattern, remedy = about["pattern"]
        if not pattern.fullmatch(value):
            raise SettingError(f"{variable} is {quoted(redact(value))}: {remedy}")
    if "pattern" in about and not value and variable != "HF_REPO_ID":
        raise SettingError(f"{variable} is empty: {about['pattern'][1]}")
