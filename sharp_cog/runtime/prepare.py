"""Preparation of a filled network for inference: fold linear operations, convert to a precision, move to a device.

The network is converted one leaf module at a time, so that a device never holds both the float32 weights and the
converted ones. Folding is done in float32, before anything is rounded. Some parts stay in float32: the residual stream
of the vision transformers and its norms, the statistics of group norms, the skip connection from the image, disparity,
deltas, and all operations without weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sharp_cog.model.decoder import FusionBlock
from sharp_cog.model.sharp import Sharp
from sharp_cog.model.vit import MLP, Attention, Block, LayerNorm, LayerScale, Normalize, PatchEmbed
from sharp_cog.runtime.kernels.packed_linear import PackedLinear, can_pack
from sharp_cog.runtime.precision import cpu_has_amx

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def fold(model: Sharp, *, device: torch.device) -> None:
    """Fold LayerScale, the normalisation of the image, and 1x1 after transposed convolutions into adjacent weights.

    On the meta device, this results in the names and shapes of a folded network.

    Args:
        model: Filled network; changed in place.
        device: Device on which to fold; the folded modules stay there.
    """
    for module in model.modules():
        if isinstance(module, Block):
            module.to(device)
            # A branch ends in `proj` or `fc2`, so its gain can scale the rows of that layer and its bias.
            for scale, linear in ((module.ls1, module.attn.proj), (module.ls2, module.mlp.fc2)):
                _scale_rows(linear, scale)
            module.ls1 = module.ls2 = nn.Identity()
        elif isinstance(module, PatchEmbed) and isinstance(module.normalize, Normalize):
            module.to(device)
            # w (2 x - 1) + b = 2 w x + (b - sum of w)
            weight, bias = module.proj.weight, module.proj.bias
            assert bias is not None
            module.proj.bias = _parameter(bias - weight.sum(dim=(1, 2, 3)))
            module.proj.weight = _parameter(2.0 * weight)
            module.normalize = nn.Identity()
        elif isinstance(module, FusionBlock) and isinstance(module.deconv, nn.ConvTranspose2d):
            module.to(device)
            pointwise = module.out_conv
            assert isinstance(pointwise, nn.Conv2d)
            # Weights of a transposed convolution are (in, out, y, x). It has no bias here, so it takes that of
            # `out_conv`.
            weight = torch.einsum("icyx,oc->ioyx", module.deconv.weight, pointwise.weight[:, :, 0, 0])
            module.deconv.weight, module.deconv.bias = _parameter(weight), pointwise.bias
            module.out_conv = nn.Identity()


def _scale_rows(linear: nn.Linear, scale: nn.Module) -> None:
    assert isinstance(scale, LayerScale)
    gamma = scale.gamma
    linear.weight = _parameter(linear.weight * gamma.unsqueeze(1))
    linear.bias = _parameter(linear.bias * gamma)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def convert(model: Sharp, *, device: torch.device, dtype: torch.dtype, packs: bool = True) -> None:
    """Convert every leaf module and move it to the device.

    Args:
        model: Folded network; changed in place.
        device: Device that it will run on.
        dtype: Type of matrix products and convolutions: `torch.float32`, `torch.float16` or `torch.bfloat16`.
        packs: Whether to pack the vision transformers' linear layers too, on a CPU that supports it.
    """
    wide = {id(module) for part in _wide_parts(model, device, dtype) for module in part.modules()}
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.dtype_out = dtype
        if isinstance(module, Attention):
            module.is_tiled = dtype == torch.bfloat16 and device.type == "cpu" and not cpu_has_amx()
        # On CUDA, a group norm's weights must have the type of its input; its statistics are float32 nevertheless.
        is_converted = isinstance(module, (nn.Linear, *_CONVOLUTIONS)) or (
            isinstance(module, nn.GroupNorm) and device.type != "cpu"
        )
        for parameter in module.parameters(recurse=False):
            # Feature maps are channels-last. A convolution would reorder a weight of another layout at each call.
            layout = torch.channels_last if parameter.dim() == 4 else torch.preserve_format
            target = dtype if is_converted and id(module) not in wide else torch.float32
            # Always a copy: a single mapped bias would keep the whole file mapped.
            parameter.data = parameter.detach().to(device).to(target, memory_format=layout, copy=True)
        # `modules` yields a parent before its children, so these layers are packed before the loop would convert them.
        if isinstance(module, (Attention, MLP)) and packs and device.type == "cpu" and can_pack(dtype):
            _pack(module, dtype)


def _wide_parts(model: Sharp, device: torch.device, dtype: torch.dtype) -> list[nn.Module]:
    """Return the modules whose weights stay in float32."""
    wide: list[nn.Module] = [
        model.depth_alignment,
        # The layer that outputs disparity. In bfloat16, only 128 values lie between a power of two and the next.
        model.monodepth_model.monodepth_predictor.head[-2],
        model.feature_model.image_encoder,
        model.prediction_head,
        # The layers that write the first values of the float32 residual stream.
        *(part.proj for part in model.modules() if isinstance(part, PatchEmbed)),
    ]
    if device.type == "cpu" and dtype == torch.bfloat16:
        # This part is an eighth of the work, but causes most of the error of scales and colours: benchmarks/README.md.
        wide.append(model.feature_model)
    return wide


def _pack(module: Attention | MLP, dtype: torch.dtype) -> None:
    """Convert and pack a module's linear layers, one after the other."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            has_gelu = name == "fc1"
            setattr(module, name, PackedLinear(child.to(dtype), has_gelu=has_gelu))
            if has_gelu:
                # oneDNN now applies the GELU together with the product.
                assert isinstance(module, MLP)
                module.act = nn.Identity()
