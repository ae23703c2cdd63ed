"""SHARP as it is run: in a precision that has been checked, the last picture remembered, captured as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from sharp_cog.devices import is_shortage
from sharp_cog.errors import CheckpointError
from sharp_cog.gaussians import NDCGaussians
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse
from sharp_cog.network.graphs import CaptureError, GraphedCall
from sharp_cog.network.precision import cpu_has_amx, exact_sums, name_of
from sharp_cog.network.prepare import convert
from sharp_cog.network.pyramid import NUM_TILES
from sharp_cog.network.self_check import LIMIT, probe
from sharp_cog.network.sharp import Encoding, Sharp

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


@dataclass(kw_only=True, slots=True)
class Counters:
    """What happened that a user should know of.

    Attributes:
        float32_repeats: Predictions that were repeated in float32, as half precision did not hold a value.
        float32_fallbacks: 1 where the self-check chose float32 in place of half precision.
        memory_shortages: Times that the device ran out of memory and the work was cut in smaller parts.
        graph_failures: 1 where the network could not be captured as CUDA graphs, and is launched kernel by kernel.
        reused_encodings: Predictions whose picture was the last one's, so that the encoders were skipped.
    """

    float32_repeats: int = 0
    float32_fallbacks: int = 0
    memory_shortages: int = 0
    graph_failures: int = 0
    reused_encodings: int = 0


class SharpRunner:
    """Runs SHARP. Not for two threads at once.

    Attributes:
        device: Where it runs.
        dtype: What it computes in.
        error: Relative error that the self-check found; 0 in float32.
        counters: What happened so far.
        model: The network, folded and converted.
    """

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
    def _encoder(self) -> Any:
        return self.model.monodepth_model.monodepth_predictor.encoder

    def __call__(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
        *,
        image_key: str | None = None,
    ) -> NDCGaussians:
        """Predicts Gaussians.

        Args:
            image: As for `Sharp.forward`, like the next four; a batch of one.
            disparity_factor: (1,).
            depth: (1, 1, 1536, 1536), or None.
            use: How `depth` is used.
            on_monodepth: Is called with SHARP's own depth.
            image_key: Tells pictures apart, such as a hash of the file. With the same one as before, the encoders are
                skipped. None is a picture of its own.

        Raises:
            DepthError: The depth map cannot be used.
            RuntimeError: The device has too little memory, even for one tile at a time; `is_shortage` tells.
        """
        while True:
            try:
                encoding = self._encode(image, image_key)
                depth_m = self.model.depth(encoding, disparity_factor, depth, use, on_monodepth)
                return self._place(image, encoding, depth_m)
            except CaptureError as error:
                self.counters.graph_failures += 1
                self._uses_graphs = False
                self._release()
                _LOG.warning("the network cannot be captured as CUDA graphs, and is launched without: %s", error)
                continue
            except RuntimeError as error:
                if not is_shortage(error) or not self._can_shrink():
                    raise
            # Outside of the handler: the error holds the frames, and they the memory.
            self._shrink()

    def in_float32(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        """The same in float32, by a network that is loaded for it and dropped again; counted."""
        self.counters.float32_repeats += 1
        self._release()
        model = self._load(torch.float32)
        model.monodepth_model.monodepth_predictor.encoder.num_tiles_at_once = self._encoder.num_tiles_at_once
        with exact_sums(self.device, is_lasting=False):
            gaussians: NDCGaussians = model(image, disparity_factor, depth, use, on_monodepth)
        return gaussians

    def _encode(self, image: Tensor, image_key: str | None) -> Encoding:
        if self._kept is not None and image_key is not None and self._kept[0] == image_key:
            self.counters.reused_encodings += 1
            return self._kept[1]
        self._kept = None
        encoding: Encoding = self._graphed()[0](image) if self._uses_graphs else self.model.encode(image)
        if self._keeps_encoding and image_key is not None:
            self._kept = (image_key, encoding)
        return encoding

    def _place(self, image: Tensor, encoding: Encoding, depth_m: Tensor) -> NDCGaussians:
        if not self._uses_graphs:
            return self.model.place(image, encoding.decoded, depth_m)
        placed: NDCGaussians = self._graphed()[1](image, encoding.decoded, depth_m)
        # The next replay writes to the same buffers.
        return NDCGaussians(**{field.name: getattr(placed, field.name).clone() for field in fields(placed)})

    def _graphed(self) -> tuple[GraphedCall, GraphedCall]:
        """The two parts of the network as graphs; what lies between depends on options."""
        if self._graphs is None:
            pool = torch.cuda.graph_pool_handle()

            self._graphs = (
                GraphedCall(self.model.encode, pool=pool),
                GraphedCall(self.model.place, pool=pool, fixed=(1,)),
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
