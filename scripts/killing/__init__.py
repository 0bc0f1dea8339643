"""What scripts/chaos.py kills, how, and how it is told whether anything was lost."""
