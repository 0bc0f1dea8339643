"""Data: what is trained when (``loader``), cached uncertainties, and how low-quality images are made."""
