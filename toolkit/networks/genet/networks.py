"""The three GENets, their blocks' short names, and batch norm folded into convolutions."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from toolkit.networks.structures import BlockSpec, ConvBN, Network, build, parse

TYPES: dict[str, tuple[str, float]] = {
    "XX": ("SuperResKXKX", 1.0),
    "BL": ("SuperResK1KXK1", 0.25),
    "DW": ("SuperResK1DWK1", 3.0),
}
"""Block types as the paper names them: kind and ratio of the inner to the output width."""

GENETS: dict[str, str] = {
    "small": "SuperConvK3BNRELU(3,13,2,1) SuperResKXKX(13,48,3,2,1,1) SuperResKXKX(48,48,3,2,1,3)"
    " SuperResK1KXK1(48,384,3,2,0.25,7) SuperResK1DWK1(384,560,3,2,3,2)"
    " SuperResK1DWK1(560,256,3,1,3,1) SuperConvK1BNRELU(256,1920,1,1)",
    "normal": "SuperConvK3BNRELU(3,32,2,1) SuperResKXKX(32,128,3,2,1,1)"
    " SuperResKXKX(128,192,3,2,1,2) SuperResK1KXK1(192,640,3,2,0.25,6)"
    " SuperResK1DWK1(640,640,3,2,3,4) SuperResK1DWK1(640,640,3,1,3,1)"
    " SuperConvK1BNRELU(640,2560,1,1)",
    "large": "SuperConvK3BNRELU(3,32,2,1) SuperResKXKX(32,128,3,2,1,1)"
    " SuperResKXKX(128,192,3,2,1,2) SuperResK1KXK1(192,640,3,2,0.25,6)"
    " SuperResK1DWK1(640,640,3,2,3,5) SuperResK1DWK1(640,640,3,1,3,4)"
    " SuperConvK1BNRELU(640,2560,1,1)",
}
"""The released structures. The small one is also called light."""

RESOLUTION = {"small": 192, "normal": 192, "large": 256}
"""Side of the images in the paper, in pixels."""

TIMM_NAMES = {"small": "gernet_s", "normal": "gernet_m", "large": "gernet_l"}
"""The same networks in the library timm, which also has the released weights."""

COUNTED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def typed(
    kind: str, in_ch: int, out_ch: int, stride: int = 1, n: int = 1, ratio: float | None = None
) -> BlockSpec:
    """A super-block of the type XX, BL or DW with 3×3 kernels.

    Args:
        kind: the short name.
        in_ch: channels of the input.
        out_ch: channels of the output.
        stride: of the first layer.
        n: layers.
        ratio: inner over output width; by default the paper's 1, ¼ or 3.

    Raises:
        ValueError: for another name, or numbers that make no block.
    """
    if kind not in TYPES:
        raise ValueError(f"a block type is one of {', '.join(TYPES)}, got {kind!r}")
    name, usual = TYPES[kind]
    return BlockSpec.from_ratio(name, in_ch, out_ch, stride, usual if ratio is None else ratio, n)


def genet(name: str, num_classes: int = 1000) -> Network:
    """GENet `"small"`, `"normal"` or `"large"`, untrained.

    Raises:
        ValueError: for another name.
    """
    if name not in GENETS:
        raise ValueError(f"a GENet is one of {', '.join(GENETS)}, got {name!r}")
    return build(parse(GENETS[name]), num_classes)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy convolutions, batch norms and linear layers by position, in the order of registration.

    So weights of timm's `gernet_s`, `gernet_m`, `gernet_l` go into `genet`'s networks.

    Raises:
        ValueError: if the two differ in number, kind or shape of these modules.
    """
    ours, theirs = (
        [m for m in net.modules() if isinstance(m, COUNTED)] for net in (target, source)
    )
    if [_shape(module) for module in ours] != [_shape(module) for module in theirs]:
        raise ValueError(
            f"the networks differ: {len(theirs)} modules with weights here, {len(ours)} there, "
            "or another shape"
        )
    for module, weights in zip(ours, theirs, strict=True):
        module.load_state_dict(weights.state_dict())


def _shape(module: nn.Module) -> tuple:
    kind = next(kind for kind in COUNTED if isinstance(module, kind))
    return kind, *((name, p.shape) for name, p in module.named_parameters())


def fuse_bn(model: nn.Module) -> nn.Module:
    """A copy for inference in which batch norms are folded into the convolutions before them.

    W' = γ/√(σ²+ε) · W and b' = γ/√(σ²+ε) · (b − μ) + β per output channel. The source stays as it
    is.

    Raises:
        ValueError: if the model is in training mode, where batch norm has no fixed statistics.
    """
    if model.training:
        raise ValueError("fuse_bn needs a model in evaluation mode; call model.eval()")
    fused = copy.deepcopy(model)
    _fuse_children(fused)
    return fused


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvBN):
            with torch.no_grad():
                setattr(module, name, fuse_conv_bn_eval(child.conv, child.bn))
        else:
            _fuse_children(child)
