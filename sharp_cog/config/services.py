"""Settings of the services: HTTP, RunPod, Modal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sharp_cog.config.parameters import MAX_NUMBER, POSITIVE
from sharp_cog.config.settings import check_settings, given, is_address, setting
from sharp_cog.errors import SettingError

_AT_LEAST_0 = (0, MAX_NUMBER)
"""Limits of a number that may be zero."""
_AT_LEAST_1 = (1, MAX_NUMBER)
"""Limits of a number that must not be zero."""
_KEY = re.compile(r"[!-~]+")
"""Characters of a key: those that every client can send in a header."""
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
"""Name or address of a host, without brackets and port; `*.` stands for all names below."""
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")
"""Origin as browsers send it: no path, not even a slash at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """Settings of a process that serves requests. RunPod names the variables without `SHARP_`.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    queue_size: int = setting(
        "SHARP_QUEUE_SIZE", 16, "requests that may wait for the device; more are refused with 503", limits=_AT_LEAST_0
    )
    request_seconds: float = setting(
        "SHARP_REQUEST_SECONDS",
        600.0,
        "time limit of a request in seconds, including its time in the queue",
        limits=POSITIVE,
    )
    max_uploads: int = setting(
        "SHARP_MAX_UPLOADS",
        32,
        "requests whose body is read at once; others wait a moment, and are then refused with 503",
        limits=_AT_LEAST_1,
    )
    min_kilobytes_per_second: float = setting(
        "SHARP_MIN_KILOBYTES_PER_SECOND",
        10.0,
        "least rate at which a client must send a request and read an answer; ten times as much while others wait",
        limits=POSITIVE,
    )
    stall_seconds: float = setting(
        "SHARP_STALL_SECONDS",
        10.0,
        "seconds for which a client may be slower than that, and for which a request waits to be read",
        limits=POSITIVE,
    )
    min_free_megabytes: float = setting(
        "SHARP_MIN_FREE_MEGABYTES",
        300.0,
        "space in megabytes that requests leave free on the disk of temporary files, for answers; those that would not "
        "are refused with 507",
        limits=_AT_LEAST_0,
    )
    memory_megabytes: float = setting(
        "SHARP_MEMORY_MEGABYTES",
        0.0,
        "memory in megabytes for the images of the requests under way, by their sizes; those beyond it wait. 0 is half "
        "of what is free once the model is loaded",
        limits=_AT_LEAST_0,
    )
    header_seconds: float = setting(
        "SHARP_HEADER_SECONDS",
        10.0,
        "seconds that a connection may take until the headers of its next request are complete",
        limits=POSITIVE,
    )
    max_header_kilobytes: int = setting(
        "SHARP_MAX_HEADER_KILOBYTES", 32, "most kilobytes of a request's headers", limits=_AT_LEAST_1
    )
    max_connections: int = setting(
        "SHARP_MAX_CONNECTIONS",
        1000,
        "connections at once, at most three quarters of the process's limit of open files; beyond them the one that "
        "has been idle for longest is closed",
        limits=_AT_LEAST_1,
    )
    stop_seconds: float = setting(
        "SHARP_STOP_SECONDS",
        4.0,
        "seconds that clients have for reading their answers after SIGTERM, once the last prediction has ended",
        limits=_AT_LEAST_0,
    )
    exit_on_failure: bool = setting(
        "SHARP_EXIT_ON_FAILURE",
        False,
        "end the process with exit code 1 if the model cannot be loaded or the device fails, so that it is restarted",
    )
    max_body_megabytes: float = setting(
        "SHARP_MAX_BODY_MEGABYTES",
        200.0,
        "largest request in megabytes; larger ones are refused before they are read",
        limits=POSITIVE,
    )
    kept_predictions: int = setting(
        "SHARP_KEPT_PREDICTIONS",
        1,
        "number of last predictions to keep, 66 MB each: the same image in another format needs no new prediction",
        limits=_AT_LEAST_0,
    )
    fetch_megabytes: float = setting(
        "SHARP_FETCH_MEGABYTES", 50.0, "largest file in megabytes to fetch from a URL in a request", limits=POSITIVE
    )
    fetch_seconds: float = setting(
        "SHARP_FETCH_SECONDS", 30.0, "time limit in seconds for fetching a URL", limits=POSITIVE
    )
    max_fetches: int = setting(
        "SHARP_MAX_FETCHES",
        16,
        "requests whose URLs are fetched at once; more are refused with 503",
        limits=_AT_LEAST_1,
    )
    fetch_private: bool = setting(
        "SHARP_FETCH_PRIVATE", False, "allow URLs at private addresses; only where you trust every caller"
    )
    api_keys: tuple[str, ...] = setting(
        "SHARP_API_KEY",
        (),
        "key that requests must have, or several keys, separated by commas; without one, everybody who reaches the "
        "service may use it",
        is_secret=True,
    )
    allowed_hosts: tuple[str, ...] = setting(
        "SHARP_ALLOWED_HOSTS",
        (),
        "names under which clients may address the service, such as splats.example.com or *.example.com; by default "
        "those of this machine if the service listens on this machine alone, else any",
        accepts=lambda hosts: all(map(_HOST.fullmatch, hosts)),
        remedy="give names or addresses without port, separated by commas, or *",
        metavar="A,B",
    )
    allowed_origins: tuple[str, ...] = setting(
        "SHARP_ALLOWED_ORIGINS",
        (),
        "origins of other sites whose pages may use the service (CORS), such as https://app.example.com, or * for all; "
        "by default none",
        accepts=lambda origins: all(map(_ORIGIN.fullmatch, origins)),
        remedy="give origins such as https://app.example.com, without a path, separated by commas, or *",
        metavar="A,B",
    )
    rate_limit: str = setting(
        "SHARP_RATE_LIMIT",
        "",
        "predictions that each key, or each address without a key, may request, such as 30/minute; by default no limit",
        accepts=re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)").fullmatch,
        remedy="give a number and a unit of time, such as 30/minute",
        metavar="N/TIME",
    )
    cog_wait_seconds: float = setting(
        "SHARP_COG_WAIT_SECONDS",
        10.0,
        "seconds that a prediction at `scripts/serve` waits for the one before it, until the answer is 409",
        limits=_AT_LEAST_0,
    )
    runpod_sync_megabytes: float = setting(
        "SHARP_RUNPOD_SYNC_MEGABYTES",
        20.0,
        "largest result in megabytes that RunPod returns for `runsync`",
        limits=POSITIVE,
    )
    runpod_async_megabytes: float = setting(
        "SHARP_RUNPOD_ASYNC_MEGABYTES",
        10.0,
        "largest result in megabytes that RunPod returns for `run`",
        limits=POSITIVE,
    )
    runpod_max_images: int = setting(
        "SHARP_RUNPOD_MAX_IMAGES", 100, "most images in the list `images` of a RunPod job", limits=_AT_LEAST_1
    )
    runpod_webhook: str = setting(
        "RUNPOD_WEBHOOK_POST_OUTPUT", "", "RunPod's address for results and progress; RunPod sets it", is_secret=True
    )
    bucket_endpoint_url: str = setting(
        "BUCKET_ENDPOINT_URL",
        "",
        "address of an S3-compatible store for results of RunPod and HTTP",
        is_secret=True,
        accepts=is_address,
        remedy="give an http or https address",
    )
    bucket_access_key_id: str = setting("BUCKET_ACCESS_KEY_ID", "", "access key of the store", is_secret=True)
    bucket_secret_access_key: str = setting("BUCKET_SECRET_ACCESS_KEY", "", "secret of the access key", is_secret=True)
    bucket_name: str = setting("BUCKET_NAME", "", "name of the bucket in the store")
    bucket_region: str = setting(
        "BUCKET_REGION",
        "",
        "region of the store; by default the one in its address, auto for Cloudflare's R2, else us-east-1",
        accepts=re.compile(r"[A-Za-z0-9-]+").fullmatch,
        remedy="give a name such as eu-central-1",
    )
    modal_gpu: str = setting("SHARP_MODAL_GPU", "A100", "GPU of a Modal container, such as T4, L4, A10G, A100 or H100")
    modal_idle_seconds: int = setting(
        "SHARP_MODAL_IDLE_SECONDS", 300, "seconds until Modal stops an idle container", limits=_AT_LEAST_1
    )
    modal_concurrency: int = setting(
        "SHARP_MODAL_CONCURRENCY", 10, "requests that a Modal container accepts at once", limits=_AT_LEAST_1
    )
    modal_timeout_seconds: int = setting(
        "SHARP_MODAL_TIMEOUT_SECONDS", 600, "time limit in seconds of a call at Modal", limits=_AT_LEAST_1
    )

    modal_public: bool = setting(
        "SHARP_MODAL_PUBLIC",
        False,
        "let everybody who knows the address use the HTTP service on Modal without a key, at your expense",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        # Without the value, which is a secret.
        if not all(map(_KEY.fullmatch, self.api_keys)):
            raise SettingError(
                "SHARP_API_KEY has a space or a character that is not ASCII: give a key of letters, digits and -._~"
            )
        bucket = {
            "BUCKET_ENDPOINT_URL": self.bucket_endpoint_url,
            "BUCKET_ACCESS_KEY_ID": self.bucket_access_key_id,
            "BUCKET_SECRET_ACCESS_KEY": self.bucket_secret_access_key,
            "BUCKET_NAME": self.bucket_name,
        }
        # Half a bucket would be noticed only when the first result is uploaded.
        missing = [variable for variable, value in bucket.items() if not value]
        if missing and len(missing) < len(bucket):
            raise SettingError(
                f"{missing[0]} is not set, but other BUCKET_ variables are: set all four of them, or none"
            )

    @property
    def has_bucket(self) -> bool:
        """Whether results go to a bucket."""
        return bool(self.bucket_endpoint_url)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, flags: object = None) -> ServiceSettings:
        """Read the variables; empty ones count as not set.

        Args:
            environment: Variables; None is the environment of the process.
            flags: Parsed flags, which take precedence.

        Raises:
            SettingError: A variable has a bad value.
        """
        return cls(**given(cls, environment, flags))
