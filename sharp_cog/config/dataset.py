"""Settings of a dataset run, from flags, environment variables and a file `.env`, in this order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.config.parameters import POSITIVE
from sharp_cog.config.settings import check_settings, given, is_address, setting
from sharp_cog.errors import SettingError
from sharp_cog.text import quoted

SOURCES = {
    "folder": "images of your own",
    "search": "results of a search at Unsplash",
    "list": "all photographs of Unsplash",
}
ORDERS = ("latest", "oldest", "popular", "relevant")
ORDERS_BY_SOURCE = {"list": ("latest", "oldest", "popular"), "search": ("latest", "relevant")}
"""Orders that the Unsplash API offers."""
ENGINES = {"local": "this machine", "ray": "a Ray cluster"}
REPO_TYPES = ("dataset", "model")
UNUSED_VARIABLES = ("ML_SHARP_DIR", "CONDA_ENV_NAME")
"""Variables of older pipelines, which started Apple's program for every image."""

LOCKS_DIR = "locks"
"""Folder of the store with a lock for each leased photograph."""
DONE_DIR = "done"
"""Folder of the store with a mark for each finished photograph."""
RANGE_LOCKS_DIR = "ranges/locks"
"""Folder of the store with a lock for each leased range."""
RANGE_DONE_DIR = "ranges/done"
"""Folder of the store with a mark for each finished range."""
RANGE_PROGRESS_DIR = "ranges/progress"
"""Folder of the store with the progress of each range."""
RANGE_ABANDONED_DIR = "ranges/abandoned"
"""Folder of the store with a mark for each range that was given up."""
FIXED_FOLDERS = {
    "hf_locks_dir": LOCKS_DIR,
    "hf_done_dir": DONE_DIR,
    "range_locks_dir": RANGE_LOCKS_DIR,
    "range_done_dir": RANGE_DONE_DIR,
    "range_progress_dir": RANGE_PROGRESS_DIR,
    "range_abandoned_dir": RANGE_ABANDONED_DIR,
}
"""Folders of the store that earlier versions could rename, by the flag's name; the variable has it in capitals.

All clients of a store must agree on its folders: a client with other folders would do all work a second time.
"""

_COUNT = (0, 10**9)
"""Limits of a number of photographs that may be zero."""
_SLOTS = (1, 10**4)
"""Limits of the length of a queue or a batch."""
# A name is joined to a folder of the run, so it must not lead out of it or be hidden.
_NAMES_FILE = {
    "accepts": re.compile(r"[^./\\][^/\\]{,199}").fullmatch,
    "remedy": "give the name of a file, without folders",
}
_ADDRESS = {"accepts": is_address, "remedy": "give an http or https address"}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSettings:
    """Settings of a dataset run.

    Raises:
        SettingError: A value is bad, or two settings exclude each other; the message names the variable.
    """

    source: str = setting("SOURCE", "folder", "source of the images", choices=SOURCES)
    input_dir: str = setting("SHARP_INPUT_DIR", "", "folder of images, with its subfolders", is_path=True)
    input_license: str = setting("SHARP_INPUT_LICENSE", "", "licence of the folder's images, for the index")
    input_author: str = setting("SHARP_INPUT_AUTHOR", "", "author of the folder's images, for the index")
    run_id: str = setting("RUN_ID", "main", "name of the run; the same name continues the run", **_NAMES_FILE)
    runs_dir: str = setting("RUNS_DIR", "runs", "folder of all runs", is_path=True)
    formats: tuple[str, ...] = setting(
        "FORMATS",
        ("ply",),
        "formats of the splats, separated by commas, such as ply,spz",
        choices=tuple(OUTPUT_FORMATS),
    )
    max_images: int = setting("MAX_IMAGES", 0, "total number of splats in the run; 0 is no limit", limits=_COUNT)
    max_scan: int = setting(
        "MAX_SCAN", 0, "number of photographs to look at, known ones included; 0 is no limit", limits=_COUNT
    )
    engine: str = setting("ENGINE", "local", "engine that predicts", choices=ENGINES)
    ray_address: str = setting("RAY_ADDRESS", "", "address of a Ray cluster; without one, a cluster is started here")
    device: str = setting(
        "SHARP_DEVICE",
        "default",
        "device to compute on: default, cuda, cuda:1, cpu or mps",
        accepts=re.compile("default|auto|cpu|mps|cuda(:[0-9]+)?").fullmatch,
        remedy="choose default, cuda, cuda:1, cpu or mps",
    )

    unsplash_access_key: str = setting("UNSPLASH_ACCESS_KEY", "", "access key of the Unsplash API", is_secret=True)
    unsplash_app_name: str = setting("UNSPLASH_APP_NAME", "sharp_cog", "name of your application at Unsplash")
    unsplash_api_url: str = setting(
        "UNSPLASH_API_URL", "https://api.unsplash.com", "address of the Unsplash API", **_ADDRESS
    )
    queries: tuple[str, ...] = setting("QUERIES", (), "search terms, separated by commas")
    order_by: str = setting(
        "ORDER_BY",
        "latest",
        "order of the photographs: latest, oldest or popular for a list, latest or relevant for a search",
    )
    per_page: int = setting("PER_PAGE", 30, "photographs in a page of results", limits=(1, 30))
    list_auto_seek: bool = setting("LIST_AUTO_SEEK", True, "skip the pages of the list that are known already")
    list_seek_back_pages: int = setting("LIST_SEEK_BACK_PAGES", 2, "pages to go back after a skip", limits=(0, 1000))
    stop_on_rate_limit: bool = setting(
        "STOP_ON_RATE_LIMIT", False, "end the run at Unsplash's rate limit instead of waiting for the next hour"
    )

    control_dir: str = setting(
        "CONTROL_DIR", "", "folder of the pause and stop files; without one, the run's folder", is_path=True
    )
    pause_file: str = setting("PAUSE_FILE", "PAUSE", "while this file exists, no new image is started", **_NAMES_FILE)
    stop_file: str = setting("STOP_FILE", "STOP", "once this file exists, the run ends as with Ctrl-C", **_NAMES_FILE)
    log_gpu_mem: bool = setting("LOG_GPU_MEM", False, "write the GPU's memory use to gpu_mem_log.csv")
    download_queue_max: int = setting("DOWNLOAD_QUEUE_MAX", 8, "images to prefetch", limits=_SLOTS)
    upload_queue_max: int = setting("UPLOAD_QUEUE_MAX", 64, "splats that may wait for their upload", limits=_SLOTS)
    upload_workers: int = setting("UPLOAD_WORKERS", 2, "threads that upload and share", limits=(1, 64))

    hf_upload: bool = setting("HF_UPLOAD", False, "publish to the Hugging Face hub, with the token HF_TOKEN")
    hf_repo_id: str = setting(
        "HF_REPO_ID",
        "",
        "your repository at the hub, such as you/splats",
        accepts=re.compile("[A-Za-z0-9._-]+/[A-Za-z0-9._-]+").fullmatch,
        remedy="give an owner and a name, such as you/splats",
    )
    hf_repo_type: str = setting("HF_REPO_TYPE", "dataset", "type of the repository", choices=REPO_TYPES)
    hf_formats: tuple[str, ...] = setting("HF_FORMATS", (), "formats of the splats to publish; without any, all")
    hf_subdir: str = setting("HF_SUBDIR", "photos", "folder of the repository for images and splats")
    hf_index_repo_path: str = setting(
        "HF_INDEX_REPO_PATH",
        "data/train.jsonl",
        "path of the index in the repository",
        # No `..`, no blanks, and at least one character that is not a slash.
        accepts=re.compile(r"(?!.*\.\.)[^ ]*[^/ ][^ ]*").fullmatch,
        remedy="give a path in the repository",
    )
    hf_index_flush_every: int = setting("HF_INDEX_FLUSH_EVERY", 100, "photographs in a commit", limits=_SLOTS)
    hf_index_flush_secs: float = setting(
        "HF_INDEX_FLUSH_SECS", 600.0, "seconds after which a smaller commit is made", limits=POSITIVE
    )

    hf_use_locks: bool = setting(
        "HF_USE_LOCKS", False, "share the work with all clients of the repository, by leases in it"
    )
    claims_dir: str = setting(
        "CLAIMS_DIR", "", "share the work by leases in this folder, which all clients see, without a hub", is_path=True
    )
    claim_batch: int = setting("CLAIM_BATCH", 100, "photographs to lease at once", limits=(1, 1000))
    hf_lock_stale_secs: float = setting(
        "HF_LOCK_STALE_SECS", 21_600.0, "seconds without a heartbeat after which a lease expires", limits=POSITIVE
    )
    range_size: int = setting(
        "RANGE_SIZE", 300, "photographs in a range, with SOURCE=list and ORDER_BY=oldest", limits=(1, 10**6)
    )
    range_lock_min_images: int = setting(
        "RANGE_LOCK_MIN_IMAGES", 30, "least MAX_IMAGES with which clients lease ranges", limits=_COUNT
    )
    range_lock_stale_secs: float = setting(
        "RANGE_LOCK_STALE_SECS",
        21_600.0,
        "seconds without a heartbeat after which the lease of a range expires",
        limits=POSITIVE,
    )

    gsplat_upload: bool = setting(
        "GSPLAT_UPLOAD", False, "share each splat at gsplat.org, where everybody with the address can see it"
    )
    gsplat_base: str = setting("GSPLAT_BASE", "https://gsplat.org", "address of gsplat.org", **_ADDRESS)
    gsplat_expiration_type: str = setting(
        "GSPLAT_EXPIRATION_TYPE", "1week", "time until gsplat.org deletes a splat, such as 1week"
    )
    gsplat_use_small_ply: bool = setting("GSPLAT_USE_SMALL_PLY", True, "share a small .ply instead of the whole splat")
    gsplat_filter_visibility: int = setting(
        "GSPLAT_FILTER_VISIBILITY", 20_000, "Gaussians in the small .ply: the most visible ones", limits=(1, 10**9)
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.formats:
            raise SettingError("FORMATS is empty: name at least one format, such as FORMATS=ply")
        by_suffix: dict[str, str] = {}
        for name in self.formats:
            # A splat is named by its photograph and the suffix, so the second file would replace the first.
            other = by_suffix.setdefault(OUTPUT_FORMATS[name].suffix, name)
            if other != name:
                raise SettingError(
                    f"FORMATS has {other} and {name}, which both write {OUTPUT_FORMATS[name].suffix}: choose one"
                )
        for name in self.hf_formats:
            if name not in self.formats:
                raise SettingError(
                    f"HF_FORMATS has {quoted(name)}, but FORMATS is {','.join(self.formats)}: add it to FORMATS"
                )
        if self.source == "folder" and not self.input_dir:
            raise SettingError("SHARP_INPUT_DIR is not set: name the folder of images, or choose another SOURCE")
        if self.source != "folder" and not self.unsplash_access_key:
            raise SettingError(
                f"UNSPLASH_ACCESS_KEY is not set: the Unsplash API, SOURCE={self.source}, needs one; create it at "
                "https://unsplash.com/developers"
            )
        # A folder is read by path, so any order will do, the default included.
        orders = ORDERS_BY_SOURCE.get(self.source, ORDERS)
        if self.order_by not in orders:
            raise SettingError(
                f"ORDER_BY is {quoted(self.order_by)}, for SOURCE={self.source}: choose one of {', '.join(orders)}"
            )
        if self.source == "search" and not self.queries:
            raise SettingError("QUERIES is not set: give search terms, such as QUERIES='old town,harbour'")
        if self.hf_upload and not self.hf_repo_id:
            raise SettingError("HF_REPO_ID is not set: HF_UPLOAD=1 needs a repository of yours, such as you/splats")
        if self.hf_use_locks and not self.hf_upload:
            raise SettingError(
                "HF_USE_LOCKS is set without HF_UPLOAD=1: the locks are files of the published repository, set both"
            )
        if self.hf_use_locks and self.claims_dir:
            raise SettingError("CLAIMS_DIR and HF_USE_LOCKS are both set: choose one place for the leases")

    @property
    def run_dir(self) -> Path:
        """Folder of the run."""
        return Path(self.runs_dir).expanduser() / self.run_id

    @property
    def images_dir(self) -> Path:
        """Folder of the run's images."""
        return self.run_dir / "images"

    @property
    def gaussians_dir(self) -> Path:
        """Folder of the run's splats."""
        return self.run_dir / "gaussians"

    @property
    def uses_ranges(self) -> bool:
        """Whether clients lease ranges of the list, which needs a list that is the same for all of them."""
        is_large = not self.max_images or self.max_images >= self.range_lock_min_images
        return self.hf_use_locks and self.source == "list" and self.order_by == "oldest" and is_large

    @classmethod
    def build(cls, environment: Mapping[str, str], flags: object = None) -> DatasetSettings:
        """Build the settings from flags, which take precedence, and the environment.

        Args:
            environment: Variables, of which empty ones count as not set.
            flags: Parsed flags, as attributes; None values are not given.

        Raises:
            SettingError: A value is bad.
        """
        # These flags and variables are no fields, so that `given` does not read them.
        for name, folder in FIXED_FOLDERS.items():
            flag = getattr(flags, name, None)
            text = environment.get(name.upper(), "") if flag is None else flag
            if text.strip().strip("/") not in ("", folder):
                raise SettingError(
                    f"{name.upper()} is {quoted(text)}, but this folder is always {folder}: leave it out"
                )
        return cls(**given(cls, environment, flags))

    @classmethod
    def of_run(cls, environment: Mapping[str, str], flags: object = None) -> DatasetSettings:
        """Build settings that only find the run; no other setting is read.

        Raises:
            SettingError: RUNS_DIR or RUN_ID is bad.
        """
        # The only setting without a usable default is filled in, since `status` has to work without all others.
        return cls(input_dir=".", **given(cls, environment, flags, names=("run_id", "runs_dir")))
