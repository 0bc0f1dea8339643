"""What is asked of a data set, for which BasicSR has no type: its own have it, and so may yours."""
from typing import Any, Protocol


class ImageDataset(Protocol):
    """Images for training or for validation."""
    opt: dict[str, Any]
    """Its block of the options."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class PairedDataset(ImageDataset, Protocol):
    """Pairs from folders, a list or LMDB, as PairedImageDataset has them."""
    paths: list[dict[str, str]]
    """``{lq_path, gt_path}`` of each pair."""
    io_backend_opt: dict[str, Any]
    file_client: Any
    """Made at the first reading; until then None."""
