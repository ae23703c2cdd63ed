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

from benchmarks.soak.door import (
    ANSWER_SECONDS,
    Answer,
    Started,
    complaints_in,
    own_folders,
)
from benchmarks.soak.faults import faults
from benchmarks.soak.mix import Case, Fault, Raw, Request
from tests.e2e.cog_server import CogServer, Outside, data_uri, started_cog_server, started_outside

_PREFIXES = re.compile(r"^Input validation error: |^(Prediction failed: )*RuntimeError: ")
"""What coglet puts before the error of its own fetching, and before the predictor's."""


class CogDoor(Started):
    """Sends predictions one after another, as coglet takes them, and cancels or leaves some.

    Splats come by PUT to a server of ours, as Replicate takes them, and states by webhook.
    """

    name = "cog"
    moments = ("cancelled after POST", "client gone", "cancelled after PUT")

    def __init__(self, server: CogServer, outside: Outside, good: Request, folder: Path) -> None:
        super().__init__(server.process.pid, folder)
        self._server, self._outside, self._good = server, outside, good

    def faults(self) -> list[Fault]:
        """All that it can be shown."""
        return faults("cog", self._good, self._outside.url)

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        """What the log says of faults of its own."""
        return complaints_in(self._server.log())

    def ask(self, case: Case) -> Answer:
        """Sends one to its end: the answer, or the last webhook."""
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
        url = f"{self._server.url}/predictions"
        response = requests.post(url, data=body, headers={"Content-Type": content_type}, timeout=ANSWER_SECONDS)
        if response.status_code == 200:
            return self._outcome(response.json())
        try:
            reason = str(response.json()["detail"][0]["loc"][-1])
        except requests.JSONDecodeError:
            reason = response.text
        return Answer(outcome=f"{response.status_code} {reason}")

    def _cancel(self, case: Case) -> Answer:
        """Starts one, and gives it up once it runs.

        Cog 0.23.1 hangs for good if it is told to cancel while it fetches the inputs, data URIs too. The first thing
        that the predictor itself does is to delete what lies in its folder, so we lay a file there and wait.
        """
        assert isinstance(case.request, Request)
        (predictors,) = self._server.temporary.glob("sharp_cog-scratch-*")
        marker = predictors / "begun"
        marker.touch()
        prediction_id = uuid.uuid4().hex
        body: dict[str, Any] = {
            "input": self._inputs(case.request),
            "webhook": f"{self._outside.url}/hook",
            "webhook_events_filter": ["completed"],
        }
        path, base = f"/predictions/{prediction_id}", self._server.url
        if case.name == "client gone":
            host = base.removeprefix("http://")
            with contextlib.closing(http.client.HTTPConnection(host, timeout=ANSWER_SECONDS)) as connection:
                connection.request(
                    "POST",
                    "/predictions",
                    body=json.dumps({**body, "id": prediction_id}),
                    headers={"Content-Type": "application/json"},
                )
                self._wait_within(marker, case.fraction)
        else:
            headers = {"Prefer": "respond-async"}
            if case.name == "cancelled after PUT":
                response = requests.put(base + path, json=body, headers=headers, timeout=ANSWER_SECONDS)
            else:
                body["id"] = prediction_id
                response = requests.post(f"{base}/predictions", json=body, headers=headers, timeout=ANSWER_SECONDS)
            if response.status_code != 202:
                return Answer(outcome=f"{response.status_code} {response.text[:80]}")
            self._wait_within(marker, case.fraction)
            requests.post(f"{base}{path}/cancel", timeout=ANSWER_SECONDS)  # 404 if it has ended.
        told = self._outside.next_webhook()
        assert told["id"] == prediction_id
        answer = self._outcome(told)
        if answer.outcome == "cancelled" and self._outside.uploads:
            return Answer(outcome="cancelled, but its splat was sent")
        return answer

    def _wait_within(self, marker: Path, fraction: float) -> None:
        """Waits until the prediction runs, and then for a part of the time that it may take."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while marker.exists():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.002)
        time.sleep(0.8 * fraction)

    def _outcome(self, told: dict[str, Any]) -> Answer:
        status = told["status"]
        if status == "canceled":
            return Answer(outcome="cancelled")
        if status != "succeeded":
            return Answer(outcome=f"{status} {_PREFIXES.sub('', str(told.get('error')))}")
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
def cog_door(folder: Path, good: Request) -> Iterator[CogDoor]:
    """Starts the server with everything that it writes below the folder, and waits until it is ready.

    Args:
        folder: An empty one.
        good: A request that is right, from which wrong ones are made.
    """
    with (
        started_outside() as outside,
        started_cog_server(
            folder, "--model", "lift", "--upload-url", f"{outside.url}/splats/", **own_folders(folder)
        ) as server,
    ):
        server.wait_until_ready()
        yield CogDoor(server, outside, good, folder)
