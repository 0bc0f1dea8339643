"""Whether training has seen images that are to be kept apart."""
# ruff: noqa: F811 - a fixture that comes from calibration_runs
import json
from pathlib import Path

import cv2
import pytest
import yaml
from calibration_runs import run  # noqa: F401
from conftest import photograph

from udl_basicsr.deploy.calibration import read_calibration
from udl_basicsr.deploy.kept_apart import KeptApartError, check_apart, find_pairs


def test_images_that_training_has_seen(run, capsys):
    """By their pixels, whatever the file; by the file that crops were made from; and not by chance."""
    train = run.root / 'data' / 'T' / 'GTmod2'
    train.mkdir(parents=True)
    cv2.imwrite(str(train / 'other.png'), photograph(50, 24, 28))
    run.trained_on(train)
    assert run.calibrate() == 0
    assert read_calibration(run.file).training == {'compared': [str(train)], 'unknown': []}
    cv2.imwrite(str(train / 'copy.bmp'), cv2.imread(str(run.kept / 'GT' / '3.png')))
    assert run.calibrate('--overwrite') == 2
    assert 'kept/GT/3' in (err := capsys.readouterr().err) or 'kept/3' in err or '/3:' in err
    assert 'give images that were kept apart' in err
    (run.root / 'meta.txt').write_text('other.png (24,28,3)\n')
    run.trained_on(train, meta_info_file=str(run.root / 'meta.txt'))
    assert run.calibrate('--overwrite') == 0
    # crops: nothing of the pixels is the same
    (train / 'copy.bmp').unlink()
    run.trained_on(train)
    cv2.imwrite(str(train / 'big_s001.png'), photograph(51, 24, 24))
    for folder, name in ((train.parent, 'big'), (run.kept, '2')):
        (folder / 'prepare.json').write_text(json.dumps({'images': {f'{name}.png': {'sha256': 'same'}}}))
    weights = run.models / 'net_g_latest.pth'
    with pytest.raises(KeptApartError, match='1 of the images are in'):
        check_apart(find_pairs([run.kept / 'GT'], [run.kept / 'LQ']), [weights])
    run.trained_on(run.root / 'gone')
    assert 'is not here as a folder' in check_apart([], [weights])['unknown'][0]


def test_a_training_list_may_name_folders(run):
    """As BasicSR takes it: names are joined to dataroot_gt, and two that differ in their ending are two images."""
    train, meta = run.root / 'data' / 'T', run.root / 'meta.txt'
    for number, name in enumerate(('one/0.png', 'one/1.png', 'two/1.png', 'two/1.bmp')):
        (train / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(train / name), photograph(70 + number, 24, 28))
    run.trained_on(train, meta_info_file=str(meta))
    pairs, weights = find_pairs([run.kept / 'GT'], [run.kept / 'LQ']), [run.models / 'net_g_latest.pth']
    meta.write_text('one/0.png (24,28,3)\ntwo/1.png (24,28,3)\ntwo/1.bmp (24,28,3)\n')
    assert check_apart(pairs, weights) == {'compared': [str(train)], 'unknown': []}
    for name, seen in (('one/0.png', True), ('one/1.png', False), ('two/1.png', True), ('two/1.bmp', True)):
        cv2.imwrite(str(run.kept / 'GT' / '3.png'), cv2.imread(str(train / name)))
        if seen:
            with pytest.raises(KeptApartError, match='1 of the images are in'):
                check_apart(pairs, weights)
        else:
            assert check_apart(pairs, weights)['compared'] == [str(train)]
    # one of the paths is absolute, and the other begins where the run was started
    run.trained_on(train, meta_info_file='meta.txt')
    meta.write_text('one/1.png (24,28,3)\n')
    assert Path.cwd() != run.root
    assert check_apart(pairs, weights)['compared'] == [str(train)]
    meta.unlink()  # any of them may have been trained on
    with pytest.raises(KeptApartError, match='1 of the images are in'):
        check_apart(pairs, weights)
    meta.write_text('three/0.png (24,28,3)\n')
    assert 'holds none of its images any more' in check_apart(pairs, weights)['unknown'][0]


def test_crops_of_one_image_are_that_image(run):
    """Kept apart or trained on, and also where the image itself is called like a crop."""
    train = run.root / 'data' / 'T' / 'GTmod2'
    train.mkdir(parents=True)
    cv2.imwrite(str(train / 'big_s001.png'), photograph(80, 24, 24))
    run.trained_on(train)
    weights = [run.models / 'net_g_latest.pth']
    for trained, kept in (('big', 'big'), ('big_s001', 'big'), ('big_s001', 'big_s009')):
        for folder, name in ((train.parent, trained), (run.kept, kept)):
            (folder / 'prepare.json').write_text(json.dumps({'images': {f'{name}.png': {'sha256': 'same'}}}))
        for kind in ('GT', 'LQ'):
            first = next(p for p in (run.kept / kind).iterdir() if p.stem in ('2', 'big_s009'))
            first.rename(run.kept / kind / 'big_s009.png')
        with pytest.raises(KeptApartError, match='1 of the images are in'):
            check_apart(find_pairs([run.kept / 'GT'], [run.kept / 'LQ']), weights)


def test_images_that_an_earlier_training_has_seen(run):
    """A head post hoc on a network that was refined: what each of them began with is asked, whatever the circle."""
    folders = {name: run.root / 'data' / name for name in ('first', 'second', 'third')}
    for number, folder in enumerate(folders.values()):
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / 'a.png'), photograph(60 + number, 24, 28))

    def trained(name, on, **path) -> str:
        models = run.root / 'experiments' / name / 'models'
        models.mkdir(parents=True, exist_ok=True)
        (models.parent / f'{name}.yml').write_text(yaml.safe_dump(
            {'datasets': {'train': {'dataroot_gt': str(on)}} if on else {}, 'path': path}))
        (models / 'net_g_latest.pth').touch()
        return f'experiments/{name}/models/net_g_latest.pth'

    pairs = find_pairs([run.kept / 'GT'], [run.kept / 'LQ'])
    head = trained('head', folders['third'], pretrain_network_g=trained('refined', folders['second'], **{
        'pretrain_network_g': 'experiments/origin/models/net_g_latest.pth', 'pretrain_network_u': None}))
    trained('origin', folders['first'], pretrain_network_g=head)  # a circle
    found = check_apart(pairs, [run.root / head])
    assert found == {'compared': [str(folders[name]) for name in ('third', 'second', 'first')], 'unknown': []}

    cv2.imwrite(str(folders['first'] / 'copy.bmp'), cv2.imread(str(run.kept / 'GT' / '3.png')))
    with pytest.raises(KeptApartError, match=r'data/first, on which .*experiments/origin/models/net_g_latest\.pth was'):
        check_apart(pairs, [run.root / head])
    trained('origin', None)
    trained('refined', folders['second'], pretrain_network_g='experiments/origin/models/net_g_latest.pth',
            pretrain_network_u='weights/of_somebody.pth')
    unknown = check_apart(pairs, [run.root / head])['unknown']
    assert [line.partition(':')[0] for line in unknown] == [
        str(run.root / 'experiments/origin/models/net_g_latest.pth'), str(run.root / 'weights/of_somebody.pth')]
    assert all('no option file beside it says what it was trained on' in line for line in unknown)


def test_pairs_that_are_none(run, monkeypatch):
    def problem(gt=run.kept / 'GT', lq=run.kept / 'LQ'):
        with pytest.raises(KeptApartError) as error:
            find_pairs([gt], [lq])
        return str(error.value)
    assert 'no such folder' in problem(gt=run.root / 'no')
    (run.root / 'empty').mkdir()
    assert 'holds no image' in problem(lq=run.root / 'empty')
    (run.kept / 'LQ' / '4.png').rename(run.kept / 'LQ' / '4x2.png')
    assert len(find_pairs([run.kept / 'GT'], [run.kept / 'LQ'])) == 6
    (run.kept / 'LQ' / '4x4.png').write_bytes((run.kept / 'LQ' / '4x2.png').read_bytes())
    assert 'has no partner of 4x2.png' in problem()  # the last of the two would have been taken
    (run.kept / 'LQ' / '4x4.png').unlink()
    monkeypatch.chdir(run.kept)
    assert find_pairs(['GT'], ['LQ'])[0].name == f'{run.kept.name}/0'  # a folder that is named from within its own
    with pytest.raises(KeptApartError, match=r'is the same image as .*, and would count twice'):
        find_pairs([run.kept / 'GT'] * 2, [run.kept / 'LQ'] * 2)
    other = run.kept / 'GT' / '4.bmp'
    cv2.imwrite(str(other), photograph(40, 36, 28))
    assert '4.bmp and 4.png: one would take the place of the other' in problem()
    other.unlink()
    (run.kept / 'LQ' / '5.png').unlink()
    assert f"{run.kept / 'LQ'}: has no partner of 5 in" in problem()
    (run.kept / 'LQ' / '6.png').write_bytes((run.kept / 'LQ' / '4x2.png').read_bytes())
    (run.kept / 'GT' / '5.png').rename(run.root / '5.png')
    assert f"{run.kept / 'GT'}: has no partner of 6.png in" in problem()
    (run.kept / 'LQ' / '6.png').unlink()
    (run.kept / 'GT' / '5.png').write_bytes((run.kept / 'GT' / '4.png').read_bytes())
    cv2.imwrite(str(run.kept / 'LQ' / '5.png'), photograph(4, 18, 14))
    assert 'is the same image as' in problem()
