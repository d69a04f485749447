"""Published figures: timings on a V100, and the paper's speed table. None is our measurement."""

from typing import NamedTuple

from toolkit.networks.latency import Roofline

V100_PEAK, V100_BANDWIDTH = 62.5e12, 0.9e12
"""Half precision: multiply-adds per second, bytes per second."""

V100 = Roofline(0.7 * V100_PEAK, 0.7 * V100_BANDWIDTH, 14e-6)
"""A roofline with 70 % of both and 14 µs per operation."""


class V100Row(NamedTuple):
    """Blocks with C channels in and out, stride 1, 3×3 kernels, on maps of H×H pixels.

    Milliseconds a batch, the sum of the block's convolutions, in the order XX, BL (ratio ¼), DW
    (ratio 4), for batches of 1, 64 and 128 images; `single` is one convolution C→C at batch 64:
    full 3×3, 1×1, depthwise 3×3. TensorRT, half precision. Summed from the operator timings of
    Alibaba's lightweight-neural-architecture-search (Apache-2.0), which has no ratio 3.
    """

    channels: int
    side: int
    ms: dict[int, tuple[float, float, float]]
    single: tuple[float, float, float]


V100_ROWS = (
    V100Row(
        64,
        56,
        {1: (0.0338, 0.0381, 0.0461), 64: (0.406, 0.211, 0.761), 128: (0.762, 0.384, 1.509)},
        (0.203, 0.0817, 0.0909),
    ),
    V100Row(
        128,
        26,
        {1: (0.0428, 0.0341, 0.0438), 64: (0.340, 0.105, 0.411), 128: (0.609, 0.165, 0.754)},
        (0.170, 0.0494, 0.0472),
    ),
    V100Row(
        256,
        14,
        {1: (0.0598, 0.0390, 0.0611), 64: (0.400, 0.0738, 0.320), 128: (0.658, 0.117, 0.576)},
        (0.200, 0.0401, 0.0334),
    ),
    V100Row(
        512,
        8,
        {1: (0.1106, 0.0457, 0.0786), 64: (0.441, 0.0924, 0.311), 128: (0.871, 0.105, 0.580)},
        (0.220, 0.0373, 0.0261),
    ),
)
"""From the lowest to the highest stage."""

V100_RATIOS = {"XX": 1.0, "BL": 0.25, "DW": 4.0}
"""Inner over output width in these rows; the GENets use 3 for DW."""

SPEED_TABLE = {
    "GENet-light": (75.7, 0.10, 0.14, 0.10),
    "ResNet-34": (74.4, 0.22, 0.33, 0.19),
    "RegNetY-600MF": (75.5, 0.31, 0.28, 0.22),
    "MobileNetV2-1.4": (74.7, 0.24, 0.30, 0.20),
    "DNANet-2a": (76.0, 0.19, 0.24, 0.16),
    "OFANet-9ms": (75.3, 0.14, 0.21, 0.15),
    "GENet-normal": (80.0, 0.20, 0.25, 0.15),
    "ResNet-152": (79.2, 0.94, 1.04, 0.55),
    "EfficientNet-B2": (79.8, 0.64, 1.32, 1.02),
    "OFANet-595M": (80.0, 0.41, 0.71, 0.63),
    "GENet-large": (81.3, 0.34, 0.44, 0.26),
    "EfficientNet-B3": (81.1, 1.12, 2.36, 1.67),
}
"""The paper's table: ImageNet top-1 in %; ms per image on V100 (FP16), T4 (FP16), T4 (INT8)."""
