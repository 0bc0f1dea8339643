"""Packaging. BasicSR's own setup.py imports torch, so install torch and torchvision first (see README.md)."""
from pathlib import Path

from setuptools import find_packages, setup

# The versions that were tried, as lower bounds: older ones lack networks, or do not know newer torch. Python 3.10 has
# older releases of torch and onnxruntime only.
SPANDREL = ['spandrel>=0.4.2']
EXPORT = ['onnx>=1.23', 'onnxruntime>=1.31; python_version >= "3.11"', 'onnxruntime; python_version < "3.11"',
          'onnxscript>=0.7', 'safetensors>=0.8']

setup(
    name='udl_basicsr',
    version='0.1.0',
    description='Uncertainty-driven losses for single-image super-resolution, as a BasicSR extension',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[*find_packages(include=['udl_basicsr', 'udl_basicsr.*']), 'udl_basicsr.option_files'],
    # The option files lie at the top of the repository, where users of BasicSR look for them.
    package_dir={'udl_basicsr.option_files': 'options'},
    package_data={'udl_basicsr.experiments': ['*.json'], 'udl_basicsr.reports': ['templates/*'],
                  'udl_basicsr.option_files': ['*.yml', '*/*.yml', '*/*/*.yml'],
                  'udl_basicsr': ['weights/*']},
    # BasicSR 1.4.2's setup.py fails on 3.13 (`locals()` in a function no longer sees what exec defined).
    python_requires='>=3.10,<3.13',
    install_requires=[
        'basicsr>=1.4.2',
        'torch>=2.4',
        'torchvision>=0.19',
        'lpips>=0.1.4',
        'matplotlib>=3.8',
        'numpy>=1.26',
        'opencv-python>=4.9',
        'pillow>=10.0',
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
        'test': ['hypothesis>=6.100', 'pytest>=8.0', 'ruff>=0.6', 'scikit-image>=0.22', 'scipy>=1.11',
                 *SPANDREL, *EXPORT],
    },
    py_modules=['udl_command'],
    entry_points={'console_scripts': ['udl=udl_command:main']},
)
