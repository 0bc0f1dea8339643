"""Data: what is trained when (``loader``), cached uncertainties, and how low-quality images are made."""
from . import whole_images  # noqa: F401  registers WholeImageDataset
