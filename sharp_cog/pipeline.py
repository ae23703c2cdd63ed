"""The pipeline that every door opens on: bytes of a photograph in, metric Gaussians out."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from sharp_cog import checkpoint, depth, formats, images, weights
from sharp_cog.camera import Camera
from sharp_cog.devices import find_device, finish, synchronize, translated
from sharp_cog.errors import SharpError
from sharp_cog.gaussians import Gaussians, NDCGaussians
from sharp_cog.kernels.choose import fused_for
from sharp_cog.network.config import IMAGE_SIZE
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse
from sharp_cog.network.lift import Lift
from sharp_cog.network.ml_sharp import MLSharp
from sharp_cog.network.precision import choose, exact_sums, name_of
from sharp_cog.network.runner import Counters, NetworkSource, SharpRunner
from sharp_cog.options import PredictOptions
from sharp_cog.prediction import Decoded, Prediction
from sharp_cog.preprocess import preprocess
from sharp_cog.serving.settings import Settings, use_huge_pages
from sharp_cog.streaming import mapped
from sharp_cog.unproject import unproject

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

Predictor = Callable[[Tensor, Tensor, Tensor | None, DepthUse, Callable[[Tensor], None] | None], NDCGaussians]
"""(image, disparity_factor, depth, use, on_monodepth) -> Gaussians; what each is: `Sharp.forward`."""


class SharpPipeline:
    """Decodes, predicts and unprojects; load it once and call it often, from as many threads as you like.

    The device takes one prediction at a time; the others wait. The same bytes, options and settings give the same splat
    to the last bit, one after another, from many threads and in another process: on one machine, with the same build of
    torch, the same number of threads (`OMP_NUM_THREADS`) and, on CUDA, the same driver. Nothing is promised between
    machines, builds, numbers of threads, devices or precisions: sums of floats are then added in another order. What a
    caller is told besides the splat, such as timings, differs every time.
    """

    def __init__(self, predictor: Predictor, *, device: torch.device, settings: Settings) -> None:
        self.predictor = predictor
        self.device = device
        self.settings = settings
        self._turn = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        synchronize(device)  # What was loaded came by another stream.

    @classmethod
    def load(cls, settings: Settings | None = None, *, source: NetworkSource | None = None) -> SharpPipeline:
        """Loads the model that the settings name, downloading Apple's checkpoint if it is needed and not there.

        Args:
            settings: None reads the `SHARP_*` environment variables.
            source: SHARP's weights, if they are at hand already, such as `sharp_cog.weights.in_memory` gives them; None
                finds them as the settings say.

        Raises:
            SettingError: A setting is bad, or the device is not there.
            CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
            NotInstalledError: The model needs a package that is not installed.
            PredictionError: The device has too little memory.
        """
        use_huge_pages()
        settings = settings or Settings.from_environment()
        found = find_device(settings.device)
        with translated(found):
            return cls(_load_predictor(settings, found, source), device=found, settings=settings)

    @property
    def counters(self) -> Counters:
        """What happened so far that a user should know of."""
        return self.predictor.counters if isinstance(self.predictor, SharpRunner) else Counters()

    def __call__(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> Prediction:
        """Predicts a splat.

        Args:
            image_bytes: A picture in any format that `sharp_cog.images` reads.
            options: None means the defaults.
            depth_bytes: A depth map in any format that `sharp_cog.depth_files` reads. `lift` needs one; in SHARP it
                takes the place of its own depth, as the options say.

        Raises:
            InputError: The picture, the depth map or an option cannot be used.
            NotInstalledError: The output format needs what is not installed.
            PredictionError: The device ran out of memory.
        """
        decoded = self.decode(image_bytes, options, depth_bytes=depth_bytes)
        return self.predict(decoded).with_output(decoded.options)

    def decode(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> Decoded:
        """The part of a prediction that needs no device, and that many threads may do at once.

        Args and errors are those of `__call__`.
        """
        options = options or PredictOptions()
        formats.check(options, viewer_dir=self.settings.viewer_dir)
        begun = time.perf_counter()
        source = images.decode(image_bytes, options, max_pixels=self.settings.max_pixels)
        depth_map = None if depth_bytes is None else self._decode_depth(depth_bytes, source, options)
        return Decoded(
            source=source,
            depth_map=depth_map,
            options=options,
            image_key=hashlib.blake2b(image_bytes, digest_size=16).hexdigest(),
            decode_s=time.perf_counter() - begun,
        )

    def predict(self, decoded: Decoded) -> Prediction:
        """The part of a prediction that needs the device, which takes one caller at a time.

        Returns:
            The whole splat; `Prediction.with_output` keeps what the options ask for.

        Raises:
            DepthError: The model needs a depth map, or cannot use this one.
            PredictionError: The device ran out of memory.
            DeviceError: The device failed; nothing more will work in this process.
        """
        timings = {"decode": decoded.decode_s}
        monodepth: list[Tensor] = []
        # A predictor keeps what it made of the last picture, and graphs their buffers: two at once would mix them up.
        with self._turn, translated(self.device):
            gaussians, precision = self._beside_others(
                lambda: self._predict(
                    decoded.source,
                    decoded.depth_map,
                    timings,
                    use=_depth_use(decoded.options, decoded.depth_map, has_own=isinstance(self.predictor, SharpRunner)),
                    on_monodepth=monodepth.append if decoded.options.save_internal_depth else None,
                    image_key=decoded.image_key,
                )
            )
            internal_depth_m = monodepth[-1][0].float().cpu().numpy() if monodepth else None
        return Prediction(
            gaussians=gaussians,
            camera=decoded.source.camera,
            options=decoded.options,
            timings=timings,
            precision=precision,
            internal_depth_m=internal_depth_m,
            viewer_dir=self.settings.viewer_dir,
        )

    @overload
    def map(
        self,
        images: Iterable[bytes],
        options: PredictOptions | None = None,
        *,
        encode: Callable[[Prediction], _T],
    ) -> Iterator[_T | SharpError]: ...

    @overload
    def map(
        self, images: Iterable[bytes], options: PredictOptions | None = None, *, encode: None = None
    ) -> Iterator[Prediction | SharpError]: ...

    def map(
        self,
        images: Iterable[bytes],
        options: PredictOptions | None = None,
        *,
        encode: Callable[[Prediction], Any] | None = None,
    ) -> Iterator[Any]:
        """Predicts many pictures, reading the next and encoding the last while the device is at work.

        Args:
            images: Pictures, taken as they are needed: some six are under way at once.
            options: Of all of them.
            encode: What becomes of a prediction, such as a file; in a thread beside others.

        Yields:
            For each picture, in order, what `encode` returns, or the prediction; for one that cannot be used, the
            error, so that the others go on.

        Raises:
            DeviceError: The device failed, and nothing more will work.
        """
        return mapped(self, images, options, encode)

    def warm_up(self) -> float:
        """Runs everything once on a grey picture at full size, through post-processing, and returns the seconds.

        SHARP on a CPU has nothing to warm up: its self-check has run every weight.
        """
        begun = time.perf_counter()
        if isinstance(self.predictor, SharpRunner) and self.device.type == "cpu":
            return 0.0
        camera = Camera(width=IMAGE_SIZE, height=IMAGE_SIZE, focal_length_px=float(IMAGE_SIZE))
        grey = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, dtype=np.uint8)
        flat = depth.DepthMap(depth_m=np.ones((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32))
        needs_depth = isinstance(self.predictor, Lift)
        source = images.SourceImage(rgb=grey, camera=camera, image_format="none")
        with translated(self.device):
            gaussians, _ = self._beside_others(lambda: self._predict(source, flat if needs_depth else None, {}))
            formats.vertex_block(gaussians)
        return time.perf_counter() - begun

    def _decode_depth(self, depth_bytes: bytes, source: images.SourceImage, options: PredictOptions) -> depth.DepthMap:
        depth_map = depth.decode(depth_bytes, source.camera, depth_format=options.depth_format, turn=source.turn)
        # What is unknown, SHARP fills from its own depth, which the other models do not have or do not show.
        return depth.known_everywhere(depth_map) if isinstance(self.predictor, (Lift, MLSharp)) else depth_map

    def _beside_others(self, predict: Callable[[], tuple[Gaussians, str]]) -> tuple[Gaussians, str]:
        """Predicts in a stream of its own, on CUDA, and waits for it.

        Threads that write the last splat have another: in one, each of their steps would wait for the next picture.
        """
        if self._stream is None:
            return predict()
        others = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            gaussians, precision = predict()
        # Their memory must not be used again while others still read it.
        for field in fields(gaussians):
            getattr(gaussians, field.name).record_stream(others)
        return gaussians, precision

    @torch.inference_mode()
    def _predict(
        self,
        source: images.SourceImage,
        depth_map: depth.DepthMap | None,
        timings: dict[str, float],
        *,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
        image_key: str | None = None,
    ) -> tuple[Gaussians, str]:
        """Preprocess, network and unprojection, timed; and the precision that the network computed in."""
        with self._timed("preprocess", timings):
            model_input = preprocess(source, depth_map, device=self.device)
        arguments = (model_input.image, model_input.disparity_factor, model_input.depth_m, use, on_monodepth)
        with exact_sums(self.device):
            runner = self.predictor
            if not isinstance(runner, SharpRunner):
                gaussians, _ = self._place(lambda: runner(*arguments), source.camera, timings)
                return gaussians, name_of(torch.float32)
            gaussians, is_finite = self._place(lambda: runner(*arguments, image_key=image_key), source.camera, timings)
            if is_finite.item() or runner.dtype == torch.float32:
                return gaussians, name_of(runner.dtype)
            _LOG.warning("a value does not fit in %s: this prediction is repeated in float32", name_of(runner.dtype))
            gaussians, _ = self._place(lambda: runner.in_float32(*arguments), source.camera, timings)
            return gaussians, name_of(torch.float32)

    def _place(
        self, predict: Callable[[], NDCGaussians], camera: Camera, timings: dict[str, float]
    ) -> tuple[Gaussians, Tensor]:
        """Network and unprojection, timed; and whether all is finite, on the device, which has been waited for."""
        with self._timed("network", timings):
            ndc = predict()
        with self._timed("unproject", timings):
            gaussians = unproject(ndc, camera)
            return gaussians, _are_finite(gaussians)

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Records a stage's seconds, waiting for the device's work on both sides."""
        finish(self.device)
        begun = time.perf_counter()
        yield
        finish(self.device)
        timings[stage] = time.perf_counter() - begun


def _depth_use(options: PredictOptions, depth_map: depth.DepthMap | None, *, has_own: bool) -> DepthUse:
    """How the options want a depth map to be used; what is `auto` is decided here."""
    fit = options.depth_fit
    if fit == "auto":
        needs_fit = depth_map is not None and not depth_map.is_metric and has_own
        fit = "affine" if needs_fit else "none"
    return DepthUse(
        mode="fixed" if options.back_surface_factor > 1 else options.depth_mode,
        back_surface_factor=options.back_surface_factor,
        fit=fit,
        scale=options.depth_scale,
        offset_m=options.depth_offset,
    )


def _load_predictor(settings: Settings, device: torch.device, source: NetworkSource | None) -> Predictor:
    """The model that the settings name, on the device."""
    if settings.model == "sharp":
        dtype = choose(settings.precision, device)
        # A download, or the first look at a slow disk, may take as long as CUDA's start.
        starting = threading.Thread(target=_start, args=(device,), daemon=True, name="start")
        starting.start()
        source = source or weights.find(settings, dtype)
        starting.join()
        return SharpRunner(
            source,
            device=device,
            dtype=dtype,
            keeps_encoding=settings.keep_encoding,
            uses_graphs=settings.cuda_graphs,
        )
    lift = settings.model == "lift"
    model = Lift() if lift else MLSharp(checkpoint.load_state(checkpoint.ensure(settings)))
    return cast(Predictor, model.to(device).eval().requires_grad_(False))


def _start(device: torch.device) -> None:
    """Does what CUDA's first use takes seconds for."""
    if device.type == "cuda":
        fused_for(torch.empty(1, device=device).device)  # By its number, as tensors have it.


def _are_finite(gaussians: Gaussians) -> Tensor:
    """Whether all values are finite, as a scalar on the device: a sum sees every NaN and infinity."""
    parts = (getattr(gaussians, field.name) for field in fields(gaussians))
    return torch.stack([part.sum() for part in parts]).sum().isfinite()
