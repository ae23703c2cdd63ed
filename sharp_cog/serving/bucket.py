"""An S3-compatible bucket for results: those too large for RunPod to return, and those of the HTTP service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import OutputError

LINK_SECONDS = 7 * 24 * 3600
"""Seconds that a link is valid, the longest that its signature allows."""
DEFAULT_REGION = "us-east-1"
"""Region of an address that names none: Amazon's first, which MinIO and Ceph also take for theirs."""

_REGIONS = (
    (re.compile(r"\.r2\.cloudflarestorage\.com$|^storage\.googleapis\.com$"), "auto"),
    # Amazon, Backblaze, Wasabi, Scaleway, OVH and others: the label after `s3`, unless it is the provider's own.
    (re.compile(r"(?:^|\.)s3[.-](?:dualstack\.)?([a-z0-9-]+)\.[a-z0-9-]+\.[a-z]"), ""),
    (re.compile(r"(?:^|\.)([a-z0-9-]+)\.(?:digitaloceanspaces|linodeobjects|your-objectstorage)\.com$"), ""),
)
"""Hosts of stores, each with its region; an empty one is the part of the host that the pattern captures."""


def region_of(endpoint_url: str) -> str:
    """Return the region for which requests to a store are signed, by its address.

    Amazon refuses requests that are signed for another region. Cloudflare's R2 has one region, `auto`.
    """
    host = (urlsplit(endpoint_url).hostname or "").lower()
    for pattern, region in _REGIONS:
        found = pattern.search(host)
        if found:
            return region or str(found[1])
    return DEFAULT_REGION


def client_of(settings: ServiceSettings) -> Any:
    """Return boto3's client of the bucket's store."""
    parts = urlsplit(settings.bucket_endpoint_url)
    host = parts.netloc
    # RunPod's documents show addresses with the name of the bucket in them, which boto3 would add once more.
    if host.startswith(f"{settings.bucket_name}."):
        host = host.removeprefix(f"{settings.bucket_name}.")
    return boto3.client(
        "s3",
        endpoint_url=parts._replace(netloc=host).geturl(),
        aws_access_key_id=settings.bucket_access_key_id,
        aws_secret_access_key=settings.bucket_secret_access_key,
        region_name=settings.bucket_region or region_of(settings.bucket_endpoint_url),
        config=Config(signature_version="s3v4", connect_timeout=10, retries={"max_attempts": 3, "mode": "standard"}),
    )


def store(path: Path, key: str, content_type: str, settings: ServiceSettings) -> str:
    """Upload a file to the bucket that the settings name.

    Args:
        path: The file.
        key: Name of the object.
        content_type: Media type of the object.
        settings: Settings with the address and the keys of the bucket.

    Returns:
        A signed link to the object.

    Raises:
        OutputError: The bucket refuses the file, or cannot be reached.
    """
    location = {"Bucket": settings.bucket_name, "Key": key}
    try:
        client = client_of(settings)
        client.upload_file(str(path), **location, ExtraArgs={"ContentType": content_type})
        link: str = client.generate_presigned_url("get_object", Params=location, ExpiresIn=LINK_SECONDS)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        # The error's own text may hold the address of the store, which is a secret.
        raise OutputError(
            f"the bucket {settings.bucket_name} refuses {key} ({type(error).__name__}): check the BUCKET_* variables"
        ) from error
    return link
