"""JSON objects from files that nobody vouches for."""

import json
from pathlib import Path

MAX_BYTES = 64 * 2**20


def read_object(file):
    """Contents of a JSON file as a dict; ValueError when it is oversized, not JSON or not an object."""
    file = Path(file)
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is too large to be a configuration")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return content
