"""How low-resolution images are made from high-resolution ones, as pure functions of 8-bit images.

BI is MATLAB's antialiased bicubic, BD a Gaussian blur followed by nearest-neighbour subsampling. Both are linear, so
they run on grey levels 0-255 and are rounded to 8 bits once, at the end.
"""
import cv2
import numpy as np
from basicsr.utils.matlab_functions import imresize

BLUR_SIZE, BLUR_SIGMA = 11, 1.6  # pixels of the high-resolution image


def to_uint8(img: np.ndarray) -> np.ndarray:
    """Rounds grey levels to 8 bits as MATLAB's ``uint8`` does: halves away from zero, then saturation.

    Args:
        img: Any shape, grey levels in 0-255 with overshoot.

    Returns:
        The same shape, uint8. ``np.round`` would send halves to the even neighbour.
    """
    return np.floor(np.clip(img, 0, 255) + 0.5).astype(np.uint8)


def resize_bicubic(img: np.ndarray, factor: float) -> np.ndarray:
    """MATLAB's ``imresize(img, factor, 'bicubic')``, antialiased when it shrinks.

    BasicSR's ``imresize`` does the work. Against a float64 evaluation of the definition it is within 1e-4 grey levels
    when it shrinks by a whole number, and within 1e-2 when it enlarges an image of a few megapixels.

    Args:
        img: (H, W, C) uint8; each side at least 8 pixels times the shrinking factor.
        factor: Above 1 enlarges; for shrinking by s pass 1 / s with sides that are multiples of s.

    Returns:
        (H * factor, W * factor, C) uint8.
    """
    return to_uint8(np.asarray(imresize(img.astype(np.float32), factor)))


def degrade_bic(img: np.ndarray, scale: int) -> np.ndarray:
    """BI: antialiased bicubic downsampling.

    Args:
        img: (H, W, C) uint8, H and W multiples of ``scale``.
        scale: Downsampling factor.

    Returns:
        (H / scale, W / scale, C) uint8.
    """
    return resize_bicubic(img, 1 / scale)


def degrade_bd(img: np.ndarray, scale: int) -> np.ndarray:
    """BD: 11x11 Gaussian blur of sigma 1.6, then every ``scale``-th pixel.

    The blur is MATLAB's ``imfilter(img, fspecial('gaussian', 11, 1.6), 'replicate')`` and the pixel kept of each
    ``scale`` x ``scale`` block is the one that MATLAB's ``imresize(..., 'nearest')`` keeps, index ``scale // 2`` from
    zero: the centre at x3, half a pixel below and to the right of it at x2 and x4. RDN's published data preparation
    uses the same two calls (with another kernel size).

    Args:
        img: (H, W, C) uint8, H and W multiples of ``scale``.
        scale: Downsampling factor.

    Returns:
        (H / scale, W / scale, C) uint8.
    """
    blurred = cv2.GaussianBlur(img.astype(np.float64), (BLUR_SIZE, BLUR_SIZE), sigmaX=BLUR_SIGMA, sigmaY=BLUR_SIGMA,
                               borderType=cv2.BORDER_REPLICATE)
    blurred = blurred.reshape(img.shape)  # OpenCV drops a single channel
    return to_uint8(blurred[scale // 2::scale, scale // 2::scale])


DEGRADATIONS = {'bic': degrade_bic, 'bd': degrade_bd}


def sub_image_corners(height: int, width: int, size: int, step: int) -> list[tuple[int, int]]:
    """Top-left corners of the sub-images of an image, row by row, in the order in which BasicSR numbers them.

    Args:
        height: Height of the image, at least ``size``.
        width: Width of the image, at least ``size``.
        size: Side of the square sub-images.
        step: Distance between neighbours. The last row and column are flush with the border, so they may overlap more.

    Returns:
        ``(top, left)`` pairs.
    """
    def positions(length):
        starts = list(range(0, length - size + 1, step))
        return starts if starts[-1] + size == length else [*starts, length - size]

    return [(top, left) for top in positions(height) for left in positions(width)]
