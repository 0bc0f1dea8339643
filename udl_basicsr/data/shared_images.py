"""Images in memory that several processes see in the same place, however they were started."""
import io
import mmap
import os
import tempfile
import threading
from multiprocessing import reduction

import numpy as np

_CHANNELS = 3


class SharedImages:
    """8-bit images one behind the other in a nameless file that is mapped into memory.

    Processes that are forked have it, and those that are spawned or come from a fork server get a handle: what is
    pickled is kilobytes. On Linux the file lies in memory (``memfd_create``), whatever the size of /dev/shm; elsewhere
    among the temporary files. It is gone with the last process that has it open. Windows, where a handle is another
    thing, pickles the images themselves, a copy for each process.

    Args:
        name (str): Under which Linux lists it in /proc.
    """

    def __init__(self, name: str):
        # Not buffered, so that a write that finds no room leaves nothing to be written later.
        self._file = (io.FileIO(os.memfd_create(name), 'r+') if hasattr(os, 'memfd_create')
                      else tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 - open as long as the images are held
        self._places: list[tuple[int, int, int]] = []  # offset, height, width
        self._size = 0
        self._pixels: mmap.mmap | bytes = b''
        self._lock = threading.Lock()

    def add(self, image: np.ndarray) -> int:
        """Appends an image, (H, W, 3) uint8, from any thread, before :meth:`close`.

        Returns:
            int: Its number.

        Raises:
            OSError: There is no room for it.
        """
        rest = np.ascontiguousarray(image).data.cast('B')
        with self._lock:
            while rest:
                rest = rest[self._file.write(rest):]
            self._places.append((self._size, *image.shape[:2]))
            self._size += image.nbytes
            return len(self._places) - 1

    def close(self) -> None:
        """The last image has been added; from here on they can be read."""
        self._map()
        if self._size:  # looks at each page: what this process holds is counted as its memory, as if it were its own
            np.frombuffer(self._pixels, np.uint8)[::mmap.PAGESIZE].max()

    def _map(self) -> None:
        if self._size:  # an empty file cannot be mapped
            self._pixels = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)

    def __getitem__(self, number: int) -> np.ndarray:
        """An image, (H, W, 3) uint8, read-only."""
        offset, height, width = self._places[number]
        size = height * width * _CHANNELS
        return np.frombuffer(self._pixels, np.uint8, size, offset).reshape(height, width, _CHANNELS)

    @property
    def nbytes(self) -> int:
        return self._size

    def __getstate__(self) -> tuple:
        handle = reduction.DupFd(self._file.fileno()) if hasattr(reduction, 'DupFd') else None
        return handle, self._places, self._size, b'' if handle else bytes(self._pixels)

    def __setstate__(self, state: tuple) -> None:
        handle, self._places, self._size, self._pixels = state
        self._lock = threading.Lock()
        if handle:
            self._file = io.FileIO(handle.detach())
            self._map()
