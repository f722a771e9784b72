"""Published peaks of accelerators, from which seconds are estimated."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device.

    Attributes:
      flops: dense bfloat16 operations per second at the peak.
      memory: bytes on the device.
      bandwidth: bytes per second between memory and arithmetic.
      clock: cycles per second of its cores; 0 where no compiler counts cycles.
      links: bytes per second that it receives from the other chips of its pod; 0 likewise.
    """

    flops: float
    memory: float
    bandwidth: float
    clock: float = 0.0
    links: float = 0.0

    def seconds(self, flops: float, utilisation: float, nbytes: float = 0.0) -> float:
        """Seconds of arithmetic, or of traffic if that takes longer, on one device."""
        return max(flops / self.flops, nbytes / self.bandwidth) / utilisation

    def cycles(self, estimated: float, kernel_flops: float) -> float:
        """Cycles with those of kernels that the compiler can't estimate, at the peak."""
        return estimated + (kernel_flops * self.clock / self.flops)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls by this name; None if its peaks are not known.

    >>> chip_of("TPU v5 lite") is CHIPS["v5e"]
    True
    """
    for word, name in _KINDS.items():
        if word in device_kind.lower():
            return CHIPS[name]
    return None


CHIPS = {
    # cloud.google.com/tpu/docs: v4, v5e, v5p, v6e; nvidia.com/en-us/data-center/h100 (SXM).
    # Clocks are the peaks over what the compiler takes for a full cycle: 2 x 128 x 128 for each of
    # four matrix units (v5e) or eight (v4, v5p: two cores), 2 x 256 x 256 for each of four (v6e).
    # Links: half of the published bandwidth between chips, which counts both directions.
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 1.05e9, 150e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 1.5e9, 100e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1.75e9, 300e9),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 1.75e9, 224e9),
    "h100": Chip(989e12, 80 * 1e9, 3350e9),
    # A core of a cloud machine: two AVX2 units of 8 float32 at 2.5 GHz.
    "cpu-core": Chip(80e9, 4 * 2**30, 10e9),
}

# The longer names first: "TPU v5" alone is the large one.
_KINDS = {
    "v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v6": "v6e", "v4": "v4", "h100": "h100",
    "cpu": "cpu-core",
}  # fmt: skip
