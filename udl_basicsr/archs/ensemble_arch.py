"""Several networks, or one turned eight ways, as one that knows how far they differ."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from udl_basicsr.functional.distributions import LaplaceDistribution
from udl_basicsr.functional.ensembles import mean_and_variance, total_log_scale
from udl_basicsr.functional.inference import each_turn

from .uncertainty_arch import UncertaintyNet


class EnsembleNet(nn.Module):
    """The mean of its members, and a scale with two parts: what they say of the error, and how far they differ.

    It answers as an UncertaintyNet does. Nothing of it is trained.

    Args:
        networks (Sequence[nn.Module]): Each from (N, C, h, w) to (N, C, H, W), as networks of other seeds.
        uncertainties (Sequence[UncertaintyNet]): One for each of them; or none: s is then that of the spread alone.
        flips (bool): Each network counts eight times, for the flips and turns of its input.

    Raises:
        ValueError: No network, or not as many uncertainties.
    """
    distribution = LaplaceDistribution()

    def __init__(self, networks: Sequence[nn.Module], uncertainties: Sequence[UncertaintyNet] = (),
                 flips: bool = False):
        super().__init__()
        if not networks or len(uncertainties) not in (0, len(networks)):
            raise ValueError(f'expected at least one network, and an uncertainty for each or none, got {len(networks)} '
                             f'and {len(uncertainties)}')
        self.networks, self.uncertainties = nn.ModuleList(networks), nn.ModuleList(uncertainties)
        self.flips = flips

    def forward(self, lq: Tensor) -> Tensor:
        """(N, C, h, w) to the mean image, (N, C, H, W), in [0, 1]."""
        return mean_and_variance(self._images(lq))[0]

    def spread(self, lq: Tensor) -> Tensor:
        """The standard deviation over the members, (N, C, H, W), in 0-255 units: the epistemic part."""
        return 255 * mean_and_variance(self._images(lq))[1].sqrt()

    def log_scale(self, lq: Tensor) -> Tensor:
        """s of both parts together, (N, C, H, W), in 0-255 units."""
        return self.everything(lq)[2]

    def everything(self, lq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean image, :meth:`spread` and :meth:`log_scale`, for which each network runs once."""
        mean, variance = mean_and_variance(self._images(lq))
        spread, own = 255 * variance.sqrt(), 0.
        if self.uncertainties:
            own, _ = mean_and_variance(self._each(
                [uncertainty.variance for uncertainty in cast(Iterable[UncertaintyNet], self.uncertainties)], lq))
        return mean, spread, total_log_scale(spread.square(), own)

    def head_output(self, lq: Tensor) -> Tensor:
        """What ``distribution`` reads: s."""
        return self.log_scale(lq)

    def interval(self, lq: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """(below, above) in 0-255 units, as if the mixture were a Laplace density of its variance (ours)."""
        return self.distribution.interval(self.log_scale(lq), level)

    def _images(self, lq: Tensor) -> Iterator[Tensor]:
        return self._each(self.networks, lq)

    def _each(self, functions: Iterable[Callable[[Tensor], Tensor]], lq: Tensor) -> Iterator[Tensor]:
        """What each function makes of the image, and of each of its turns, turned back."""
        for function in functions:
            yield from each_turn(function, lq) if self.flips else (function(lq), )
