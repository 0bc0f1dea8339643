"""Networks as they run on pictures: padded, in tiles, gray or in colour, with their transparency."""
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn

from udl_basicsr.archs.ensemble_arch import EnsembleNet
from udl_basicsr.archs.taps import TapError, find_tap
from udl_basicsr.archs.traits import window_grid
from udl_basicsr.archs.uncertainty_arch import UncertaintyNet
from udl_basicsr.data.images import ImageError
from udl_basicsr.functional import inference
from udl_basicsr.utils.checkpoints import EMA_FIRST, ParamKey
from udl_basicsr.utils.kernels import exact_kernels
from udl_basicsr.utils.memory import give_back, is_out_of_memory
from udl_basicsr.utils.processor import inference_format, warn_where_emulated
from udl_basicsr.utils.shipped_weights import shown_weights
from udl_basicsr.utils.text import first_line

from .export import ExportError, build_loaded, options_of
from .infer_plan import InferenceError, PictureJob
from .pictures import Pixels, log_scale_picture
from .planes import coloured, quantised, rgb_planes, y_plane

# A network that takes no size but multiples of something takes multiples of one of these.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 3, 5, 6, 7, 9, 10, 12, 24, 48)
_TILES = (256, 128, 64, 32)  # that are tried where an image does not fit into the memory
_AMP: dict[str | None, torch.dtype] = {'bf16': torch.bfloat16, 'fp16': torch.float16}
_LEAST = 1e-6  # grey levels: half an interval that a head says is empty, so that a factor can widen it


@dataclass(frozen=True, eq=False)
class Prediction:
    """A restored picture with what the uncertainty network says of it: float32, (H, W, 1 or 3), in grey levels."""
    planes: np.ndarray
    """The picture, in [0, 1] and perhaps a little beyond, as :meth:`Restorer.sr` takes it."""
    below: np.ndarray
    """How far below the picture the truth may lie, > 0."""
    above: np.ndarray
    log_scale: np.ndarray
    """s = ln θ."""

    @property
    def mean(self) -> np.ndarray:
        """f, 0 to 255, not rounded."""
        return 255 * self.planes.clip(0, 1)

    @property
    def spread(self) -> np.ndarray:
        """The larger of the two distances, of the channel where it is largest, (H, W)."""
        return np.maximum(self.below, self.above).max(axis=2)


@dataclass(frozen=True, eq=False)
class Restorer:
    """Networks as they run on pictures.

    Pictures wait in the main memory and go to the device tile by tile, so that the tile alone says what the device
    must hold.
    """
    network: nn.Module
    """The mean network: 1 channel (Y of YCbCr) or 3 (RGB) in [0, 1]."""
    uncertainty: UncertaintyNet | EnsembleNet | None = None
    tile: int | None = None
    """In low-quality pixels; None takes each picture whole."""
    overlap: int = 32
    grid: int = 1
    """Tiles begin at multiples of it, for the windows of networks that pad images themselves."""
    self_ensemble: bool = False
    spread: bool = False
    """The networks turn the image themselves, since how far the eight differ is a part of their s."""
    amp: str | None = None
    """``bf16`` or ``fp16``."""
    device: str = 'cpu'
    made_by: dict = field(default_factory=dict)
    """The files and blocks of the networks, for :mod:`.infer_record`."""
    _seen: dict = field(default_factory=dict, repr=False)
    """The last picture of an ensemble, and its maps: one run serves all that is asked of it."""

    def __post_init__(self) -> None:
        warn_where_emulated(self.amp, torch.device(self.device))
        for network in (self.network, self.uncertainty):
            if network is not None:
                network.to(self.device).eval().requires_grad_(False)
        self.traits  # noqa: B018  so that a network that cannot be used is refused here

    @functools.cached_property
    def traits(self) -> tuple[int, int, int]:
        """Channels, scale, and the multiple that the sizes of images must be padded to, found by running it.

        Raises:
            InferenceError: The network does not turn images of 1 or 3 channels into larger ones, or the uncertainty
                network is of another kind.
        """
        name, reason = type(self.network).__name__, ''
        for multiple in _MULTIPLES:
            height = -(-17 // multiple) * multiple
            for channels in (3, 1):
                lq = torch.full((1, channels, height, height + multiple), 0.5)
                try:
                    sr = self._forward(self.network, lq)
                except Exception as error:  # whatever a network says to a size or a number of channels
                    reason = reason or first_line(error)
                    continue
                scale = sr.shape[-1] // lq.shape[-1]
                if sr.shape != (1, channels, scale * lq.shape[2], scale * lq.shape[3]):
                    reason = f'it makes {tuple(sr.shape)} of {tuple(lq.shape)}'
                    continue
                if self.uncertainty is not None:
                    log_scale = self._forward(self.uncertainty.log_scale, lq)
                    if log_scale.shape != sr.shape:
                        raise InferenceError([f'--uncertainty: its map is {tuple(log_scale.shape)} where the picture '
                                              f'is {tuple(sr.shape)}: it belongs to another network'])
                return channels, scale, multiple
        raise InferenceError([f'{name} cannot restore pictures: expected 1 or 3 channels in, the same number and a '
                              f'whole multiple of the size out; {reason}'])

    def runs(self, job: PictureJob) -> int:
        """How often a network runs for a picture, transparency left out."""
        tiles = 1
        if self.tile:
            tiles = -(-job.header.width // self.tile) * -(-job.header.height // self.tile)
        runs = 2 if job.intervals else (job.sr is not None) + (job.log_scale is not None)
        runs = 1 if isinstance(self.uncertainty, EnsembleNet) else runs
        return tiles * (8 if self.self_ensemble else 1) * runs

    def sr(self, picture: Pixels, bits: int, tick: Callable[[], None], planes: np.ndarray | None = None) -> Pixels:
        """The picture ``scale`` times as large: gray stays gray, and transparency and colour profile are kept.

        Args:
            picture: To be restored. Gray is restored as R = G = B, and the three are averaged. With a network of one
                channel colour is restored in Y, while Cb and Cr are interpolated (bicubic, a = -0.5).
            bits: 8 or 16, of the result.
            tick: Called after each run of a network.
            planes: Of its :class:`Prediction`, where there is one already.

        Raises:
            ImageError: The network cannot restore it, or the memory does not suffice.
        """
        if planes is None and self._seen.get('picture') is picture:
            planes = coloured(self._seen['maps'][0], picture.colour)
        planes = self._planes(picture.colour, tick) if planes is None else planes
        alpha = None if picture.alpha is None else quantised(self._alpha(picture.alpha, tick), bits)
        return Pixels(quantised(planes, bits), alpha, picture.icc)

    def log_scale(self, picture: Pixels, tick: Callable[[], None]) -> Pixels:
        """The map of s, the mean over the channels, as :func:`encode_log_scale` has it; arguments as :meth:`sr`."""
        network = self._needed_uncertainty()
        if isinstance(network, EnsembleNet):
            return log_scale_picture(self._members(network, picture, tick)[2])
        s = self._whole(network.log_scale, self._image(rgb_planes(picture.colour)), tick)
        return log_scale_picture(_hwc(s))

    def prediction(self, picture: Pixels, level: float, tick: Callable[[], None] = lambda: None) -> Prediction:
        """The picture, its intervals of a level by the head's own word, and s. What is gray is averaged over R, G, B.

        Args:
            picture: To be restored; its transparency is no matter.
            level: In (0, 1), such as 0.9.
            tick: Called after each run of a network.

        Raises:
            ImageError: As :meth:`sr`.
            InferenceError: The networks restore Y alone, which says nothing of R, G and B.
        """
        network = self._needed_uncertainty()
        if self.traits[0] == 1:
            raise InferenceError(['a network of one channel (Y) has no intervals of R, G and B; expected one of three'])

        def maps(lq: Tensor) -> Tensor:
            out, kind = network.head_output(lq), network.distribution
            return torch.cat([*kind.interval(out, level), kind.log_scale(out)], dim=1)

        colour = picture.colour
        if isinstance(network, EnsembleNet):
            mean, _, s, theta = self._members(network, picture, tick)
            half = theta * network.distribution.half_width(level)
            planes, stacked = coloured(mean, colour), [half, half, s]
        else:
            planes = self._planes(colour, tick)
            stacked = np.split(_hwc(self._whole(maps, self._image(rgb_planes(colour)), tick)), 3, axis=2)
        below, above, log_scale = (part if colour.shape[2] == 3 else part.mean(axis=2, keepdims=True)
                                   for part in stacked)
        return Prediction(planes, below.clip(min=_LEAST), above.clip(min=_LEAST), log_scale)

    def disagreement(self, picture: Pixels, tick: Callable[[], None]) -> np.ndarray:
        """How far the members of an ensemble differ, or the eight turns: (H, W, 1 or 3) in grey levels, float32.

        Their standard deviation, the epistemic part of s; of gray it is the mean over R, G, B. Arguments as :meth:`sr`.

        Raises:
            ImageError: As :meth:`sr`.
            InferenceError: One network alone.
        """
        if not isinstance(self.uncertainty, EnsembleNet):
            raise InferenceError(['one network alone differs from none; give --member, or --self_ensemble --spread'])
        spread = self._members(self.uncertainty, picture, tick)[1]
        return spread if picture.colour.shape[2] == 3 else spread.mean(axis=2, keepdims=True)

    def _needed_uncertainty(self) -> UncertaintyNet | EnsembleNet:
        if self.uncertainty is None:
            raise InferenceError(['s and intervals are what an uncertainty network says; give one (net_u_*)'])
        return self.uncertainty

    def _members(self, network: EnsembleNet, picture: Pixels, tick: Callable[[], None]) -> list[np.ndarray]:
        """The mean image, the spread, s and theta, each (H, W, C)."""
        def maps(lq: Tensor) -> Tensor:
            mean, spread, s = network.everything(lq)
            return torch.cat([mean, spread, s, s.exp()], dim=1)

        if self._seen.get('picture') is not picture:
            self._seen.clear()
            out = self._whole(maps, self._image(rgb_planes(picture.colour)), tick)
            self._seen.update(picture=picture, maps=np.split(_hwc(out), 4, axis=2))
        return self._seen['maps']

    def _planes(self, colour: np.ndarray, tick: Callable[[], None]) -> np.ndarray:
        """(h, w, 1 or 3) integers to (H, W, the same) floats; black is 0 and white 1."""
        return coloured(_hwc(self._whole(self.network, self._image(rgb_planes(colour)), tick)), colour)

    def _alpha(self, alpha: np.ndarray, tick: Callable[[], None]) -> np.ndarray:
        """Restores transparency as if it were gray; wherever it is flat it stays exactly what it is.

        Else a network, which knows no masks, would leave specks in what is opaque.
        """
        _, scale, _ = self.traits
        low, high = (morph(alpha, np.ones((3, 3), np.uint8)) for morph in (cv2.erode, cv2.dilate))
        enlarged = (alpha / np.iinfo(alpha.dtype).max).repeat(scale, 0).repeat(scale, 1)
        if (low == high).all():
            return enlarged
        return np.where((low == high).repeat(scale, 0).repeat(scale, 1), enlarged,
                        self._planes(alpha[..., None], tick)[..., 0])

    def _image(self, rgb: np.ndarray) -> Tensor:
        """(h, w, 3) to what the network takes, (1, C, h, w)."""
        if self.traits[0] == 1:
            rgb = y_plane(rgb)
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32))

    def _whole(self, network: inference.Restore, image: Tensor, tick: Callable[[], None]) -> Tensor:
        """Runs on a whole image; in tiles, ever smaller ones, where it does not fit into the memory."""
        size, tile = 'x'.join(map(str, image.shape[:1:-1])), self.tile
        while (out := self._in_tiles(network, image, tick, tile)) is None:
            give_back(torch.device(self.device))
            what = f'its {size} pixels do not fit into the memory of the device ({self.device})'
            smaller = next((side for side in _TILES if side < (tile or max(image.shape[2:]))), None)
            if smaller is None:
                raise ImageError(f'{what}, even in tiles of {tile}: give a smaller --tile, or a smaller --overlap'
                                 if tile else f'{what}: give --tile, smaller than they are')
            get_root_logger().warning(f'{what}{f" in tiles of {tile}" if tile else ""}: they are restored in tiles of '
                                      f'{smaller}')
            tile = smaller
        if not out.isfinite().all():
            raise ImageError('the network made values that are not finite' +
                             (f'; do without --amp {self.amp}' if self.amp else ': are these the right weights?'))
        return out

    def _in_tiles(self, network: inference.Restore, image: Tensor, tick: Callable[[], None], tile: int | None,
                  ) -> Tensor | None:
        """None where the memory does not suffice. What is left of the try can be freed once this has returned: an
        error that is being handled holds, by its traceback, all that was there."""
        _, scale, multiple = self.traits

        def restored(lq: Tensor) -> Tensor:
            out = self._forward(network, lq)
            tick()
            return out

        run: inference.Restore = restored
        if multiple > 1:
            run = inference.padded(run, multiple, scale)
        if tile:
            run = inference.tiled(run, tile, self.overlap, scale, math.lcm(multiple, self.grid))
        if self.self_ensemble and not self.spread:
            run = inference.self_ensembled(run)
        try:
            return run(image)
        except Exception as error:
            if not is_out_of_memory(error):
                size = 'x'.join(map(str, image.shape[:1:-1]))
                raise ImageError(f'the network cannot restore its {size} pixels: {first_line(error)}') from error
        return None

    def _forward(self, network: inference.Restore, lq: Tensor) -> Tensor:
        device = torch.device(self.device)
        short = torch.autocast(device.type, _AMP.get(self.amp), enabled=self.amp is not None)
        with torch.no_grad(), exact_kernels(), short:
            run = inference.in_memory_format(network, inference_format(self.amp, device))
            return run(lq.to(device)).float().cpu()


def load_restorer(weights: str | Path, *, opt: str | Path | None = None, uncertainty: str | Path | None = None,
                  members: Sequence[Sequence[str | Path]] = (), spread: bool = False,
                  param_key: ParamKey = EMA_FIRST, device: str = 'auto', **options) -> Restorer:
    """Builds the networks that checkpoints belong to.

    Args:
        weights: ``net_g_*``, ``.pth`` or ``.safetensors``.
        opt: The option file with ``network_g``, and ``network_u`` for ``uncertainty``. None finds those of each
            checkpoint's run, see :func:`find_options`.
        uncertainty: ``net_u_*``.
        members: Further networks, ``(net_g_*, net_u_*)`` each, or ``(net_g_*, )`` without ``uncertainty``: the picture
            is the mean of all, and how far they differ is a part of s, or all of it.
        spread: So is how far the eight of ``self_ensemble`` differ.
        param_key: Entry of ``weights``, see :func:`~udl_basicsr.utils.checkpoints.network_weights`.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: ``tile``, ``overlap``, ``self_ensemble``, ``amp`` of :class:`Restorer`.

    Raises:
        InferenceError, ExportError, OptionError, CheckpointError: What is missing or does not fit.
    """
    if device == 'cuda' and not torch.cuda.is_available():
        raise InferenceError(['--device cuda: this machine shows no GPU; use auto or cpu'])
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if spread and not options.get('self_ensemble'):
        raise InferenceError(['--spread: of the eight flips and turns; give --self_ensemble with it'])
    files = 1 if uncertainty is None else 2
    for member in members:
        if len(member) != files:
            raise InferenceError([f'--member {" ".join(map(str, member))}: expected '
                                  f'{"net_g" if files == 1 else "net_g and net_u"}, as --weights has'])
    given = [tuple(Path(file).resolve() for file in one if file) for one in ((weights, uncertainty), *members)]
    if twice := [one for number, one in enumerate(given) if one in given[:number]]:
        raise InferenceError([f'{" ".join(map(str, twice[0]))}: given twice, and would count twice; give it once'])
    network, network_u, made_by = _load(weights, uncertainty, opt, param_key)
    _warn_of_small_tiles(options.get('tile'), options.get('overlap', Restorer.overlap))
    others = [_load(member[0], member[1] if files == 2 else None, opt, param_key) for member in members]
    grid = math.lcm(*(window_grid(type(g), about['network_g']) for g, _, about in ((network, None, made_by), *others)))
    if members or spread:
        uncertainties = [u for u in (network_u, *(u for _, u, _ in others)) if u is not None]
        network = EnsembleNet([network, *(g for g, _, _ in others)], uncertainties, flips=spread)
        network_u = network
        traits = {Restorer(member, device=device).traits[:2] for member in network.networks}
        if len(traits) > 1:
            raise InferenceError(['--member: expected networks of one scale and number of channels, got '
                                  + ' and '.join(f'x{scale} of {channels}' for channels, scale in sorted(traits))])
        made_by |= {'members': [list(map(shown_weights, member)) for member in members],
                    'member_networks': [about for _, _, about in others]}
    return Restorer(network, network_u, device=device, made_by=made_by, spread=spread, grid=grid, **options)


def _warn_of_small_tiles(tile: int | None, overlap: int) -> None:
    """Where most of what is computed is what the tiles see around them, and little of it is kept."""
    if tile and (cost := inference.tiling_cost(tile, overlap)) > 4:
        get_root_logger().warning(f'--tile {tile} with --overlap {overlap} computes up to {cost:.3g} times as many '
                                  f'pixels as without tiles, since each tile sees those around it too; --tile '
                                  f'{4 * overlap} would compute 2.25 times as many')


def _load(weights: str | Path, uncertainty: str | Path | None, opt: str | Path | None,
          param_key: ParamKey) -> tuple[nn.Module, UncertaintyNet | None, dict]:
    """The mean network, and the UncertaintyNet where there is one; and the files and blocks of both."""
    blocks = options_of(weights, opt)
    network, network_u = build_loaded(weights, blocks, param_key), None
    made_by = {'weights': shown_weights(weights), 'network_g': blocks['network_g']}
    if uncertainty is not None:
        blocks = options_of(uncertainty, opt)
        if 'network_u' not in blocks:
            raise ExportError(f'{uncertainty}: which network is it? Its options have no network_u; give -opt with the '
                              'option file of the run that trained it')
        network_u = build_loaded(uncertainty, blocks, 'params', 'u')
        if not isinstance(network_u, UncertaintyNet):
            raise ExportError(f'{uncertainty}: is a {type(network_u).__name__}; expected an UncertaintyNet')
        made_by['network_u'] = block = {'backbone': blocks['network_g'], **blocks['network_u']}
        made_by |= {'uncertainty': shown_weights(uncertainty), 'default_tap': _default_tap(network_u, block)}
    return network, network_u, made_by


def _default_tap(network: UncertaintyNet, block: dict) -> str | None:
    """What the head would read if its block named no tap, by which two blocks are compared."""
    if block.get('tap') is None:
        return network.tap
    try:
        return find_tap(network.mean_network, block['backbone']).name
    except TapError:  # it has none
        return None


def _hwc(maps: Tensor) -> np.ndarray:
    """(1, C, H, W) to (H, W, C)."""
    return maps[0].numpy().transpose(1, 2, 0)
