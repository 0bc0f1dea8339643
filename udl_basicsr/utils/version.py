"""The version, which runs and records name; setup.py states the same."""
__version__ = '0.1.0'
