"""PSNR and SSIM on the Y channel: BasicSR's figures of one pair of 8-bit images, at a quarter of its price.

BasicSR computes Y for each metric and each image anew, and filters with an 11x11 window that is a product of two
vectors. Here Y is read from tables, once per image, and the windows are vectors. Y is the same to the last bit, and so
is PSNR; SSIM is, but for the order in which its sums are taken (differences below 1e-12).
"""
from collections.abc import Mapping
from functools import cached_property

import cv2
import numpy as np

_WINDOW, _STRIP = 11, 32
_GAUSSIAN = cv2.getGaussianKernel(_WINDOW, 1.5)
_C1, _C2 = (0.01 * 255)**2, (0.03 * 255)**2
# One for each of B, G and R: what a level adds to Y (ITU-R BT.601, as in BasicSR's bgr2ycbcr). Y begins at 16.
_B, _G, _R = (np.float64(w) * (np.arange(256).astype(np.float32) / np.float32(255)) for w in (24.966, 128.553, 65.481))
_B = _B + 16
_KNOWN = {'type', 'crop_border', 'test_y_channel', 'input_order', 'better'}


def y_channel(img: np.ndarray) -> np.ndarray:
    """Y of YCbCr, not rounded.

    Args:
        img (np.ndarray): (H, W, 3) uint8, BGR.

    Returns:
        np.ndarray: (H, W) float64, 16 to 235: bit for bit what BasicSR's ``to_y_channel`` gives in float32.
    """
    y = cv2.LUT(img[..., 0], _B)
    y += cv2.LUT(img[..., 1], _G)
    y += cv2.LUT(img[..., 2], _R)
    y /= 255
    return (y.astype(np.float32) * np.float32(255)).astype(np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """10·lg(255² / mean (a − b)²) of two arrays (H, W) in float64, 0 to 255; infinite where they are equal."""
    mse = np.mean((a - b)**2)
    return float(10. * np.log10(255. * 255. / mse)) if mse else float('inf')


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two arrays (H, W) in float64, 0 to 255.

    Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE TIP 2004: Gaussian
    window of 11x11 with σ = 1.5, mean over the windows that lie within the image, which has 11 pixels or more a side.
    """
    height, width = (side - _WINDOW + 1 for side in a.shape)
    # In strips, which stay in the processor's cache and for which no memory has to be fetched from the system.
    ends = ((first, min(first + _STRIP, height) + _WINDOW - 1) for first in range(0, height, _STRIP))
    return float(sum(_similarities(a[i:j], b[i:j]).sum() for i, j in ends) / (height * width))


def _similarities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of each window. The two variances are needed as their sum alone, so that four filters do."""
    def windowed(x: np.ndarray) -> np.ndarray:
        inside = slice(_WINDOW // 2, -(_WINDOW // 2))
        return cv2.sepFilter2D(x, -1, _GAUSSIAN, _GAUSSIAN)[inside, inside]

    mean_a, mean_b = windowed(a), windowed(b)
    product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    covariance, variances = windowed(a * b) - product, windowed(a**2 + b**2) - squares
    return (2 * product + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))


class Fidelity:
    """BasicSR's ``calculate_psnr`` and ``calculate_ssim`` of one pair, for as many blocks of ``val.metrics`` as ask.

    Args:
        img (np.ndarray): (H, W, 3) uint8, BGR.
        img2 (np.ndarray): Likewise.
    """

    def __init__(self, img: np.ndarray, img2: np.ndarray):
        self.img, self.img2 = img, img2

    @cached_property
    def _on_y(self) -> tuple[np.ndarray, np.ndarray]:
        return y_channel(self.img), y_channel(self.img2)

    def __call__(self, block: Mapping) -> float | None:
        """The value of a metric, or None: another metric, other images or other arguments, which are BasicSR's affair.

        Args:
            block (Mapping): ``{type, crop_border, test_y_channel}`` of an option file.
        """
        metric, border = {'calculate_psnr': psnr, 'calculate_ssim': ssim}.get(block['type']), block.get('crop_border')
        if not (metric and block.get('test_y_channel') is True and not set(block) - _KNOWN and
                block.get('input_order', 'HWC') == 'HWC' and isinstance(border, int) and border >= 0 and
                self._fit(border)):
            return None
        height, width = self.img.shape[:2]
        return metric(*(y[border:height - border, border:width - border] for y in self._on_y))

    def _fit(self, border: int) -> bool:
        return (self.img.shape == self.img2.shape and self.img.ndim == 3 and self.img.shape[2] == 3 and
                self.img.dtype == self.img2.dtype == np.uint8 and min(self.img.shape[:2]) - 2 * border >= _WINDOW)
