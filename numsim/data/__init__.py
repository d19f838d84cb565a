"""The bundled model and text, so that everything runs without a download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def bundled_model_dir() -> Path:
    """Return the folder of the bundled Llama, in the Hugging Face layout.

    >>> (bundled_model_dir() / "config.json").is_file()
    True
    """
    return Path(str(files(__name__) / "tiny_llama"))


def bundled_text() -> str:
    """Return the bundled evaluation text, reStructuredText of 44 KB.

    >>> len(bundled_text().encode())
    43972
    """
    return (bundled_model_dir() / "course.rst").read_bytes().decode()


def bundled_messages() -> Path:
    """Return the file of labelled messages, spam and ham: JSON lines, packed with gzip.

    >>> bundled_messages().name
    'messages.jsonl.gz'
    """
    return Path(str(files(__name__) / "spam" / "messages.jsonl.gz"))
