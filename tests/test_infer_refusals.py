"""udl infer: what is broken, too large or does not fit is named, and the rest is made."""
# ruff: noqa: F811 - fixtures that come from infer_runs
import errno
import os
import struct
import weakref
import zlib

import numpy as np
import pytest
import torch
import yaml
from forked import within
from infer_runs import SMALL, made, no_files, noise, pixels, png, run, twice  # noqa: F401
from PIL import Image
from torch import nn

from udl_basicsr.archs import UncertaintyNet
from udl_basicsr.deploy import infer as module
from udl_basicsr.deploy.infer_plan import InferenceError, make_plan
from udl_basicsr.deploy.pictures import Pixels
from udl_basicsr.deploy.restorer import Restorer, load_restorer
from udl_basicsr.functional.inference import tiled, tiling_cost


def test_a_broken_picture_does_not_stop_the_others(run, capsys):
    for number in range(3):
        run.picture(f'in/{number}.png', seed=number)
    data = (run.root / 'in' / '1.png').read_bytes()
    (run.root / 'in' / '1.png').write_bytes(data[:len(data) // 2])
    assert run(run.root / 'in') == 1
    assert made(run.out) == ['0.png', '2.png']
    said = capsys.readouterr()
    assert '2 done' in said.out
    assert '1 failed:' in said.err
    assert '1.png: cannot be read' in said.err


@pytest.mark.parametrize('bits', [8, 16])
def test_truncated_pictures_are_not_filled_with_black(run, bits):
    data = png(noise(40, 40, 3, bits=bits))
    (run.root / 'a.png').write_bytes(data[:len(data) // 2])
    assert run(run.root / 'a.png') == 1
    assert no_files(run.out)


def test_what_does_not_fit_into_the_memory_is_restored_in_tiles(run, capsys, caplog):
    paths = [run.picture('small.png', 10, 10), run.picture('large.png', 300, 310)]
    run.nearest(fails_above=192**2)  # tiles of 128 with 32 on each side
    assert run(*paths) == 0
    assert [record.message for record in caplog.records if record.levelname == 'WARNING'] == [
        f'its 310x300 pixels do not fit into the memory of the device (cpu){said}'
        for said in (': they are restored in tiles of 256', ' in tiles of 256: they are restored in tiles of 128')]
    for path in paths:
        np.testing.assert_array_equal(pixels(run.out / path.name), twice(pixels(path)))


def test_too_little_memory_for_any_tile_names_the_remedy(run, capsys):
    paths = [run.picture('small.png', 10, 10), run.picture('large.png', 40, 40)]
    run.nearest(fails_above=600)
    assert run(*paths) == 1
    assert (run.out / 'small.png').exists()
    assert 'large.png: its 40x40 pixels do not fit into the memory' in (said := capsys.readouterr().err)
    assert 'even in tiles of 32: give a smaller --tile' in said
    assert run(*paths, '--tile', 8, '--overlap', 4) == 0
    np.testing.assert_array_equal(pixels(run.out / 'large.png'), twice(pixels(paths[1])))


@pytest.mark.parametrize(('tile', 'overlap', 'told'), [(8, 32, True), (15, 8, True), (16, 8, False), (64, 32, False)])
def test_tiles_that_waste_most_of_the_work_are_told_before_it_begins(run, caplog, monkeypatch, tile, overlap, told):
    seen, began = [], []
    side = (2 * -(-overlap // tile) + 1) * tile  # so that one tile lies off the border by its overlap
    tiled(lambda lq: seen.append(lq[0, 0].numel()) or lq, tile, overlap, 1)(torch.zeros(1, 1, side, side))
    assert tiling_cost(tile, overlap) == pytest.approx(max(seen) / tile**2)

    def warnings():
        return [record.message for record in caplog.records if record.levelname == 'WARNING']
    monkeypatch.setattr(module, 'read_ahead', lambda *a: began.extend(warnings()) or iter(()))
    assert run(run.picture(), '--tile', tile, '--overlap', overlap) == 0
    assert len(began) == told
    assert began == warnings()
    for message in began:
        assert f'{tiling_cost(tile, overlap):.3g} times as many pixels as without tiles' in message
        assert f'--tile {4 * overlap} would compute {tiling_cost(4 * overlap, overlap)} times' in message


def test_memory_of_a_try_is_free_before_the_next(run, monkeypatch):
    """While an error is handled its traceback holds the tensors of all functions that it passed."""
    held, alive = [], []

    def forward(self, network, lq):
        alive.append([reference() is not None for reference in held])
        taken = torch.zeros(5)
        held.append(weakref.ref(taken))
        if lq.shape[3] > 100:
            raise RuntimeError('GET was unable to find an engine to execute this computation')
        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)

    run.nearest()
    restorer = load_restorer(run.models / 'net_g_latest.pth', device='cpu')
    assert restorer.traits == (3, 2, 1)
    monkeypatch.setattr(type(restorer), '_forward', forward)
    picture = Pixels(noise(120, 120, 3))
    np.testing.assert_array_equal(restorer.sr(picture, 8, lambda: None).colour, twice(picture.colour))
    assert len(alive) > 4
    assert not any(map(any, alive))


def test_values_that_are_not_finite_are_no_picture(run, capsys):
    path = run.picture()
    run.nearest()
    torch.save({'params': {'gain': torch.full((3, 1, 1, 1), torch.nan)}}, run.models / 'net_g_latest.pth')
    assert run(path) == 1
    assert 'not finite' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_full_disk_ends_the_run(run, capsys, monkeypatch):
    paths = [run.picture(f'{n}.png') for n in range(3)]
    write = module.write_atomically

    def full(path, data):
        if path.name != '0.png':
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, data)

    monkeypatch.setattr(module, 'write_atomically', full)
    assert run(*paths) == 1
    assert 'No space left on device' in capsys.readouterr().err
    assert made(run.out) == ['0.png']
    monkeypatch.undo()
    assert run(*paths) == 0
    assert len(made(run.out)) == 3


def test_all_that_is_wrong_is_said_at_once(run, capsys, monkeypatch):
    root = run.root
    good = run.picture()
    run.picture('other/a.jpg')
    (root / 'empty').mkdir()
    (root / 'text.png').write_text('no picture')
    (root / 'nothing.png').write_bytes(b'')
    run.picture('large.png', 40, 40)
    frames = [Image.fromarray(noise(4, 4, 3)) for _ in range(2)]
    frames[0].save(root / 'moving.webp', save_all=True, append_images=frames[1:])
    Image.fromarray(np.random.rand(4, 4).astype(np.float32)).save(root / 'float.tif')
    Image.fromarray(noise(4, 4, 4)).convert('CMYK').save(root / 'cmyk.jpg')
    frames[0].save(root / 'scan.gif')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    assert run(good, root / 'gone.png', root / 'other', root / 'empty', root / 'text.png', root / 'nothing.png',
               root / 'large.png', root / 'moving.webp', root / 'float.tif', root / 'cmyk.jpg', root / 'scan.gif') == 2
    said = capsys.readouterr().err
    for problem in ('gone.png: no such file or folder', f'a.jpg: would become {run.out}/a.png, and so would',
                    'names, or --format same',
                    'empty: holds no picture', 'text.png: cannot be read', 'nothing.png: cannot be read',
                    'large.png: is larger than the 1000 pixels', 'moving.webp: holds several pictures',
                    'float.tif: has the colour mode F', 'cmyk.jpg: has the colour mode CMYK',
                    'scan.gif: .gif files are not read: convert it to PNG'):
        assert problem in said
    assert len(said.splitlines()) == 11
    assert no_files(run.out)


def test_a_folder_that_cannot_be_looked_into_is_named(run, capsys, monkeypatch):
    run.picture('folder/good.png')
    run.picture('folder/closed/other.png')
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('closed'):  # root, who may run the tests, can look into any
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert run(run.root / 'folder') == 2
    assert 'closed: Permission denied' in capsys.readouterr().err
    assert no_files(run.out)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes on this system')
def test_a_pipe_is_not_waited_for(run, capsys):
    run.picture('folder/good.png')
    os.mkfifo(run.root / 'folder' / 'pipe.png')
    for given in ('folder', 'folder/pipe.png'):
        with within(20):
            assert run(run.root / given) == 2
        assert 'pipe.png: is a pipe or a device, no picture' in capsys.readouterr().err
    assert no_files(run.out)


@pytest.mark.parametrize('compression', [None, 'tiff_lzw'])
def test_a_tiff_of_two_pages_that_is_cut_off(run, capsys, compression):
    """Wherever it is cut: Pillow reads the second page's entries when it is asked how many there are."""
    pages = [Image.fromarray(noise(4, 4, 3)) for _ in range(2)]
    path = run.root / 'pages.tif'
    pages[0].save(path, save_all=True, append_images=pages[1:], **({'compression': compression} if compression else {}))
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 7), len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InferenceError, match=r'pages\.tif: (cannot be read|holds several|has the colour)'):
            make_plan([path], run.out)
    path.write_bytes(whole[:142])
    assert run(path) == 2
    assert 'pages.tif: ' in capsys.readouterr().err


def test_texts_that_unpack_to_any_size(run, capsys):
    path = run.picture('a.png')
    data = path.read_bytes()
    text = b'a\0\0' + zlib.compress(bytes(50_000_000), 1)
    chunk = struct.pack('>I', len(text)) + b'zTXt' + text + struct.pack('>I', zlib.crc32(b'zTXt' + text))
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert run(path) == 2
    assert f'{path}: has texts or a profile that unpack to more than 1048576 bytes' in capsys.readouterr().err


def test_nothing_is_written_over_an_input(run, capsys):
    path = run.picture('in/a.png')
    before = path.read_bytes()
    (run.root / 'link').symlink_to(run.root / 'in')
    assert run(path, out=run.root / 'in', ) == 2
    assert run(path, out=run.root / 'link') == 2
    assert run(path, '--overwrite', out=run.root / 'in') == 2
    assert capsys.readouterr().err.count('would be written over an input') == 3
    assert run(run.root / 'in', out=run.root / 'link' / '.') == 2
    assert 'is the folder of --out' in capsys.readouterr().err
    assert run(path, '--suffix', 'x2', out=run.root / 'in') == 0
    assert path.read_bytes() == before


def test_a_name_that_no_file_can_have_is_refused(run, capsys):
    path = run.picture('in/a.png')
    assert run(path, '--suffix', 'é' * 130) == 2
    assert 'in/a.png: the name of its result, a_ééé' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_map_and_a_picture_do_not_share_a_name(run, capsys):
    paths = [run.picture('a.png'), run.picture('a_log_scale.png')]
    assert run(*paths, *run.add_uncertainty()) == 2
    assert f'would become {run.out}/a_log_scale.png, and so would' in capsys.readouterr().err
    for ending in '.jpg', '.png':
        run.picture(f'same/b{ending}')
    assert run(run.root / 'same', *run.add_uncertainty()) == 2
    assert '--format same' not in capsys.readouterr().err  # which gives the maps no other names
    assert no_files(run.out)


def test_one_file_under_two_names_is_one_picture(run):
    path = run.picture('in/a.png')
    assert len(make_plan([path, run.root / 'in', run.root / 'in' / '..' / 'in' / 'a.png'], run.out).jobs) == 1


def test_what_a_format_cannot_hold_is_refused(run, capsys, monkeypatch):
    Image.fromarray(noise(4, 4, 4)).save(run.root / 'a.png')
    assert run(run.root / 'a.png', '--format', 'jpg') == 2
    assert 'has transparency, which jpg cannot hold' in capsys.readouterr().err
    Image.fromarray(noise(1, 8200, 3)).save(run.root / 'long.webp', lossless=True)
    run.nearest()
    assert run(run.root / 'long.webp', '--format', 'same') == 1
    assert 'more than the 16383 a side' in capsys.readouterr().err
    Image.fromarray(noise(1, 32751, 3)).save(run.root / 'longer.png')
    assert run(run.root / 'longer.png', '--format', 'jpg') == 1
    assert 'would become 65502x2 pixels, more than the 65500 a side' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_folder_that_is_a_file_is_refused(run, capsys):
    path = run.picture()
    assert run(path, out=path / 'sr') == 2
    assert 'is a file, expected a folder' in capsys.readouterr().err
    assert run(path, '--suffix', '../x') == 2
    assert 'expected a part of a file name' in capsys.readouterr().err


@pytest.mark.parametrize(('change', 'problem'), [
    (lambda run: (run.models / 'net_g_latest.pth').unlink(), 'net_g_latest.pth: no such file'),
    (lambda run: (run.models.parent / 'x.yml').unlink(), 'give -opt, a file with its network_g, which udl convert'),
    (lambda run: run.options({'type': 'EDSR', **SMALL, 'num_feat': 16}), 'made by a network with other settings'),
    (lambda run: run.options({'type': 'NoSuchNet'}), 'NoSuchNet'),
    (lambda run: (run.models / 'net_g_latest.pth').write_bytes(b'no checkpoint'), 'cannot be read'),
    (lambda run: (run.models.parent / 'x.yml').write_text('network_g: !!python/object/apply:os.getcwd []'), 'tag'),
])
def test_networks_that_do_not_fit_are_refused(run, capsys, change, problem):
    path = run.picture()
    change(run)
    assert run(path) == 2
    assert problem in capsys.readouterr().err
    assert no_files(run.out)


def test_an_uncertainty_that_does_not_fit_is_refused(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    assert run(path, '--uncertainty', str(path)) == 2
    assert f'{path}: is a picture; expected a checkpoint' in capsys.readouterr().err
    (onnx := run.picture().with_name('net.onnx')).write_bytes(b'ONNX')
    assert run(path, '--uncertainty', str(onnx)) == 2
    assert f'{onnx}: it is an ONNX file, which is written and never read; give the .pth' in capsys.readouterr().err
    run.options({'type': 'EDSR', **SMALL})
    assert run(path, *options) == 2
    assert 'have no network_u' in capsys.readouterr().err
    run.add_uncertainty()
    run.nearest()
    (run.root / 'u').mkdir()
    four = {'type': 'EDSR', **SMALL, 'upscale': 4}
    net_u = UncertaintyNet(four, {'type': 'UDLHead', 'num_feat': 8})
    other = run.root / 'experiments' / 'u' / 'models' / 'net_u_latest.pth'
    other.parent.mkdir(parents=True)
    torch.save({'params': net_u.state_dict()}, other)
    (other.parents[1] / 'u.yml').write_text(yaml.safe_dump({'network_g': four, 'network_u': {
        'type': 'UncertaintyNet', 'head': {'type': 'UDLHead', 'num_feat': 8}}}))
    assert run(path, '--uncertainty', other) == 2
    assert 'it belongs to another network' in capsys.readouterr().err
    assert no_files(run.out)


def test_a_network_that_makes_no_larger_picture_is_refused():
    with pytest.raises(InferenceError, match='cannot restore pictures'):
        Restorer(nn.Conv2d(3, 1, 3)).traits  # noqa: B018
    with pytest.raises(InferenceError, match='cannot restore pictures'):
        Restorer(nn.Conv2d(4, 4, 3, padding=1)).traits  # noqa: B018
