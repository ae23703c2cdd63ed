"""SHARP as a predictor: in a checked precision, with the last image's encoding kept, and as CUDA graphs."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from sharp_cog.errors import CheckpointError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.pyramid import NUM_TILES
from sharp_cog.model.sharp import Encoding, Sharp
from sharp_cog.runtime.device import is_shortage
from sharp_cog.runtime.graphs import CaptureError, GraphedCall
from sharp_cog.runtime.precision import cpu_has_amx, exact_sums, name_of
from sharp_cog.runtime.predictor import Counters, Predicted, grey_input
from sharp_cog.runtime.prepare import convert
from sharp_cog.runtime.preprocess import ModelInput
from sharp_cog.runtime.self_check import LIMIT, probe

_LOG = logging.getLogger(__name__)

_FEWER_TILES = {NUM_TILES: 12, 12: 4, 4: 1}
"""Next smaller number of tiles at once, for each number that did not fit in memory."""

_CPU_TILES = 1
"""Tiles at once on a CPU, whose caches hold the activations of a single one."""

_AMX_TILES = 4
"""Tiles at once on an Intel CPU with AMX, whose caches are larger; a fifth faster than one at a time."""


class NetworkSource(Protocol):
    """Source of filled networks: `sharp_cog.runtime.weights`."""

    def network(self, device: torch.device) -> Sharp:
        """Return a new network, filled and folded, on the CPU or the device."""
        ...


class SharpRunner:
    """Runs SHARP; see `sharp_cog.runtime.predictor.Predictor`. Only one thread may use it at a time.

    Attributes:
        device: Device of the network.
        dtype: Type that the network computes in.
        error: Relative error that the self-check found; 0 in float32.
        counters: Events so far.
        model: The network, folded and converted.
    """

    needs_depth = False
    has_monodepth = True

    def __init__(
        self,
        source: NetworkSource,
        *,
        device: torch.device,
        dtype: torch.dtype,
        keeps_encoding: bool = True,
        uses_graphs: bool = True,
    ) -> None:
        """Load the network and check its precision.

        Args:
            source: Source of the network; used again if a prediction has to be repeated in float32.
            device: Device to run on.
            dtype: Type to compute in, unless the self-check rejects it.
            keeps_encoding: Whether to keep the last image's encoding, about 170 MB in half precision.
            uses_graphs: Whether to capture CUDA graphs, on CUDA.

        Raises:
            CheckpointError: The weights do not fit the network, or contain NaN.
        """
        self.device, self.dtype, self.error, self.counters = device, dtype, 0.0, Counters()
        self._source, self._keeps_encoding = source, keeps_encoding
        self._uses_graphs = uses_graphs and device.type == "cuda"
        self._kept: tuple[str, Encoding] | None = None
        self._graphs: tuple[GraphedCall, GraphedCall] | None = None
        # Sets `error` too, and `dtype` if it falls back to float32.
        self.model = self._load_checked()
        # Other devices take all tiles at once, the default of a new network.
        if device.type == "cpu":
            self._encoder.num_tiles_at_once = _AMX_TILES if cpu_has_amx() else _CPU_TILES

    def _load_checked(self) -> Sharp:
        """Return the network in the chosen precision, or in float32 if that precision computes something else."""
        if self.dtype == torch.float32:
            return self._load(torch.float32)
        model = self._network()
        # Weights in memory may be in half precision already. Then both sides of the comparison have the same rounding
        # of the weights, and it finds only the errors of the computation.
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            convert(model, device=self.device, dtype=torch.float32, packs=False)
        # Folding has moved only the modules that it changed.
        model.to(self.device)
        # The shapes of the small image do not occur again, so cuDNN need not time its algorithms for them.
        with exact_sums(self.device, is_lasting=False):
            exact = probe(model, device=self.device)
            # In place, one weight after the other, so that the device never holds both precisions of the network.
            convert(model, device=self.device, dtype=self.dtype)
            self.error = exact.error(probe(model, device=self.device))
        if self.error <= LIMIT:
            return model
        _LOG.warning(
            "%s gives wrong results on this device (relative error %.3g to float32, where rounding causes at most "
            "%.3g): float32 is used, which is slower",
            name_of(self.dtype),
            self.error,
            LIMIT,
        )
        # Released first, because the device may not have room for both networks.
        del model
        self.dtype = torch.float32
        self.counters.float32_fallbacks += 1
        return self._load(torch.float32)

    def _load(self, dtype: torch.dtype) -> Sharp:
        model = self._network()
        convert(model, device=self.device, dtype=dtype)
        return model

    def _network(self) -> Sharp:
        model = self._source.network(self.device)
        # Otherwise the self-check would take NaN for a failure of half precision, and the first splat would be refused
        # in place of the checkpoint.
        for name, parameter in model.named_parameters():
            if parameter.isnan().any():
                raise CheckpointError(f"the weights {name} hold NaN: use Apple's sharp_2572gikvuh.pt")
        return model

    @property
    def image_size(self) -> int:
        """Width and height in pixels of the square image that the network takes."""
        return self.model.config.image_size

    @property
    def _encoder(self) -> Any:
        return self.model.monodepth_model.monodepth_predictor.encoder

    def predict(self, model_input: ModelInput) -> Predicted:
        """Predict Gaussians, and repeat the prediction in float32 if half precision cannot represent a value.

        If the `image_hash` is the last one's, the encoders are skipped.

        Raises:
            DepthError: The depth map cannot be used.
            RuntimeError: The device has too little memory, even for one tile at a time; `is_shortage` recognises it.
        """
        gaussians, monodepth_m = self._predict_within_memory(model_input)
        if self.dtype == torch.float32 or _are_finite(gaussians):
            return Predicted(gaussians=gaussians, monodepth_m=monodepth_m, precision=name_of(self.dtype))
        _LOG.warning("a value does not fit in %s: this prediction is repeated in float32", name_of(self.dtype))
        del gaussians, monodepth_m
        return self._predict_in_float32(model_input)

    def warm_up(self) -> NDCGaussians | None:
        """Run the network on a grey image. On a CPU do nothing, as the self-check has run every weight already."""
        if self.device.type == "cpu":
            return None
        return self.predict(grey_input(self.image_size, self.device, has_depth=False)).gaussians

    def _predict_within_memory(self, model_input: ModelInput) -> tuple[NDCGaussians, Tensor]:
        """Predict Gaussians and monodepth, in smaller parts if memory runs out."""
        while True:
            try:
                encoding = self._encode(model_input.image, model_input.image_hash)
                monodepth_m = depth_from_disparity(encoding.disparity, model_input.disparity_factor)
                depth_m = self.model.depth_layers(monodepth_m, model_input.depth_m, model_input.use)
                return self._compose(model_input.image, encoding, depth_m), monodepth_m
            except CaptureError as error:
                # A CaptureError is a RuntimeError, so this handler must come before the next one.
                self.counters.graph_failures += 1
                self._uses_graphs = False
                self._release()
                _LOG.warning("the network cannot be captured as CUDA graphs, and runs without them: %s", error)
                continue
            except RuntimeError as error:
                can_shrink = self._uses_graphs or self._encoder.num_tiles_at_once in _FEWER_TILES
                if not is_shortage(error) or not can_shrink:
                    raise
            # Outside of the handler, because the error keeps the frames alive, and they keep the memory.
            self._shrink()

    def _predict_in_float32(self, model_input: ModelInput) -> Predicted:
        """Predict by a float32 network that is loaded for this image alone, and count it."""
        self.counters.float32_repeats += 1
        # The float32 network has to fit beside this one, which stays for the next image.
        self._release()
        model = self._load(torch.float32)
        # A new network would try all tiles at once again.
        model.monodepth_model.monodepth_predictor.encoder.num_tiles_at_once = self._encoder.num_tiles_at_once
        # A repeat runs each shape once, and timing all of cuDNN's algorithms takes longer than running any of them.
        with exact_sums(self.device, is_lasting=False):
            encoding = model.encode(model_input.image)
            monodepth_m = depth_from_disparity(encoding.disparity, model_input.disparity_factor)
            depth_m = model.depth_layers(monodepth_m, model_input.depth_m, model_input.use)
            gaussians = model.compose(model_input.image, encoding.decoded, depth_m)
        return Predicted(gaussians=gaussians, monodepth_m=monodepth_m)

    def _encode(self, image: Tensor, image_hash: str | None) -> Encoding:
        if self._kept is not None and image_hash is not None and self._kept[0] == image_hash:
            self.counters.reused_encodings += 1
            return self._kept[1]
        # Dropped before the next image is encoded: that needs the memory, and a replay overwrites an encoding that lies
        # in the buffers of the graph.
        self._kept = None
        encoding: Encoding = self._graphed()[0](image) if self._uses_graphs else self.model.encode(image)
        if self._keeps_encoding and image_hash is not None:
            self._kept = (image_hash, encoding)
        return encoding

    def _compose(self, image: Tensor, encoding: Encoding, depth_m: Tensor) -> NDCGaussians:
        if not self._uses_graphs:
            return self.model.compose(image, encoding.decoded, depth_m)
        composed: NDCGaussians = self._graphed()[1](image, encoding.decoded, depth_m)
        # The next replay overwrites the graph's buffers.
        return NDCGaussians(**{field.name: getattr(composed, field.name).clone() for field in fields(composed)})

    def _graphed(self) -> tuple[GraphedCall, GraphedCall]:
        """Return the two parts of the network as graphs. The step between them depends on options."""
        if self._graphs is None:
            # The outputs of the first graph are in use when the second one is captured. So the second one gets other
            # memory of the pool, and a kept encoding outlives its replays.
            pool = torch.cuda.graph_pool_handle()
            self._graphs = (
                GraphedCall(self.model.encode, pool=pool),
                # Input 1, `decoded`, is always the output buffer of the first graph.
                GraphedCall(self.model.compose, pool=pool, fixed=(1,)),
            )
        return self._graphs

    def _shrink(self) -> None:
        """Release memory, and use less of it from now on."""
        self.counters.memory_shortages += 1
        # The smaller number holds for all later images too, which are as large as this one.
        tiles = self._encoder.num_tiles_at_once
        self._encoder.num_tiles_at_once = _FEWER_TILES.get(tiles, tiles)
        # Graphs keep all the memory that they ever need.
        self._uses_graphs = False
        self._release()
        _LOG.warning(
            "%s ran out of memory: continuing without CUDA graphs and with %d tiles at once, which is slower",
            self.device,
            self._encoder.num_tiles_at_once,
        )

    def _release(self) -> None:
        self._kept = self._graphs = None
        if self.device.type == "cuda":
            # Blocks from the pool of a released graph serve no other allocation until CUDA has them back.
            torch.cuda.empty_cache()


def _are_finite(gaussians: NDCGaussians) -> bool:
    """Report whether all values are finite, after waiting for the device. A sum is finite only if every term is."""
    # The sum of finite values may overflow too, which costs no more than an unnecessary repeat.
    parts = (getattr(gaussians, field.name) for field in fields(gaussians))
    return bool(torch.stack([part.sum() for part in parts]).sum().isfinite().item())
