"""SHARP as it is run: in a precision that has been checked, the last picture remembered, captured as CUDA graphs."""

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
"""How many tiles at once where memory does not do for more."""

_CPU_TILES, _AMX_TILES = 1, 4
"""The activations of one tile stay in a CPU's caches; those of Intel's CPUs with AMX hold four, a fifth faster."""


class NetworkSource(Protocol):
    """Where networks come from."""

    def network(self, device: torch.device) -> Sharp:
        """A new network, filled and folded, on the CPU or the device."""
        ...


class SharpRunner:
    """Runs SHARP; see `sharp_cog.runtime.predictor.Predictor`. Not for two threads at once.

    Attributes:
        device: Where it runs.
        dtype: What it computes in.
        error: Relative error that the self-check found; 0 in float32.
        counters: What happened so far.
        model: The network, folded and converted.
    """

    needs_depth = False
    has_own_depth = True

    def __init__(
        self,
        source: NetworkSource,
        *,
        device: torch.device,
        dtype: torch.dtype,
        keeps_encoding: bool = True,
        uses_graphs: bool = True,
    ) -> None:
        """Loads the network and checks its precision.

        Args:
            source: Gives networks; asked again where float32 is needed later.
            device: Where to run.
            dtype: What to compute in, unless the check finds it wrong.
            keeps_encoding: Whether the last picture's encoding is kept, some 170 MB in half precision.
            uses_graphs: Whether to capture CUDA graphs, on CUDA.

        Raises:
            CheckpointError: The weights are not the network's, or not numbers.
        """
        self.device, self.dtype, self.error, self.counters = device, dtype, 0.0, Counters()
        self._source, self._keeps_encoding = source, keeps_encoding
        self._uses_graphs = uses_graphs and device.type == "cuda"
        self._kept: tuple[str, Encoding] | None = None
        self._graphs: tuple[GraphedCall, GraphedCall] | None = None
        self.model = self._load_checked()
        if device.type == "cpu":
            self._encoder.num_tiles_at_once = _AMX_TILES if cpu_has_amx() else _CPU_TILES

    def _load_checked(self) -> Sharp:
        """The network in the chosen precision, or in float32 where that does not compute the same.

        The float32 weights become the others one by one: the device never holds both.
        """
        if self.dtype == torch.float32:
            return self._load(torch.float32)
        model = self._network()
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):  # Of a converted copy.
            convert(model, device=self.device, dtype=torch.float32, packs=False)
        model.to(self.device)
        with exact_sums(self.device, is_lasting=False):
            exact = probe(model, device=self.device)
            convert(model, device=self.device, dtype=self.dtype)
            self.error = exact.error(probe(model, device=self.device))
        if self.error <= LIMIT:
            return model
        _LOG.warning(
            "this device computes something else in %s than in float32 (relative error %.3g, where rounding makes %.3g "
            "at most): float32 is used, which is slower",
            name_of(self.dtype),
            self.error,
            LIMIT,
        )
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
        """Predict Gaussians; in float32 if half precision cannot hold a value.

        With the same `image_hash` as before, the encoders are skipped.

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
        """Run the network on a grey image; on a CPU the self-check has run every weight already."""
        if self.device.type == "cpu":
            return None
        return self.predict(grey_input(self.image_size, self.device, has_depth=False)).gaussians

    def _predict_within_memory(self, model_input: ModelInput) -> tuple[NDCGaussians, Tensor]:
        """Predict Gaussians and the network's own depth, in smaller parts where memory runs out."""
        while True:
            try:
                encoding = self._encode(model_input.image, model_input.image_hash)
                monodepth_m = depth_from_disparity(encoding.disparity, model_input.disparity_factor)
                depth_m = self.model.depth_layers(monodepth_m, model_input.depth_m, model_input.use)
                return self._compose(model_input.image, encoding, depth_m), monodepth_m
            except CaptureError as error:
                self.counters.graph_failures += 1
                self._uses_graphs = False
                self._release()
                _LOG.warning("the network cannot be captured as CUDA graphs, and is launched without: %s", error)
                continue
            except RuntimeError as error:
                if not is_shortage(error) or not self._can_shrink():
                    raise
            # Outside of the handler: the error holds the frames, and they hold the memory.
            self._shrink()

    def _predict_in_float32(self, model_input: ModelInput) -> Predicted:
        """Predict by a float32 network that is loaded for this image and dropped again; counted."""
        self.counters.float32_repeats += 1
        self._release()
        model = self._load(torch.float32)
        model.monodepth_model.monodepth_predictor.encoder.num_tiles_at_once = self._encoder.num_tiles_at_once
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
        self._kept = None
        encoding: Encoding = self._graphed()[0](image) if self._uses_graphs else self.model.encode(image)
        if self._keeps_encoding and image_hash is not None:
            self._kept = (image_hash, encoding)
        return encoding

    def _compose(self, image: Tensor, encoding: Encoding, depth_m: Tensor) -> NDCGaussians:
        if not self._uses_graphs:
            return self.model.compose(image, encoding.decoded, depth_m)
        composed: NDCGaussians = self._graphed()[1](image, encoding.decoded, depth_m)
        # The next replay writes to the same buffers.
        return NDCGaussians(**{field.name: getattr(composed, field.name).clone() for field in fields(composed)})

    def _graphed(self) -> tuple[GraphedCall, GraphedCall]:
        """The two parts of the network as graphs; what lies between depends on options."""
        if self._graphs is None:
            pool = torch.cuda.graph_pool_handle()

            self._graphs = (
                GraphedCall(self.model.encode, pool=pool),
                GraphedCall(self.model.compose, pool=pool, fixed=(1,)),
            )
        return self._graphs

    def _can_shrink(self) -> bool:
        return self._uses_graphs or self._encoder.num_tiles_at_once in _FEWER_TILES

    def _shrink(self) -> None:
        """Gives memory back, and asks for less from now on."""
        self.counters.memory_shortages += 1
        tiles = self._encoder.num_tiles_at_once
        self._encoder.num_tiles_at_once = _FEWER_TILES.get(tiles, tiles)
        # A graph keeps all that it ever needs.
        self._uses_graphs = False
        self._release()
        _LOG.warning(
            "%s ran out of memory: going on without CUDA graphs and with %d tiles at once, which is slower",
            self.device,
            self._encoder.num_tiles_at_once,
        )

    def _release(self) -> None:
        self._kept = self._graphs = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _are_finite(gaussians: NDCGaussians) -> bool:
    """Return whether all values are finite; waits for the device. A sum is not finite if any value is not."""
    parts = (getattr(gaussians, field.name) for field in fields(gaussians))
    return bool(torch.stack([part.sum() for part in parts]).sum().isfinite().item())
