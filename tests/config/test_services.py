"""Settings of the services."""

from __future__ import annotations

import dataclasses

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import SettingError

BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://s3.example",
    "BUCKET_ACCESS_KEY_ID": "key",
    "BUCKET_SECRET_ACCESS_KEY": "sesame",
    "BUCKET_NAME": "splats",
}


def test_every_setting_is_read_from_its_variable() -> None:
    environment = {
        "SHARP_QUEUE_SIZE": "3",
        "SHARP_REQUEST_SECONDS": "12.5",
        "SHARP_MAX_UPLOADS": "8",
        "SHARP_MIN_KILOBYTES_PER_SECOND": "2.5",
        "SHARP_STALL_SECONDS": "9",
        "SHARP_MIN_FREE_MEGABYTES": "0",
        "SHARP_MEMORY_MEGABYTES": "4000",
        "SHARP_HEADER_SECONDS": "6",
        "SHARP_MAX_HEADER_KILOBYTES": "16",
        "SHARP_MAX_CONNECTIONS": "50",
        "SHARP_STOP_SECONDS": "0.5",
        "SHARP_EXIT_ON_FAILURE": "yes",
        "SHARP_MAX_BODY_MEGABYTES": "7",
        "SHARP_KEPT_PREDICTIONS": "0",
        "SHARP_FETCH_MEGABYTES": "1.5",
        "SHARP_FETCH_SECONDS": "4",
        "SHARP_MAX_FETCHES": "11",
        "SHARP_FETCH_PRIVATE": "on",
        "SHARP_API_KEY": "sesame-1, sesame-2",
        "SHARP_ALLOWED_HOSTS": "splats.example.com,*.example.org,::1",
        "SHARP_ALLOWED_ORIGINS": "https://app.example.com,http://localhost:3000",
        "SHARP_RATE_LIMIT": "30/minute",
        "SHARP_COG_WAIT_SECONDS": "2",
        "SHARP_RUNPOD_SYNC_MEGABYTES": "15",
        "SHARP_RUNPOD_ASYNC_MEGABYTES": "5",
        "SHARP_RUNPOD_MAX_IMAGES": "12",
        "RUNPOD_WEBHOOK_POST_OUTPUT": "https://runpod.example/done",
        **BUCKET,
        "BUCKET_REGION": "eu-central-1",
        "SHARP_MODAL_GPU": "T4",
        "SHARP_MODAL_IDLE_SECONDS": "60",
        "SHARP_MODAL_CONCURRENCY": "2",
        "SHARP_MODAL_TIMEOUT_SECONDS": "90",
        "SHARP_MODAL_PUBLIC": "yes",
    }
    settings = ServiceSettings.from_environment(environment)
    access = [
        ("sesame-1", "sesame-2"),
        ("splats.example.com", "*.example.org", "::1"),
        ("https://app.example.com", "http://localhost:3000"),
        "30/minute",
        2,
    ]
    bounds = [8, 2.5, 9, 0, 4000, 6, 16, 50, 0.5, True]
    runpod = [15, 5, 12, "https://runpod.example/done", *BUCKET.values(), "eu-central-1"]
    values = [3, 12.5, *bounds, 7, 0, 1.5, 4, 11, True, *access, *runpod, "T4", 60, 2, 90, True]
    assert list(dataclasses.asdict(settings).values()) == values
    assert settings.has_bucket
    assert "sesame" not in repr(settings)
    assert ServiceSettings.from_environment({}) == ServiceSettings()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SHARP_QUEUE_SIZE", "-1"),
        ("SHARP_QUEUE_SIZE", "1.5"),
        ("SHARP_QUEUE_SIZE", "9" * 400),
        ("SHARP_REQUEST_SECONDS", "0"),
        ("SHARP_REQUEST_SECONDS", "nan"),
        ("SHARP_REQUEST_SECONDS", "1e300"),
        ("SHARP_MAX_BODY_MEGABYTES", "much"),
        ("SHARP_KEPT_PREDICTIONS", "-1"),
        ("SHARP_KEPT_PREDICTIONS", "1_0"),
        ("SHARP_KEPT_PREDICTIONS", "\u0664"),
        ("SHARP_FETCH_SECONDS", "1e10"),
        ("SHARP_FETCH_PRIVATE", "perhaps"),
        ("SHARP_MODAL_CONCURRENCY", "0"),
        ("BUCKET_ENDPOINT_URL", "s3.example"),
        ("SHARP_ALLOWED_HOSTS", "https://splats.example.com"),
        ("SHARP_ALLOWED_HOSTS", "splats.example.com:8000"),
        ("SHARP_ALLOWED_ORIGINS", "https://app.example.com/"),
        ("SHARP_ALLOWED_ORIGINS", "app.example.com"),
        ("SHARP_RATE_LIMIT", "30"),
        ("SHARP_RATE_LIMIT", "0/minute"),
        ("SHARP_RATE_LIMIT", "30/fortnight"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable(variable: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"^{variable} is "):
        ServiceSettings.from_environment({**BUCKET, variable: text})


@pytest.mark.parametrize("missing", BUCKET)
def test_a_bucket_needs_all_four_variables(missing: str) -> None:
    with pytest.raises(SettingError, match=f"^{missing} is not set, but other BUCKET_ variables are"):
        ServiceSettings.from_environment({**BUCKET, missing: ""})


@pytest.mark.parametrize("key", ["two words", "schl\u00fcssel", "tab\tbed", "fine,not fine"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingError, match="SHARP_API_KEY has a space or a character") as caught:
        ServiceSettings.from_environment({"SHARP_API_KEY": key})
    assert key not in str(caught.value)
