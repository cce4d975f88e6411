"""Noise: discrete Laplace and discrete Gaussian, sampled exactly by OpenDP, or by the integer mechanisms of diffprivlib.

Canonne, Kamath, Steinke: The Discrete Gaussian for Differential Privacy (2020), sections 5.2 and 5.3, give the samplers. OpenDP
implements them in rational arithmetic over the operating system's randomness; no floating point touches the noise, so its low
bits tell nothing (Mironov: On Significance of the Least Significant Bits for Differential Privacy, CCS 2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from lepton_airflow.errors import InvalidData, MissingDependency

Backend = Literal["opendp", "diffprivlib"]

#: With a larger scale the noise could leave 64 bits: at this one, it does with a probability below exp(-64).
MAX_SCALE = 2.0**56
#: diffprivlib samples in double precision: near 2**53 its noise vanishes. Its geometric noise is made from one uniform double, a
#: multiple of 2**-53, so with this scale probabilities are off by less than scale * 50 * 2**-53 < 2**-23 in total variation.
DIFFPRIVLIB_MAX_VALUE = 2**52
DIFFPRIVLIB_MAX_SCALE = 2.0**24
#: Its discrete Gaussian takes time in proportion to the scale: at this one some 20 ms for each number.
DIFFPRIVLIB_MAX_SIGMA = 2.0**14

#: Mechanisms of diffprivlib that no release uses, and why.
REFUSED_MECHANISMS: frozenset[str] = frozenset(
    {
        "Laplace",
        "LaplaceTruncated",
        "LaplaceFolded",
        "LaplaceBoundedDomain",
        "LaplaceBoundedNoise",
        "Gaussian",
        "GaussianAnalytic",
        "Staircase",
        "Snapping",
        "Uniform",
        "Vector",
        "Wishart",
        "Bingham",
    }
)


@dataclass(frozen=True)
class DiscreteLaplace:
    """Adds to each entry of an integer vector independent noise X with P(X = k) proportional to exp(-abs(k) / scale).

    For vectors that neighbouring datasets move by at most ``l1`` in L1 distance it is (l1 / scale)-differentially private.
    """

    scale: float
    name = "discrete Laplace"

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

    def add_noise(self, vector: Sequence[int], *, backend: Backend = "opendp") -> list[int]:
        """Return ``vector`` plus fresh noise. Call it once per release, on the driver, and store what it returns.

        :raises MissingDependency: the backend is not installed
        :raises InvalidData: diffprivlib, whose arithmetic is not exact there, was given too large a number or scale
        """
        if backend == "diffprivlib":
            # One unit of sensitivity at epsilon 1 / scale: the same distribution.
            return _by_diffprivlib("Geometric", vector, self.scale, epsilon=1 / self.scale, sensitivity=1)
        dp = _opendp()
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

    def log_moment(self, t: float) -> float:
        """log E exp(t X), for abs(t) < 1 / scale: that of (1 - r)**2 / ((1 - r e**t) (1 - r e**-t)) with r = exp(-1 / scale)."""
        rate = 1 / self.scale
        # expm1 keeps the digits of 1 - r at large scales.
        return 2 * math.log(-math.expm1(-rate)) - math.log(-math.expm1(t - rate)) - math.log(-math.expm1(-t - rate))

    @property
    def largest_moment(self) -> float:
        """Moments exist below this."""
        return 1 / self.scale


@dataclass(frozen=True)
class DiscreteGaussian:
    """Adds to each entry of an integer vector independent noise X with P(X = k) proportional to exp(-k**2 / (2 scale**2)).

    For vectors that neighbouring datasets move by at most ``l2`` in L2 distance it has (l2**2 / (2 scale**2))-zero-concentrated
    differential privacy (Canonne, Kamath, Steinke 2020, theorem 14).

    :param scale: sigma; the standard deviation is a little below it
    """

    scale: float
    name = "discrete Gaussian"

    @classmethod
    def calibrated(cls, *, l2_squared: int, rho: Fraction) -> DiscreteGaussian:
        """The mechanism with the smallest double-precision scale that costs at most ``rho``: rounded up, never down."""
        exact = Fraction(l2_squared) / (2 * rho)
        scale = math.sqrt(exact)
        while Fraction(scale) ** 2 < exact:
            scale = math.nextafter(scale, math.inf)
        return cls(scale)

    def rho(self, l2_squared: int) -> Fraction:
        """The exact privacy loss, in zCDP, for vectors that move by at most the root of ``l2_squared``."""
        return Fraction(l2_squared) / (2 * Fraction(self.scale) ** 2)

    def add_noise(self, vector: Sequence[int], *, backend: Backend = "opendp") -> list[int]:
        """As :meth:`DiscreteLaplace.add_noise`."""
        if backend == "diffprivlib":
            # It derives its scale from epsilon and delta alone; ours is set once it is made.
            return _by_diffprivlib(
                "GaussianDiscrete", vector, self.scale, epsilon=1.0, delta=1e-6, sensitivity=1, _scale=self.scale
            )
        dp = _opendp()
        domain = dp.vector_domain(dp.atom_domain(T="i64"))
        mechanism = dp.m.make_gaussian(domain, dp.l2_distance(T=float), scale=self.scale)
        return [int(entry) for entry in mechanism(list(vector))] if vector else []

    def half_width(self, confidence: float) -> int:
        """A t with P(abs(X) <= t) >= confidence, at most one above the smallest: P(X >= t + 1) <= P(Z >= t) for the continuous
        Gaussian Z of the same scale (ibid., proposition 25).
        """
        from statistics import NormalDist

        return math.ceil(self.scale * NormalDist().inv_cdf(1 - (1 - confidence) / 2))

    def log_moment(self, t: float) -> float:
        """An upper bound of log E exp(t X): the noise is sub-Gaussian with its scale as parameter (ibid., lemma 18)."""
        return t * t * self.scale * self.scale / 2

    @property
    def largest_moment(self) -> float:
        """Every moment exists."""
        return math.inf


Mechanism = DiscreteLaplace | DiscreteGaussian


def rho_of(epsilon: Fraction, delta: Fraction) -> Fraction:
    """The largest rho whose zCDP implies (``epsilon``, ``delta``)-DP by epsilon = rho + 2 sqrt(rho log(1 / delta)), rounded down.

    Bun, Steinke: Concentrated Differential Privacy (2016), proposition 1.3.
    """
    log = math.log(1 / delta)
    root = math.sqrt(log + float(epsilon)) - math.sqrt(log)
    return Fraction(root * root * (1 - 1e-9))


def threshold_for(*, groups: int, scale: float, delta: Fraction) -> int:
    """The lowest threshold on noisy unit counts under which a group that only one unit is in stays hidden but for ``delta``.

    Such a group counts 1 and is shown if 1 + X >= threshold, for discrete Laplace noise X. That has the probability
    p = r**(threshold - 1) / (1 + r), r = exp(-1 / scale). A unit has at most ``groups`` of them, all hidden but for groups * p.
    (Korolova, Kenthapadi, Mishra, Ntoulas: Releasing Search Queries and Clicks Privately, WWW 2009, in its discrete form.)
    """
    ratio = math.exp(-1 / scale)
    # The margin is far above what the logarithms are rounded by; a higher threshold only hides more.
    tail = scale * math.log(groups / (float(delta) * (1 + ratio))) * (1 + 1e-9)
    return 1 + max(math.ceil(tail), 1)


def _opendp() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError:
        raise MissingDependency(
            "Noise is sampled by OpenDP, which is not installed.",
            place="lepton_airflow.privacy",
            remedy='Install it where the Spark driver runs: pip install "lepton-airflow[privacy]".',
        ) from None
    dp.enable_features("contrib")
    return dp


def _by_diffprivlib(name: str, vector: Sequence[int], scale: float, **parameters: Any) -> list[int]:
    try:
        from diffprivlib import mechanisms
    except ImportError:
        raise MissingDependency(
            "The backend diffprivlib is not installed.",
            place="backend",
            remedy='Install it where the Spark driver runs: pip install "lepton-airflow[privacy]", or use backend: opendp.',
        ) from None
    limit = DIFFPRIVLIB_MAX_SCALE if name == "Geometric" else DIFFPRIVLIB_MAX_SIGMA
    if scale > limit or any(abs(entry) >= DIFFPRIVLIB_MAX_VALUE for entry in vector):
        raise InvalidData(
            "diffprivlib computes in double precision; a total or the noise's scale is too large for its samples to be right.",
            place="backend",
            remedy="Use backend: opendp, or a larger granularity.",
        )
    own = parameters.pop("_scale", None)
    mechanism = getattr(mechanisms, name)(**parameters)
    if own is not None:
        mechanism._scale = own
    return [int(mechanism.randomise(int(entry))) for entry in vector]
