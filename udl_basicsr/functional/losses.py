"""The formulas, as pure functions of tensors. Everything registered in ``*_loss.py`` is a thin shell around these.

Notation: x target, f prediction, e = |x - f|, s = ln(theta) the natural log of the Laplace scale **in 0-255 units**.
All maps are (N, C, H, W). Functions keep the dtype they are given; the loss classes see to float32.
"""
import torch
from torch import Tensor
from torch.distributions import Laplace
from torch.nn.functional import pad

#: ELU(x) >= -1 for every x, so a head that ends in ELU cannot say s < -1.
ELU_FLOOR = -1.0

SCALINGS = ('linear', 'exp', 'sqrt_exp', 'log')
_MIN_DIMS = {'image': (1, 2, 3), 'channel': (2, 3), 'batch': (0, 1, 2, 3)}
MIN_OVER = tuple(_MIN_DIMS)
THRESHOLDS = ('mean', 'none')
MEAN_OVER = ('image', 'batch')
NOISES = ('gaussian', 'laplace')
BORDERS = ('replicate', 'zeros')
DETACH = ('none', 'mean', 'features', 'all')

#: Weights of red, green and blue in a gray image: ITU-R BT.601, and those of MATLAB, which GV's released program has.
LUMA = {'bt601': (0.299, 0.587, 0.114), 'released': (0.2989, 0.5870, 0.1140)}

SSIM_WINDOW = 11


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses an option that is none of the choices, with a ValueError that names them."""
    if value not in choices:
        raise ValueError(f'{name}: expected one of {", ".join(choices)}, got {value!r}')


def at_least_float32(value: Tensor) -> Tensor:
    """A tensor of half precision in float32, any other as it is: exp(-s) and sums over 10^5 pixels need it."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def laplace_nll_terms(error: Tensor, log_scale: Tensor, prior: float = 0.) -> tuple[Tensor, Tensor]:
    """The two terms of the Laplace negative log-likelihood of a residual, per pixel.

    Their sum is exp(-s)*e + (1 + prior)*s. ``prior=0`` is EU (UDL paper, eq. 6; optimum s* = ln e), ``prior=1`` adds
    Jeffreys' prior p(theta) = 1/theta and is ESU (eq. 9; optimum s* = ln(e/2)).

    Args:
        error (Tensor): e = |x - f| in 0-255 units, >= 0.
        log_scale (Tensor): s, same shape.
        prior (float): Power of Jeffreys' prior.

    Returns:
        tuple: fidelity exp(-s)*e and log term (1 + prior)*s, each of the shape of ``error``.
    """
    return torch.exp(-log_scale) * error, (1. + prior) * log_scale


def gaussian_nll_terms(error: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the Gaussian negative log-likelihood, e^2/(2 sigma^2) + ln(sigma^2)/2 (UDL paper, eq. 2).

    With s = ln sigma that is exp(-2s)*e^2/2 + s; per-pixel optimum s* = ln e.

    Args:
        error (Tensor): e = |x - f| in 0-255 units.
        log_sigma (Tensor): s, same shape.

    Returns:
        tuple: fidelity exp(-2s)*e^2/2 and log term s, each of the shape of ``error``.
    """
    return 0.5 * (torch.exp(-log_sigma) * error).square(), log_sigma


def gram_terms(error: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """GRAM (gradient rescaling attention model, 2019): both EU terms times sg[sigmoid(s)], sg = stop-gradient.

    This is the l1 form of its authors' program. With ``error`` squared it is the l2 form, in which s is the log of a
    squared scale and s* = ln(e^2); the program divides e^2 by 127.5 there.
    """
    fidelity, log_term = laplace_nll_terms(error, log_scale)
    attention = torch.sigmoid(log_scale).detach()
    return attention * fidelity, attention * log_term


def scale_log_scale(log_scale: Tensor, scaling: str = 'linear', offset: float = 0., min_over: str = 'image') -> Tensor:
    """Turns s (or another map) into the weight of UDL (eq. 10 and table 4 of the UDL paper).

    ========== ======================= ==========================================================================
    scaling    weight                  note
    ========== ======================= ==========================================================================
    linear     s - min s               eq. 10, the one that the paper advocates
    exp        exp(s)                  the scale theta itself
    sqrt_exp   exp(s)^(1/2)            computed as exp(s/2), which does not overflow before its result does
    log        ln(1 + (s - min s))     ours: printed is ln s - min(ln s), and s may be <= 0, where ln s is undefined;
                                       moved so that its minimum is 1, the logarithm is defined and has the minimum 0
    ========== ======================= ==========================================================================

    Args:
        log_scale (Tensor): (N, C, H, W).
        scaling (str): One of the names above.
        offset (float): Added to the weight. UDL's released program adds 1 to s - min s, the paper nothing.
        min_over (str): ``'image'`` takes the minimum over C, H, W (eq. 10 does not say; ours), ``'channel'`` over H, W
            (UDL's released program), ``'batch'`` over N as well (TLW's released program, for its own UDL, whose map is
            theta); of several processes over the images of each.

    Raises:
        ValueError: Unknown ``scaling`` or ``min_over``.
    """
    check_choice('scaling', scaling, SCALINGS)
    check_choice('min_over', min_over, MIN_OVER)
    if scaling == 'exp':
        weight = torch.exp(log_scale)
    elif scaling == 'sqrt_exp':
        weight = torch.exp(log_scale / 2)
    else:
        minimum = log_scale.amin(dim=_MIN_DIMS[min_over], keepdim=True)
        weight = log_scale - minimum
        if scaling == 'log':
            weight = torch.log1p(weight)
    return weight + offset


def gradient_map(img: Tensor) -> Tensor:
    """G(i,j) = ||(I(i+1,j) - I(i,j), I(i,j+1) - I(i,j))||_2 per channel (UDL paper, eq. 11).

    Past the last row and column the image is taken as constant (ours), so the map has the shape of the image and the
    difference across that border is 0. Any unit; the map has the image's.

    Args:
        img (Tensor): (N, C, H, W).
    """
    down = torch.zeros_like(img)
    right = torch.zeros_like(img)
    down[..., :-1, :] = img[..., 1:, :] - img[..., :-1, :]
    right[..., :, :-1] = img[..., :, 1:] - img[..., :, :-1]
    return torch.hypot(down, right)


def luma(img: Tensor, gray: str = 'bt601') -> Tensor:
    """Gray version of an image, full range: [0, 1] stays [0, 1].

    Args:
        img (Tensor): (N, 3, H, W) in RGB, or (N, 1, H, W), which is gray already and returned as it is.
        gray (str): Weights of the colours, a name in ``LUMA``.

    Returns:
        Tensor: (N, 1, H, W).

    Raises:
        ValueError: Neither 1 nor 3 channels.
    """
    channels = img.shape[1]
    if channels == 1:
        return img
    if channels != 3:
        raise ValueError(f'expected a gray or an RGB image (N, 1 or 3, H, W), got {tuple(img.shape)}')
    red, green, blue = LUMA[gray]
    return red * img[:, :1] + green * img[:, 1:2] + blue * img[:, 2:]


def sobel_maps(img: Tensor, border: str = 'replicate') -> Tensor:
    """Sobel derivatives along x and y, of the size of the image.

    By differences and not by a convolution, which GPUs round to TF32 unless told otherwise; the border is repeated by
    slices and not by ``pad``, whose gradient there is summed in no fixed order.

    Args:
        img (Tensor): (N, 1, H, W), any unit.
        border (str): What lies outside: ``'replicate'``, the border's pixels again, or ``'zeros'``.

    Returns:
        Tensor: (N, 2, H, W), the derivatives along x (right minus left) and y (lower minus upper); 8 times the slope
        of a ramp.
    """
    if border == 'zeros':
        img = pad(img, (1, 1, 1, 1))
    else:
        img = torch.cat((img[..., :1], img, img[..., -1:]), dim=-1)
        img = torch.cat((img[..., :1, :], img, img[..., -1:, :]), dim=-2)
    along_x = img[..., 2:] - img[..., :-2]
    along_y = img[..., 2:, :] - img[..., :-2, :]
    return torch.cat((along_x[..., :-2, :] + 2 * along_x[..., 1:-1, :] + along_x[..., 2:, :],
                      along_y[..., :-2] + 2 * along_y[..., 1:-1] + along_y[..., 2:]), dim=1)


def check_patch_size(patch_size: int) -> None:
    """Refuses what is no side of a patch that has a variance, with a ValueError."""
    if not isinstance(patch_size, int) or patch_size < 2:
        raise ValueError('patch_size: expected a whole number of 2 or more, since one pixel has no variance, '
                         f'got {patch_size!r}')


def gradient_variance_maps(img: Tensor, patch_size: int, border: str = 'replicate', gray: str = 'bt601') -> Tensor:
    """Unbiased variance of the Sobel maps in each n x n patch (GV paper, section 3, eq. 1).

    Patches lie side by side from the upper left corner. The remainder of a side that is no multiple of n is in no
    patch, as in the released program: at most n - 1 rows at the bottom and columns at the right, of which the first
    still counts through the Sobel filter of its neighbour.

    Args:
        img (Tensor): (N, 1 or 3, H, W), gray or RGB. The result scales as the square of its range.
        patch_size (int): n, at least 2: one pixel has no variance.
        border (str), gray (str): See :func:`sobel_maps` and :func:`luma`.

    Returns:
        Tensor: (N, 2, H // n, W // n), variances of the derivatives along x and y.

    Raises:
        ValueError: ``patch_size`` below 2 or larger than the image; neither 1 nor 3 channels.
    """
    check_patch_size(patch_size)
    height, width = img.shape[-2:]
    if patch_size > min(height, width):
        raise ValueError(f'patch_size: a patch of {patch_size}x{patch_size} is larger than the image, '
                         f'{height}x{width} (height x width)')
    patches = sobel_maps(luma(img, gray), border).unfold(-2, patch_size, patch_size).unfold(-2, patch_size, patch_size)
    return patches.var(dim=(-2, -1), unbiased=True)


def adaptive_sigma(error: Tensor, threshold: str = 'mean', mean_over: str = 'image') -> Tensor:
    """e_t of Revisiting l1: the scale of the random variable that is added to the prediction (section 4.3).

    Which pixels are chosen is a constant; the gradient flows through e where it was kept. The paper says "less than the
    average" and not of what. By default it is each image's own: what an image contributes then depends neither on its
    neighbours in the batch nor on how the batch is divided among processes or ``train.accumulate``.

    Args:
        error (Tensor): e = |x - f|, (N, C, H, W); or x - f, which is chosen by its absolute value and keeps its sign.
        threshold (str): ``'mean'``: e where e >= its mean, 0 elsewhere. ``'none'``: e everywhere.
        mean_over (str): ``'image'``: the mean over C, H, W. ``'batch'``: over N as well, of several processes over the
            images of each.

    Raises:
        ValueError: Unknown ``threshold`` or ``mean_over``.
    """
    check_choice('threshold', threshold, THRESHOLDS)
    check_choice('mean_over', mean_over, MEAN_OVER)
    if threshold == 'none':
        return error
    size = error.detach().abs()
    over = (0, 1, 2, 3) if mean_over == 'batch' else (1, 2, 3)
    # a mean is no larger than the largest, but where it is rounded: of equal values, none would be chosen
    chosen = size >= torch.minimum(size.mean(over, keepdim=True), size.amax(over, keepdim=True))
    return torch.where(chosen, error, torch.zeros_like(error))


def draw_noise(like: Tensor, noise: str = 'gaussian') -> Tensor:
    """z of l_E, one for each pixel, from torch's global generator of the device.

    ``'gaussian'`` is N(0, 1). ``'laplace'`` has the density exp(-|z|)/2: what the paper's footnote 1 gives, -sgn(u)*
    ln(1 - 2|u|), where u is uniform in (-1/2, 1/2). (The footnote has u ~ N(0, 1), for which the logarithm does not
    exist wherever |u| > 1/2.) The sigma that multiplies it is then a Laplace scale: E|z| = 1, and its variance is 2.

    Args:
        like (Tensor): Of the shape, dtype and device that z is to have.
        noise (str): One of the names above.

    Raises:
        ValueError: Unknown ``noise``.
    """
    check_choice('noise', noise, NOISES)
    if noise == 'gaussian':
        return torch.randn_like(like)
    return Laplace(like.new_zeros(()), like.new_ones(()), validate_args=False).sample(like.shape)


def noisy_l1_map(pred: Tensor, target: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """|x - (f + sigma*z)|: the integrand of Revisiting l1's eq. 6, and of eq. 7 where sigma is a constant k.

    Args:
        pred (Tensor): f, (N, C, H, W).
        target (Tensor): x, same shape.
        sigma (Tensor | float): Same shape, or a number, in the unit of the pixels.
        noise (Tensor): z, same shape.
    """
    return torch.abs(target - pred - sigma * noise)


def expected_l1_map(pred: Tensor,
                    target: Tensor,
                    noise: Tensor,
                    threshold: str = 'mean',
                    mean_over: str = 'image') -> Tensor:
    """|x - (f + e_t*z)|, the integrand of l_E (Revisiting l1, eq. 8).

    With r = x - f this is |r|*|1 - sgn(r)*z| where e_t = e, and |r| elsewhere. The gradient, which flows through e_t
    as well, is therefore that of l1 times |1 - sgn(r)*z| >= 0: its sign is l1's for every z (eq. 9).

    Args:
        pred (Tensor): f, (N, C, H, W).
        target (Tensor): x, same shape.
        noise (Tensor): z, same shape; see :func:`draw_noise`.
        threshold (str), mean_over (str): See :func:`adaptive_sigma`.
    """
    return noisy_l1_map(pred, target, adaptive_sigma(torch.abs(target - pred), threshold, mean_over), noise)


def _gaussian_bands(size: int, like: Tensor) -> Tensor:
    """The (size - 10, size) matrix whose row i is the window of SSIM, sum 1, beginning at column i."""
    half = SSIM_WINDOW // 2
    position = torch.arange(size, dtype=like.dtype, device=like.device)
    distance = position - position[:size - 2 * half, None] - half
    bands = torch.exp(-0.5 * (distance / 1.5)**2).where(distance.abs() <= half, 0.)
    return bands / bands.sum(dim=1, keepdim=True)


def ssim_map(pred: Tensor, target: Tensor) -> Tensor:
    """Structural similarity per pixel and channel (Wang et al., 2004), for pixels in [0, 1].

    Gaussian window of 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03, population variances; only where the window fits into
    the image, so nothing is padded. The window is applied as two matrix products: on a CPU many times faster than a
    convolution of single channels, and not rounded to TF32 as those are on GPUs. Variances are small differences of
    large numbers and would not survive that.

    Args:
        pred (Tensor): (N, C, H, W).
        target (Tensor): Same shape.

    Returns:
        Tensor: (N, C, H - 10, W - 10), in [-1, 1].

    Raises:
        ValueError: A side is smaller than the window.
    """
    height, width = pred.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f'SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, the size of its window, '
                         f'got {height}x{width} (height x width)')
    rows, columns = _gaussian_bands(height, pred), _gaussian_bands(width, pred).mT
    maps = torch.stack((pred, target, pred * pred, target * target, pred * target))
    mean_p, mean_t, pp, tt, pt = rows @ maps @ columns
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_p * mean_t + c1) * (2 * (pt - mean_p * mean_t) + c2)
            / ((mean_p**2 + mean_t**2 + c1) * (pp - mean_p**2 + tt - mean_t**2 + c2)))


def floor_share(log_scale: Tensor, floor: float | Tensor = ELU_FLOOR, margin: float = 0.01) -> Tensor:
    """The share of s within ``margin`` of its floor, a scalar in [0, 1]. Near 1 means that s carries nothing."""
    return (log_scale <= floor + margin).to(torch.float32).mean()


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """``'none'``, ``'mean'`` or ``'sum'`` of a loss map."""
    if reduction == 'mean':
        return loss.mean()
    return loss.sum() if reduction == 'sum' else loss
