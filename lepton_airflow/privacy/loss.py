"""Privacy loss distributions (PLD) of the discrete mechanisms, composed by dp-accounting.

A distribution is fixed by its hockey-stick divergence at every epsilon (Zhu, Dong, Wang: Optimal Accounting of Differential
Privacy via Characteristic Function, 2022). We compute that curve at the points of a grid, from the distribution functions of the
noise, and join the points by dp-accounting's connect-the-dots (Doroshenko et al.: Connect the Dots: Tighter Discrete
Approximations of Privacy Loss Distributions, 2022), which never lies below the curve. The library's own constructors walk over
every integer within the sensitivity; ours do not, for sums in fixed point have sensitivities of billions of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import MissingDependency
from lepton_airflow.privacy.records import GAUSSIAN, LAPLACE, MechanismEvent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: About how many points of the grid the losses of all events together may take.
_POINTS = 2**18
#: Beyond this total loss nobody learns anything from a distribution, and exponentials overflow.
_MAX_LOSS = 500.0
#: Convolutions by FFT are off by about 1e-16 times their length; so much of delta is not handed out.
_ALLOWANCE = 1e-11
#: Joining dots divides differences of doubles by the grid's step; what is lost there is far below this.
_FLOATING_POINT = 1e-6
#: With a larger sigma the noise is bounded by integrals instead of being added up entry by entry.
_MAX_SUMMED_SIGMA = 20_000.0
#: The tail of a Gaussian beyond so many sigmas has a probability below 1e-34.
_TAIL = 12.5


def composed_epsilon(composition: Sequence[tuple[MechanismEvent, int]], delta: float) -> float | None:
    """The epsilon at ``delta`` of all events together, rounded up; None when the composition has no use for a distribution:
    delta is too small for floating point, or the total loss is beyond 500.

    :param composition: events, each with how often it happened
    :raises MissingDependency: dp-accounting is not installed
    """
    try:
        from dp_accounting.pld import privacy_loss_distribution as pld
    except ImportError:
        raise MissingDependency(
            "A budget with a delta is accounted with dp-accounting, which is not installed.",
            place="lepton_airflow.privacy",
            remedy='Install it: pip install "lepton-airflow[privacy]". Budgets with delta 0 do without.',
        ) from None
    reach = sum(n * _reach(event) for event, n in composition)
    usable = delta - _ALLOWANCE * (1 + sum(n * event.groups if event.rho else n for event, n in composition) / 1000)
    if not reach <= _MAX_LOSS or usable < delta / 2:
        return None
    step = 2.0 ** max(math.ceil(math.log2(max(reach, 1e-9) / _POINTS)), -20)
    whole: Any = pld.identity(step)
    failures = 0.0
    # Smallest first: convolving with a long distribution takes longest.
    for event, n in sorted(composition, key=lambda part: part[1] * _reach(part[0])):
        failures += n * float(event.delta)
        if event.l1:
            whole = whole.compose(_distribution(event, n, step))
    # A selection that fails with probability delta may reveal anything: it takes its delta away from the rest.
    rest = usable - failures
    if rest <= 0:
        return None
    epsilon = float(whole.get_epsilon_for_delta(rest))
    return epsilon * (1 + _FLOATING_POINT) + _FLOATING_POINT if math.isfinite(epsilon) else None


def _reach(event: MechanismEvent) -> float:
    """About the largest loss that the event has."""
    if not event.rho:
        return float(min(event.epsilon, Fraction(10**9)))
    rho = float(min(event.rho, Fraction(10**9)))
    return rho + 12 * math.sqrt(2 * rho)


@lru_cache(maxsize=64)
def _distribution(event: MechanismEvent, n: int, step: float) -> Any:
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as pld

    if event.mechanism == LAPLACE:
        return _joined(_laplace_curve, event.l1, event.scale, event.l1 / event.scale, step).self_compose(n)
    if event.mechanism == GAUSSIAN:
        ratio = event.per_group / event.scale
        loss = ratio**2 / 2 + _TAIL * ratio
        return _joined(_gaussian_curve, event.per_group, event.scale, loss, step).self_compose(n * event.groups)
    # Of any other mechanism only its epsilon is known: then randomised response is the worst there is (Kairouz et al.).
    parameters = common.DifferentialPrivacyParameters(math.nextafter(float(event.epsilon), math.inf), 0)
    return pld.from_privacy_parameters(parameters, value_discretization_interval=step).self_compose(n)


def _joined(curve: Any, shift: int, scale: float, largest: float, step: float) -> Any:
    """The distribution whose divergences at the grid's points are those of ``curve``, or above where that is an upper bound."""
    import numpy as np
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    end = math.ceil(largest / step) + 1
    epsilons = np.arange(-end, end + 1) * step
    # An upper bound need not fall as the divergence does; the smallest one so far holds for every larger epsilon too.
    deltas = np.minimum.accumulate(np.clip(curve(epsilons, shift, scale), 0.0, 1.0))
    return pld.PrivacyLossDistribution(pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(step, -end, end, deltas))


def _laplace_curve(epsilons: NDArray[np.float64], shift: int, scale: float) -> NDArray[np.float64]:
    """The hockey-stick divergences between discrete Laplace noise and the same, shifted.

    The loss at k, (abs(k - shift) - abs(k)) / scale, falls in k; so the divergence is a difference of distribution functions.
    """
    import numpy as np

    last = np.ceil((shift - epsilons * scale) / 2) - 1  # the last k whose loss is above epsilon
    last = np.where(epsilons < -shift / scale, np.inf, np.where(epsilons >= shift / scale, -np.inf, last))
    # Where a rounded division puts `last` one off, the entry that is lost or gained has a loss of epsilon, so it weighs nothing.
    return _laplace_cdf(last, scale) - np.exp(epsilons) * _laplace_cdf(last - shift, scale)


def _laplace_cdf(k: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    import numpy as np

    tail = np.exp(-np.where(k < 0, -k, k + 1) / scale) / (1 + math.exp(-1 / scale))
    return np.where(k < 0, tail, 1 - tail)


def _gaussian_curve(epsilons: NDArray[np.float64], shift: int, sigma: float) -> NDArray[np.float64]:
    """The hockey-stick divergences between discrete Gaussian noise and the same, shifted; for a large sigma an upper bound."""
    import numpy as np

    edge = shift / 2 - epsilons * sigma**2 / shift  # losses above epsilon are those of k < edge
    if sigma <= _MAX_SUMMED_SIGMA:
        bound = math.ceil(_TAIL * sigma)
        weights = np.exp(-((np.arange(-bound, bound + 1) / sigma) ** 2) / 2)
        cdf = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        last = np.ceil(edge) - 1
        below = [cdf[np.clip(k + bound + 1, 0, 2 * bound + 1).astype(np.int64)] for k in (last, last - shift)]
        divergences: NDArray[np.float64] = (
            below[0] - np.exp(epsilons) * below[1] + 1e-33
        )  # the tails that were left out
        return divergences
    # The sum over k < edge of a function with one maximum is at most its integral and that maximum. The function is
    # f(k) (1 - exp(epsilon - loss(k))) for the normal density f, and at most f(k) shift (edge - k) / sigma**2, which is largest
    # at `peak`. The integers' normaliser is at least that of the reals (Canonne, Kamath, Steinke 2020, fact 19).
    integral = _normal_cdf(edge / sigma) - np.exp(epsilons) * _normal_cdf((edge - shift) / sigma)
    peak = (edge - np.sqrt(edge**2 + 4 * sigma**2)) / 2
    maximum = np.exp(-((peak / sigma) ** 2) / 2) * np.minimum(shift * (edge - peak) / sigma**2, 1)
    bounds: NDArray[np.float64] = np.maximum(integral, 0) + maximum / (sigma * math.sqrt(2 * math.pi))
    return bounds


def _normal_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.array([math.erfc(-entry / math.sqrt(2)) / 2 for entry in x.tolist()])
