"""Installs BasicSR 1.4.2, on Python 3.13 and later too.

    python -m udl_install_basicsr

BasicSR is published as source only. Its setup.py does not run on Python 3.13 and asks for torch and Cython, although
what it builds is pure Python. Here pip gets it from the package index that you have configured and checks its hash; two
expressions of setup.py are mended before it runs. pip's own settings hold (``PIP_INDEX_URL``, ``PIP_QUIET``, pip.conf).
In environments without pip, uv is used. Needs nothing but the standard library.
"""
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = '1.4.2'
SHA256 = 'b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87'
MENDED = {
    # Since 3.13, locals() in a function does not have what exec() defined in another call. The file has the version.
    "locals()['__version__']": "open('VERSION').read().strip()",
    # setuptools would install these before it builds, torch with all its CUDA libraries among them.
    "setup_requires=['cython', 'numpy', 'torch']": 'setup_requires=[]',
}
# Python imports a module of this name when it starts. The programs that build BasicSR start where its setup.py is.
SITECUSTOMIZE = f"""
from pathlib import Path
setup = Path('setup.py')
text = setup.read_text(encoding='utf-8') if setup.is_file() else ''
if "name='basicsr'" in text:
    for old, new in {MENDED!r}.items():
        text = text.replace(old, new)
    setup.write_text(text, encoding='utf-8')
"""


def installer() -> list[str]:
    """The command that installs into this environment."""
    if importlib.util.find_spec('pip') is not None:
        return [sys.executable, '-m', 'pip', 'install']
    if uv := shutil.which('uv'):
        return [uv, 'pip', 'install', '--python', sys.executable]
    sys.exit(f'error: {sys.executable} has no pip, and there is no uv. Get pip with: {sys.executable} -m ensurepip')


def main() -> None:
    """Installs BasicSR and what it needs; ends with pip's status where that fails."""
    install = installer()
    try:
        found = importlib.metadata.version('basicsr')
        print(f'BasicSR {found} is installed. Looking for what it needs.', flush=True)
    except importlib.metadata.PackageNotFoundError:
        found = VERSION
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, 'sitecustomize.py').write_text(SITECUSTOMIZE, encoding='utf-8')
            wanted = Path(folder, 'requirements.txt')
            wanted.write_text(f'basicsr=={VERSION} --hash=sha256:{SHA256}\n', encoding='utf-8')
            run([*install, 'setuptools>=70.1'])  # which builds wheels by itself
            run([*install, '--no-deps', '--no-build-isolation', '--no-binary', 'basicsr', '--require-hashes',
                 '-r', str(wanted)], folder)
    run([*install, f'basicsr=={found}'])


def run(command: list[str], first_on_path: str = '') -> None:
    """Runs a command with a folder before ``PYTHONPATH``; ends this program with its status if it fails."""
    path = os.pathsep.join(filter(None, (first_on_path, os.environ.get('PYTHONPATH'))))
    status = subprocess.run(command, env={**os.environ, 'PYTHONPATH': path}).returncode
    if status:
        print(f'error: BasicSR could not be installed; this failed: {" ".join(command)}', file=sys.stderr)
        sys.exit(status)


if __name__ == '__main__':
    main()
