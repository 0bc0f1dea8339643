"""Option files: read safely, checked as a whole before anything is created, and given to BasicSR as it expects."""
