"""What every other layer stands on; nothing of the package is imported here."""
