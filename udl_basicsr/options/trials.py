"""Trials: networks and losses are built and run on next to nothing, since only their code knows what they take.

Nothing is left behind: random states, logs and the disk stay as they are, and what would need more time or memory than
any network of this field is stopped.
"""
import contextlib
import functools
import io
import itertools
import json
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils.data import Dataset

from udl_basicsr.archs.bounded import Bounded, TooMuchError
from udl_basicsr.data.images import same_names
from udl_basicsr.functional.distributions import DISTRIBUTIONS, Distribution
from udl_basicsr.losses.base import inputs_of
from udl_basicsr.models.loss_blocks import losses_of
from udl_basicsr.models.stage_table import STAGES
from udl_basicsr.utils.text import kind_and_line, some

MOST_PARAMETERS = 2**32
"""A network with more is a typing error: the largest of the field have some 10^8."""
MOST_MODULES = 10_000
MOST_TRUE_PARAMETERS = 2 * 10**8
"""Of a network that cannot be built on the meta device: 0.8 GB."""

SAME_NAMES = 'scores and results are kept by names without their endings, and these are the same; rename one'
_PLAIN_TENSORS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class _TooLarge(ValueError):
    pass


def forbid_pickles() -> None:
    """From here on ``torch.load`` runs no code, whoever calls it: some of BasicSR's networks load a file that is named
    in their arguments (spynet_arch.py:40, basicvsr_arch.py:302), and torch before 2.6 would run what is in it."""
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
    os.environ[_PLAIN_TENSORS] = '1'


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Random states stay as they are, and nothing is printed or logged."""
    states = random.getstate(), np.random.get_state()
    disabled, environment = logging.root.manager.disable, dict(os.environ)
    logging.disable(logging.WARNING)
    forbid_pickles()
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        if _PLAIN_TENSORS not in environment:
            os.environ.pop(_PLAIN_TENSORS, None)
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Stops the building of a network that is larger than any, before it takes the memory."""
    modules, numel = itertools.count(1), 0

    def parameter(_module: nn.Module, _name: str, value: nn.Parameter | None) -> None:
        nonlocal numel
        if value is not None and not nn.parameter.is_lazy(value):
            numel += value.numel()
        if numel > most:
            raise _TooLarge(f'it has more than {most:.1e} parameters')

    def module(_module: nn.Module, _name: str, _value: nn.Module | None) -> None:
        if next(modules) > MOST_MODULES:
            raise _TooLarge(f'it has more than {MOST_MODULES} modules')

    handles = [hooks.register_module_parameter_registration_hook(parameter),
               hooks.register_module_module_registration_hook(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def build_network(target: Callable[..., nn.Module], block: dict) -> nn.Module | str:
    """The network of a block of options, or why it cannot be built.

    On the meta device where its constructor allows that, which costs no memory.
    """
    return _build(target, json.dumps({k: v for k, v in block.items() if k != 'type'}, sort_keys=True))


@functools.lru_cache(maxsize=32)
def _build(target: Callable[..., nn.Module], arguments: str) -> nn.Module | str:
    error = ''
    for device, most in (('meta', MOST_PARAMETERS), ('cpu', MOST_TRUE_PARAMETERS)):
        try:
            with quietly(), _bounded(most), torch.device(device):
                return target(**json.loads(arguments))
        except Exception as e:
            if device == 'cpu' and isinstance(e, _TooLarge):
                break  # the meta device's reason is the one that helps
            error = f'{target.__name__} cannot be built: {e if isinstance(e, _TooLarge) else kind_and_line(e)}'
            if isinstance(e, (_TooLarge, MemoryError)):
                break
    return error


def try_network(target: Callable[..., nn.Module], block: dict, channels: int, side: int, scale: int) -> str:
    """Why a network makes no image of ``scale`` times the size from one of ``side``; empty where it does."""
    arguments = json.dumps({k: v for k, v in block.items() if k != 'type'}, sort_keys=True)
    return _forward(target, arguments, channels, side, scale)


@functools.lru_cache(maxsize=128)
def _forward(target: Callable[..., nn.Module], arguments: str, channels: int, side: int, scale: int) -> str:
    network, problem = _build(target, arguments), ''
    if isinstance(network, str):
        return network
    shape, expected = (1, channels, side, side), (1, channels, side * scale, side * scale)
    for device in ('meta', 'cpu'):  # what looks at values cannot run on meta
        if next(network.parameters(), torch.zeros(0)).device.type == 'meta' and device == 'cpu':
            if sum(p.numel() for p in network.parameters()) > 10**8:
                return ''
            with quietly():
                network = target(**json.loads(arguments))
        try:
            with quietly(), torch.no_grad(), torch.device(device), Bounded():
                out = network.to(device).eval()(torch.zeros(shape))
        except TooMuchError:  # what it needs in training is for the user to know
            return ''
        except Exception as error:
            problem = (f'{target.__name__} does not take an image of {channels} channels and {side}x{side}: '
                       f'{kind_and_line(error)}')
            continue
        if not isinstance(out, Tensor) or out.shape != expected:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            return f'{target.__name__} makes {got} of {shape}; expected {expected}, an image of scale: {scale}'
        return ''
    return problem


def try_loss(key: str, target: type[nn.Module], block: dict, channels: int, side: int, scale: int,
             in_parts: bool = False) -> tuple[str, bool]:
    """Why a loss cannot be trained with at this size (LQ pixels), empty where it can.

    Losses with a network inside, which take a dictionary of its layers, are not tried.

    Returns:
        tuple: That, and with ``in_parts`` whether the loss of a batch is another number than the mean over its images;
            of a loss that draws random numbers, and so has many, this is not looked at.
    """
    arguments = {k: v for k, v in block.items() if k != 'type'}
    if any(isinstance(v, (dict, list)) for v in arguments.values()):
        return '', False
    try:
        with quietly(), torch.enable_grad():  # whatever the caller has set
            criterion = target(**arguments)
            kind = DISTRIBUTIONS.get(getattr(criterion, 'distribution', ''), Distribution)
            # two images that are not alike in anything
            images = torch.tensor([1., 0.3]).view(2, 1, 1, 1) if in_parts else torch.ones(1, 1, 1, 1)
            lq, gt = (images * torch.rand(channels, size, size) for size in (side, side * scale))
            pred = torch.rand_like(gt).mul_(images).requires_grad_()
            given = torch.rand_like(gt.repeat(1, kind.maps, 1, 1)).mul_(images).requires_grad_()
            inputs = {'target': gt, 'lq': lq, **{stage.gives: given for stage in STAGES.values() if stage.loss == key}}
            if any(needed and name not in inputs for name, needed in inputs_of(criterion).items()):
                return '', False  # entries of the batch, which only the data set knows

            def value(of: slice) -> Tensor:
                values = losses_of(key, criterion, pred[of], {name: given[of] for name, given in inputs.items()})
                if wrong := [v for v in values.values() if not isinstance(v, Tensor) or v.numel() != 1]:
                    raise _NoNumberError(tuple(getattr(wrong[0], 'shape', ())))
                return sum(values.values(), torch.zeros(())).sum()

            whole = value(slice(None))
            whole.backward()
            if not in_parts or not torch.equal(whole, value(slice(None))):
                return '', False
            return '', not torch.isclose((value(slice(0, 1)) + value(slice(1, 2))) / 2, whole, rtol=1e-3).item()
    except _NoNumberError as error:
        return f'{target.__name__} gives {error.args[0]}; training needs one number', False
    except Exception as error:
        return f'{target.__name__} fails on images of {side * scale}x{side * scale}: {kind_and_line(error)}', False


class _NoNumberError(ValueError):
    """A loss of many values."""


def try_optimizer(target: type[torch.optim.Optimizer], arguments: dict) -> None:
    """Two steps of an optimizer, which raise what is wrong with its arguments."""
    with quietly():
        parameter = nn.Parameter(torch.ones(2, 2))
        optimizer = target([parameter], **arguments)
        for _ in range(2):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()


def try_parameters(target: type[torch.optim.Optimizer], arguments: dict, network: nn.Module) -> str:
    """Why an optimizer does not take the parameters of a network; empty where it does."""
    try:
        with quietly():
            target([p for p in network.parameters() if p.requires_grad], **arguments)
    except Exception as error:
        return f'{target.__name__} cannot train {type(network).__name__}: {kind_and_line(error)}; use Adam, or another'
    return ''


def try_moments(target: type[torch.optim.Optimizer], arguments: dict, shapes: Iterable[torch.Size], group: dict,
                state: dict[int, dict]) -> str:
    """Why an optimizer cannot go on from what was saved of it; empty where it can.

    It takes a step of each parameter alone, from zeros, with a gradient of 0: only its code knows what it needs.

    Args:
        target: Its class.
        arguments: Of the class, from an option file.
        shapes: Of its parameters.
        group: Saved settings.
        state: Saved moments, by the numbers of the parameters. There may be none: with fp16 the first steps of all are
            left out while the loss scale is searched.
    """
    with quietly(), torch.enable_grad():
        for index, shape in enumerate(shapes):
            parameter = nn.Parameter(torch.zeros(shape))
            optimizer = target([parameter], **arguments)
            if unknown := set(group) - set(optimizer.param_groups[0]) - {'initial_lr'}:
                return f'was saved by another optimizer than {target.__name__}: it has {some(map(str, unknown))}'
            try:
                optimizer.load_state_dict({
                    'state': {0: dict(state[index])} if index in state else {},
                    'param_groups': [{**group, 'params': [0], 'capturable': False, 'fused': None, 'foreach': None}]})
                parameter.grad = torch.zeros(shape)
                optimizer.step()
            except Exception as error:  # whatever its code says to moments or settings that it cannot use
                other = next((m.shape for m in state.get(index, {}).values() if isinstance(m, Tensor) and m.ndim > 0
                              and m.shape != parameter.shape), None)
                why = kind_and_line(error) if other is None else (
                    f'they are of a weight of {tuple(other)}, which is {tuple(parameter.shape)} in this network. Give '
                    'the network its former options, or this run another name')
                return f'state: {index}: {target.__name__} cannot take a step with these moments and settings ({why})'
            if not parameter.isfinite().all():
                return f'state: {index}: a step of {target.__name__} with these moments and settings is not finite'
    return ''


def try_scheduler(target: type, arguments: dict) -> None:
    """Three steps of a scheduler, which raise what is wrong with its arguments."""
    with quietly():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
        scheduler = target(optimizer, **arguments)
        for _ in range(3):
            optimizer.step()
            scheduler.step()


def try_metric(target: Callable, arguments: dict, height: int, width: int, log_scale: bool) -> str:
    """Why a metric gives no number for an image of this size; empty where it does."""
    images: dict[str, np.ndarray] = {
        key: np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for seed, key in enumerate(('img', 'img2'))}
    if log_scale:
        images['log_scale'] = images['img'].astype(np.float32) / 64
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the mean of nothing is reported below
            value = float(target(**images, **arguments))
    except Exception as error:
        return f'{target.__name__} fails on an image of {width}x{height}: {kind_and_line(error)}'
    return '' if np.isfinite(value) else f'{target.__name__} gives {value} on an image of {width}x{height}'


def try_dataset(target: Callable[[dict], Dataset], block: dict, wanted: tuple[str, ...]) -> str:
    """Why a data set gives no images under the names that are wanted; empty where its first sample has them."""
    try:
        with quietly():
            dataset = target(deepcopy(block))
            sample = dataset[0]
    except Exception as error:
        return f'{target.__name__} cannot give its first image: {kind_and_line(error)}'
    for key in wanted:
        image = sample.get(key) if isinstance(sample, dict) else None
        if not isinstance(image, Tensor) or image.ndim != 3:
            return f'{target.__name__} gives no image {key} (C, H, W), which the model needs; use PairedImageDataset'
    paths = getattr(dataset, 'paths', None)
    if block.get('phase') != 'train' and isinstance(paths, list) and (same := same_names(map(str, paths))):
        return f'{SAME_NAMES}: {"; ".join(same[:20])}'
    return ''


def try_model(target: Callable, opt: dict) -> str:
    """Why a model cannot be built; empty where it can."""
    try:
        with quietly():
            target(deepcopy({**opt, 'dist': False}))
    except Exception as error:
        return f'{target.__name__} cannot be built from these options: {kind_and_line(error)}'
    return ''
