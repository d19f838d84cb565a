"""The version, from the installed package's metadata (written once, in pyproject.toml)."""

from importlib.metadata import version

__version__ = version("numsim")
