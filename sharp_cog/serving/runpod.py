"""The worker for RunPod serverless: `python -m sharp_cog.serving.runpod`.

With `--rp_serve_api` it serves the same API on this machine, without RunPod.
"""

from __future__ import annotations

import base64
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import runpod
from runpod.serverless.modules import rp_fastapi

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.errors import DeviceError, ImageError, InputError, OptionError, ResultTooLargeError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.formats import FORMATS
from sharp_cog.formats.ply import PROPERTIES
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.serving import answers, inputs, refusals
from sharp_cog.serving.fetch import notify, upload
from sharp_cog.serving.inputs import IMAGE_NAMES
from sharp_cog.text import plain

READY = Path(tempfile.gettempdir()) / "sharp_cog.ready"
"""File that exists while the worker is healthy: from the end of loading until the device fails."""
OVERHEAD_BYTES = 10_000
"""Bytes of an answer besides the splat: names, numbers, and RunPod's own fields."""
NO_LIMIT = sys.maxsize
"""Bytes that an answer may have where nothing limits it."""
_LOCAL_IDS = ("test-", "local_test")
"""Beginnings of the ids that RunPod's package gives jobs on this machine, with `--rp_serve_api` and `--test_input`."""

Job = dict[str, Any]


def create_handler(
    pipeline: SharpPipeline, settings: ServiceSettings, *, report: Callable[[Job, str], object] = lambda job, text: None
) -> Callable[[Job], dict[str, Any]]:
    """Return the function that RunPod calls with each job.

    Args:
        pipeline: The pipeline, loaded and warmed up.
        settings: Settings of the service.
        report: Sends the progress of a job to RunPod.
    """
    worker = _Worker(pipeline, settings, report)

    def handler(job: Job) -> dict[str, Any]:
        """Answer a job. Every error becomes an answer with `error` and `code`, which RunPod marks as failed."""
        try:
            values = job.get("input")
            if not isinstance(values, dict):
                raise InputError(f"input is of type {type(values).__name__}: give an object with image or image_url")
            if "images" in values:
                return worker.answer_list(job, values)
            budget = worker.budget(job)
            answer = worker.answer_image(job, values, name=str(job["id"]), budget=budget, share=budget)
            return {"status": "success", **answer}
        except Exception as error:  # noqa: BLE001 - RunPod would send a traceback to the caller
            return _refusal(error)

    return handler


@dataclass(frozen=True)
class _Worker:
    pipeline: SharpPipeline
    settings: ServiceSettings
    report: Callable[[Job, str], object]

    def budget(self, job: Job) -> int:
        """Return the number of bytes that RunPod can return; on this machine there is no limit."""
        id_ = str(job["id"])
        # At RunPod there is an address for results, whatever a job is called.
        if id_.startswith(_LOCAL_IDS) and not self.settings.runpod_webhook:
            return NO_LIMIT
        # The id of a `runsync` job begins with `sync`.
        is_sync = id_.startswith("sync")
        megabytes = self.settings.runpod_sync_megabytes if is_sync else self.settings.runpod_async_megabytes
        return int(megabytes * 1e6) - OVERHEAD_BYTES

    def answer_list(self, job: Job, values: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a list of images. Options beside the list hold for every image without options of its own."""
        images = values["images"]
        if not isinstance(images, list) or not images:
            raise InputError("images is not a list with images: give a list of objects with image or image_url")
        if len(images) > self.settings.runpod_max_images:
            raise InputError(
                f"images is a list of {len(images)}, the limit is {self.settings.runpod_max_images}: send several jobs"
            )
        shared = {name: value for name, value in values.items() if name != "images"}
        if {*IMAGE_NAMES, "image_url", "upload_url"} & shared.keys():
            raise InputError("an image or upload_url stands beside images: put it into the list")
        results, budget, is_broken = [], self.budget(job), False
        for index, image in enumerate(images):
            self.report(job, f"image {index + 1} of {len(images)}")
            try:
                if not isinstance(image, dict):
                    raise InputError(f"images[{index}] is of type {type(image).__name__}: give an object")
                answer = self.answer_image(
                    job,
                    {**shared, **image},
                    name=f"{job['id']}_{index}",
                    budget=budget,
                    share=budget // (len(images) - index),
                )
                # The images share the size of one answer. The splat is its longest text, unless a URL takes its place.
                budget -= max((len(value) for value in answer.values() if isinstance(value, str)), default=0)
                results.append({"status": "success", **answer})
            except Exception as error:  # noqa: BLE001 - one bad image does not stop the others
                refusal = _refusal(error)
                # RunPod looks for `refresh_worker` at the top of an answer alone.
                is_broken |= refusal.pop("refresh_worker", False)
                results.append({"status": "error", **refusal})
        num_failed = sum(result["status"] == "error" for result in results)
        status = "success" if not num_failed else "error" if num_failed == len(results) else "partial"
        summary = {"total": len(results), "succeeded": len(results) - num_failed, "failed": num_failed}
        answer_of_list: dict[str, Any] = {"status": status, "results": results, "summary": summary}
        # RunPod marks a job as failed if its answer has `error`, so a list with one success must not have it.
        if status == "error":
            answer_of_list |= {"error": f"none of {len(results)} images became a splat: {results[0]['error']}"}
            answer_of_list |= {"code": results[0]["code"]}
        return answer_of_list | ({"refresh_worker": True} if is_broken else {})

    def answer_image(
        self, job: Job, values: Mapping[str, Any], *, name: str, budget: int, share: int
    ) -> dict[str, Any]:
        """Answer one image.

        Args:
            job: Job that the progress is reported for.
            values: The request.
            name: Name of the file in a bucket, without suffix.
            budget: Maximum number of bytes of the splat as base64.
            share: Number of bytes, of that maximum, to which a splat in no particular format is simplified.
        """
        given = {key: value for key, value in values.items() if value is not None and value != ""}
        named = [key for key in IMAGE_NAMES if key in given]
        if len(named) > 1:
            raise ImageError(f"{' and '.join(named)} are all given: they are the same, give one")
        # Messages call the image by the name that the caller has used.
        sources = {key: given.pop(key) for key in (*named, "image_url", "depth", "depth_url") if key in given}
        upload_url = given.pop("upload_url", None)
        inputs.check_sources(sources.keys(), image_name=named[0] if named else "image", others=given)
        if upload_url is not None and not isinstance(upload_url, str):
            raise InputError(f"upload_url is of type {type(upload_url).__name__}: give a presigned address")
        # The rest are options, which are checked before anything is fetched.
        names_format = "output_format" in map(inputs.option_name, given)
        options = inputs.options_from(given)
        if options.save_internal_depth:
            raise OptionError("save_internal_depth is given, but the answer is one file: leave it out")
        content = {
            key: inputs.fetch_named(key, value, self.settings)
            if key.endswith("_url") and not inputs.is_data_uri(value)
            else inputs.decode_base64(key, value)
            for key, value in sources.items()
        }
        image_bytes = content[named[0]] if named else content["image_url"]
        self.report(job, "predicting")
        prediction = self.pipeline(image_bytes, options, depth=content.get("depth", content.get("depth_url")))
        return self._answer(prediction, upload_url, name=name, budget=budget, share=None if names_format else share)

    def _answer(
        self, prediction: Prediction, upload_url: str | None, *, name: str, budget: int, share: int | None
    ) -> dict[str, Any]:
        format_ = FORMATS[prediction.options.output_format]
        num_gaussians = len(prediction.gaussians)
        with ScratchFolder() as folder:
            path = prediction.write(folder / f"{name.replace('/', '_')}{format_.suffix}", output_format=format_.name)
            splat: dict[str, str]
            if upload_url is not None:
                upload(upload_url, path, format_.media_type, self.settings)
                # Without the query, whose signature is the right to write there.
                splat = {"url": urlsplit(upload_url)._replace(query="", fragment="").geturl()}
            elif self.settings.has_bucket:
                from sharp_cog.serving.bucket import store

                splat = {"url": store(path, path.name, format_.media_type, self.settings)}
            else:
                if share is not None:
                    prediction = _fit(prediction, path, share)
                _check_size(path.stat().st_size, len(prediction.gaussians), format_.name, budget)
                splat = {format_.name: base64.b64encode(path.read_bytes()).decode("ascii")}
        about = answers.metadata(prediction)
        width, height = about["image_size"]
        is_simplified = about["num_gaussians"] < num_gaussians
        return {
            **splat,
            "num_gaussians": about["num_gaussians"],
            **({"simplified_from": num_gaussians} if is_simplified else {}),
            "image_size": {"width": width, "height": height},
            "focal_length_px": about["focal_length"],
            "focal_length_source": about["focal_length_source"],
            "timings": about["timings"],
            "assumptions": about["assumptions"],
        }


_BYTES_PER_GAUSSIAN = {"spz": 15.5, "sog": 12.0}
"""Sizes of SHARP's splats, measured; smooth scenes compress better than rough ones."""


def _encoded(num_bytes: int) -> int:
    """Return the size as base64, which turns each three bytes, or a part of three, into four characters."""
    return 4 * -(-num_bytes // 3)


def _fit(prediction: Prediction, path: Path, budget: int) -> Prediction:
    """Replace a .ply that is too large with one of as many Gaussians as fit.

    Args:
        prediction: The splat.
        path: File of the splat.
        budget: Maximum size of the file as base64.

    Returns:
        The splat that is in the file now; the same one if it fits, or if not a single Gaussian does.
    """
    row_bytes = np.dtype(np.float32).itemsize * len(PROPERTIES)
    fitted, num = prediction, len(prediction.gaussians)
    # More than once only if the header has grown: the centre of fewer Gaussians may take more digits.
    while _encoded(path.stat().st_size) > budget:
        # The header without the number of Gaussians, whose digits change its size.
        base_bytes = path.stat().st_size - num * row_bytes - len(str(num))
        largest = budget // 4 * 3 - base_bytes
        fewer = min(num - 1, largest // row_bytes)
        while fewer > 0 and fewer * row_bytes + len(str(fewer)) > largest:
            fewer -= 1
        if fewer < 1:
            return prediction
        fitted = prediction.with_options(replace(prediction.options, max_gaussians=fewer))
        fitted.write(path, output_format="ply")
        num = len(fitted.gaussians)  # Merging may leave fewer than the option allows.
    return fitted


def _check_size(num_bytes: int, num_gaussians: int, format_name: str, budget: int) -> None:
    """Check that RunPod can return a splat.

    Raises:
        ResultTooLargeError: The splat is too large; the message names formats and sizes that fit.
    """
    encoded, budget = _encoded(num_bytes), max(0, budget)
    if encoded <= budget:
        return
    fitting = []
    for name, size in {format_name: num_bytes / max(1, num_gaussians), **_BYTES_PER_GAUSSIAN}.items():
        # Three quarters remain after base64; 5 % are a reserve for scenes that compress less well.
        num_fitting = int(0.95 * 0.75 * budget / size) // 1000 * 1000
        if num_fitting >= num_gaussians:
            fitting.append(f"format {name}")
        elif num_fitting:
            fitting.append(f"format {name} with max_gaussians {num_fitting}")
    raise ResultTooLargeError(
        f"the splat has {num_bytes / 1e6:.1f} MB, {encoded / 1e6:.1f} MB as base64, and {budget / 1e6:.1f} MB can be "
        f"passed back: give upload_url{', or ' if fitting else ''}{', or '.join(fitting)}"
    )


def _refusal(error: Exception) -> dict[str, Any]:
    body: dict[str, Any] = refusals.error_body(error)
    if isinstance(error, DeviceError):
        # The container's health check looks for the file, and fails from now on.
        READY.unlink(missing_ok=True)
        body["refresh_worker"] = True  # RunPod restarts the worker.
    return body


def guard_webhooks(settings: ServiceSettings) -> None:
    """Let RunPod's API on this machine send results only to webhooks on the public internet, as `fetch.notify` does.

    At RunPod, its own servers call webhooks.

    Raises:
        RuntimeError: This release of RunPod's package sends them in another way.
    """
    if not callable(getattr(rp_fastapi, "_send_webhook", None)):
        raise RuntimeError("rp_fastapi has no _send_webhook: install the release of runpod that pyproject.toml names")

    def send(url: str, payload: dict[str, Any]) -> bool:
        try:
            notify(url, json.dumps(payload).encode(), settings)
        except InputError as error:
            logging.getLogger(__name__).warning("no webhook is called: %s", plain(error, 200))
            return False
        return True

    rp_fastapi._send_webhook = send


def main() -> None:
    """Load the model, then take jobs. RunPod's own package reads its flags."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # At its default level RunPod logs every image and splat. The flag --rp_log_level still has precedence.
    runpod.serverless.log.set_level("INFO")
    settings = ServiceSettings.from_environment()
    guard_webhooks(settings)
    READY.unlink(missing_ok=True)  # A worker that was killed has left it.
    pipeline = SharpPipeline.load(Settings.from_environment())
    logging.info("ready: warm-up took %.1f s", pipeline.warm_up())
    READY.touch()
    report = runpod.serverless.progress_update if settings.runpod_webhook else lambda job, text: None
    runpod.serverless.start({"handler": create_handler(pipeline, settings, report=report)})


if __name__ == "__main__":
    main()
