"""The version, for setup.py and for what runs and records say of themselves."""
__version__ = '0.1.0'
