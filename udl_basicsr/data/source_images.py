"""The images that maps of s are computed from: each whole and once, with what tells whether it is still the same."""
import copy
import hashlib
import os
from os import path as osp
from pathlib import Path

from basicsr.utils import FileClient
from torch import Tensor
from torch.utils.data import Dataset

from .kinds import PairedDataset
from .uncertainty_maps import CacheError


class WholeImages(Dataset):
    """The LR images of a training set, each whole and once, as the network gets them, and what identifies each.

    Args:
        dataset (PairedDataset): PairedImageDataset or a class of its kind, not read from yet.

    Attributes:
        indices (dict): Name of the LR image (its path in ``dataroot_lq``, or its key) to an index of ``dataset``.
    """

    def __init__(self, dataset: PairedDataset):
        # The same set in validation: neither cropped nor flipped, but read and normalised alike.
        self.dataset = copy.copy(dataset)
        self.dataset.opt = {**dataset.opt, 'phase': 'val'}
        self.backend = dict(dataset.io_backend_opt)
        self.folder = dataset.opt['dataroot_lq']
        self.indices = {self.name(index): index for index in range(len(dataset))}
        self.names = list(self.indices)

    def name(self, index: int) -> str:
        path = self.dataset.paths[index]['lq_path']
        return path if self.backend['type'] == 'lmdb' else Path(osp.relpath(path, self.folder)).as_posix()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[str, Tensor, dict]:
        """The name, the image (C, h, w) float32, and what identifies it."""
        name = self.names[number]
        try:
            source = {'digest': self.digest(name), 'stamp': self.stamp(name)}
            return name, self.dataset[self.indices[name]]['lq'], source
        except Exception as error:  # OpenCV and the backends raise almost anything for a broken image
            raise CacheError(f'{self._path(name)} or its partner: cannot be read ({error}), and a map is needed for '
                             'each. Mend or remove it and start again; what has been computed is kept') from error

    def stamp(self, name: str) -> list[int]:
        """Size and time of the file: where both are as they were, the content is taken to be so too."""
        lmdb = self.backend['type'] == 'lmdb'
        stat = os.stat(osp.join(self.folder, 'data.mdb') if lmdb else self._path(name))
        return [stat.st_size, stat.st_mtime_ns]

    def digest(self, name: str) -> str:
        """A hash of the encoded image, the same wherever the data are moved or copied to."""
        if self.dataset.file_client is None:
            options = dict(self.backend)
            self.dataset.file_client = FileClient(options.pop('type'), **options)
        return hashlib.blake2b(self.dataset.file_client.get(self._path(name), 'lq'), digest_size=16).hexdigest()

    def is_source_of(self, entry: dict, name: str) -> bool:
        """Whether an image is still the one that a map was computed from."""
        return self.stamp(name) == entry['stamp'] or self.digest(name) == entry['digest']

    def close(self) -> None:
        """An LMDB may be open only once in a process, and not at all when worker processes are forked."""
        self.dataset.file_client = None

    def _path(self, name: str) -> str:
        return self.dataset.paths[self.indices[name]]['lq_path']
