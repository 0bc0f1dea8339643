"""Judges intervals on other images than those they were calibrated on, and how well images of another kind stand out.

Several sets calibrate, and one half of another; its other half judges. Then the halves change places, so that each
image of that set is judged once, by a factor that has not seen it.
"""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from udl_basicsr.data.degradations import degrade_bd, degrade_bic, to_uint8
from udl_basicsr.functional import intervals as I
from udl_basicsr.functional import risk_control as R
from udl_basicsr.functional import uncertainty as U

from .calibration import factor_of, grey_levels, judged
from .kept_apart import ImagePair, check_apart, check_once, find_pairs, find_pictures
from .pictures import Pixels, read_picture
from .restorer import Restorer

SHIFTS = ('BD', 'noise', 'JPEG', 'scale')
"""Inputs of another kind: blurred and not averaged; with Gaussian noise of 10 grey levels; compressed at quality 30;
and shrunk by one more than the network enlarges."""


@dataclass(frozen=True)
class Judgement:
    """What the images of one run came to.

    Attributes:
        name: Of the run.
        factors: λ of the two halves.
        calibrated_on: How many images, of each.
        images: Scores by the image, see :func:`judge`.
        auroc: By the kind of shift, see ``SHIFTS``; empty where it was not asked for.
        least_covered: The image of which most lies outside.
        coverage_map: Of it: the share inside in windows of 16×16 pixels.
        training: What was found of the images trained on, see :func:`~udl_basicsr.deploy.kept_apart.check_apart`.
    """
    name: str
    factors: list[float]
    calibrated_on: list[int]
    images: dict[str, dict[str, float]]
    auroc: dict[str, float]
    least_covered: str
    coverage_map: list[list[float]]
    training: dict[str, list[str]]


def prepared_pairs(root: str | Path, scale: int) -> list[ImagePair]:
    """The pairs that udl prepare has made: ``GTmod<scale>`` and ``LRbicx<scale>``."""
    return find_pairs([Path(root) / f'GTmod{scale}'], [Path(root) / f'LRbicx{scale}'])


def check_enough(calibrating: Sequence[str | Path], halved: str | Path, alpha: float = 0.1,
                 delta: float | None = None) -> None:
    """Refuses data sets that hold too few images, before any network is loaded.

    Args:
        calibrating: Folders of data sets; which scale will be asked for does not matter.
        halved: Likewise.
        alpha: The risk to be promised.
        delta: See :func:`~udl_basicsr.functional.risk_control.risk_limit`.

    Raises:
        TooFewImagesError: For this α and δ.
    """
    counts = [max((len(find_pictures(folder)) for folder in Path(root).glob('GTmod*') if folder.is_dir()), default=0)
              for root in (*calibrating, halved)]
    if all(counts):  # else there is no such data set, which will be told with its scale
        R.risk_limit(sum(counts[:-1]) + counts[-1] // 2, alpha, delta)


def judge(name: str, restorer: Restorer, calibrating: Sequence[ImagePair], halved: Sequence[ImagePair],
          alpha: float = 0.1, delta: float | None = None, within: float = 16., shifts: bool = False,
          checkpoints: Iterable[str | Path] = (), tick: Callable[[], object] = lambda: None) -> Judgement:
    """Calibrates and judges, twice; ``halved`` is dealt out, every second image to one half.

    The scores of an image, all of its values in RGB, none cropped, f not rounded, in grey levels where they have a
    unit: ``coverage`` and ``coverage_predicted`` (λ = 1), ``width``, ``worst_quarter`` (the largest share outside of
    four by width), ``interval_score``, ``masked`` (share of the image within ``within`` grey levels) and
    ``mask_risk``; ``ence``, ``crps`` (as predicted) and ``ence_rescaled``, ``crps_rescaled`` (θ times the mean of e/θ
    over the images calibrated on); ``ause``, ``aurg``; ``theta``.

    Args:
        name: Of the run.
        restorer: Its networks.
        calibrating: Images of both calibrations.
        halved: Images that calibrate once and are judged once.
        alpha: The risk to be promised.
        delta: With which probability that may fail (RCPS); None: promise the mean (conformal risk control).
        within: Error of the mask, in grey levels.
        shifts: Whether to restore shifted inputs as well, which takes five times as long.
        checkpoints: Of the networks, whose runs are asked which images they trained on.
        tick: Called after each picture.

    Raises:
        TooFewImagesError: For this α and δ.
        KeptApartError: Training has seen some of the images, or two of them are the same.
        CalibrationError: A picture that cannot be used, or no factor that suffices.
    """
    pairs, first = [*calibrating, *halved], len(calibrating)
    calibrated_on = [[*range(first), *range(first + turn, len(pairs), 2)] for turn in (0, 1)]
    limits = [R.risk_limit(len(on), alpha, delta) for on in calibrated_on]
    check_once(pairs)
    training = check_apart(pairs, checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        risks, masks, ratios = [], [], []
        for number, pair in enumerate(pairs):
            prediction, error, half = judged(restorer, pair, 1 - alpha)
            # of a gray input they are gray, and its GT may have colours
            scale, width = (np.broadcast_to(part, error.shape) for part in (
                np.exp(prediction.log_scale), prediction.below + prediction.above))
            if number >= first:  # to be judged, by what is not known yet; of a photograph they are a hundred megabytes
                np.savez(Path(folder) / f'{number}.npz', error=error, half=half, scale=scale, spread=prediction.spread,
                         width=width)
            risks.append(R.interval_risks(error, half))
            masks.append(R.mask_risks(error.max(2), prediction.spread, within))
            ratios.append(U.recalibration_factor(error, scale))
            tick()
        factors, images, least, where = [], {}, '', []
        for turn, (on, limit) in enumerate(zip(calibrated_on, limits, strict=True)):
            factors.append(factor_of([risks[i] for i in on], limit, alpha))
            threshold = R.largest_threshold([masks[i] for i in on], limit)
            for i in range(first + 1 - turn, len(pairs), 2):
                with np.load(Path(folder) / f'{i}.npz') as stored:
                    images[pairs[i].name] = _scores(stored, factors[-1], threshold, within, alpha,
                                                    float(np.mean([ratios[j] for j in on])))
                    if not least or images[pairs[i].name]['coverage'] < images[least]['coverage']:
                        least = pairs[i].name
                        where = I.coverage_map(stored['error'], factors[-1] * stored['half']).tolist()
    auroc = _auroc(restorer, halved, {p.name: images[p.name]['theta'] for p in halved}, tick) if shifts else {}
    return Judgement(name, factors, [len(on) for on in calibrated_on],
                     {pair.name: images[pair.name] for pair in halved}, auroc, least, where, training)


def _scores(stored, factor: float, threshold: float, within: float, alpha: float, ratio: float) -> dict[str, float]:
    error, half, scale, spread, widths = (stored[key].astype(np.float64) for key in (
        'error', 'half', 'scale', 'spread', 'width'))
    width, mask = factor * float(widths.mean()), spread <= threshold
    return {
        'coverage_predicted': I.coverage(error, half), 'coverage': I.coverage(error, factor * half), 'width': width,
        'worst_quarter': float(I.stratified_risks(error, factor * half, width=widths).max()),
        'interval_score': width + 2 / alpha * float(np.maximum(error - factor * half, 0).mean()),
        'masked': float(mask.mean()), 'mask_risk': float((mask & (error.max(2) > within)).sum() / max(mask.sum(), 1)),
        'ence': I.ence(error, scale), 'ence_rescaled': I.ence(error, ratio * scale),
        'crps': I.laplace_crps(error, scale), 'crps_rescaled': I.laplace_crps(error, ratio * scale),
        'ause': U.ause(error, scale), 'aurg': U.aurg(error, scale), 'theta': float(scale.mean())}


# ---------------------------------------------------------------- images of another kind

def shifted(picture: Pixels, original: Pixels, kind: str, scale: int, seed: int = 0) -> Pixels:
    """An input of another kind than the network was trained on, in 8 bits.

    Args:
        picture: The usual one; of 16 bits it is rounded to 8 first, and so is its GT.
        original: Its GT, a multiple of ``scale`` large.
        kind: One of ``SHIFTS``.
        scale: Of the network.
        seed: Of the noise.
    """
    lq, gt = (to_uint8(grey_levels(each)) for each in (picture, original))
    if kind == 'BD':
        lq = degrade_bd(gt, scale)
    elif kind == 'noise':
        noise = np.random.default_rng(seed).normal(0, 10, lq.shape)
        lq = (lq + noise).round().clip(0, 255).astype(np.uint8)
    elif kind == 'JPEG':
        coded = cv2.imencode('.jpg', lq[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
        decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        lq = decoded[..., ::-1]  # pyright: ignore[reportOptionalSubscript] - None for what is no JPEG
    else:
        height, width = (side - side % (scale + 1) for side in gt.shape[:2])
        lq = degrade_bic(gt[:height, :width], scale + 1)
    return Pixels(np.ascontiguousarray(lq if lq.shape[2] == 3 else lq.repeat(3, 2)))


def _auroc(restorer: Restorer, pairs: Sequence[ImagePair], usual: dict[str, float],
           tick: Callable[[], object]) -> dict[str, float]:
    _, scale, _ = restorer.traits
    found: dict[str, list[float]] = {kind: [] for kind in SHIFTS}
    for number, pair in enumerate(pairs):
        picture, original = read_picture(pair.lq), read_picture(pair.gt)
        for kind, values in found.items():
            s = restorer.prediction(shifted(picture, original, kind, scale, number), 0.9).log_scale
            values.append(float(np.exp(s).mean()))
            tick()
    return {kind: I.auroc([usual[pair.name] for pair in pairs], values) for kind, values in found.items()}
