"""What a head costs at each location: multiply-adds, outputs, class scores to sort."""

HEADS = ("semi", "retina", "fcos")


def head_cost(
    head: str, C: int, K: int, width: int, locations: int = 1, depth: int = 0
) -> dict[str, int]:
    """Costs of a head's last 3×3 layers, and of its two towers if `depth` is given.

    RetinaNet 9 D (K C + 4 K), semi-anchored 9 D (C + 5 K), FCOS 9 D (C + 5) multiply-adds a
    location: RetinaNet has no quality branch.

    Args:
        head: `"semi"`, `"retina"` or `"fcos"`.
        C: classes.
        K: anchors at each location.
        width: D, channels of the towers.
        locations: of the whole pyramid.
        depth: 3×3 convolutions in each of the two towers.

    Returns:
        `macs`, `outputs` and `scores` (class scores), for all locations.

    Raises:
        ValueError: for an unknown head, or a number below 1 (`depth`: below 0).
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}; got {head!r}")
    if min(C, K, width, locations) < 1 or depth < 0:
        raise ValueError(f"need positive {C=}, {K=}, {width=}, {locations=} and {depth=} ≥ 0")
    scores = {"retina": K * C}.get(head, C)
    rest = {"retina": 4 * K, "semi": 5 * K, "fcos": 5}[head]
    macs = 9 * width * (scores + rest) + 2 * depth * 9 * width**2
    return {
        "macs": macs * locations,
        "outputs": (scores + rest) * locations,
        "scores": scores * locations,
    }
