"""Packaging."""
from pathlib import Path

from setuptools import find_packages, setup

# The versions that were tried, as lower bounds: older ones lack networks, or do not know newer torch.
SPANDREL = ['spandrel>=0.4.2']
EXPORT = ['onnx>=1.23', 'onnxruntime>=1.31', 'onnxscript>=0.7', 'safetensors>=0.8']

setup(
    name='udl_basicsr',
    version='0.1.0',
    description='Uncertainty-driven losses for single-image super-resolution, as a BasicSR extension',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    author='The udl_basicsr authors',
    project_urls={
        'BasicSR': 'https://github.com/XPixelGroup/BasicSR',
        'UDL, the paper': 'https://papers.nips.cc/paper_files/paper/2021/hash/'
                          '88a199611ac2b85bd3f76e8ee7e55650-Abstract.html',
    },
    keywords='super-resolution, uncertainty, loss function, image restoration, PyTorch, BasicSR',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13, 14)),
        'Topic :: Scientific/Engineering :: Image Processing',
        'Typing :: Typed',
    ],
    packages=[*find_packages(include=['udl_basicsr', 'udl_basicsr.*']), 'udl_basicsr.option_files'],
    # The option files lie at the top of the repository, where users of BasicSR look for them.
    package_dir={'udl_basicsr.option_files': 'options'},
    package_data={'udl_basicsr': ['py.typed', 'weights/*'], 'udl_basicsr.experiments': ['*.json'],
                  'udl_basicsr.reports': ['templates/*'],
                  'udl_basicsr.option_files': ['*.yml', '*/*.yml', '*/*/*.yml']},
    py_modules=['udl_command', 'udl_install_basicsr'],
    entry_points={'console_scripts': ['udl=udl_command:main']},
    python_requires='>=3.11',
    # BasicSR is not here: pip cannot build it on Python 3.13, and installs torch twice elsewhere. udl_install_basicsr
    # installs it.
    install_requires=[
        'jinja2>=3.1',
        'torch>=2.4',
        'torchvision>=0.19',
        'lpips>=0.1.4',
        'matplotlib>=3.8',
        'numpy>=1.26',
        'opencv-python>=4.9',
        'pillow>=10.1',  # which says that it has turned a TIFF
        'pyyaml>=6.0',
        'safetensors>=0.8',
        'scipy>=1.11',
        'setuptools',  # BasicSR imports distutils, which Python 3.12 lacks and setuptools provides
        'tqdm>=4.66',
    ],
    extras_require={
        'spandrel': SPANDREL,
        'export': EXPORT,
        'demo': ['scikit-image>=0.22'],
        'test': ['basedpyright==1.40.2', 'hypothesis>=6.100', 'playwright>=1.65', 'pytest>=8.0',
                 'pytest-xdist>=3.6', 'ruff>=0.6', 'scikit-image>=0.22', *SPANDREL, *EXPORT],
        'docs': ['mkdocs>=1.6', 'mkdocs-material>=9.5', 'mkdocstrings[python]>=0.26',
                 'ruff>=0.6'],
    },
)
