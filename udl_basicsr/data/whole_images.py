"""Training on whole images, for which BasicSR's PairedImageDataset, which crops, has no option."""
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class WholeImageDataset(PairedImageDataset):
    """Pairs as PairedImageDataset reads them, neither cropped nor flipped; sizes differ, so a batch is one image.

    Args:
        opt (dict): Of PairedImageDataset; ``gt_size``, ``use_hflip`` and ``use_rot`` have no meaning here.
    """

    def __init__(self, opt: dict):
        super().__init__({**opt, 'phase': 'val'})

    def __getitem__(self, index: int) -> dict:  # here, so that the options need not have what the crop reads
        return super().__getitem__(index)
