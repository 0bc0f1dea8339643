"""What every other room stands on; nothing of the package is imported here."""
