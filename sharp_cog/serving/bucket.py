"""An S3-compatible bucket that takes results which are too large to pass back."""

from __future__ import annotations

from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import OutputError

LINK_SECONDS = 7 * 24 * 3600
"""How long a link holds: as long as the signature allows."""


def store(path: Path, key: str, content_type: str, settings: ServiceSettings) -> str:
    """Puts a file into the bucket of the settings.

    Args:
        path: The file.
        key: Its name there.
        content_type: What browsers take it for.
        settings: They hold the bucket.

    Returns:
        A signed link to it.

    Raises:
        OutputError: The bucket does not take it.
    """
    client = boto3.client(
        "s3",
        endpoint_url=settings.bucket_endpoint_url,
        aws_access_key_id=settings.bucket_access_key_id,
        aws_secret_access_key=settings.bucket_secret_access_key,
        region_name="auto",
        config=Config(signature_version="s3v4", connect_timeout=10, retries={"max_attempts": 3, "mode": "standard"}),
    )
    where = {"Bucket": settings.bucket_name, "Key": key}
    try:
        client.upload_file(str(path), **where, ExtraArgs={"ContentType": content_type})
        link: str = client.generate_presigned_url("get_object", Params=where, ExpiresIn=LINK_SECONDS)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OutputError(f"the bucket {settings.bucket_name} does not take {key}: {type(error).__name__}") from error
    return link
