"""How the values of the blocks ``network_*`` fit together, and fit the scale and the images."""
from copy import deepcopy
from os import path as osp
from typing import Any

from torch import nn

from udl_basicsr.archs.traits import traits_of
from udl_basicsr.data.images import channels_of
from udl_basicsr.utils.text import did_you_mean
from udl_basicsr.utils.yaml_files import OptionError

from . import schema
from .keys import Findings, KeyChecker, block_of, lookup
from .signatures import call_problems, parameters
from .trials import build_network, try_network

_LARGEST_PATCH = 512  # LQ pixels; networks that can be trained on larger ones are not tried on them
_NETWORKS = ('network_g', 'network_u', 'network_w')


def check_networks(blocks: dict, where: str) -> None:
    """Checks the blocks ``network_*`` alone, where there is no option file around them: arguments and sizes.

    Raises:
        OptionError: Names ``where`` they stand and the key. Nothing has been built that takes memory.
    """
    blocks = {key: value for key, value in deepcopy(blocks).items() if key in _NETWORKS}
    checker = NetworkChecker(blocks, False, Findings())
    checker.walk(blocks, {key: schema.OPTIONS[key] for key in _NETWORKS}, ())
    checker.check_networks()
    if checker.report.problems:
        raise OptionError(f'{where}: {problem}' for problem in checker.report.problems)


class NetworkChecker(KeyChecker):
    """Checks networks, and says which images they are given."""

    def check_networks(self) -> None:
        scale, block = self.opt.get('scale'), self.opt.get('network_g')
        if self.ours and scale is None:
            self.report.add('scale', 'missing; expected the upscaling factor, an integer ≥ 1')
        network = self.check_network(block, 'network_g', scale)
        if isinstance(block, dict) and network and self.ours and not self.report.has('network_g'):
            self.check_channels(block, scale)
        uncertainty = self.opt.get('network_u')
        if not isinstance(uncertainty, dict):
            return
        target = lookup('network', uncertainty.get('type'))
        if target is None:
            if not self.report.has('network_u.type'):
                self.report.add('network_u.type', f'no network {uncertainty.get("type")!r} is known; expected '
                                'UncertaintyNet')
            return
        for key, problem in call_problems(target, {k: v for k, v in uncertainty.items() if k != 'type'}, partial=True):
            self.report.add(f'network_u.{key}', problem)
        backbone = uncertainty.get('backbone', block)
        if isinstance(uncertainty.get('backbone'), dict):
            network = self.check_network(backbone, 'network_u.backbone', scale)
        tap = uncertainty.get('tap')
        if isinstance(network, nn.Module) and isinstance(tap, str):
            modules = [n for n, _ in network.named_modules() if n]
            if tap not in modules:
                near = [n for n in modules if n.count('.') == tap.count('.')]
                top = [n for n in modules if '.' not in n]
                self.report.add('network_u.tap', f'{type(network).__name__} has no module {tap!r}'
                                f'{did_you_mean(tap, near)} (it has {", ".join(top)}, and what is inside of these)')
        if not isinstance(network, nn.Module) or self.report.has('network_u') or self.report.has('network_g'):
            return
        built = build_network(target, {**uncertainty, 'backbone': backbone})
        if isinstance(built, str):
            self.report.add('network_u', built)

    def check_network(self, block: Any, where: str, scale: Any) -> nn.Module | None:
        target = lookup('network', block.get('type')) if isinstance(block, dict) else None
        if target is None or self.report.has(where):
            return None
        params, _ = parameters(target)
        key = next((name for name in traits_of(target).scale_argument if name in params), None)
        if key and isinstance(scale, int):
            value = block.get(key, params[key].default)
            if isinstance(value, int) and value != scale:
                said = '' if key in block else f' (the default of {target.__name__})'
                self.report.add(f'{where}.{key}', f'{value}{said} disagrees with scale: {scale}')
        pixels = block.get('img_range')  # which networks divide by; the trial runs without values
        if isinstance(pixels, int | float) and pixels <= 0:
            self.report.add(f'{where}.img_range', f'expected a positive number, got {pixels}')
        for key, value in block.items():
            if key.endswith('_path') and isinstance(value, str) and not osp.isfile(value):
                self.report.add(f'{where}.{key}', f'no such file: {osp.abspath(value)}; these are weights of a part of '
                                f'{target.__name__}: fetch them, or correct the path')
        if self.report.has(where):
            return None
        network = build_network(target, block)
        if isinstance(network, str):
            self.report.add(where, network)
            return None
        if self.ours and isinstance(scale, int) and not self.report.has('scale') \
                and (problem := try_network(target, block, self.channels(), self.patch(scale), scale)):
            self.report.add(where, problem)
        return network

    def blocks(self) -> dict[str, dict]:
        """The data sets that are blocks, by their keys."""
        return {k: d for k, d in block_of(self.opt, 'datasets').items() if isinstance(d, dict)}

    def channels(self, key: str = 'train') -> int:
        """Of the images that a data set gives, or the first of a test."""
        blocks = self.blocks()
        return channels_of(blocks.get(key, next(iter(blocks.values()), {})))

    def check_channels(self, block: dict, scale: Any) -> None:
        """That the network, which takes the images of one data set, takes those of the others."""
        target, first = lookup('network', block.get('type')), 'train' if 'train' in self.blocks() else next(
            iter(self.blocks()), '')
        for key in self.blocks():
            if isinstance(scale, int) and not self.report.has('scale') and self.channels(key) != self.channels() and (
                    problem := try_network(target, block, self.channels(key), self.patch(scale), scale)):
                self.report.add(f'datasets.{key}.color', f'gives images of {self.channels(key)} channel(s) and '
                                f'datasets.{first} of {self.channels()}, and {problem}; give both the same color')

    def patch(self, scale: int) -> int:
        """Side of an LQ image that the networks are going to see."""
        gt_size = self.blocks().get('train', {}).get('gt_size')
        if isinstance(gt_size, int) and gt_size % scale == 0 and 0 < gt_size // scale <= _LARGEST_PATCH:
            return gt_size // scale
        return 48
