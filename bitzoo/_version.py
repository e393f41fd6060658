"""The version, read by the build and by the metadata of converted files."""

__version__ = "0.1.0"
