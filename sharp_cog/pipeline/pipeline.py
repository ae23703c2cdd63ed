"""The pipeline behind every frontend: an image in, metric Gaussians out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.process import use_huge_pages
from sharp_cog.config.settings import Settings
from sharp_cog.depth.maps import DepthMap
from sharp_cog.errors import DepthError, DeviceError, SharpError
from sharp_cog.estimators import Estimator
from sharp_cog.formats.ply import vertex_block
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.images import SourceImage
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.pipeline import output
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.decode import decode_depth, decode_image, embedded_depth, read_files, with_focal_length
from sharp_cog.pipeline.kept import KeptPredictions
from sharp_cog.pipeline.prediction import Prediction, assumptions_of
from sharp_cog.pipeline.request import EMBEDDED, DepthInput, ImageInput, Request
from sharp_cog.runtime.device import find_device, synchronize, synchronize_stream, translate_errors
from sharp_cog.runtime.load import load_predictor
from sharp_cog.runtime.precision import exact_sums
from sharp_cog.runtime.predictor import Counters, Predicted, Predictor
from sharp_cog.runtime.preprocess import preprocess
from sharp_cog.runtime.runner import NetworkSource
from sharp_cog.runtime.unproject import unproject

_T = TypeVar("_T")

NUM_DECODERS = 2
"""Number of threads that decode, since decoding a large image takes longer than a good GPU takes to predict."""
NUM_ENCODERS = 2
"""Number of threads that encode, since a small format takes longer to write than a good GPU takes to predict."""
MAX_UNDER_WAY = 6
"""Maximum number of requests that `map` has under way at once."""


class SharpPipeline:
    """Decodes, predicts and unprojects; load it once and call it often, from as many threads as you like.

    The device takes one prediction at a time, and other callers wait. The same bytes, options and settings give the
    same splat to the last bit, one after another, from many threads and in another process: on one machine, with the
    same build of torch, the same number of threads (`OMP_NUM_THREADS`) and, on CUDA, the same driver. Results may
    differ between machines, builds, numbers of threads, devices or precisions, which add floats in another order.
    Timings differ every time.

    Attributes:
        predictor: The model.
        device: Device that the model runs on.
        settings: Settings that the model was loaded with.
        kept: The last predictions, which answer requests for the same image with another output.
    """

    def __init__(
        self, predictor: Predictor, *, device: torch.device, settings: Settings, num_kept_predictions: int = 0
    ) -> None:
        self.predictor = predictor
        self.device = device
        self.settings = settings
        self.kept = KeptPredictions(num_kept_predictions)
        self._device_lock = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        synchronize(device)  # The weights were copied on another stream.

    @classmethod
    def load(
        cls, settings: Settings | None = None, *, source: NetworkSource | None = None, num_kept_predictions: int = 0
    ) -> SharpPipeline:
        """Load the model that the settings name, and download Apple's checkpoint if it is needed and missing.

        Args:
            settings: None reads the `SHARP_*` environment variables.
            source: SHARP's weights, if they are in memory already, as `sharp_cog.runtime.weights.in_memory` returns
                them; None finds them as the settings say.
            num_kept_predictions: Number of last predictions to keep, so that the same image with another output needs
                no second prediction; 66 MB each.

        Raises:
            SettingError: A setting has a bad value, or the device does not exist.
            CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
            NotInstalledError: The model needs a package that is not installed.
            PredictionError: The device has too little memory.
        """
        # Before anything else: torch reads the variable once, when it allocates its first tensor.
        use_huge_pages()
        settings = settings or Settings.from_environment()
        device = find_device(settings.device)
        # Loading and the synchronization in the constructor use the device, so they fail in the same ways.
        with translate_errors(device):
            predictor = load_predictor(settings, device, source)
            return cls(predictor, device=device, settings=settings, num_kept_predictions=num_kept_predictions)

    @property
    def counters(self) -> Counters:
        """Events so far that a user should know about."""
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
            depth: External depth for the same view: content of a depth file, its path, a (height, width) array, or the
                text `embedded` for the depth that the photograph carries. The model `lift` needs it, and takes the
                photograph's own if none is given; in SHARP it replaces the monodepth, as the options say.
            depth_bytes: The older name of `depth`.

        Raises:
            TypeError: The image or the depth has another type, or an argument is given twice.
            InputError: The image, the depth map or an option cannot be used.
            NotInstalledError: The output format needs a package that is not installed.
            PredictionError: The device ran out of memory.
        """
        if depth_bytes is not None:
            if depth is not None:
                raise TypeError("depth and depth_bytes are both given: they are the same, give depth")
            depth = depth_bytes
        if not isinstance(image, Request):
            image = Request(image=image, depth=depth, options=options or PredictOptions())
        elif options is not None or depth is not None:
            raise TypeError("image is a whole Request: give options and depth in the Request, not beside it")
        return self.predict(image)

    def decode(self, request: Request) -> Request:
        """Decode image and depth: the part of a prediction that needs no device, for many threads at once.

        Returns:
            The request with a decoded image and depth, or with the kept prediction that answers it.

        Raises:
            InputError: The image, the depth map or an option cannot be used.
            NotInstalledError: The output format needs a package that is not installed.
        """
        output.check(request.options, viewer_dir=self.settings.viewer_dir)
        if request.options.depth_from == EMBEDDED and request.depth is not None and not request.is_decoded:
            raise DepthError("depth_from is 'embedded', and a depth map is given too: give one of them")
        if request.is_decoded:
            return request
        start = time.perf_counter()
        # A kept prediction is found by the bytes of the files, so that even decoding is saved.
        request = read_files(request)
        answer = self.kept.find(request)
        if answer is not None:
            return replace(request, answer=answer)
        source = decode_image(request.image, request.options, max_pixels=self.settings.max_pixels)
        depth = request.depth
        # An estimator, a decoded map and no depth at all pass through: they are no work for this stage.
        if isinstance(depth, (bytes, np.ndarray)):
            depth = self._decode_depth(depth, source, request.options, request.depth_name)
        depth = self._embedded_depth(request, source) if depth is None else depth
        if isinstance(depth, DepthMap):
            source = with_focal_length(source, depth)
        return replace(request, image=source, depth=depth, decode_s=time.perf_counter() - start)

    def predict(self, request: Request) -> Prediction:
        """Predict on the device, which takes one caller at a time, after decoding what has not been decoded.

        Raises:
            InputError: The model needs a depth map, or cannot use this one, or decoding fails.
            PredictionError: The device ran out of memory.
            DeviceError: The device failed; nothing more will work in this process.
        """
        # A request that another thread has decoded passes through unchanged.
        request = self.decode(request)
        if request.answer is not None:
            # A copy with options and timings of its own: the kept prediction is shared by all requests that it answers.
            return replace(request.answer, options=request.options, timings={}, key=request.key)
        # A predictor keeps the last image's encoding, and CUDA graphs their buffers: two callers would mix them up.
        with self._device_lock, translate_errors(self.device):
            if callable(request.depth):
                request = self._estimate_depth(request, request.depth)
            source, depth_map = cast(SourceImage, request.image), cast(DepthMap | None, request.depth)
            # Decoding may have happened in another thread, so its seconds travel with the request.
            timings = {"decode": request.decode_s}
            # The stages synchronize with the stream, so that the results are complete when the lock is released.
            gaussians, predicted = self._on_own_stream(
                lambda: self._predict(source, depth_map, request.options, request.image_hash, timings)
            )
            # Copied to the CPU only if asked for: two layers in float32 are 19 MB at 1536 px.
            monodepth_m = None
            if request.options.save_internal_depth and predicted.monodepth_m is not None:
                monodepth_m = predicted.monodepth_m[0].float().cpu().numpy()
        # The options are applied later, by `gaussians` and `write`, so that a kept prediction serves any of them.
        prediction = Prediction(
            predicted=gaussians,
            camera=source.camera,
            options=request.options,
            timings=timings,
            assumptions=assumptions_of(source.camera, depth_map),
            precision=predicted.precision,
            monodepth_m=monodepth_m,
            key=request.key,
            viewer_dir=self.settings.viewer_dir,
        )
        self.kept.add(request, prediction)
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
            requests: Requests, or images as `__call__` takes them; at most six of them are under way at once.
            options: Options of the images that are not requests.
            encode: Function that turns a prediction into something else, such as a file. On CUDA two threads call it
                at once.
            overlaps: Whether to use threads; None does so on CUDA. A CPU is busy with the network anyway.

        Yields:
            The result of `encode` for each request, in order, or the prediction without `encode`; the error for a
            request that cannot be used, so that one bad image does not end the run.

        Raises:
            DeviceError: The device failed; nothing more will work in this process.
        """

        def finish(prediction: Prediction) -> Any:
            prediction.gaussians  # noqa: B018 - computed and cached here, in a thread beside the device's
            return prediction if encode is None else encode(prediction)

        decode, predict, finish_ = (_errors_as_values(step) for step in (self.decode, self.predict, finish))
        # A generator, so that images are taken from a long iterable only as there is room for them.
        items = (
            item if isinstance(item, Request) else Request(image=item, options=options or PredictOptions())
            for item in requests
        )
        # Threads help on CUDA alone: on a CPU the network takes all cores, and Metal has one queue for all threads.
        if not (self.device.type == "cuda" if overlaps is None else overlaps):
            yield from (finish_(predict(decode(item))) for item in items)
            return
        stages = (
            Stage(decode, NUM_DECODERS, "decode"),
            Stage(predict, 1, "device"),
            Stage(finish_, NUM_ENCODERS, "encode"),
        )
        with Conveyor[Any](*stages) as conveyor:
            yield from conveyor.run(items, max_items=MAX_UNDER_WAY)

    def warm_up(self) -> float:
        """Run everything once on a grey image, through post-processing, and return the seconds that it took."""
        start = time.perf_counter()
        with self._device_lock, translate_errors(self.device), torch.inference_mode():
            ndc = self.predictor.warm_up()
            if ndc is None:
                return 0.0
            size = self.predictor.image_size
            camera = Camera(width=size, height=size, focal_length_px=float(size))
            # Unprojection and the rows of a .ply have compiled kernels too, for which the first image would wait.
            gaussians, _ = self._on_own_stream(lambda: (unproject(ndc, camera), None))
            vertex_block(gaussians)
        return time.perf_counter() - start

    def _decode_depth(
        self, depth: bytes | NDArray[Any], source: SourceImage, options: PredictOptions, name: str = ""
    ) -> DepthMap:
        return decode_depth(depth, source, options, fills_unknown=self.predictor.has_monodepth, name=name)

    def _embedded_depth(self, request: Request, source: SourceImage) -> DepthMap | None:
        """Return the depth that the photograph carries, if the options ask for it or the model cannot do without."""
        is_asked = request.options.depth_from == EMBEDDED
        if not is_asked and not self.predictor.needs_depth:
            return None
        depth_map = embedded_depth(request.image, source, fills_unknown=self.predictor.has_monodepth)
        if depth_map is None and is_asked:
            raise DepthError(
                "depth_from is 'embedded', but the photograph carries no depth: give a depth map, or leave it out"
            )
        return depth_map

    def _estimate_depth(self, request: Request, estimator: Estimator) -> Request:
        """Run the estimator on the device, which the caller must have locked."""
        source = cast(SourceImage, request.image)
        estimate = estimator(source)
        # A focal length from the caller or from EXIF is better than an estimated one; the default is a guess.
        if source.camera.focal_length_source == "default" and estimate.focal_length_px is not None:
            camera = replace(source.camera, focal_length_px=estimate.focal_length_px, focal_length_source="estimated")
            source = replace(source, camera=camera)
        # An estimator's depth is in metres, whatever format the options name for a depth map of the caller's.
        depth_map = self._decode_depth(estimate.depth_m, source, replace(request.options, depth_format="metric"))
        return replace(request, image=source, depth=depth_map)

    def _predict(
        self,
        source: SourceImage,
        depth_map: DepthMap | None,
        options: PredictOptions,
        image_hash: str | None,
        timings: dict[str, float],
    ) -> tuple[Gaussians, Predicted]:
        """Preprocess, predict and unproject, and record the seconds of each."""
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

    def _depth_use(self, options: PredictOptions, depth_map: DepthMap | None) -> DepthUse:
        """Return how an external depth map is used, with the choices that the options leave to the pipeline.

        Raises:
            DepthError: The options need a monodepth or an external depth map, and there is none.
        """
        model, has_monodepth = self.settings.model, self.predictor.has_monodepth
        if options.save_internal_depth and not has_monodepth:
            raise DepthError(f"save_internal_depth is given, but the model {model!r} has no monodepth: leave it out")
        if self.predictor.needs_depth and depth_map is None:
            raise DepthError(
                f"the model {model!r} needs a depth map, and the photograph carries none: give one as depth, or choose "
                "the model 'sharp'"
            )
        # Metres need no fit. Other maps have an unknown scale, which only monodepth can supply.
        fit = options.depth_fit
        if fit == "auto":
            needs_fit = depth_map is not None and not depth_map.is_metric and has_monodepth
            fit = "affine" if needs_fit else "none"
        is_near_small = depth_map is None or depth_map.is_metric or options.depth_format == "relative"
        return DepthUse(
            is_assumed=depth_map is not None and bool(depth_map.taken_as),
            other_format="inverse-relative" if is_near_small else "metric or relative",
            # A factor has a meaning in the mode `fixed` alone, so giving one selects it.
            mode="fixed" if options.back_surface_factor > 1 else options.depth_mode,
            back_surface_factor=options.back_surface_factor,
            fit=fit,
            scale=options.depth_scale,
            offset_m=options.depth_offset,
        )

    def _on_own_stream(self, predict: Callable[[], tuple[Gaussians, _T]]) -> tuple[Gaussians, _T]:
        """Run a prediction on the pipeline's own CUDA stream."""
        if self._stream is None:
            return predict()
        # Threads that write the last splat use another stream. On the same one, each of their steps would wait for the
        # network of the next image.
        caller_stream = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            gaussians, rest = predict()
        # The caller's stream may still read this memory when it is freed, so the allocator must not reuse it before.
        for tensor in gaussians.tensors().values():
            tensor.record_stream(caller_stream)
        return gaussians, rest

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Record the seconds of a stage, and synchronize with the device before and after it."""
        # CUDA computes asynchronously: without waiting, a stage's seconds would count for the next one.
        synchronize_stream(self.device)
        start = time.perf_counter()
        yield
        synchronize_stream(self.device)
        timings[stage] = time.perf_counter() - start


def _errors_as_values(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that returns errors instead of raising them, and passes on errors of earlier stages.

    A `DeviceError` is still raised.
    """

    def wrapped(item: Any) -> Any:
        if isinstance(item, SharpError):
            return item
        try:
            return function(item)
        except DeviceError:
            # The device will fail for the next request too, so the run ends.
            raise
        except SharpError as error:
            return error

    return wrapped
