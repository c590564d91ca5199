"""Speech out of two games' archives, each recording as a file that any player opens.

The formats are those that ScummVM reads: a table of names or numbers, offsets and sizes, then the contents.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

RATE = 11025  # of both games
QUEEN_ENTRY = struct.Struct(">12sBII")  # name, archive, offset, bytes
SKY_HEADER = 22  # bytes before the samples of a file
SKY_SPEECH = range(50000, 59000)  # numbers of files


def unpack_queen(archive: Path, folder: Path) -> Iterator[Path]:
    """Writes the speech of Flight of the Amazon Queen, ``queen.1c`` with mp3, to ``folder/NAME.mp3``.

    Raises:
        ValueError: it is another kind of file.
    """
    content = archive.read_bytes()
    if content[:4] != b"QTBL" or content[12] != 1:
        raise ValueError(f"{archive.name} is not the game's archive with speech in mp3")
    folder.mkdir(parents=True, exist_ok=True)
    (count,) = struct.unpack_from(">H", content, 13)
    for name, _, offset, size in QUEEN_ENTRY.iter_unpack(content[15 : 15 + count * QUEEN_ENTRY.size]):
        name = name.rstrip(b"\0").decode("ascii")
        if name.endswith(".SB"):
            file = folder / f"{name.removesuffix('.SB')}.mp3"
            file.write_bytes(content[offset : offset + size])
            yield file


def unpack_sky(archive: Path, folder: Path) -> Iterator[Path]:
    """Writes the speech of Beneath a Steel Sky, ``sky.dsk`` beside its table ``sky.dnr``, to ``folder/NUMBER.wav``.

    Raises:
        ValueError: the table is of another kind.
    """
    content, table = archive.read_bytes(), archive.with_suffix(".dnr").read_bytes()
    if len(table) != 4 + 8 * int.from_bytes(table[:4], "little"):
        raise ValueError(f"{archive.with_suffix('.dnr').name} is not the game's table of files")
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(4, len(table), 8):
        number, offset, size = (int.from_bytes(table[at + i : at + j], "little") for i, j in ((0, 2), (2, 5), (5, 8)))
        if number not in SKY_SPEECH:
            continue
        offset = (offset & 0x7FFFFF) << (4 if offset >> 23 else 0)
        samples = np.frombuffer(content[offset + SKY_HEADER : offset + (size & 0x3FFFFF)], np.uint8)
        file = folder / f"{number}.wav"
        soundfile.write(file, samples.astype(np.float32) / 128 - 1, RATE, subtype="PCM_U8")
        yield file
