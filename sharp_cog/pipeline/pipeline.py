"""The pipeline behind every frontend: an image in, metric Gaussians out."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
from PIL import Image

from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.config.process import use_huge_pages
from sharp_cog.config.settings import Settings
from sharp_cog.depth import maps
from sharp_cog.depth.files import described_format
from sharp_cog.errors import DepthError, DeviceError, ImageError, SharpError
from sharp_cog.files.read import read_bytes
from sharp_cog.formats.ply import vertex_block
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging import images
from sharp_cog.imaging.images import SourceImage
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.pipeline import output
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import DepthInput, ImageInput, Request, path_of
from sharp_cog.runtime.device import find_device, synchronize, synchronize_stream, translate_errors
from sharp_cog.runtime.load import load_predictor
from sharp_cog.runtime.precision import exact_sums
from sharp_cog.runtime.predictor import Counters, Predicted, Predictor
from sharp_cog.runtime.preprocess import preprocess
from sharp_cog.runtime.runner import NetworkSource
from sharp_cog.runtime.unproject import unproject

_T = TypeVar("_T")

NUM_DECODERS, NUM_ENCODERS = 2, 2
"""Threads that decode and encode while the device is at work: both take longer than a good GPU takes to predict."""
MAX_UNDER_WAY = 6
"""Requests that `map` has under way at once."""

_OF_OUTPUT = {option.name for option in fields(OutputOptions)}
_OF_PREDICTION = [option.name for option in fields(PredictOptions) if option.name not in _OF_OUTPUT]
"""Options that change what is predicted, and not only what is written of it."""


class SharpPipeline:
    """Decodes, predicts and unprojects; load it once and call it often, from as many threads as you like.

    The device takes one prediction at a time; the others wait. The same bytes, options and settings give the same splat
    to the last bit, one after another, from many threads and in another process: on one machine, with the same build of
    torch, the same number of threads (`OMP_NUM_THREADS`) and, on CUDA, the same driver. Results may differ between
    machines, builds, numbers of threads, devices or precisions, where floats are added in another order. Timings differ
    every time.
    """

    def __init__(
        self, predictor: Predictor, *, device: torch.device, settings: Settings, num_kept_predictions: int = 0
    ) -> None:
        self.predictor = predictor
        self.device = device
        self.settings = settings
        self.num_kept_predictions = num_kept_predictions
        self._kept: OrderedDict[tuple[object, ...], Prediction] = OrderedDict()
        self._turn = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        synchronize(device)  # The weights were copied on another stream.

    @classmethod
    def load(
        cls, settings: Settings | None = None, *, source: NetworkSource | None = None, num_kept_predictions: int = 0
    ) -> SharpPipeline:
        """Load the model that the settings name; download Apple's checkpoint if it is needed and missing.

        Args:
            settings: None reads the `SHARP_*` environment variables.
            source: SHARP's weights, if they are in memory already, as `sharp_cog.runtime.weights.in_memory` returns
                them; None finds them as the settings say.
            num_kept_predictions: Number of last predictions to keep, so that the same image and options with another
                output need no second prediction; 66 MB each.

        Raises:
            SettingError: A setting is bad, or the device does not exist.
            CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
            NotInstalledError: The model needs a package that is not installed.
            PredictionError: The device has too little memory.
        """
        use_huge_pages()
        settings = settings or Settings.from_environment()
        device = find_device(settings.device)
        with translate_errors(device):
            predictor = load_predictor(settings, device, source)
            return cls(predictor, device=device, settings=settings, num_kept_predictions=num_kept_predictions)

    @property
    def counters(self) -> Counters:
        """Events so far that a user should know of."""
        return self.predictor.counters

    def __call__(
        self,
        image: ImageInput | Request,
        options: PredictOptions | None = None,
        *,
        depth: DepthInput | None = None,
        depth_bytes: bytes | None = None,
    ) -> Prediction:
        """Predict a splat.

        Args:
            image: Content of an image file, its path, a `PIL.Image.Image`, (height, width, 3) uint8 sRGB pixels, or a
                whole `Request`.
            options: None means the defaults.
            depth: External depth for the same view: content of a depth file, its path, or a (height, width) array. The
                model `lift` needs it; in SHARP it replaces the network's own depth, as the options say.
            depth_bytes: The older name of `depth`.

        Raises:
            TypeError: The image or the depth has another type.
            InputError: The image, the depth map or an option cannot be used.
            NotInstalledError: The output format needs a package that is not installed.
            PredictionError: The device ran out of memory.
        """
        return self.predict(self.request(image, options, depth=depth if depth_bytes is None else depth_bytes))

    @staticmethod
    def request(
        image: ImageInput | Request, options: PredictOptions | None = None, *, depth: DepthInput | None = None
    ) -> Request:
        """Return a request for anything that `__call__` takes."""
        if isinstance(image, Request):
            return image
        return Request(image=image, depth=depth, options=options or PredictOptions())

    def decode(self, request: Request) -> Request:
        """Decode image and depth: the part of a prediction that needs no device, for many threads at once.

        Raises:
            InputError: The image, the depth map or an option cannot be used.
            NotInstalledError: The output format needs a package that is not installed.
        """
        output.check(request.options, viewer_dir=self.settings.viewer_dir)
        if request.is_decoded:
            return request
        begun = time.perf_counter()
        image, depth = _read(request.image, ImageError), _read(request.depth, DepthError)
        depth_path = path_of(request.depth)
        if depth_path is not None and request.options.depth_format == "auto":
            described = described_format(depth_path)
            request = replace(request, options=replace(request.options, depth_format=described or "auto"))
        image_hash, depth_hash = _hash(image), _hash(depth)
        kept = self._kept.get(_prediction_key(image_hash, depth_hash, request.options))
        if kept is not None and self._is_kept_for(image_hash, depth, depth_hash):
            return replace(request, answer=kept)
        source = self._decode_image(image, request.options)
        if isinstance(depth, bytes | np.ndarray):
            depth = self._decode_depth(depth, source, request.options)
        return replace(
            request,
            image=source,
            depth=depth,
            image_hash=image_hash,
            depth_hash=depth_hash,
            decode_s=time.perf_counter() - begun,
        )

    def predict(self, request: Request) -> Prediction:
        """Predict on the device, which takes one caller at a time; decodes first what has not been decoded.

        Raises:
            InputError: The model needs a depth map, or cannot use this one, or decoding fails.
            PredictionError: The device ran out of memory.
            DeviceError: The device failed; nothing more will work in this process.
        """
        request = self.decode(request)
        if request.answer is not None:
            return replace(request.answer, options=request.options, timings={}, key=request.key)
        # A predictor keeps the last image's encoding, and graphs their buffers: two at once would mix them up.
        with self._turn, translate_errors(self.device):
            if callable(request.depth):
                request = self._estimate(request)
            source, depth_map = cast(SourceImage, request.image), cast(maps.DepthMap | None, request.depth)
            timings = {"decode": request.decode_s}
            gaussians, predicted = self._on_own_stream(
                lambda: self._predict(source, depth_map, request.options, request.image_hash, timings)
            )
            monodepth_m = None
            if request.options.save_internal_depth and predicted.monodepth_m is not None:
                monodepth_m = predicted.monodepth_m[0].float().cpu().numpy()
        prediction = Prediction(
            predicted=gaussians,
            camera=source.camera,
            options=request.options,
            timings=timings,
            precision=predicted.precision,
            monodepth_m=monodepth_m,
            key=request.key,
            viewer_dir=self.settings.viewer_dir,
        )
        self._keep(request, prediction)
        return prediction

    @overload
    def map(
        self,
        requests: Iterable[ImageInput | Request],
        options: PredictOptions | None = None,
        *,
        encode: Callable[[Prediction], _T],
        overlaps: bool | None = None,
    ) -> Iterator[_T | SharpError]: ...

    @overload
    def map(
        self,
        requests: Iterable[ImageInput | Request],
        options: PredictOptions | None = None,
        *,
        encode: None = None,
        overlaps: bool | None = None,
    ) -> Iterator[Prediction | SharpError]: ...

    def map(
        self,
        requests: Iterable[ImageInput | Request],
        options: PredictOptions | None = None,
        *,
        encode: Callable[[Prediction], Any] | None = None,
        overlaps: bool | None = None,
    ) -> Iterator[Any]:
        """Predict many images; on CUDA the next are decoded and the last encoded while the device is at work.

        Args:
            requests: Requests, or images as `__call__` takes them; taken as they are needed, some six ahead.
            options: Options of the images that are not requests.
            encode: What becomes of a prediction, such as a file; called in a thread beside others.
            overlaps: Whether to use threads; None does so on CUDA. A CPU is busy with the network anyway.

        Yields:
            For each request, in order, what `encode` returns, or the prediction; for one that cannot be used, the
            error, so that the others go on.

        Raises:
            DeviceError: The device failed, and nothing more will work.
        """

        def finish(prediction: Prediction) -> Any:
            prediction.gaussians  # noqa: B018 - computed here, in a thread beside the device's
            return prediction if encode is None else encode(prediction)

        steps = [_errors_as_values(step) for step in (self.decode, self.predict, finish)]
        items = (self.request(item, options) for item in requests)
        if not (self.device.type == "cuda" if overlaps is None else overlaps):
            for item in items:
                value: Any = item
                for step in steps:
                    value = step(value)
                yield value
            return
        stages = (
            Stage(steps[0], NUM_DECODERS, "decode"),
            Stage(steps[1], 1, "device"),
            Stage(steps[2], NUM_ENCODERS, "encode"),
        )
        with Conveyor[Any](*stages, max_items=MAX_UNDER_WAY) as conveyor:
            yield from conveyor.run(items)

    def warm_up(self) -> float:
        """Run everything once on a grey image, through post-processing, and return the seconds that took."""
        begun = time.perf_counter()
        with translate_errors(self.device), torch.inference_mode():
            ndc = self.predictor.warm_up()
            if ndc is None:
                return 0.0
            size = self.predictor.image_size
            camera = Camera(width=size, height=size, focal_length_px=float(size))
            gaussians, _ = self._on_own_stream(lambda: (unproject(ndc, camera), None))
            vertex_block(gaussians)
        return time.perf_counter() - begun

    def _decode_image(self, image: ImageInput, options: PredictOptions) -> SourceImage:
        if isinstance(image, SourceImage):
            return image
        if isinstance(image, Image.Image):
            return images.from_pil(image, options, max_pixels=self.settings.max_pixels)
        if isinstance(image, np.ndarray):
            return images.from_array(image, options, max_pixels=self.settings.max_pixels)
        assert isinstance(image, bytes)
        return images.decode(image, options, max_pixels=self.settings.max_pixels)

    def _decode_depth(self, depth: bytes | Any, source: SourceImage, options: PredictOptions) -> maps.DepthMap:
        use: dict[str, Any] = {"depth_format": options.depth_format, "orientation": source.orientation}
        if isinstance(depth, bytes):
            depth_map = maps.decode(depth, source.camera, **use)
        else:
            depth_map = maps.from_array(depth, source.camera, **use)
        # SHARP fills what is unknown from its own depth; the other models have none, or do not give it away.
        return depth_map if self.predictor.has_own_depth else maps.known_everywhere(depth_map)

    def _estimate(self, request: Request) -> Request:
        """Run the network that the request names for its depth, on the device, which must be ours."""
        source = cast(SourceImage, request.image)
        estimate = cast(Callable[[SourceImage], Any], request.depth)(source)
        if source.camera.focal_length_source == "default" and estimate.focal_length_px is not None:
            camera = replace(source.camera, focal_length_px=estimate.focal_length_px, focal_length_source="estimated")
            source = replace(source, camera=camera)
        depth_map = self._decode_depth(estimate.depth_m, source, replace(request.options, depth_format="metric"))
        return replace(request, image=source, depth=depth_map)

    def _predict(
        self,
        source: SourceImage,
        depth_map: maps.DepthMap | None,
        options: PredictOptions,
        image_hash: str | None,
        timings: dict[str, float],
    ) -> tuple[Gaussians, Predicted]:
        """Preprocess, predict and unproject, timed."""
        use = self._depth_use(options, depth_map)
        with torch.inference_mode(), exact_sums(self.device):
            with self._timed("preprocess", timings):
                model_input = preprocess(
                    source,
                    depth_map,
                    size=self.predictor.image_size,
                    device=self.device,
                    use=use,
                    image_hash=image_hash,
                )
            with self._timed("network", timings):
                predicted = self.predictor.predict(model_input)
            with self._timed("unproject", timings):
                return unproject(predicted.gaussians, source.camera), predicted

    def _depth_use(self, options: PredictOptions, depth_map: maps.DepthMap | None) -> DepthUse:
        """Decide how an external depth map is used, where the options leave it open.

        Raises:
            DepthError: The model does not have the depth that the options ask for.
        """
        model, has_own_depth = self.settings.model, self.predictor.has_own_depth
        if options.save_internal_depth and not has_own_depth:
            raise DepthError(
                f"save_internal_depth is given, but the model {model!r} has no depth of its own: leave it out"
            )
        if self.predictor.needs_depth and depth_map is None:
            raise DepthError(f"the model {model!r} needs a depth map: give one as depth, or choose the model 'sharp'")
        fit = options.depth_fit
        if fit == "auto":
            needs_fit = depth_map is not None and not depth_map.is_metric and has_own_depth
            fit = "affine" if needs_fit else "none"
        return DepthUse(
            mode="fixed" if options.back_surface_factor > 1 else options.depth_mode,
            back_surface_factor=options.back_surface_factor,
            fit=fit,
            scale=options.depth_scale,
            offset_m=options.depth_offset,
        )

    def _on_own_stream(self, predict: Callable[[], tuple[Gaussians, _T]]) -> tuple[Gaussians, _T]:
        """Predict on a CUDA stream of the pipeline's own, and wait for it.

        Threads that write the last splat use another stream: on the same one, each of their steps would wait for the
        next image.
        """
        if self._stream is None:
            return predict()
        others = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            gaussians, rest = predict()
        # The allocator must not reuse their memory while the other stream still reads it.
        for part in fields(gaussians):
            getattr(gaussians, part.name).record_stream(others)
        return gaussians, rest

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Record a stage's seconds, waiting for the device's work on both sides."""
        synchronize_stream(self.device)
        begun = time.perf_counter()
        yield
        synchronize_stream(self.device)
        timings[stage] = time.perf_counter() - begun

    def _is_kept_for(self, image_hash: str | None, depth: object, depth_hash: str | None) -> bool:
        return image_hash is not None and (depth is None or depth_hash is not None)

    def _keep(self, request: Request, prediction: Prediction) -> None:
        if not self.num_kept_predictions or request.image_hash is None:
            return
        if request.depth is not None and request.depth_hash is None:
            return
        self._kept[_prediction_key(request.image_hash, request.depth_hash, request.options)] = prediction
        while len(self._kept) > self.num_kept_predictions:
            self._kept.popitem(last=False)

    def forget_predictions(self) -> None:
        """Drop the predictions that were kept."""
        self._kept.clear()


def _read(value: Any, error_type: type[SharpError]) -> Any:
    """Return the content of what is given by its path, and anything else as it is."""
    path = path_of(value)
    return value if path is None else read_bytes(path, error_type)


def _hash(value: object) -> str | None:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else None


def _prediction_key(image_hash: str | None, depth_hash: str | None, options: PredictOptions) -> tuple[object, ...]:
    return (image_hash, depth_hash, *(getattr(options, name) for name in _OF_PREDICTION))


def _errors_as_values(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a function so that it returns its errors, and passes on those of earlier stages.

    A device that failed will fail for the next request too, so that error is raised.
    """

    def wrapped(item: Any) -> Any:
        if isinstance(item, SharpError):
            return item
        try:
            return function(item)
        except DeviceError:
            raise
        except SharpError as error:
            return error

    return wrapped
