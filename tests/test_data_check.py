"""The check of the data before anything begins: what is missing, broken or of the wrong size, all at once."""
# ruff: noqa: F811 - fixtures that come from option_cases
import io
import os
import shutil
import sys
from os import path as osp
from pathlib import Path

import cv2
import numpy as np
import pytest
from basicsr.data import build_dataset
from basicsr.utils.lmdb_util import LmdbMaker
from option_cases import parse, refused, train_opt  # noqa: F401
from PIL import Image
from test_image_headers import png_header

from udl_basicsr.options import data_sets, pairs

# ---------------------------------------------------------------------------------------------------------------- files

def test_missing_folders(parse, train_opt, tmp_path):
    text = refused(parse, train_opt, 'datasets:train:dataroot_gt=nowhere/gt', 'datasets:val:dataroot_lq=nowhere/lq')
    assert f'datasets.train.dataroot_gt: no such folder: {osp.abspath("nowhere/gt")}; prepare it with ' \
           'udl prepare' in text
    assert '--force_yml datasets:val=~' in text
    shutil.rmtree(tmp_path / 'lq')
    assert 'datasets.train.dataroot_lq: no such folder' in refused(parse, train_opt)
    (tmp_path / 'lq').mkdir()
    assert 'datasets.train.dataroot_lq: no partner in' in refused(parse, train_opt)
    shutil.rmtree(tmp_path / 'gt')
    (tmp_path / 'gt').mkdir()
    assert 'datasets.train: no images in' in refused(parse, train_opt)


def test_a_file_is_no_missing_folder(parse, train_opt, tmp_path):
    (tmp_path / 'gt.png').write_bytes(b'')
    text = refused(parse, train_opt, f'datasets:train:dataroot_gt={tmp_path}/gt.png')
    assert f'datasets.train.dataroot_gt: is no folder: {tmp_path}/gt.png' in text


def test_an_lmdb_is_not_read_as_a_folder_of_images(parse, train_opt, tmp_path):
    (tmp_path / 'gt').rename(tmp_path / 'gt.lmdb')
    text = refused(parse, train_opt, f'datasets:train:dataroot_gt={tmp_path}/gt.lmdb', 'datasets:val=~')
    assert f'datasets.train.io_backend.type: disk, but dataroot_gt is an LMDB: {tmp_path}/gt.lmdb; use lmdb' in text


def test_the_folder_beside_root_path_is_hinted_at(parse, train_opt):
    text = refused(parse, train_opt, 'datasets:train:dataroot_gt=gt')
    assert 'run from there' in text


def test_the_folder_further_up_is_hinted_at(parse, train_opt, tmp_path, monkeypatch):
    (tmp_path / 'project' / 'sub' / 'folder').mkdir(parents=True)
    (tmp_path / 'project' / 'pictures').mkdir()
    monkeypatch.chdir(tmp_path / 'project' / 'sub' / 'folder')
    text = refused(parse, train_opt, 'datasets:train:dataroot_gt=pictures')
    assert f'no such folder: {tmp_path}/project/sub/folder/pictures (it is in {tmp_path}/project: run from' in text


def test_pairs(parse, train_opt, tmp_path):
    (tmp_path / 'lq' / '2.png').rename(tmp_path / 'lq' / '2x.png')
    text = refused(parse, train_opt)
    assert 'datasets.train.dataroot_lq: no partner in' in text
    assert ': 2.png; names must be equal' in text
    for i in (0, 1, 3):
        (tmp_path / 'lq' / f'{i}.png').rename(tmp_path / 'lq' / f'{i}x.png')
    parse(train_opt, ['datasets:val=~', "datasets:train:filename_tmpl='{}x'"])
    Image.new('RGB', (32, 24)).save(tmp_path / 'lq' / '9x.png')
    assert 'images without a partner' in refused(parse, train_opt, "datasets:train:filename_tmpl='{}x'")


def test_links_to_images_that_are_not_there(parse, train_opt, tmp_path):
    """BasicSR passes over them: half of a data set that lay on another disk would be trained on."""
    for kind in ('gt', 'lq'):
        (tmp_path / kind / '4.png').symlink_to(tmp_path / kind / '3.png')
    parse(train_opt, ['datasets:val=~'])
    for kind in ('gt', 'lq'):
        (tmp_path / kind / '5.png').symlink_to(tmp_path / 'disk' / kind / '5.png')
    text = refused(parse, train_opt, 'datasets:val=~')
    for kind in ('gt', 'lq'):
        assert f'datasets.train.dataroot_{kind}: has links to images that are not there: 5.png' in text


def test_meta_info_file(parse, train_opt, tmp_path, monkeypatch):
    meta = tmp_path / 'meta.txt'
    force = f'datasets:train:meta_info_file={meta}'
    assert 'datasets.train.meta_info_file: no such file' in refused(parse, train_opt, force)
    meta.write_text('0.png (48,64,3)\n1.png (48,64,3)\n')
    parse(train_opt, [force])
    monkeypatch.setenv('HOME', str(tmp_path))  # BasicSR opens what it is given, and knows no ~
    train = parse(train_opt, ['datasets:train:meta_info_file=~/meta.txt']).opt['datasets']['train']
    assert len(build_dataset(train)) == 2
    meta.write_text('0.png (48,64,3)\n7.png (48,64,3)\n')
    assert 'names images that are not in' in refused(parse, train_opt, force)
    meta.write_text('0.png (48,64,3)\n\n')
    assert 'line 2 is empty' in refused(parse, train_opt, force)


def test_sizes(parse, train_opt, tmp_path):
    for i in range(4):
        Image.new('RGB', (31 if i else 32, 24)).save(tmp_path / 'lq' / f'{i}.png')
    text = refused(parse, train_opt)
    assert 'datasets.train: in 3 of 4 pairs, GT is not 2 times LQ, as scale: 2 says: 1.png GT 64x48, LQ 31x24' in text
    assert 'datasets.val: in 3 of 4' in text
    # validation crops GT that is larger by less than scale, training does not
    for i in range(4):
        Image.new('RGB', (65, 48)).save(tmp_path / 'gt' / f'{i}.png')
        Image.new('RGB', (32, 24)).save(tmp_path / 'lq' / f'{i}.png')
    text = refused(parse, train_opt)
    assert 'datasets.train: in 4 of 4' in text
    assert 'datasets.val' not in text
    (tmp_path / 'gt' / '3.png').write_text('no image')
    assert '1 of 8 images cannot be used' in refused(parse, train_opt)


def test_a_png_that_is_cut_off(parse, train_opt, tmp_path):
    path = sorted((tmp_path / 'gt').iterdir())[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert f'{path.name}: is cut off' in refused(parse, train_opt)


@pytest.mark.parametrize(('patience', 'rank', 'shown'), [(60, 0, False), (0, 0, True), (0, 1, False)])
def test_a_check_that_takes_long_shows_how_far_it_is(parse, train_opt, monkeypatch, patience, rank, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    monkeypatch.setattr(data_sets, '_PATIENCE', patience)
    parse(train_opt, rank=rank)
    assert ('/8 ' in terminal.getvalue()) == shown


def test_patches_and_batches(parse, train_opt):
    assert 'datasets.train.gt_size: 33 is no multiple of scale: 2; use 32' in refused(parse, train_opt,
                                                                                    'datasets:train:gt_size=33')
    text = refused(parse, train_opt, 'datasets:train:gt_size=64')
    assert '64 makes LQ patches of 32, larger than' in text
    assert 'use 48 or less' in text
    text = refused(parse, train_opt, 'datasets:train:batch_size_per_gpu=8')
    assert '4 images x dataset_enlarge_ratio 1 are 4 samples an epoch, fewer than one batch of 8; set ' \
           'dataset_enlarge_ratio to 2 or more' in text
    parse(train_opt, ['datasets:train:batch_size_per_gpu=8', 'datasets:train:dataset_enlarge_ratio=2'])
    for world, batch in (2, 4), (3, 2):  # of 4 images, the first of 3 processes has 2, and the last has 1
        text = refused(parse, train_opt, f'datasets:train:batch_size_per_gpu={batch}', world_size=world, dist=True)
        assert f'are 4 samples an epoch, fewer than one batch of {batch} for each of {world} processes; set ' \
               'dataset_enlarge_ratio to 2' in text
    parse(train_opt, ['datasets:train:batch_size_per_gpu=2'], world_size=2, dist=True)


def test_everything_that_is_wrong_is_said_at_once(parse, train_opt, tmp_path):
    gt, lq = tmp_path / 'gt', tmp_path / 'lq'
    for name in 'abcdefg':
        Image.new('RGB', (64, 48)).save(gt / f'{name}.png')
        Image.new('RGB', (32, 24)).save(lq / f'{name}.png')
    (gt / 'a.png').write_bytes(b'')
    (lq / 'b.png').write_bytes((lq / 'b.png').read_bytes()[:-4])
    Image.new('RGBA', (64, 48)).save(gt / 'c.png')
    cv2.imwrite(str(lq / 'd.png'), np.zeros((24, 32), np.uint16))
    Image.new('P', (64, 48)).save(gt / 'e.png')
    (gt / 'f.png').write_bytes(png_header(60000, 60000))
    Image.new('RGB', (32, 20)).save(lq / 'g.png')
    (lq / '0.png').unlink()
    Image.new('RGB', (32, 24)).save(lq / 'z.png')
    text = refused(parse, train_opt)
    for said in (f'{gt}/a.png: is empty (0 bytes)', f'{lq}/b.png: is cut off', f'{gt}/c.png: has the colour mode RGB',
                 f'{lq}/d.png: has 16 bits a channel', f'{gt}/e.png: has the colour mode palette',
                 f'{gt}/f.png: says it has 60000x60000 pixels', '6 of 20 images cannot be used',
                 'g.png GT 64x48, LQ 32x20', f'no partner in {lq}: 0.png; names must be equal',
                 f'images without a partner in {gt}: z.png'):
        assert said in text
    assert not (tmp_path / 'experiments').exists()


def test_names_that_differ_by_their_endings_alone(parse, train_opt, tmp_path):
    """Scores and pictures are kept by the name without its ending: one of the two would be lost."""
    for folder, size in (('gt', (64, 48)), ('lq', (32, 24))):
        Image.new('RGB', size).save(tmp_path / folder / '2.bmp')
    text = refused(parse, train_opt)
    lq = tmp_path / 'lq'
    assert 'datasets.val: scores and results are kept by names without their endings' in text
    assert f'{lq}/2.bmp and {lq}/2.png' in text
    assert 'datasets.train' not in text  # nothing is kept by the names of these
    text = refused(parse, train_opt, f'datasets:val={{name: a, type: SingleImageDataset, dataroot_lq: {lq}, '
                   'io_backend: {type: disk}}', 'val:metrics=~')
    assert 'datasets.val.type: scores and results' in text
    assert f'{lq}/2.bmp and ' in text or f'{lq}/2.png and ' in text
    parse(train_opt, ['datasets:val=~', 'val=~'])


def test_a_pair_of_which_one_is_turned(parse, train_opt, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    for folder, size in (('gt', (64, 48)), ('lq', (32, 24))):
        Image.new('RGB', size).save(tmp_path / folder / 'turned.jpg', **({'exif': exif} if folder == 'lq' else {}))
    text = refused(parse, train_opt)
    for name in ('train', 'val'):
        assert f'datasets.{name}: 1 of 10 images cannot be used: {tmp_path}/lq/turned.jpg: has the EXIF orient' in text


def test_long_lists_end_with_the_number(parse, train_opt, tmp_path):
    for number in range(30):
        (tmp_path / 'gt' / f'x{number:02d}.png').write_bytes(b'')
        (tmp_path / 'lq' / f'x{number:02d}.png').write_bytes(b'')
    text = refused(parse, train_opt, 'datasets:val=~', 'val=~')
    assert '60 of 68 images cannot be used' in text
    assert text.count('is empty') == pairs.SHOWN
    assert '(60 in all)' in text


@pytest.mark.parametrize('kind', ['png', 'jpg'])
def test_deep(parse, train_opt, tmp_path, kind, monkeypatch):
    """What a header cannot tell: pixels that are broken inside a file whose beginning and end are sound."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for folder, size in (('gt', (64, 48)), ('lq', (32, 24))):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
            Image.fromarray(noise).resize(size).save(path.with_suffix(f'.{kind}'))
    parse(train_opt, deep=True)
    path = tmp_path / 'gt' / f'2.{kind}'
    data = bytearray(path.read_bytes())
    if kind == 'png':
        data[600:610] = bytes(10)
    else:
        del data[700:]
    path.write_bytes(data)
    parse(train_opt)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    text = refused(parse, train_opt, deep=True)
    assert f'datasets.train: 1 of 8 images cannot be used: {path}: cannot be read' in text
    assert 'datasets.val: 1 of 8 images' in text
    bar = terminal.getvalue()
    assert '8/8' in bar  # the validation set has the same files, which are decoded once
    assert 'datasets.train (Tiny)' in bar
    assert 'datasets.val' not in bar


def test_metrics_fit_the_smallest_image(parse, train_opt, tmp_path):
    for folder, size in (('gt', (40, 12)), ('lq', (20, 6))):
        Image.new('RGB', size).save(tmp_path / folder / '3.png')
    train_opt['datasets']['train']['gt_size'] = 12
    parse(train_opt)
    text = refused(parse, train_opt, 'val:metrics:ssim={type: calculate_ssim, crop_border: 2}')
    assert 'val.metrics.ssim: calculate_ssim ' in text
    assert '40x12, as 3.png of datasets.val is' in text
    assert 'val.metrics.psnr: calculate_psnr ' in refused(parse, train_opt, 'val:metrics:psnr:crop_border=6')
    assert 'integer ≥ 0' in refused(parse, train_opt, 'val:metrics:psnr:crop_border=-1')


def test_other_data_sets_show_their_first_image(parse, train_opt, tmp_path):
    train = train_opt['datasets']['train']
    text = refused(parse, train_opt, f'datasets:train={{name: a, type: SingleImageDataset, dataroot_lq: {tmp_path}/lq, '
                   'io_backend: {type: disk}, batch_size_per_gpu: 1, num_worker_per_gpu: 0}')
    assert 'datasets.train.type: SingleImageDataset gives no image gt' in text
    train['io_backend'] = {'type': 'memcached', 'server_list_cfg': 'a', 'client_cfg': 'b'}
    assert 'PairedImageDataset cannot give its first image: ImportError' in refused(parse, train_opt)


# ----------------------------------------------------------------------------------------------------------------- LMDB

@pytest.fixture
def lmdbs(train_opt, tmp_path):
    """The pairs of ``train_opt`` as two databases; returns their folders."""
    train = train_opt['datasets']['train']
    train['io_backend'] = {'type': 'lmdb'}
    for kind in ('gt', 'lq'):
        maker = LmdbMaker(str(tmp_path / f'{kind}.lmdb'), map_size=2**22)
        for path in sorted((tmp_path / kind).iterdir()):
            maker.put(path.read_bytes(), path.stem, (*Image.open(path).size[::-1], 3))
        maker.close()
        train[f'dataroot_{kind}'] = str(tmp_path / f'{kind}.lmdb')
    return tmp_path / 'gt.lmdb', tmp_path / 'lq.lmdb'


def replace_value(folder: Path, key: str, value: bytes | None) -> None:
    import lmdb
    with lmdb.open(str(folder), map_size=2**22) as env, env.begin(write=True) as transaction:
        transaction.put(key.encode(), value) if value is not None else transaction.delete(key.encode())


def test_lmdb(parse, train_opt, lmdbs):
    before = {p: p.read_bytes() for folder in lmdbs for p in folder.iterdir()}
    parse(train_opt)
    parse(train_opt, deep=True)
    assert {p: p.read_bytes() for folder in lmdbs for p in folder.iterdir()} == before
    for key in ('lock', 'readonly', 'map_size'):
        assert f'datasets.train.io_backend.{key}: is not to be set' in refused(
            parse, train_opt, f'datasets:train:io_backend:{key}=0')


def test_lmdb_and_its_list(parse, train_opt, lmdbs):
    gt, lq = lmdbs
    assert 'expects a folder whose name ends in .lmdb' in refused(
        parse, train_opt, f'datasets:train:dataroot_gt={gt.with_suffix("")}')
    lines = (lq / 'meta_info.txt').read_text().splitlines()
    (lq / 'meta_info.txt').write_text('\n'.join(lines[:-1]))
    text = refused(parse, train_opt)
    assert 'does not fit the database: 3 is in no line' in text
    assert 'its images are not those of dataroot_gt: 3' in text
    (lq / 'meta_info.txt').write_text('\n'.join([*lines, 'nine.png (24,32,3) 1']))
    assert 'does not fit the database: nine is not in the database' in refused(parse, train_opt)
    (lq / 'meta_info.txt').write_text('\n'.join([*lines[:-1], '3.png (24,30,3) 1']))
    assert 'has other sizes than the database: 3.png 30x24, 32x24 in truth' in refused(parse, train_opt)
    (lq / 'meta_info.txt').unlink()
    assert 'datasets.train.dataroot_lq: cannot read' in refused(parse, train_opt)


def test_lmdb_with_broken_images(parse, train_opt, lmdbs, tmp_path):
    gt, lq = lmdbs
    Image.new('RGB', (62, 48)).save(tmp_path / 'odd.png')
    replace_value(gt, '0', (tmp_path / 'odd.png').read_bytes())
    replace_value(gt, '1', b'')
    replace_value(lq, '2', png_header(60000, 60000))
    text = refused(parse, train_opt)
    assert f'2 of 8 images cannot be used: {gt}/1: is empty (0 bytes)' in text
    assert f'{lq}/2: says it has 60000x60000' in text
    assert '0 GT 62x48, LQ 32x24' in text


def test_lmdb_deep(parse, train_opt, lmdbs, tmp_path):
    whole = (tmp_path / 'gt' / '1.png').read_bytes()
    replace_value(lmdbs[0], '1', whole[:60] + bytes(4) + whole[64:])
    parse(train_opt)
    assert f'1 of 8 images cannot be used: {lmdbs[0]}/1: cannot be read' in refused(parse, train_opt, deep=True)


def test_lmdb_that_is_cut_off(parse, train_opt, lmdbs):
    """LMDB maps its file into memory: reading behind its end would kill the process."""
    data = lmdbs[0] / 'data.mdb'
    os.truncate(data, data.stat().st_size - 4096)
    assert 'data.mdb is cut off' in refused(parse, train_opt)
    data.write_bytes(b'no database')
    assert 'cannot be opened as an LMDB' in refused(parse, train_opt)
