"""Pictures as networks take and give them: planes of floats, black 0 and white 1, in RGB or Y alone."""
import numpy as np
from PIL import Image

# ITU-R BT.601 from RGB in [0, 1]: Y in [16, 235]/255, as MATLAB's rgb2ycbcr and BasicSR's `color: y` have it.
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.], [112., -93.786, -18.214]]) / 255
_YCBCR_OFFSET = np.array([16., 128., 128.]) / 255


def rgb_planes(colour: np.ndarray) -> np.ndarray:
    """(h, w, 1 or 3) integers to (h, w, 3) float32 in [0, 1]."""
    return np.broadcast_to(colour, (*colour.shape[:2], 3)).astype(np.float32) / np.iinfo(colour.dtype).max


def y_plane(rgb: np.ndarray) -> np.ndarray:
    """(h, w, 3) in [0, 1] to Y of YCbCr, (h, w, 1)."""
    return (rgb @ _YCBCR.T + _YCBCR_OFFSET)[..., :1]


def coloured(sr: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """What a network has made of a picture, with as many channels as that has.

    Args:
        sr: (H, W, 3), or (H, W, 1) of Y alone, which gets Cb and Cr of the picture, interpolated (bicubic, a = -0.5).
        colour: The picture, (h, w, 1 or 3) integers. If it is gray, the three channels of SR are averaged.

    Returns:
        (H, W, 1 or 3) floats, in [0, 1] and perhaps a little beyond.
    """
    if sr.shape[2] == 1:
        cb_cr = (rgb_planes(colour) @ _YCBCR.T + _YCBCR_OFFSET)[..., 1:]
        size = sr.shape[1::-1]
        planes = [Image.fromarray(cb_cr[..., i].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
                  for i in range(2)]
        sr = (np.dstack([sr[..., 0], *map(np.asarray, planes)]) - _YCBCR_OFFSET) @ np.linalg.inv(_YCBCR).T
    return sr if colour.shape[2] == 3 else sr.mean(axis=2, keepdims=True)


def quantised(values: np.ndarray, bits: int) -> np.ndarray:
    """Planes as integers of 8 or 16 bits."""
    return (values.clip(0, 1) * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
