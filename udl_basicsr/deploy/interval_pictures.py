"""Calibrated intervals as pictures: lower and upper end, θ, and the mask of pixels within an error, with their units.

Ends and θ have 16 bits, a grey level being 257 of their steps, as in a 16-bit picture. The ends are rounded outwards,
so that what was promised of the intervals holds of the files. Each PNG says what it is in a text of keyword
``Description``, and in one of keyword ``udl``, a JSON object.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .calibration import Calibration, read_calibration
from .infer_plan import InferenceError
from .pictures import Pixels
from .restorer import Prediction, Restorer

STEPS = 257
"""Of 16 bits to a grey level."""
_QUANTITIES = {'lower': 'lower end of the interval', 'upper': 'upper end of the interval',
               'theta': 'expected absolute error, as the network predicts it, not calibrated'}


@dataclass(frozen=True)
class IntervalWriter:
    """Turns predictions into pictures by a calibration.

    Attributes:
        calibration: That of the networks.
        within: The error of the mask, in grey levels.
        threshold: The largest half-width of its pixels, before λ.
        file: The calibration's.
    """
    calibration: Calibration
    within: float
    threshold: float
    file: str

    @property
    def level(self) -> float:
        """Of the intervals that the head is asked for."""
        return 1 - self.calibration.alpha

    @property
    def made_by(self) -> dict[str, str]:
        """What decides these pictures, for the record of a folder."""
        c = self.calibration
        return {'calibration': f'alpha {c.alpha:g}, delta {c.delta}, factor {c.factor:.6g}',
                'within': f'{self.within:g} ({self.threshold:.6g})'}

    def picture(self, kind: str, prediction: Prediction) -> Pixels:
        """One of ``lower``, ``upper``, ``theta``, ``within``.

        Args:
            kind: Which.
            prediction: Of a picture, with intervals of :attr:`level`.

        Returns:
            Pixels: (H, W, 1 or 3) uint16; the mask (H, W, 1) uint8, 255 where a pixel belongs to it.
        """
        c, factor = self.calibration, self.calibration.factor
        if kind == 'within':
            values = np.where(prediction.spread <= self.threshold, 255, 0).astype(np.uint8)[..., None]
            who = 'On average over images' if c.delta is None else f'With probability {1 - c.delta:g}, on average'
            return Pixels(values, text=self._text(
                f'255 where no channel should be farther than {self.within:g} grey levels from the truth'
                + ', here every pixel' * bool(values.all()), None,
                f'{who}, at most {100 * c.alpha:g} % of the mask (or of 1 % of the image, if smaller) are farther'))
        if kind == 'lower':
            steps = np.floor(STEPS * (prediction.mean - factor * prediction.below))
        elif kind == 'upper':
            steps = np.ceil(STEPS * (prediction.mean + factor * prediction.above))
        else:
            steps = np.round(STEPS * np.exp(prediction.log_scale))
        return Pixels(steps.clip(0, 255 * STEPS).astype(np.uint16), text=self._text(
            _QUANTITIES[kind], STEPS, '' if kind == 'theta' else c.promise))

    def _text(self, quantity: str, steps: int | None, promise: str) -> dict[str, str]:
        c = self.calibration
        unit = '' if steps is None else f', in grey levels (0 to 255) times {steps}'
        facts = {'quantity': quantity, 'unit': 'grey level', 'steps_per_unit': steps,  # a mask's: of ``within`` alone
                 'alpha': c.alpha, 'delta': c.delta, 'factor': c.factor, 'images': c.images, 'within': self.within,
                 'weights': c.networks.get('weights_hash'), 'uncertainty': c.networks.get('uncertainty_hash')}
        return {'Description': f'{quantity}{unit}. {promise}'.strip(), 'udl': json.dumps(facts)}


def spread_picture(spread: np.ndarray) -> Pixels:
    """How far the members of an ensemble differ, (H, W, 1 or 3) in grey levels, in 16 bits as θ has them."""
    quantity = 'standard deviation over the members of the ensemble, the epistemic part of s'
    steps = np.round(STEPS * spread).clip(0, 255 * STEPS).astype(np.uint16)
    return Pixels(steps, text={'Description': f'{quantity}, in grey levels (0 to 255) times {STEPS}', 'udl': json.dumps(
        {'quantity': quantity, 'unit': 'grey level', 'steps_per_unit': STEPS})})


def load_writer(file: str | Path, restorer: Restorer, within: float) -> IntervalWriter:
    """Reads a calibration and refuses it where it is not one of these networks, or not for this error.

    Raises:
        CalibrationError: As :func:`read_calibration`, :meth:`Calibration.check` and :meth:`Calibration.threshold`.
        InferenceError: The networks restore Y alone.
    """
    calibration = read_calibration(file)
    if restorer.traits[0] == 1:
        raise InferenceError(['--intervals: a network of one channel (Y) has none; expected one of three'])
    calibration.check(restorer, file)
    return IntervalWriter(calibration, within, calibration.threshold(within, file), str(file))
