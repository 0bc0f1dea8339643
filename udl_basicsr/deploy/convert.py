"""Weights of other programs into ours and back, each conversion proved by the same pixels before and after.

What the other programs do, from their sources:

========== ======================================== ===================================================================
name       from                                     network
========== ======================================== ===================================================================
udl        QianNing0/UDL, model/edsr.py             EDSR on 0-255 pixels, no mean shift, ``head body tail`` and
                                                    ``var_conv`` (conv ELU conv ELU conv ELU on nearest-upsampled
                                                    features), res_scale 0.1
udl_two    QianNing0/UDL, model/edsr_two.py         two of these: ``EDSR_var`` frozen, ``EDSR_U`` trained by stage 2
edsr       sanghyun-son/EDSR-PyTorch, model/edsr.py EDSR on 0-255 pixels with ``sub_mean`` and ``add_mean``
carn       nmhkahn/CARN-pytorch, model/carn.py      CARN on [0, 1], one upsampler for each of x2, x3 and x4
carn_m     the same, model/carn_m.py                CARN-M
========== ======================================== ===================================================================

Weights do not hold everything that makes the pixels: ``res_scale``, ``img_range`` and ``rgb_mean`` are options, which
is why every conversion comes with the ``network_g`` block that its weights belong to.
"""
import math
from pathlib import Path

from udl_basicsr.utils.checkpoints import save_atomic
from udl_basicsr.utils.text import first_line, some

from .carn_format import carn_to_ours
from .edsr_format import UDL_NETWORK_U, edsr_to_ours, edsr_two_to_ours, from_ours
from .export import build_loaded, export_onnx, export_safetensors, find_options, folder_made, refuse_existing
from .foreign import (
    FORMATS,
    OURS,
    ConversionError,
    Converted,
    Weights,
    build_converted,
    check_convolutions,
    detect,
    read_weights,
)

_SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx')


def to_ours(weights: Weights, *, res_scale: float | None = None, rgb_range: float | None = None,
            scale: int | None = None) -> Converted:
    """Converts weights of any of ``FORMATS``, and compares pixels (and s) before and after.

    Args:
        weights: As :func:`read_weights` gives them.
        res_scale: Of EDSR, which its weights do not tell. None: 0.1 for the UDL authors' and for a width of 256, else
            1, as their authors trained them.
        rgb_range: The largest pixel that formats ``edsr`` and ``udl`` were trained on. None: 255, or 1 where the mean
            shift is that of pixels in [0, 1].
        scale: Which upsampler to take of a CARN that has several.

    Raises:
        ConversionError: Unknown or already ours, an option is missing, does not belong here or is no number > 0, or the
            pixels differ.
    """
    for option, value in (('res_scale', res_scale), ('rgb_range', rgb_range)):
        if value is not None and not 0 < value < math.inf:
            raise ConversionError(f'--{option}: expected a number > 0, got {value:g}')
    kind = detect(weights)
    if kind in OURS:
        raise ConversionError(f'these are weights of {OURS[kind]} already; --to says into what they are to be '
                              'converted: udl, udl_two or edsr, or --out ends in .safetensors or .onnx')
    check_convolutions(weights, kind)
    weights = {key: value.float() for key, value in weights.items()}
    try:
        if kind in ('carn', 'carn_m'):
            _refuse_given(kind, res_scale=res_scale, rgb_range=rgb_range)
            return carn_to_ours(weights, kind, scale)
        _refuse_given(kind, scale=scale)
        if kind == 'udl_two':
            return edsr_two_to_ours(weights, res_scale, rgb_range)
        return edsr_to_ours(weights, kind, res_scale, rgb_range)
    except ConversionError:  # a RuntimeError too
        raise
    except KeyError as error:
        raise ConversionError(f'it lacks {some(error.args)}, which {FORMATS[kind]} has') from error
    except (RuntimeError, ArithmeticError) as error:  # torch's, of channels of one layer that are not the next one's
        raise ConversionError(f'its layers do not fit one another: {first_line(error)}') from error


def _refuse_given(kind: str, **options) -> None:
    given = [f'--{name}' for name, value in options.items() if value is not None]
    if given:
        raise ConversionError(f'{", ".join(given)} means nothing for {FORMATS[kind]}')


def convert_file(source: str | Path, out: str | Path, *, to: str | None = None, out_u: str | Path | None = None,
                 in_u: str | Path | None = None, opt: str | Path | None = None, param_key: str | None = None,
                 res_scale: float | None = None, rgb_range: float | None = None, scale: int | None = None,
                 force: bool = False) -> tuple[dict, tuple[str, ...]]:
    """Reads one file and writes another; ``out`` ends in .pth (or .pt), .safetensors or .onnx.

    Args:
        source: A checkpoint of any of ``FORMATS``; or of ours, for ``to``, .onnx and .safetensors. Any checkpoint can
            become safetensors; one of ``FORMATS`` is brought into our form on the way.
        out: The mean network (``net_g``), or with ``to`` the other program's file.
        to: ``udl``, ``udl_two`` or ``edsr``: from ours into that.
        out_u: Where ``net_u`` goes, of formats ``udl`` and ``udl_two``.
        in_u: Our ``net_u``, for ``udl_two`` beside ``source``, the ``net_g`` of stage udl.
        opt: Option file with the ``network_g`` (and ``network_u``) of our checkpoint; see :func:`find_options`.
        param_key: Entry of ``source`` that holds the weights; see :func:`read_weights`.
        res_scale: See :func:`to_ours`.
        rgb_range: See :func:`to_ours`.
        scale: See :func:`to_ours`.
        force: Overwrite what exists.

    Returns:
        The options that the written weights belong to (empty where they are not known), and notes for the user.

    Raises:
        ExportError: What cannot be converted. Nothing has been written then.
        CheckpointError: What cannot be read or saved.
        OptionError: An option file that cannot be read.
    """
    for path, kinds in ((out, _SUFFIXES[:2] if to else _SUFFIXES), (out_u, _SUFFIXES[:3])):
        if path is not None and Path(path).suffix not in kinds:
            raise ConversionError(f'{path}: expected a name that ends in {", ".join(kinds)}')
    if out_u is not None and Path(out_u).absolute() == Path(out).absolute():
        raise ConversionError(f'{out}: --out and --out_u must differ')
    refuse_existing(out, out_u, force=force)
    weights, key = read_weights(source, param_key)
    pth = Path(out).suffix in _SUFFIXES[:2]
    back = pth and to is None and Path(source).suffix == '.safetensors'  # of any network, as BasicSR has it
    try:
        kind = detect(weights)
        if kind not in OURS and to is not None:
            raise ConversionError(f'seems to be {FORMATS[kind]}; --to {to} takes a checkpoint of ours. Convert it '
                                  'without --to first')
        if kind in OURS and to is None and pth and not back:
            raise ConversionError(f'holds weights of {OURS[kind]} already. --to udl, udl_two or edsr converts them, '
                                  'and so does a name of .safetensors or .onnx')
    except ConversionError as error:
        if to is not None or (pth and not back):
            raise ConversionError(f'{source}: {error}') from None
        kind = None  # any network can be exported, and taken back from safetensors
    what = (FORMATS | OURS)[kind] if kind else 'a network of another kind'
    read = f'{source}: {what}' + (f", its '{key}'" if key else '')

    if kind in FORMATS:
        try:
            _refuse_given(kind, opt=opt, in_u=in_u)
            ours = to_ours(weights, res_scale=res_scale, rgb_range=rgb_range, scale=scale)
        except ConversionError as error:
            raise ConversionError(f'{source}: {error}') from error
        if out_u is not None and ours.params_u is None:
            raise ConversionError(f'{source}: has no uncertainty head, so there is nothing for --out_u')
        blocks = ours.blocks if out_u else {'network_g': ours.blocks['network_g']}
        _write(ours.params, out, blocks, source)
        if out_u is not None and ours.params_u is not None:
            _write(ours.params_u, out_u, blocks, source)
        left = ours.params_u is not None and out_u is None
        return blocks, (read, *ours.notes, *['its uncertainty head is left out; --out_u keeps it' for _ in range(left)])

    given = {'--res_scale': res_scale, '--rgb_range': rgb_range, '--scale': scale, '--out_u': out_u}
    if to != 'udl_two':
        given['--in_u'] = in_u
    for name in (name for name, value in given.items() if value is not None):
        raise ConversionError(f'{name} means nothing for what {source} holds; its options stand in its YAML, see --opt')
    found = find_options(source, opt)
    if found is None and (to is not None or Path(out).suffix == '.onnx'):
        raise ConversionError(f'{source}: its weights do not tell which network they belong to, and there is no option '
                              "file in a run's folder around it: give one with network_g as --opt")
    blocks, place = found or ({}, None)
    read += f'; options from {place}' if place else '; its options are not known, so none are put into the file (--opt)'
    if to is None or kind is None:  # of no known kind is only what is exported
        # also where a safetensors needs no network: metadata of another one would mislead
        label = 'u' if kind == 'UncertaintyNet' and Path(out).suffix != '.onnx' else 'g'
        if blocks.get(f'network_{label}'):
            build_loaded(source, blocks, key, label)
        report = _write(weights, out, blocks, source)
        return blocks, (read, *report)

    if (kind == 'UncertaintyNet') != (to == 'udl'):
        raise ConversionError(f'{source}: is {OURS[kind]}; --to {to} takes net_' + ('u' if to == 'udl' else 'g'))
    if to == 'udl_two' and in_u is None:
        raise ConversionError('--to udl_two takes the net_u of stage esu beside the net_g: give it as --in_u')
    blocks = {'network_u': UDL_NETWORK_U, **blocks}
    params_u = None
    if to == 'udl':
        params_u = build_loaded(source, blocks, key, 'u').state_dict()
        params = {k.removeprefix('mean_network.'): v for k, v in params_u.items() if k.startswith('mean_network.')}
    else:
        if in_u is not None:  # for udl_two alone
            params_u = build_loaded(in_u, blocks, read_weights(in_u)[1], 'u').state_dict()
        params = build_loaded(source, blocks, key).state_dict()
    try:
        theirs, notes = from_ours(blocks, params, params_u, to)
    except ConversionError as error:
        raise ConversionError(f'{source}: {error}') from error
    with folder_made(out):
        save_atomic(theirs, out)  # no wrapper: that is how these programs load
    return {'network_g': blocks['network_g']}, (read, *notes)


def _write(params: Weights, path: str | Path, blocks: dict, source: str | Path) -> list[str]:
    if Path(path).suffix == '.safetensors':
        export_safetensors(params, path, blocks)
    elif Path(path).suffix == '.onnx':
        report = export_onnx(build_converted(blocks['network_g'], params), path, source, blocks['network_g'])
        return [f'opset {report.opset}, {report.exporter} exporter, '
                + ('batch, height and width' if report.dynamic_batch else 'height and width (one image at a time)')
                + f' dynamic; onnxruntime differs from torch by {report.difference:.1e} on '
                + ', '.join('x'.join(map(str, shape)) for shape in report.shapes)
                + (f'; it does not take {", ".join(f"{h}x{w}" for h, w in report.refused)}: pad images to a multiple '
                   'of what the network divides them into' if report.refused else '')]
    else:
        with folder_made(path):
            save_atomic({'params': params}, path)
    return []
