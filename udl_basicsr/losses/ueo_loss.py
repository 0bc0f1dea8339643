"""UEO: ESU, and beside it a judge of images that says where s has to be large. The formulas are in ``functional``."""
import functools

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from udl_basicsr.functional import losses as F
from udl_basicsr.functional import tlw

from .base import check_shapes, full_precision
from .perceptual import NETS, build_lpips
from .uncertainty_loss import LikelihoodLoss


@LOSS_REGISTRY.register()
class UEOLoss(LikelihoodLoss):
    """ESU + judge_weight * mean(-ln WC(w)), w drawn from a relaxed Bernoulli distribution of FixedSum(sigmoid(s), k).

    WC is TLW's criterion (eq. 4): above 1 where w chose the pixels of f that disturb the judge more than the others do;
    so the second term pulls s up where errors are seen. The image is a constant of it, as of TLW's eq. 8.

    By the name of 2025's UEO, of which no more than the formula was at hand: weights, k, temperature and judge are
    ours, with TLW's released values where it has the same. ``judge``, ``judge_linear``, ``judge_weights`` and
    ``judge_random`` are those of :class:`~udl_basicsr.losses.TLWLoss`, the others that are not listed those of
    :class:`LikelihoodLoss`, without ``reduction='none'``.

    Args:
        judge_weight (float): Weight of the second term.
        k (float): Mean of w, in (0, 1).
        samples (int): Draws of w for each image.
        temperature (float): Of the relaxed Bernoulli distribution.
        eps (float): Of WC, in units of the judge.

    Raises:
        ValueError: An argument outside of what is said here.
        CheckpointError: On the first call: the judge's weights are missing; see
            :func:`~udl_basicsr.losses.perceptual.build_lpips`.
    """

    def __init__(self, loss_weight: float = 1.0, judge_weight: float = 1.0, k: float = 0.5, samples: int = 1,
                 temperature: float = 0.1, eps: float = 1e-3, judge: str = 'vgg', judge_linear: bool = False,
                 judge_weights: str | None = None, judge_random: bool = False, img_range: float = 255.,
                 reduction: str = 'mean', detach: str = 'none'):
        super().__init__(loss_weight, img_range, reduction, detach)
        F.check_choice('reduction', reduction, ('mean', 'sum'))
        F.check_choice('judge', judge, NETS)
        for name, value in (('samples', samples), ('temperature', temperature), ('eps', eps)):
            if not value > 0:
                raise ValueError(f'{name}: expected a number > 0, got {value!r}')
        if not 0 < k < 1:
            raise ValueError(f'k: expected a number between 0 and 1, got {k!r}')
        self.judge_weight, self.k, self.samples, self.temperature, self.eps = judge_weight, k, samples, temperature, eps
        self._build_judge = functools.partial(build_lpips, judge, judge_weights, judge_random, linear=judge_linear)
        self.judge = None

    def pixel_terms(self, error, log_scale):
        return F.laplace_nll_terms(error, log_scale, prior=1.)

    @full_precision
    def terms(self, pred: Tensor, target: Tensor, log_scale: Tensor) -> tuple[Tensor, ...]:
        """The weighted and reduced terms, (fidelity, log term, judge); ``forward`` is their sum."""
        check_shapes(pred=pred, target=target, log_scale=log_scale)
        if self.judge is None:  # not before: it needs a file of weights, the other arguments do not
            self.judge = self._build_judge().to(pred.device)
        weights = tlw.relaxed_bernoulli(tlw.fixed_sum(log_scale.sigmoid(), self.k), self.temperature, self.samples)
        distances = tlw.judged_distances(weights, pred.detach(), target, self.judge)
        judged = -tlw.weight_criterion(*distances, self.eps).log().mean()
        # as a map, so that its weight beside ESU is the same in a sum
        return (*super().terms(pred, target, log_scale), self.judge_weight * self._reduce(judged.expand_as(pred)))
