"""Data: what is trained when (``loader``) and how low-quality images are made."""
