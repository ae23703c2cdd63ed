"""The pipeline that every door opens on: bytes of a photograph in, metric Gaussians out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sharp_cog import arrange, checkpoint, depth, formats, images
from sharp_cog.camera import Camera
from sharp_cog.errors import DeviceError, PredictionError, SettingError
from sharp_cog.gaussians import Gaussians, NDCGaussians
from sharp_cog.network.config import IMAGE_SIZE, SharpConfig
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse
from sharp_cog.network.lift import Lift
from sharp_cog.network.ml_sharp import MLSharp
from sharp_cog.network.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.options import PredictOptions
from sharp_cog.preprocess import preprocess
from sharp_cog.serving.settings import Settings
from sharp_cog.unproject import unproject

Predictor = Callable[[Tensor, Tensor, Tensor | None, DepthUse, Callable[[Tensor], None] | None], NDCGaussians]
"""(image, disparity_factor, depth, use, on_monodepth) -> Gaussians; what each is: `Sharp.forward`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One photograph's splat.

    Attributes:
        gaussians: Metric Gaussians, OpenCV axes, on the pipeline's device.
        camera: The photograph's camera; says where the focal length came from.
        options: The options that the prediction was made with, and will be written with.
        timings: Seconds of each stage: `decode`, `preprocess`, `network`, `unproject`, and `write` once written.
        internal_depth_m: SHARP's own depth, (2, 1536, 1536) float32 in metres, front layer first, before a given one
            replaced it; where `save_internal_depth` asked for it.
        viewer_dir: The viewer inside the pages of the format `html`; None is where `scripts/viewer` puts it.
    """

    gaussians: Gaussians
    camera: Camera
    options: PredictOptions
    timings: dict[str, float]
    internal_depth_m: NDArray[np.float32] | None = None
    viewer_dir: Path | None = None

    def with_output(self, options: PredictOptions) -> Prediction:
        """The same splat, to be written with other options; of its Gaussians, those that they keep."""
        gaussians = arrange.keep_visible(
            self.gaussians, max_gaussians=options.max_gaussians, min_opacity=options.min_opacity
        )
        return replace(self, gaussians=gaussians, options=options, timings=dict(self.timings))

    def write(self, path: Path | str) -> Path:
        """Writes the splat in the format of the options; `path` appears whole or not at all.

        Returns:
            The path.

        Raises:
            PredictionError: A value is not finite.
            NotInstalledError: The format needs what is not installed.
            OutputError: The file cannot be written.
        """
        start = time.perf_counter()
        written = formats.write(Path(path), self.gaussians, self.camera, self.options, viewer_dir=self.viewer_dir)
        self.timings["write"] = time.perf_counter() - start
        return written


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A request whose bytes have been read and found good: all that `SharpPipeline.predict` needs.

    Attributes:
        source: The photograph.
        depth_map: The caller's, for the same view; None where there is none.
        options: The options of the prediction.
        decode_s: Seconds that it took.
    """

    source: images.SourceImage
    depth_map: depth.DepthMap | None
    options: PredictOptions
    decode_s: float


class SharpPipeline:
    """Decodes, predicts and unprojects. One prediction at a time; load it once and call it often."""

    def __init__(self, predictor: Predictor, *, device: torch.device, settings: Settings) -> None:
        self.predictor = predictor
        self.device = device
        self.settings = settings

    @classmethod
    def load(cls, settings: Settings | None = None, *, device: str | None = None) -> SharpPipeline:
        """Loads the model that the settings name, downloading Apple's checkpoint if it is needed and not there.

        Args:
            settings: None reads the `SHARP_*` environment variables.
            device: Another device than that of the settings, which `to` may move it to.

        Raises:
            SettingError: A setting is bad, or the device is not there.
            CheckpointError: The checkpoint is missing, broken or cannot be downloaded.
            NotInstalledError: The model needs a package that is not installed.
        """
        settings = settings or Settings.from_environment()
        found = find_device(settings.device if device is None else device)
        model = _load_model(settings).to(found).eval().requires_grad_(False)
        return cls(cast(Predictor, model), device=found, settings=settings)

    def to(self, device: str) -> SharpPipeline:
        """The same pipeline on another device.

        Raises:
            SettingError: The device is not there.
        """
        found = find_device(device)
        predictor = self.predictor.to(found) if isinstance(self.predictor, nn.Module) else self.predictor
        return type(self)(cast(Predictor, predictor), device=found, settings=self.settings)

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
        start = time.perf_counter()
        source = images.decode(image_bytes, options, max_pixels=self.settings.max_pixels)
        depth_map = None if depth_bytes is None else self._decode_depth(depth_bytes, source, options)
        return Decoded(source=source, depth_map=depth_map, options=options, decode_s=time.perf_counter() - start)

    def predict(self, decoded: Decoded) -> Prediction:
        """The part of a prediction that needs the device, for one caller at a time.

        Returns:
            The whole splat; `Prediction.with_output` keeps what the options ask for.

        Raises:
            DepthError: The model needs a depth map, or cannot use this one.
            PredictionError: The device ran out of memory.
            DeviceError: The device failed; nothing more will work in this process.
        """
        timings = {"decode": decoded.decode_s}
        monodepth: list[Tensor] = []
        gaussians = self._predict(
            decoded.source,
            decoded.depth_map,
            timings,
            use=_depth_use(decoded.options, decoded.depth_map, has_own=isinstance(self.predictor, Sharp)),
            on_monodepth=monodepth.append if decoded.options.save_internal_depth else None,
        )
        return Prediction(
            gaussians=gaussians,
            camera=decoded.source.camera,
            options=decoded.options,
            timings=timings,
            internal_depth_m=monodepth[0][0].float().cpu().numpy() if monodepth else None,
            viewer_dir=self.settings.viewer_dir,
        )

    def warm_up(self) -> float:
        """Runs everything once on a grey picture at full size, through post-processing, and returns the seconds."""
        start = time.perf_counter()
        camera = Camera(width=IMAGE_SIZE, height=IMAGE_SIZE, focal_length_px=float(IMAGE_SIZE))
        grey = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, dtype=np.uint8)
        flat = depth.DepthMap(depth_m=np.ones((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32))
        needs_depth = isinstance(self.predictor, Lift)
        source = images.SourceImage(rgb=grey, camera=camera, image_format="none")
        formats.vertex_block(self._predict(source, flat if needs_depth else None, {}))
        return time.perf_counter() - start

    def _decode_depth(self, depth_bytes: bytes, source: images.SourceImage, options: PredictOptions) -> depth.DepthMap:
        depth_map = depth.decode(depth_bytes, source.camera, depth_format=options.depth_format, turn=source.turn)
        # What is unknown, SHARP fills from its own depth, which the other models do not have or do not show.
        return depth.known_everywhere(depth_map) if isinstance(self.predictor, (Lift, MLSharp)) else depth_map

    @torch.inference_mode()
    def _predict(
        self,
        source: images.SourceImage,
        depth_map: depth.DepthMap | None,
        timings: dict[str, float],
        *,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> Gaussians:
        """Preprocess, network and unprojection, timed."""
        try:
            with self._timed("preprocess", timings):
                model_input = preprocess(source, depth_map, device=self.device)
            # Full float32 for convolutions too: tf32, cuDNN's default, keeps 10 bits.
            with self._timed("network", timings), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                ndc = self.predictor(
                    model_input.image, model_input.disparity_factor, model_input.depth_m, use, on_monodepth
                )
            with self._timed("unproject", timings):
                return unproject(ndc, source.camera)
        except torch.OutOfMemoryError as error:
            raise PredictionError(
                f"the device {self.device} ran out of memory: close what else uses it, or set SHARP_DEVICE=cpu"
            ) from error
        except RuntimeError as error:
            # An asynchronous CUDA error spoils the context for good: every later call fails too.
            if "CUDA error" in str(error):
                raise DeviceError(f"the device {self.device} failed: start the process anew: {error}") from error
            raise

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        """Records a stage's seconds, waiting for the device's work on both sides."""
        _synchronize(self.device)
        start = time.perf_counter()
        yield
        _synchronize(self.device)
        timings[stage] = time.perf_counter() - start


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


def find_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        SettingError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"SHARP_DEVICE is {name!r}: choose auto, cpu, cuda, cuda:N or mps") from error
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(device.type, False):
        present = ", ".join(type_ for type_, there in is_there.items() if there)
        raise SettingError(f"SHARP_DEVICE is {name!r}, but torch {torch.__version__} finds only: {present}")
    return device


def _load_model(settings: Settings) -> nn.Module:
    """The model that the settings name, on the CPU."""
    if settings.model == "lift":
        return Lift()
    state = checkpoint.load_state(checkpoint.ensure(settings))
    if settings.model == "ml-sharp":
        return MLSharp(state)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    with torch.device("meta"):
        model = Sharp(SharpConfig.matching(shapes))
    checkpoint.fill(model, state, ignore=UNUSED_PARAMETERS)
    return model


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
