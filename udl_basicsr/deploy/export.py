"""Weights for other programs: safetensors, and ONNX that has been compared with torch before it is kept.

ONNX comes from torch.onnx.export. Of its two exporters the older one (TorchScript) is tried first: it needs seconds
where the newer one (dynamo) needs a minute, and on BasicSR's networks their graphs compute the same. Tracing may
freeze a size of the example into the graph; that is found by the comparison at other sizes, and the next way is tried.
"""
import contextlib
import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from udl_basicsr.data.images import SUFFIXES
from udl_basicsr.options import trials
from udl_basicsr.options.keys import lookup
from udl_basicsr.options.network_values import check_networks
from udl_basicsr.utils.checkpoints import IS_ONNX, ParamKey, check_fit, network_weights, safetensors_metadata
from udl_basicsr.utils.errors import UdlError
from udl_basicsr.utils.files import why_not_into, written_aside
from udl_basicsr.utils.text import kind_and_line
from udl_basicsr.utils.version import __version__
from udl_basicsr.utils.yaml_files import load_yaml, read_block

OPSET = 18
TOLERANCE = 1e-5  # of a pixel in [0, 1]
_EXAMPLE = (32, 48)
# Other sizes: odd ones, and multiples of 16 for networks with windows. No larger ones, since the positions from which
# onnxruntime interpolates are float32: of white noise 128 pixels wide its bicubic differs from torch's by 1e-5.
_CHECKS = ((40, 24), (29, 37), (64, 32), (48, 64))
# Dynamic batch first. Window attention often counts windows with Python's int(), which freezes the batch.
_WAYS = (('torchscript', True), ('torchscript', False), ('dynamo', True), ('dynamo', False))

_Pairs = dict[tuple[int, int], tuple[Tensor, Tensor]]  # images by their sizes, and what torch makes of them


class ExportError(UdlError, RuntimeError):
    """Weights that cannot be exported or converted; the message says why and what can be done."""


@dataclass(frozen=True)
class OnnxReport:
    """What was written and how it compares with torch."""
    exporter: str
    opset: int
    dynamic_batch: bool
    """False: one image at a time; height and width are dynamic always."""
    shapes: tuple[tuple[int, ...], ...]
    """Inputs that torch and onnxruntime were compared on."""
    difference: float
    """The largest one, of pixels in [0, 1]."""
    refused: tuple[tuple[int, int], ...]
    """Sizes (h, w) that the network or the graph does not take, for want of a multiple of its window: pad to one."""


def require(module: str):
    """Imports an optional dependency, or says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(f"this needs {module.partition('.')[0]}: pip install 'udl_basicsr[export]'") from error


def refuse_existing(*paths: str | Path | None, force: bool) -> None:
    """Raises ExportError where an output exists already or its folder takes none, before anything is computed."""
    for path in (Path(p) for p in paths if p is not None):
        if path.is_dir() or (path.exists() and not force):
            raise ExportError(f'{path}: exists already; give another name' + ('' if path.is_dir() else ', or --force'))
        if why := why_not_into(path.absolute().parent):
            raise ExportError(f'{path}: its folder {why}; give another name')


@contextlib.contextmanager
def folder_made(path: str | Path) -> Iterator[None]:
    """Makes the folder of a file that is about to be written; what was made is gone again where the block fails.

    Raises:
        ExportError: It cannot be made.
    """
    folder = Path(path).absolute().parent
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f'{path}: its folder cannot be made ({error.strerror or error})') from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # others may have put something there
            for one in missing:
                one.rmdir()
        raise


@contextlib.contextmanager
def export_aside(path: str | Path) -> Iterator[Path]:
    """As :func:`~udl_basicsr.utils.files.written_aside`, for writers that go by the end of a name.

    It makes the folder.
    """
    try:
        with folder_made(path), written_aside(path, Path(path).suffix) as part:
            yield part
    except OSError as error:
        raise ExportError(f'{path}: cannot be written ({error.strerror or error}); what was there before is kept'
                          ) from error


# -------------------------------------------------------------------------------------- which network a file is of
def find_options(weights: str | Path, opt: str | Path | None = None) -> tuple[dict, str] | None:
    """The blocks ``network_g`` and ``network_u`` that belong to a checkpoint.

    Args:
        weights: The checkpoint: ``.pth``, or ``.safetensors``, whose metadata may hold the blocks.
        opt: An option file. None looks into the metadata, then into the run's folder (``<run>/models/net_g_*.pth``
            beside ``<run>/*.yml``).

    Returns:
        The blocks and where they were found, or None.

    Raises:
        ExportError: ``opt`` or the metadata name no ``network_g``.
        CheckpointError: The metadata cannot be read.
        OptionError: ``opt`` cannot be read, or the metadata are no block of options.
    """
    weights = Path(weights)
    if opt is not None:
        found = _blocks(load_yaml(str(opt)))
        if not found:
            raise ExportError(f'{opt}: has no network_g: {{type: ..., ...}}')
        return found, str(opt)
    if weights.suffix == '.safetensors' and weights.is_file():
        text = safetensors_metadata(weights).get('networks')
        if text is not None:
            found = _blocks(read_block(text, f"{weights}: its metadata 'networks'"))
            if not found:
                raise ExportError(f"{weights}: its metadata 'networks' have no network_g: {{type: ..., ...}}; name the "
                                  'option file with -opt')
            return found, str(weights)
    if weights.absolute().parent.name == 'models':
        for file in sorted(weights.absolute().parent.parent.glob('*.yml')):
            found = _blocks(load_yaml(str(file)))
            if found:
                return found, str(file)
    return None


def options_of(weights: str | Path, opt: str | Path | None = None) -> dict:
    """The blocks that :func:`find_options` finds, or ExportError: there are none, or it is no file of weights."""
    path, expected = Path(weights), 'expected a checkpoint, .pth or .safetensors'
    if opt is None and not path.is_file():
        raise ExportError(f'{path}: {"is a folder" if path.is_dir() else "no such file"}; {expected}')
    if path.suffix.lower() in SUFFIXES:
        raise ExportError(f'{path}: is a picture; {expected}')
    if path.suffix.lower() == '.onnx':
        raise ExportError(f'{path}: {IS_ONNX}')
    if (found := find_options(path, opt)) is None:
        raise ExportError(f'{path}: which network is it? No option file was found beside it; give -opt, a file with '
                          "its network_g, which udl convert prints for another program's weights")
    return found[0]


def _blocks(options: dict) -> dict:
    found = {key: options[key] for key in ('network_g', 'network_u') if isinstance(options.get(key), dict)}
    return found if isinstance(found.get('network_g', {}).get('type'), str) else {}


def build_loaded(path: str | Path, blocks: dict, param_key: ParamKey, label: str = 'g') -> nn.Module:
    """The network of ``blocks[f'network_{label}']`` with the weights of a file, in evaluation mode, float32, CPU.

    It takes no more memory than the file has weights: it is built only when they are found to fit.

    Args:
        path: The file.
        blocks: Options, of which the ``network_*`` are looked at.
        param_key: See :func:`~udl_basicsr.utils.checkpoints.network_weights`.
        label: ``g``, ``u`` or ``w``.

    Raises:
        ExportError: The block is missing or the network cannot be built from it.
        OptionError: A block is wrong, or asks for more than any network of the field has.
        CheckpointError: The file does not fit.
    """
    if blocks.get(f'network_{label}') is None:
        raise ExportError(f'network_{label} is missing in the options of {path}')
    check_networks(blocks, f'options of {path}')
    block = blocks[f'network_{label}']
    if label == 'u':
        block = {'backbone': blocks['network_g'], **block}
    return build_from(block, network_weights(path, param_key), path)


def build_from(block: dict, weights: dict[str, Tensor], path: str | Path) -> nn.Module:
    """As :func:`build_loaded`, of a block that has been checked, or that was made here, and weights that were read."""
    outline = trials.build_network(lookup('network', block['type']), block)
    if isinstance(outline, str):
        raise ExportError(f'{path}: {block}: {outline}')
    check_fit(outline, weights, path)
    network = build_network(block)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------- safetensors
def export_safetensors(weights: dict[str, Tensor], path: str | Path, blocks: dict | None = None,
                       facts: dict[str, str] | None = None) -> None:
    """Writes weights as safetensors, bit for bit.

    The metadata hold ``format: pt`` and, where ``blocks`` are known, ``network`` (the type of network_g) and
    ``networks``, the blocks as JSON, which :func:`find_options` reads back; and ``facts``.

    Raises:
        ExportError: safetensors is missing, the file cannot be written, or reads back as something else.
    """
    safetensors = require('safetensors.torch')
    metadata = {**(facts or {}), 'format': 'pt'}
    if blocks:
        metadata |= {'network': blocks['network_g']['type'], 'networks': json.dumps(blocks)}
    # cloned: safetensors refuses tensors that share memory
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    with export_aside(path) as aside:
        aside.write_bytes(safetensors.save(weights, metadata))  # save_file makes files that others cannot read
        back = safetensors.load_file(str(aside))
        if back.keys() != weights.keys() or not all(_same(back[key], value) for key, value in weights.items()):
            raise ExportError(f'{path}: reads back as something else; nothing is kept. Is the disk in order?')


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


# ----------------------------------------------------------------------------------------------------------- ONNX
def export_onnx(network: nn.Module, path: str | Path, weights: str | Path | None = None, block: dict | None = None
                ) -> OnnxReport:
    """Writes a network as ONNX: ``lq`` (N, C, h, w) to ``sr`` (N, C, H, W), pixels in [0, 1], h and w dynamic.

    The file is kept only after onnxruntime has given what torch gives, to 1e-5 of a pixel (where pixels exceed 1 in
    size, of the largest), at two or more sizes that differ from the example's. The batch is dynamic where the network
    allows it, else 1.

    Whoever runs the file needs to know more than its graph says. The metadata have ``scale``, ``layout``, ``colour``,
    the ``range`` of the pixels (8-bit ones divided by 255, 16-bit ones by 65535), ``mean`` (subtracted inside the
    graph, if at all), ``udl_basicsr`` (the version), ``network`` (its options as JSON) and ``weights_sha256``, of the
    file ``weights``.

    Args:
        network: In float32 on the CPU; put in evaluation mode.
        path: Where to, ``.onnx``.
        weights: The file that its weights come from.
        block: The options it was built from.

    Raises:
        ExportError: onnx or onnxruntime is missing, or no graph with dynamic sizes gives the same pixels; the message
            has what each way came to.
    """
    require('onnx')
    runtime = require('onnxruntime')
    network.eval()
    images, refused, reason = _images(network)
    if _EXAMPLE not in images or len(images) < 3:
        raise ExportError(f'{type(network).__name__} does not take images of {refused} (h, w), so no file with dynamic '
                          f'sizes can be made: {reason}')
    failures = []
    for exporter, dynamic_batch in _WAYS:
        try:
            with export_aside(path) as aside:
                _export(network, images[_EXAMPLE][0], aside, exporter, dynamic_batch)
                shapes, difference, fixed = _compare(runtime, network, aside, images, dynamic_batch)
                if not difference <= TOLERANCE:  # so that NaN fails as well
                    raise ExportError(f'differs by {difference:.1e} from torch')
                _describe(aside, *images[_EXAMPLE], weights, block)
            return OnnxReport(exporter, OPSET, dynamic_batch, shapes, difference, (*refused, *fixed))
        except Exception as error:  # exporters and runtimes raise whatever their libraries do
            if isinstance(error.__cause__, OSError):  # of the disk, which is as full for the other ways
                raise
            failures.append(f'{exporter} exporter, batch {"dynamic" if dynamic_batch else "of 1"}: '
                            f'{kind_and_line(error)}')
    raise ExportError('\n  '.join([f'{path}: {type(network).__name__} cannot be exported with dynamic sizes; nothing '
                                   f"was kept. Expected torch's pixels to {TOLERANCE:g}, tried:", *failures]))


def _describe(path: Path, image: Tensor, out: Tensor, weights: str | Path | None, block: dict | None) -> None:
    """Puts the metadata into an ONNX file."""
    onnx = importlib.import_module('onnx')
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {
        'scale': str(out.shape[-1] // image.shape[-1]), 'layout': 'NCHW',
        'colour': 'RGB' if image.shape[1] == 3 else 'Y',
        'range': '0 to 1: 8-bit pixels / 255, 16-bit pixels / 65535; clip what comes out',
        'mean': 'none to be subtracted: what the network subtracts is in the graph', 'udl_basicsr': __version__,
        **({'network': json.dumps(block)} if block else {}),
        **({'weights_sha256': hashlib.sha256(Path(weights).read_bytes()).hexdigest()} if weights else {})})
    onnx.save(model, str(path))


def _images(network: nn.Module) -> tuple[_Pairs, list[tuple[int, int]], str]:
    """Images by their sizes with what torch makes of them, the sizes that the network refuses, and its last reason."""
    generator = torch.Generator().manual_seed(0)
    images, refused, reason = {}, [], ''
    for num_in_ch in (3, 1):
        images, refused = {}, []
        for height, width in (_EXAMPLE, *_CHECKS):
            image = torch.rand(1, num_in_ch, height, width, generator=generator)
            try:
                images[height, width] = (image, _run(network, image))
            except ExportError:
                raise
            except Exception as error:  # whatever a network says to a size that it does not take
                refused.append((height, width))
                reason = kind_and_line(error)
        if images:
            break
    return images, refused, reason


def _run(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        out = network(image)
    if not isinstance(out, Tensor):
        raise ExportError(f'{type(network).__name__} gives {type(out).__name__}; expected an image. '
                          'Give the mean network, net_g_*')
    return out


def _export(network: nn.Module, image: Tensor, path: Path, exporter: str, dynamic_batch: bool) -> None:
    # Two images where the batch is dynamic: torch.export takes a size of 1 for a constant.
    batch = image.repeat(2, 1, 1, 1) if dynamic_batch else image
    names = {'input_names': ['lq'], 'output_names': ['sr'], 'opset_version': OPSET}
    axes = {**({0: 'batch'} if dynamic_batch else {}), 2: 'height', 3: 'width'}
    level = logging.root.manager.disable
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of constants in traces: the comparison finds those that matter
        logging.disable(logging.ERROR)
        try:
            if exporter == 'torchscript':
                out = {**({0: 'batch'} if dynamic_batch else {}), 2: 'out_height', 3: 'out_width'}
                torch.onnx.export(network, (batch, ), str(path), dynamo=False, dynamic_axes={'lq': axes, 'sr': out},
                                  **names)
            else:
                require('onnxscript')
                dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
                program = torch.onnx.export(network, (batch, ), dynamo=True, dynamic_shapes=(dims, ), verbose=False,
                                            **names)
                program.save(str(path))  # pyright: ignore[reportOptionalMemberAccess] - None without dynamo
        finally:
            logging.disable(level)


def _compare(runtime, network: nn.Module, path: Path, images: _Pairs, dynamic_batch: bool,
             ) -> tuple[tuple, float, list]:
    """onnxruntime against torch at each size, and with three images at once where the batch is dynamic.

    Returns:
        tuple: shapes compared, the largest difference, and sizes that the graph refuses. At two sizes it must work.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    session = runtime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    differences, shapes, refused = [], [], []
    for size, (image, expected) in images.items():
        if size == _EXAMPLE:
            continue
        try:
            differences.append(_difference(session, image, expected))
            shapes.append(tuple(image.shape))
        except ExportError:
            raise
        except Exception as error:  # padding computed in Python is that of the example for ever: other sizes fail
            refused.append(size)
            if len(refused) > len(images) - 3:
                raise ExportError(f'works at {len(shapes)} other size(s): {kind_and_line(error)}') from error
    if dynamic_batch:
        image = images[tuple(shapes[0][2:])][0]
        batch = torch.cat([image, image.flip(-1), 1 - image])
        differences.append(_difference(session, batch, _run(network, batch)))
        shapes.append(tuple(batch.shape))
    return tuple(shapes), torch.tensor(differences).max().item(), refused  # NaN stays NaN


def _difference(session, image: Tensor, expected: Tensor) -> float:
    got = torch.from_numpy(session.run(['sr'], {'lq': image.numpy()})[0])
    if got.shape != expected.shape:
        raise ExportError(f'onnxruntime gives {tuple(got.shape)} for {tuple(image.shape)}, torch '
                          f'{tuple(expected.shape)}')
    return (got - expected).abs().max().item() / max(1., expected.abs().max().item())
