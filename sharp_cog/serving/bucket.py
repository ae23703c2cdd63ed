"""An S3-compatible bucket for results that are too large to return."""

from __future__ import annotations

from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import OutputError

LINK_SECONDS = 7 * 24 * 3600
"""Seconds that a link is valid, the longest that its signature allows."""


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
    client = boto3.client(
        "s3",
        endpoint_url=settings.bucket_endpoint_url,
        aws_access_key_id=settings.bucket_access_key_id,
        aws_secret_access_key=settings.bucket_secret_access_key,
        region_name="auto",
        config=Config(signature_version="s3v4", connect_timeout=10, retries={"max_attempts": 3, "mode": "standard"}),
    )
    location = {"Bucket": settings.bucket_name, "Key": key}
    try:
        client.upload_file(str(path), **location, ExtraArgs={"ContentType": content_type})
        link: str = client.generate_presigned_url("get_object", Params=location, ExpiresIn=LINK_SECONDS)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        # The error's own text may hold the address of the store, which is a secret.
        raise OutputError(
            f"the bucket {settings.bucket_name} refuses {key} ({type(error).__name__}): check the BUCKET_* variables"
        ) from error
    return link
