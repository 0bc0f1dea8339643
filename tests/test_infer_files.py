"""udl infer: folders, what is made again, names and formats."""
# ruff: noqa: F811 - fixtures that come from infer_runs
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import photograph
from forked import forked, udl
from infer_runs import SMALL, made, no_files, noise, pixels, png, run, twice  # noqa: F401
from PIL import Image

from udl_basicsr.cli import infer as script
from udl_basicsr.deploy.export import export_safetensors
from udl_basicsr.deploy.infer_record import NAME
from udl_basicsr.deploy.pictures import read_header
from udl_basicsr.utils.files import write_text

# ------------------------------------------------------------------------------------------------------ files, resuming

def test_folders_are_kept_and_the_results_in_them_passed_over(run, capsys):
    for number, name in enumerate(('top.png', 'deep/er/a.png', 'deep/a.png', '.hidden.png')):
        run.picture(f'in/{name}', 3, 4, number)
    (run.root / 'in' / 'notes.txt').write_text('no picture')
    (run.root / 'in' / 'link').symlink_to(run.picture('elsewhere/b.png', 3, 4, 5).parent)
    (run.root / 'in' / 'circle').symlink_to(run.root / 'in')
    for _ in range(2):
        assert run(run.root / 'in', out=run.root / 'in' / 'sr') == 0
    results = run.root / 'in' / 'sr'
    found = {str(p.relative_to(results)) for p in results.rglob('*') if p.is_file() and p.name != NAME}
    assert found == {'top.png', 'deep/er/a.png', 'deep/a.png', 'link/b.png'}
    out = capsys.readouterr().out
    assert '1 .txt' in out
    assert '4 done before, skipped' in out


def test_only_what_is_missing_is_made(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    assert run(path) == 0
    (run.out / 'a.png').write_bytes(b'kept')
    assert run(path, *options) == 0
    assert (run.out / 'a.png').read_bytes() == b'kept'
    assert (run.out / 'a_log_scale.png').exists()
    assert 'skipped' not in capsys.readouterr().out
    assert run(path, *options) == 0
    assert '1 done before, skipped' in capsys.readouterr().out
    assert run(path, *options, '--overwrite') == 0
    assert pixels(run.out / 'a.png').shape == (24, 28, 3)


def refused(run, capsys, *arguments) -> str:
    """Status 2, and not a byte of the folder has changed; what was said."""
    before = {p: p.read_bytes() for p in run.out.rglob('*') if p.is_file()}
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert 'Give another --out or --suffix, or make all of them again with --overwrite' in said
    assert {p: p.read_bytes() for p in run.out.rglob('*') if p.is_file()} == before
    return said


def test_results_of_other_weights_or_options_are_not_mixed(run, capsys):
    path, other = run.picture(), run.picture('b.png', seed=1)
    assert run(path) == 0
    assert f'{run.out}: holds pictures that were made otherwise' in (
        said := refused(run, capsys, path, '--param-key', 'params'))
    assert re.search(r'--weights: \S+net_g_latest.pth \(\w{8}\) there, \S+net_g_latest.pth \(\w{8}\) now', said)
    assert '--self_ensemble: no there, yes now' in refused(run, capsys, other, '--self-ensemble')
    assert '--amp: no there, bf16 now' in refused(run, capsys, path, '--amp', 'bf16')
    run.options({'type': 'EDSR', **SMALL, 'res_scale': 0.5})
    assert 'network_g.res_scale: 1 there, 0.5 now' in refused(run, capsys, path)
    run.options({'type': 'EDSR', **SMALL})
    assert run(path, '--tile', '8', '--overlap', '4') == 0  # the same pixels, all but

    assert run(path, '--suffix', 'raw', '--param-key', 'params') == 0  # beside one another, under other names
    assert run(path) == run(path, '--suffix', 'raw', '--param-key', 'params') == 0
    assert run(path, '--param-key', 'params', '--overwrite') == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.png'), pixels(run.out / 'a_raw.png'))
    assert run(path, '--param-key', 'params') == 0
    refused(run, capsys, path)
    for file in run.out.glob('*.png'):
        file.unlink()
    assert run(path) == 0  # nothing is left to be mixed with


def test_maps_of_other_weights_are_not_mixed(run, capsys):
    path, options = run.picture(), run.add_uncertainty()
    assert run(path, *options) == 0
    assert run(path) == 0  # leaves the map, and what made it
    run.add_uncertainty()
    said = refused(run, capsys, path, *options)
    assert '--uncertainty: ' in said
    assert '--weights' not in said


@pytest.mark.parametrize('record', [None, '', '[]', '{"": [3]}', '{"": 3}', '{"": [{"weights": []}]}',
                                    '{"": [{"weights": "w", "amp": [1]}]}'])
def test_pictures_that_nothing_is_known_of_are_not_taken_for_results(run, capsys, record):
    path = run.picture()
    assert run(path) == 0
    (run.out / NAME).unlink()
    if record is not None:
        (run.out / NAME).write_text(record)
    said = refused(run, capsys, path)
    assert ('nothing says which weights made them' in said) == (record is None or 'weights' not in record)
    assert run(path, '--overwrite') == run(path) == 0


def test_an_overwriting_that_has_not_come_to_its_end_is_a_mix(run, capsys):
    paths = [run.picture(f'in/{name}.png', seed=n) for n, name in enumerate('ab')]
    assert run(*paths) == 0
    whole = paths[1].read_bytes()
    (run.root / 'in' / 'b.png').write_bytes(whole[:len(whole) // 2])
    other = ['--param-key', 'params']
    assert run(*paths, *other, '--overwrite') == 1
    refused(run, capsys, *paths, *other)
    refused(run, capsys, *paths)
    paths[1].write_bytes(whole)
    assert run(*paths, *other, '--overwrite') == run(*paths, *other) == 0
    assert run(paths[0], '--overwrite') == 0  # of the results in the folder one alone
    refused(run, capsys, *paths)
    assert run(*paths, '--overwrite') == run(*paths) == 0


def test_a_name_that_is_no_utf_8(run):
    path = run.picture()
    path = path.rename(path.with_name(os.fsdecode(b'caf\xe9.png')))
    assert run(path) == 0
    assert (run.out / path.name).is_file()
    file = write_text(run.root / 'names.json', json.dumps(path.name, ensure_ascii=False))
    assert json.loads(file.read_text(encoding='utf-8')) == path.name


@pytest.mark.parametrize(('name', 'file_format', 'expected'), [
    ('a.JPG', 'same', 'a_x2.jpg'), ('a.webp', 'same', 'a_x2.webp'), ('a.tif', 'same', 'a_x2.tif'),
    ('a.bmp', 'same', 'a_x2.bmp'), ('a.png', 'jpg', 'a_x2.jpg'), ('a.jpg', 'png', 'a_x2.png')])
def test_formats_and_names(run, name, file_format, expected):
    Image.fromarray(photograph(0, 10, 12)).save(run.root / name)
    run.nearest()
    assert run(run.root / name, '--format', file_format, '--suffix', 'x2') == 0
    assert made(run.out) == [expected]
    assert read_header(run.out / expected).suffix == Path(expected).suffix
    difference = twice(np.asarray(Image.open(run.root / name))).astype(int) - np.asarray(Image.open(run.out / expected))
    assert np.abs(difference).max() <= (0 if not expected.endswith('jpg') else 24)


def test_deep_tiff_and_deep_to_jpeg(run):
    image = noise(8, 9, 3, bits=16)
    cv2.imwrite(str(run.root / 'a.tif'), image[..., ::-1])
    run.nearest()
    assert run(run.root / 'a.tif', '--format', 'same') == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.tif'), twice(image))
    assert run(run.root / 'a.tif', '--format', 'jpg') == 0
    assert pixels(run.out / 'a.jpg').dtype == np.uint8


def test_safetensors_hold_their_options(run):
    pytest.importorskip('safetensors')
    path = run.picture()
    export_safetensors(run.network.state_dict(), run.root / 'g.safetensors', {'network_g': {'type': 'EDSR', **SMALL}})
    assert run(path) == 0
    assert script.main([str(path), '--out', str(run.root / 'st'), '--weights', str(run.root / 'g.safetensors')]) == 0
    np.testing.assert_array_equal(pixels(run.out / 'a.png'), pixels(run.root / 'st' / 'a.png'))


# --------------------------------------------------------------------------------------------------- failures, refusals

@pytest.mark.parametrize('arguments', [['--tile', '0'], ['--overlap', '-1'], ['--amp', 'fp8'], ['--format', 'gif']])
def test_wrong_options_exit_with_2(run, arguments):
    with pytest.raises(SystemExit) as exit_status:
        run(run.picture(), *arguments)
    assert exit_status.value.code == 2
    assert no_files(run.out)


def test_the_command_line(run):
    """A process of its own, from another folder: status 1 for a broken picture, and the other one is made."""
    run.picture('in/a.png')
    (run.root / 'in' / 'b.png').write_bytes(png(noise(20, 20, 3))[:300])
    result = forked(udl, 'infer', 'in', '--out', 'sr', '--weights', 'experiments/x/models/net_g_latest.pth', '-opt',
                    'experiments/x/x.yml', cwd=run.root)
    assert result.returncode == 1, result.stderr
    assert made(run.root / 'sr') == ['a.png']
    assert '1/2 in/a.png -> sr/a.png' in result.stdout
    assert 'b.png: cannot be read' in result.stderr
