"""The functions on Modal: `modal deploy -m sharp_cog.serving.modal_app`.

    modal run -m sharp_cog.serving.modal_app --image-path photo.jpg --output-path photo.ply

    predict = modal.Function.from_name("sharp-view-synthesis", "predict")
    predict.remote(Path("photo.jpg").read_bytes())

The two functions need no GPU and forward to the class `Sharp`, which loads the model once. Callers that use
`modal.Cls.from_name("sharp-view-synthesis", "Sharp")` skip that step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.errors import InputError, OptionError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.formats import FORMATS, format_of
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.runtime import weights
from sharp_cog.serving import answers, inputs, refusals
from sharp_cog.serving.modal_image import make_image, make_secret, resources, volume

SETTINGS = ServiceSettings.from_environment()

app = modal.App("sharp-view-synthesis")


@app.cls(**resources(SETTINGS), enable_memory_snapshot=True)
@modal.concurrent(max_inputs=SETTINGS.modal_concurrency)
class Sharp:
    """The model, loaded once in each container."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """Read the weights into memory, where the snapshot captures them."""
        # A snapshot of the memory is restored in place of this method, so that a cold start reads no weights.
        self.settings = Settings.from_environment()
        self.weights = weights.in_memory(self.settings) if self.settings.model == "sharp" else None
        # Other containers see a downloaded checkpoint once it is committed.
        if not modal.is_local():
            volume.commit()

    @modal.enter(snap=False)
    def move(self) -> None:
        """Load the model on the GPU, which a snapshot does not have, and run everything once."""
        self.pipeline = SharpPipeline.load(self.settings, source=self.weights)
        self.pipeline.warm_up()

    @modal.method()
    def predict(self, /, image_bytes: bytes, f_px: float | None = None, **options: Any) -> dict[str, Any]:
        """Predict a splat.

        Args:
            image_bytes: Content of an image file.
            f_px: Focal length in pixels.
            options: Options of `sharp_cog.PredictOptions`, and `depth_bytes`, the content of a depth file.

        Returns:
            The result of `POST /predict` of the HTTP service, as numpy arrays.

        Raises:
            ValueError: The image, the depth map or an option cannot be used.
            RuntimeError: The service failed.
        """
        try:
            prediction = self._predict(image_bytes, {"f_px": f_px, **options})
            return {**answers.arrays(prediction), "metadata": answers.metadata(prediction)}
        except Exception as error:  # noqa: BLE001 - the caller may not have this package
            raise _plain_error(error) from None

    @modal.method()
    def predict_and_save_ply(self, /, image_bytes: bytes, f_px: float | None = None, **options: Any) -> bytes:
        """Predict a splat and return its file: a .ply, or the format that `output_format` names.

        Args and errors are those of `predict`.
        """
        try:
            if options.get("save_internal_depth"):
                raise OptionError("save_internal_depth is given, but a splat file cannot hold it: call predict")
            prediction = self._predict(image_bytes, {"f_px": f_px, **options})
            with ScratchFolder() as folder:
                output_format = prediction.options.output_format
                path = folder / f"splat{FORMATS[output_format].suffix}"
                return prediction.write(path, output_format=output_format).read_bytes()
        except Exception as error:  # noqa: BLE001 - the caller may not have this package
            raise _plain_error(error) from None

    def _predict(self, image_bytes: bytes, values: dict[str, Any]) -> Prediction:
        depth_bytes = values.pop("depth_bytes", None)
        # Callers send any pickled value, and the pipeline would open a text as a path on this machine.
        for name, content in (("image_bytes", image_bytes), ("depth_bytes", depth_bytes)):
            if not isinstance(content, (bytes, bytearray)) and (name, content) != ("depth_bytes", None):
                raise InputError(f"{name} is of type {type(content).__name__}: give the file's bytes")
        options = inputs.options_from(values)
        return self.pipeline(image_bytes, options, depth=depth_bytes)


def _plain_error(error: Exception) -> Exception:
    """Return an error that a caller without this package can unpickle."""
    body = refusals.error_body(error)
    kind = ValueError if isinstance(error, InputError) else RuntimeError
    return kind(f"{body['code']}: {body['error']}")


_FORWARDING: dict[str, Any] = {
    "image": make_image(),
    "secrets": [make_secret()],
    "timeout": SETTINGS.modal_timeout_seconds,
    "cpu": 0.25,
}


# A call only waits for the class here, so one small container holds many.
@app.function(**_FORWARDING)
@modal.concurrent(max_inputs=100)
def predict(image_bytes: bytes, f_px: float | None = None, **options: Any) -> dict[str, Any]:
    """Predict a splat; see `Sharp.predict`. Use `.map` for many images."""
    found: dict[str, Any] = _call(Sharp().predict, image_bytes, f_px, options)
    return found


@app.function(**_FORWARDING)
@modal.concurrent(max_inputs=100)
def predict_and_save_ply(image_bytes: bytes, f_px: float | None = None, **options: Any) -> bytes:
    """Predict a splat and return its file; see `Sharp.predict_and_save_ply`. Use `.map` for many images."""
    found: bytes = _call(Sharp().predict_and_save_ply, image_bytes, f_px, options)
    return found


def _call(method: Any, image_bytes: bytes, f_px: float | None, options: dict[str, Any]) -> Any:
    """Call a method of the class in the cloud, or in this process if the caller used `.local()`."""
    return (method.local if modal.is_local() else method.remote)(image_bytes, f_px, **options)


@app.local_entrypoint()
def main(image_path: str, output_path: str = "splat.ply", f_px: float = 0.0) -> None:
    """Turn one image into a splat, in the format that the suffix of the output names."""
    try:
        output_format = format_of(Path(output_path))
    except SharpError as error:
        raise SystemExit(f"error: {error} [{error.code}]") from None
    splat: bytes = Sharp().predict_and_save_ply.remote(
        Path(image_path).read_bytes(), f_px or None, output_format=output_format
    )
    Path(output_path).write_bytes(splat)
    print(f"{output_path}: {len(splat) / 1e6:.1f} MB")
