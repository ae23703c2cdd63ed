"""Cog's server under soak: `scripts/serve`, the same coglet and predictor as in the image."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from benchmarks.soak.faults import faults
from benchmarks.soak.mix import Case, Fault, Raw, Request
from benchmarks.soak.server import (
    ANSWER_SECONDS,
    Answer,
    Started,
    complaints_in,
    own_folders,
)
from tests.e2e.cog_server import KEY, CogServer, Outside, data_uri, started_cog_server, started_outside

_PREFIXES = re.compile(r"^Input validation error: |^(Prediction failed: )*RuntimeError: ")
"""Prefixes that coglet adds to its own errors and to those of the predictor."""


class SoakedCog(Started):
    """Sends predictions one after another, as coglet takes them, and cancels some.

    The server uploads splats by PUT and reports states by webhook, as on Replicate.
    """

    name = "cog"
    moments = ("cancelled after POST", "client gone", "cancelled after PUT")

    def __init__(self, server: CogServer, outside: Outside, good: Request, folder: Path) -> None:
        super().__init__(server.process.pid, folder)
        self._server, self._outside, self._good = server, outside, good

    def faults(self) -> list[Fault]:
        """Return all faults of requests to this server."""
        return faults("cog", self._good, self._outside.url)

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        """Return the internal errors in the log."""
        return complaints_in(self._server.log())

    def ask(self, case: Case) -> Answer:
        """Send one request, and wait for its answer or its last webhook."""
        self._outside.uploads.clear()
        try:
            self._server.wait_until_ready()  # An answer can arrive a moment before the server takes the next one.
            if case.kind == "cancelled":
                return self._cancel(case)
            return self._predict(case.request)
        except (requests.Timeout, TimeoutError, queue.Empty, RuntimeError) as error:
            return Answer(outcome=f"no answer in {ANSWER_SECONDS:.0f} s: {type(error).__name__}", is_silent=True)
        except (requests.RequestException, OSError, http.client.HTTPException) as error:
            return Answer(outcome=f"no answer: {type(error).__name__}: {error}")

    def _predict(self, request: Request | Raw) -> Answer:
        if isinstance(request, Raw):
            body, content_type = request.body, request.content_type
        else:
            body, content_type = json.dumps({"input": self._inputs(request)}).encode(), "application/json"
        response = self._server.send("POST", "/predictions", data=body, headers={"Content-Type": content_type})
        if response.status_code == 200:
            return self._outcome(response.json())
        # Coglet names the input that it refuses, and the guard gives a code.
        refusal = response.json()
        reason = refusal["code"] if "code" in refusal else refusal["detail"][0]["loc"][-1]
        return Answer(outcome=f"{response.status_code} {reason}")

    def _cancel(self, case: Case) -> Answer:
        """Start a prediction, and cancel it once it runs.

        The predictor first deletes all files in its folder, so we put a file there and wait until it is gone.
        """
        assert isinstance(case.request, Request)
        (predictors,) = self._server.temporary.glob("sharp_cog-scratch-*/cog/sharp_cog-scratch-*")
        marker = predictors / "begun"
        marker.touch()
        prediction_id = uuid.uuid4().hex
        body: dict[str, Any] = {
            "input": self._inputs(case.request),
            "webhook": f"{self._outside.url}/hook",
            "webhook_events_filter": ["completed"],
        }
        path = f"/predictions/{prediction_id}"
        if case.name == "client gone":
            host = self._server.url.removeprefix("http://")
            with contextlib.closing(http.client.HTTPConnection(host, timeout=ANSWER_SECONDS)) as connection:
                connection.request(
                    "POST",
                    "/predictions",
                    body=json.dumps({**body, "id": prediction_id}),
                    headers={"Content-Type": "application/json", "X-API-Key": KEY},
                )
                self._wait_within(marker, case.fraction)
        else:
            headers = {"Prefer": "respond-async"}
            if case.name == "cancelled after PUT":
                response = self._server.send("PUT", path, json=body, headers=headers)
            else:
                body["id"] = prediction_id
                response = self._server.send("POST", "/predictions", json=body, headers=headers)
            if response.status_code != 202:
                return Answer(outcome=f"{response.status_code} {response.text[:80]}")
            self._wait_within(marker, case.fraction)
            self._server.send("POST", f"{path}/cancel")  # The answer is 404 if the prediction has ended.
        event = self._outside.next_webhook()
        assert event["id"] == prediction_id
        answer = self._outcome(event)
        if answer.outcome == "cancelled" and self._outside.uploads:
            return Answer(outcome="cancelled, but its splat was sent")
        return answer

    def _wait_within(self, marker: Path, fraction: float) -> None:
        """Wait until the prediction runs, and then for a part of the time that it may take."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while marker.exists():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.002)
        time.sleep(0.8 * fraction)

    def _outcome(self, event: dict[str, Any]) -> Answer:
        status = event["status"]
        if status == "canceled":
            return Answer(outcome="cancelled")
        if status != "succeeded":
            return Answer(outcome=f"{status} {_PREFIXES.sub('', str(event.get('error')))}")
        uploads = self._outside.uploads
        if len(uploads) != 1:
            return Answer(outcome=f"succeeded, and {len(uploads)} files were sent")
        return Answer(outcome="ok", digest=uploads[0].sha256)

    def _inputs(self, request: Request) -> dict[str, object]:
        inputs: dict[str, object] = {**request.options, "output_format": request.output}
        if isinstance(request.image, bytes):
            inputs["image"] = self._outside.offer(request.image) if request.by_url else data_uri(request.image)
        elif request.image is not None:
            inputs["image"] = request.image
        if request.depth is not None:
            inputs["depth"] = data_uri(request.depth)
        return inputs


@contextlib.contextmanager
def soaked_cog(folder: Path, good: Request) -> Iterator[SoakedCog]:
    """Start the server with all of its files in the folder, and wait until it is ready.

    Args:
        folder: An empty folder.
        good: A good request, from which the bad ones are made.
    """
    with (
        started_outside() as outside,
        started_cog_server(
            folder, "--model", "lift", "--upload-url", f"{outside.url}/splats/", **own_folders(folder)
        ) as server,
    ):
        server.wait_until_ready()
        yield SoakedCog(server, outside, good, folder)
