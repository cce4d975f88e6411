"""Noise: the discrete Laplace mechanism, sampled exactly by OpenDP.

Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy (2020), section 5.2, gives the sampler that OpenDP
implements in rational arithmetic over the operating system's randomness; no floating point touches the noise, so its low bits
tell nothing (Mironov: On Significance of the Least Significant Bits for Differential Privacy, CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lepton_airflow.errors import MissingDependency

#: With a larger scale the noise could leave 64 bits: at this one, it does with a probability below exp(-64).
MAX_SCALE = 2.0**56


@dataclass(frozen=True)
class DiscreteLaplace:
    """Adds to each entry of an integer vector independent noise X with P(X = k) proportional to exp(-abs(k) / scale).

    For vectors that neighbouring datasets move by at most ``l1`` in L1 distance it is (l1 / scale)-differentially private.
    """

    scale: float

    @classmethod
    def calibrated(cls, *, l1: int, epsilon: Fraction) -> DiscreteLaplace:
        """The mechanism with the smallest double-precision scale that costs at most ``epsilon``: rounded up, never down."""
        exact = Fraction(l1) / epsilon
        scale = float(exact)
        if Fraction(scale) < exact:
            scale = math.nextafter(scale, math.inf)
        return cls(scale)

    def epsilon(self, l1: int) -> Fraction:
        """The exact privacy loss for vectors that move by at most ``l1``."""
        return Fraction(l1) / Fraction(self.scale)

    def add_noise(self, vector: Sequence[int]) -> list[int]:
        """Return ``vector`` plus fresh noise. Call it once per release, on the driver, and store what it returns.

        :raises MissingDependency: OpenDP is not installed
        """
        try:
            import opendp.prelude as dp
        except ImportError:
            raise MissingDependency(
                "Noise is sampled by OpenDP, which is not installed.",
                place="lepton_airflow.privacy",
                remedy='Install it where the Spark driver runs: pip install "lepton-airflow[privacy]".',
            ) from None
        dp.enable_features("contrib")
        # Not T=int, which means 32 bits to OpenDP.
        domain = dp.vector_domain(dp.atom_domain(T="i64"))
        mechanism = dp.m.make_laplace(domain, dp.l1_distance(T="i64"), scale=self.scale)
        return [int(entry) for entry in mechanism(list(vector))] if vector else []

    def probability(self, k: int) -> float:
        """P(X = k)."""
        return math.tanh(1 / (2 * self.scale)) * math.exp(-abs(k) / self.scale)

    def half_width(self, confidence: float) -> int:
        """The smallest t with P(abs(X) <= t) >= confidence, from P(abs(X) > t) = 2 r**(t + 1) / (1 + r), r = exp(-1 / scale)."""
        ratio = math.exp(-1 / self.scale)
        tail = self.scale * math.log(2 / ((1 + ratio) * (1 - confidence)))
        return max(math.ceil(tail) - 1, 0)
