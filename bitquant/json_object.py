"""JSON objects from files that nobody vouches for."""

import json
from pathlib import Path

MAX_BYTES = 64 * 2**20


def read_object(file):
    """Contents of a JSON file as a dict; ValueError when it is oversized, not JSON or not an object."""
    file = Path(file)
    if file.exists() and not file.is_file():  # reading a pipe or a device may never end
        raise ValueError(f"{file} is no file to read a configuration from")
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is too large to be a configuration")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content


def differences(then, now):
    """What is not equal in two nested dicts, in words.

    Returns:
        list[str]: ``name.of.key: value then, value now``, in the order of the names.
    """
    then, now = _flat(then), _flat(now)
    return [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def _flat(values, prefix=""):
    """A nested dict as one of dotted names."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
