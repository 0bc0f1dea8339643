"""Intervals with a promise: calibrated on images kept apart, kept in a file beside net_u, refused for other weights.

The head says how far the truth may lie below and above the image for a level; a calibration finds the one factor that
makes it true of images (:mod:`udl_basicsr.functional.risk_control`), and how uncertain a pixel may be to count as
restored within a chosen error. All in 0–255 units.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from udl_basicsr.data.images import ImageError
from udl_basicsr.functional import risk_control as R
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.files import write_text
from udl_basicsr.utils.json_files import JsonError, read_json
from udl_basicsr.utils.version import __version__

from .infer_record import describe, network_differences
from .kept_apart import ImagePair, check_apart, options_of, started_from
from .pictures import Pixels, read_picture
from .restorer import Prediction, Restorer

WITHIN = (4., 8., 16., 32.)
"""Errors in grey levels for which a mask is calibrated where no others are asked for."""
_USELESS = 255 / 2  # grey levels: the width of intervals, in the mean
_FORMAT = {'made_by': 'udl_basicsr calibrate', 'format': 1}
_IDENTITY = {'weights_hash': '--weights', 'uncertainty_hash': '--uncertainty', 'self_ensemble': '--self_ensemble',
             'spread': '--spread', 'amp': '--amp'}
_KINDS = {'alpha': float, 'delta': (float, type(None)), 'images': int, 'factor': float, 'limit': float,
          'mean_risk': float, 'mean_width': float, 'within': dict, 'networks': dict, 'data': list, 'training': dict,
          'versions': dict, 'constant_width': (float, type(None))}


class CalibrationError(UdlError, RuntimeError):
    """No calibration can be made, or the one that is there cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Calibration:
    """What was found, and all that it holds for.

    Attributes:
        alpha: The promised share of pixels outside, at most; the head is asked for intervals of level 1 − α.
        delta: With which probability the promise may fail (RCPS); None: it is one of the mean (CRC).
        images: n.
        factor: λ: the intervals are [f − λ·below, f + λ·above], below and above as the head has them.
        limit: How large the mean risk of the n images could be.
        mean_risk: How large it is with this λ.
        mean_width: λ(below + above), mean over images, in grey levels, before it is cut to 0–255.
        within: By the error in grey levels, as text: the largest max(below, above) of a pixel of its mask; 0: none.
        networks: What decides pixels, as :func:`~udl_basicsr.deploy.infer_record.describe` has it.
        data: The images, by names and SHA-256.
        training: What was found of the images trained on, see :func:`~udl_basicsr.deploy.kept_apart.check_apart`.
        versions: Of the programs.
        constant_width: How wide intervals of one width for all values would be with the same promise, in grey levels;
            None in a file of an earlier version.
    """
    alpha: float
    delta: float | None
    images: int
    factor: float
    limit: float
    mean_risk: float
    mean_width: float
    within: dict[str, float]
    networks: dict
    data: list[dict]
    training: dict
    versions: dict[str, str]
    constant_width: float | None

    @property
    def doubts(self) -> list[str]:
        """Why the intervals, though they keep the promise, are of little use; empty where nothing speaks for it."""
        doubts = doubts_of_width(self.mean_width)
        if self.constant_width is not None and self.mean_width > 2 * self.constant_width:
            doubts.append(f'intervals {self.constant_width:.2f} grey levels wide at every pixel would keep the same '
                          "promise. The head's are more than twice as wide in the mean, so that it hardly tells which "
                          'pixels are uncertain: was it trained long enough?')
        return doubts

    @property
    def promise(self) -> str:
        """In one sentence."""
        share = f'at most {100 * self.alpha:g} % of the values of an image lie outside'
        if self.delta is None:
            return f'On average over images, {share} (conformal risk control, {self.images} images)'
        return (f'With probability {1 - self.delta:g} over the images calibrated on, {share} on average (RCPS, '
                f'{self.images} images)')

    def check(self, restorer: Restorer, file: str | Path) -> None:
        """Refuses other networks than those that were calibrated.

        Raises:
            CalibrationError: Names what differs.
        """
        now = describe(restorer)
        for key, option in _IDENTITY.items():
            if (self.networks.get(key) or None) != (now.get(key) or None):  # older files lack what was not there yet
                there, here = (_as_given(entry.get(key.removesuffix('_hash'))) +
                               (f' ({str(entry.get(key))[:8]})' if key.endswith('_hash') else '')
                               for entry in (self.networks, now))
                raise CalibrationError(f'{file}: was made with {option} {there}, and now it is {here}. What it '
                                       'promises holds for those networks alone: calibrate these with udl calibrate')
        for key, there, here in network_differences(self.networks, now):
            raise CalibrationError(f'{file}: belongs to networks of {key} {there}, and here it is {here}. What it '
                                   'promises holds for those alone: give -opt with the option file of their run, or '
                                   'calibrate these with udl calibrate')

    def threshold(self, within: float, file: str | Path) -> float:
        """The largest half-width of a pixel of the mask for an error.

        Raises:
            CalibrationError: It was not calibrated for this error.
        """
        key = f'{within:g}'
        if key not in self.within:
            others = f'it has those for {", ".join(self.within)}: give --within {next(iter(self.within))}, or' \
                if self.within else 'it has none:'
            raise CalibrationError(f'{file}: has no mask for errors within {key} grey levels, {others} calibrate again '
                                   f'with udl calibrate --within {key}')
        return self.within[key]


def _as_given(value: object) -> str:
    return 'yes' if value is True else str(value or 'no')


def doubts_of_width(width: float) -> list[str]:
    """Says that intervals are of no use which reach over most grey levels in the mean; empty of others."""
    return [] if width <= _USELESS else [
        f'intervals {width:.0f} grey levels wide in the mean, where there are 256, say next to nothing. Are these the '
        'right weights, and were they trained long enough?']


def networks_of(run: str | Path, needs_uncertainty: bool = True) -> tuple[Path, Path | None]:
    """The last net_g of a run, and its last net_u or else the one that it started from, which is stage 1's.

    Args:
        run: Its folder.
        needs_uncertainty: Whether there has to be a net_u; else None may stand for it.

    Raises:
        CalibrationError: There is no such file.
    """
    run = Path(run)
    mean, uncertainty = (run / 'models' / f'net_{label}_latest.pth' for label in 'gu')
    if not uncertainty.is_file():
        for options in options_of(run):
            start = started_from(run.absolute(), options).get('pretrain_network_u')
            uncertainty = start if start and start.is_file() else uncertainty
    for file in (mean, uncertainty):
        if not file.is_file() and (needs_uncertainty or file == mean):
            raise CalibrationError(f'{file}: no such file. Expected the folder of a run that has ended, with an '
                                   'uncertainty of its own or of a stage 1')
    return mean, uncertainty if uncertainty.is_file() else None


def file_beside(uncertainty: str | Path) -> Path:
    """Where the calibration of a net_u lies: ``net_u_latest.calibration.json`` beside ``net_u_latest.pth``."""
    return Path(uncertainty).with_suffix('.calibration.json')


# ---------------------------------------------------------------- making one

def judged(restorer: Restorer, pair: ImagePair, level: float) -> tuple[Prediction, np.ndarray, np.ndarray]:
    """A prediction beside the truth.

    Args:
        restorer: With an uncertainty.
        pair: GT and LQ.
        level: Of the intervals.

    Returns:
        The prediction, e = |x − f| and the half of its interval on the side on which x lies, both (H, W, 3), in grey
        levels.

    Raises:
        CalibrationError: A picture that cannot be read or restored, or a GT of another size.
    """
    file = pair.gt
    try:
        truth = grey_levels(read_picture(pair.gt))
        file = pair.lq
        prediction = restorer.prediction(read_picture(pair.lq), level)
    except (ImageError, OSError) as error:
        raise CalibrationError(f'{file}: {error}') from error
    if prediction.mean.shape[:2] != truth.shape[:2]:
        sizes = ['×'.join(map(str, a.shape[1::-1])) for a in (truth, prediction.mean)]
        raise CalibrationError(f'{pair.gt}: has {sizes[0]} pixels, and {pair.lq} becomes {sizes[1]}; expected a GT of '
                               'the size of the restored image')
    residual = truth - prediction.mean
    return prediction, np.abs(residual), np.where(residual > 0, prediction.above, prediction.below)


def factor_of(risks: Sequence[np.ndarray], limit: float, alpha: float) -> float:
    """The smallest λ whose mean risk is within the limit.

    Raises:
        CalibrationError: There is none.
    """
    factor = R.smallest_factor(risks, limit)
    if factor is None:
        raise CalibrationError(f'no factor up to {R.FACTORS[-1]:g} leaves as few pixels outside as α = {alpha:g} asks '
                               'for. Are GT and LQ aligned, and are these the right weights?')
    return factor


def grey_levels(picture: Pixels) -> np.ndarray:
    """(H, W, 1 or 3), 0 to 255, float32."""
    return picture.colour.astype(np.float32) * np.float32(255 / np.iinfo(picture.colour.dtype).max)


def calibrate(restorer: Restorer, pairs: Sequence[ImagePair], alpha: float = 0.1, delta: float | None = None,
              within: Iterable[float] = WITHIN, checkpoints: Iterable[str | Path] = (),
              tick: Callable[[ImagePair], None] = lambda pair: None) -> Calibration:
    """Finds the smallest factor and the largest masks that keep the promise.

    Args:
        restorer: The networks.
        pairs: Images kept apart; nothing else is ever promised anything about.
        alpha: See :class:`Calibration`.
        delta: Likewise.
        within: Errors in grey levels for which a mask is wanted, each with a promise of its own.
        checkpoints: Of the networks, whose runs are asked which images they trained on.
        tick: Called after each image.

    Raises:
        TooFewImagesError: For this α and δ.
        KeptApartError: Training has seen some of them.
        CalibrationError: A picture that cannot be used, or no factor that suffices.
    """
    limit = R.risk_limit(len(pairs), alpha, delta)
    training = check_apart(pairs, checkpoints)
    errors = sorted(set(map(float, within)))
    risks, masks, widths, constants = [], [], [], []
    for pair in pairs:
        prediction, error, half = judged(restorer, pair, 1 - alpha)
        risks.append(R.interval_risks(error, half))
        constants.append(R.interval_risks(error, np.ones_like(error)))
        spread = prediction.spread
        masks.append([R.mask_risks(error.max(2), spread, limit_of_error) for limit_of_error in errors])
        widths.append(float((prediction.below + prediction.above).mean()))
        tick(pair)
    factor = factor_of(risks, limit, alpha)
    mean_risk = float(np.mean(risks, axis=0)[factor == R.FACTORS][0])
    thresholds = {f'{e:g}': R.largest_threshold([mask[i] for mask in masks], limit) for i, e in enumerate(errors)}
    return Calibration(alpha, delta, len(pairs), factor, limit, mean_risk, factor * float(np.mean(widths)), thresholds,
                       describe(restorer), [pair.described() for pair in pairs], training,
                       {'udl_basicsr': __version__, 'torch': torch.__version__, 'numpy': np.__version__},
                       2 * factor_of(constants, limit, alpha))


# ---------------------------------------------------------------- its file

def write_calibration(calibration: Calibration, file: str | Path) -> Path:
    """Writes it as JSON, whole or not at all."""
    method = 'crc' if calibration.delta is None else 'rcps'
    content = {**_FORMAT, 'method': method, 'promise': calibration.promise, **asdict(calibration)}
    return write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + '\n')


def read_calibration(file: str | Path) -> Calibration:
    """Reads what :func:`write_calibration` has written.

    Raises:
        CalibrationError: It is not there, or is something else.
    """
    again = 'make it with udl calibrate'
    try:
        content = read_json(file)
    except OSError as error:
        raise CalibrationError(f'{file}: {error.strerror or error}; {again}') from error
    except JsonError as error:
        raise CalibrationError(f'{file}: cannot be read as JSON ({error}); {again}') from error
    if not isinstance(content, dict) or any(content.get(key) != value for key, value in _FORMAT.items()):
        raise CalibrationError(f'{file}: is no calibration of this version; {again}')
    content = {'constant_width': None, **content}  # older ones have none
    for key, kind in _KINDS.items():
        value = content.get(key)
        if key not in content or not isinstance(value, kind) or isinstance(value, bool):
            raise CalibrationError(f'{file}: {key}: expected another kind of value, got {value!r:.80}; {again}')
    numbers = all(isinstance(t, float) and t >= 0 for t in content['within'].values())
    shares = all(0 < content[key] < 1 for key in ('alpha', 'delta') if content[key] is not None)
    if not (shares and content['factor'] > 0 and content['images'] > 0 and numbers):
        raise CalibrationError(f'{file}: alpha, delta, factor, images or within is out of its range; {again}')
    return Calibration(**{key: content[key] for key in _KINDS})
