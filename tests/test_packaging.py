"""What users install: the wheel and the sdist are whole, and BasicSR's installer mends what it must."""
import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import udl_install_basicsr
from udl_basicsr import __version__

ROOT = Path(__file__).resolve().parents[1]
TOP = {'setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md',
       'LICENSE', 'udl_command.py', 'udl_install_basicsr.py'}
FOLDERS = 'udl_basicsr', 'options', 'examples', 'scripts', 'tests', 'typings'


def files_of(*folders):
    """The files of the repository in these folders, without what Python and editors leave there."""
    return {path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts and not path.name.startswith('.')}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The names in the sdist, and the wheel that was built from the sdist alone."""
    folder = tmp_path_factory.mktemp('built')
    copy = folder / 'copy'
    for name in TOP | files_of(*FOLDERS) | {'docs/OPTIONS.md'}:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())

    def build(what, source):
        code = f'from setuptools import build_meta; build_meta.build_{what}({str(folder)!r})'
        subprocess.run([sys.executable, '-c', code], cwd=source, check=True, capture_output=True)

    build('sdist', copy)
    with tarfile.open(next(folder.glob('*.tar.gz'))) as sdist:
        safely = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}  # from 3.11.4
        sdist.extractall(folder / 'unpacked', **safely)
        names = {name.partition('/')[2] for name in sdist.getnames()}
    build('wheel', next((folder / 'unpacked').iterdir()))
    with zipfile.ZipFile(next(folder.glob('*.whl'))) as wheel:
        yield names, wheel


def test_the_sdist_is_the_repository(built):
    names, _ = built
    assert (TOP | files_of(*FOLDERS) | {'docs/OPTIONS.md'}) - names == set()


def test_the_wheel_is_the_whole_product(built):
    _, wheel = built
    shipped = {name for name in wheel.namelist() if '.dist-info/' not in name}
    expected = files_of('udl_basicsr') | {'udl_command.py', 'udl_install_basicsr.py'} | {
        name.replace('options/', 'udl_basicsr/option_files/', 1) for name in files_of('options')}
    assert shipped == expected


def test_what_the_wheel_says_of_itself(built):
    _, wheel = built
    info = next(name for name in wheel.namelist() if name.endswith('/METADATA')).rpartition('/')[0]
    says = message_from_string(wheel.read(f'{info}/METADATA').decode())
    assert says['Name'] == 'udl_basicsr'
    assert says['Version'] == __version__
    assert 'Apache-2.0' in (says['License-Expression'], says['License'])
    assert says['Author']
    assert says.get_all('Project-URL')
    assert says['Requires-Python'] == '>=3.11'
    assert {f'Programming Language :: Python :: 3.{n}' for n in (11, 12, 13, 14)} <= set(says.get_all('Classifier'))
    assert not any(need.lower().startswith('basicsr') for need in says.get_all('Requires-Dist'))  # pip cannot build it
    assert 'udl = udl_command:main' in wheel.read(f'{info}/entry_points.txt').decode()
    assert f'{info}/licenses/LICENSE' in wheel.namelist()


# A package with the two faults of BasicSR's setup.py: locals() never has the version, as on Python 3.13; and what
# setup_requires asks for cannot be had.
SETUP = """
from setuptools import setup
def locals():
    return {}
def version():
    exec(compile("__version__ = '1.4.2'", 'version.py', 'exec'))
    return locals()['__version__']
setup(name='basicsr', version=version(), py_modules=['basicsr'],
      setup_requires=['cython', 'numpy', 'torch'])
"""


@pytest.mark.parametrize('hash_fits', [True, False])
def test_basicsr_is_mended_built_and_installed(tmp_path, hash_fits):
    """In an environment of its own, from an index that is a folder, without torch and without any network."""
    index, site = tmp_path / 'index', tmp_path / 'site'
    index.mkdir()
    site.mkdir()
    with tarfile.open(index / 'basicsr-1.4.2.tar.gz', 'w:gz') as sdist:
        for name, text in {'setup.py': SETUP, 'VERSION': '1.4.2\n', 'basicsr.py': 'here = True\n',
                           'PKG-INFO': 'Metadata-Version: 1.0\nName: basicsr\nVersion: 1.4.2\n'}.items():
            entry = tarfile.TarInfo(f'basicsr-1.4.2/{name}')
            entry.size = len(text)
            sdist.addfile(entry, io.BytesIO(text.encode()))
    digest = hashlib.sha256((index / 'basicsr-1.4.2.tar.gz').read_bytes()).hexdigest()

    environment = tmp_path / 'env'
    venv.create(environment, with_pip=False)
    python = next(p for p in (environment / 'bin/python', environment / 'Scripts/python.exe') if p.exists())
    packages = next(environment.rglob('site-packages'))
    for name in ('pip', 'setuptools'):  # of this environment, and nothing else of it
        for entry in {file.parts[0] for file in importlib.metadata.files(name)} - {'..', '__pycache__'}:
            (site / entry).symlink_to(importlib.metadata.distribution(name).locate_file(entry))
    (packages / 'site.pth').write_text(str(site))
    script = tmp_path / 'udl_install_basicsr.py'
    text = Path(udl_install_basicsr.__file__).read_text(encoding='utf-8')
    assert udl_install_basicsr.SHA256 in text
    script.write_text(text.replace(udl_install_basicsr.SHA256, digest if hash_fits else udl_install_basicsr.SHA256),
                      encoding='utf-8')
    done = subprocess.run(
        [python, script], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': str(index), 'PIP_CONFIG_FILE': os.devnull, 'PIP_NO_CACHE_DIR': '1',
             'PATH': str(python.parent)})
    if hash_fits:
        assert done.returncode == 0, done.stdout + done.stderr
        code = 'import basicsr, importlib.metadata; print(basicsr.here, importlib.metadata.version("basicsr"))'
        told = subprocess.run([python, '-c', code], capture_output=True, text=True, check=True, cwd='/')
        assert told.stdout.split() == ['True', '1.4.2']
    else:
        assert done.returncode != 0
        assert not (packages / 'basicsr.py').exists()
        assert 'HASH' in done.stderr
        assert 'BasicSR could not be installed' in done.stderr


def test_without_basicsr_the_installer_is_named(tmp_path):
    """In Python and by the command, which does not trace back."""
    hide = ("import sys, importlib.util as u; find = u.find_spec; "
            "u.find_spec = lambda name, *a: None if name == 'basicsr' else find(name, *a); "
            "sys.modules['basicsr'] = None; ")
    library = subprocess.run([sys.executable, '-c', hide + 'import udl_basicsr'], capture_output=True, text=True)
    assert 'ModuleNotFoundError: BasicSR is not installed' in library.stderr
    assert 'python -m udl_install_basicsr' in library.stderr
    argv = "sys.argv = ['udl', 'train', '-opt', 'x.yml']; from udl_command import main; main()"
    command = subprocess.run([sys.executable, '-c', hide + argv], capture_output=True, text=True)
    assert command.stderr == f'error: {library.stderr.strip().splitlines()[-1].partition(": ")[2]}\n'
    assert command.returncode == 1
