"""Which Debian packages hold recorded speech, and where in them: who speaks, and what is said."""

import gzip
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .game_archives import unpack_queen, unpack_sky

PACKAGES = {  # name: (version, sha256)
    "asterisk-core-sounds-en-g722": ("1.6.1-1", "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"),
    "asterisk-core-sounds-en": ("1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "asterisk-core-sounds-es-g722": ("1.6.1-1", "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8"),
    "asterisk-core-sounds-es": ("1.6.1-1", "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"),
    "asterisk-core-sounds-fr-g722": ("1.6.1-1", "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0"),
    "asterisk-core-sounds-fr": ("1.6.1-1", "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"),
    "asterisk-core-sounds-it-g722": ("1.6.1-1", "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016"),
    "asterisk-core-sounds-it": ("1.6.1-1", "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"),
    "asterisk-core-sounds-ru-g722": ("1.6.1-1", "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b"),
    "asterisk-core-sounds-ru": ("1.6.1-1", "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"),
    "beneath-a-steel-sky": ("0.0372-8", "e2a25c880220c26a4dfd42904b878cc655afa1c72895f9c932befbd078622934"),
    "fillets-ng-data": ("1.0.1-1.1", "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84"),
    "fillets-ng-data-cs": ("1.0.1-1.1", "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14"),
    "fillets-ng-data-nl": ("1.0.1-1.1", "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10"),
    "flight-of-the-amazon-queen": ("1.0.0-9", "40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1"),
    "tuxpaint-stamps-default": ("2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),
}


@dataclass
class Clip:
    """One recording in a package; ``text`` is None where nobody wrote down what is said, or nothing is."""

    id: str
    file: Path
    language: str
    speaker: str
    text: str | None


def asterisk(root: Path, language: str) -> Iterator[Clip]:
    """Telephone prompts, one professional speaker a language, G.722 at 16 kHz."""
    (document,) = (root / "usr/share/doc").glob(f"*/core-sounds-{language}.txt*")
    content = gzip.decompress(document.read_bytes()) if document.suffix == ".gz" else document.read_bytes()
    lines = (line for line in content.decode("utf-8-sig").splitlines() if ":" in line and not line.startswith(";"))
    texts = {key.strip(): text.strip() for key, text in (line.split(":", 1) for line in lines)}
    (speaker,) = (root / "usr/share/asterisk/sounds").iterdir()
    for file in sorted(speaker.rglob("*.g722")):
        name = file.relative_to(speaker).with_suffix("").as_posix()
        text = texts.get(name)
        spoken = text and not text.startswith("[") and not name.startswith("silence/")  # "[tone]" and its kind
        yield Clip(name, file, language, speaker.name, text if spoken else None)


def fillets(root: Path, language: str) -> Iterator[Clip]:
    """Dialogues of a game, two leading voices and others, ogg."""
    game = root / "usr/share/games/fillets-ng"
    pattern = re.compile(r'dialogId\("([^"]+)".*?\)\s*\n\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')

    @cache
    def texts(level: str) -> dict[str, str]:
        script = game / "script" / level / f"dialogs_{language}.lua"
        found = pattern.findall(script.read_text(encoding="utf-8")) if script.exists() else []
        return {name: text.replace('\\"', '"') for name, text in found}

    for file in sorted((game / "sound").glob(f"**/{language}/**/*.ogg")):
        level = file.relative_to(game / "sound").as_posix().split(f"/{language}/")[0]
        voice = re.search(r"-([vm])-", file.stem)
        speaker = f"fillets_{language}_{voice[1] if voice else 'other'}"
        yield Clip(f"{level}/{file.stem}", file, language, speaker, texts(level).get(file.stem))


def tuxpaint(root: Path, _: str) -> Iterator[Clip]:
    """Names of drawn things in many languages, about one speaker each, ogg."""
    stamps = root / "usr/share/tuxpaint/stamps"

    @cache
    def texts(stem: str) -> dict[str, str]:
        file = stamps / f"{stem}.txt"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
        translated = (re.match(r"([\w@]+)\.utf8=(.*)", line.strip()) for line in lines[1:])
        return {"en": lines[0].strip() if lines else None, **{m[1]: m[2] for m in translated if m}}

    for file in sorted(stamps.rglob("*.ogg")):
        name = file.relative_to(stamps).with_suffix("").as_posix()
        described = re.fullmatch(r"(.*?)_desc(?:_([a-zA-Z_]+))?", name)
        symbol = re.fullmatch(r"(symbols/.*?)_([a-z]{2}(?:_[A-Za-z]{2})?)", name)
        if found := described or symbol:  # the others are noises
            language = found[2] or "en"
            yield Clip(name, file, language, f"tuxpaint_{language}", texts(found[1]).get(language))


def amazon_queen(root: Path, language: str) -> Iterator[Clip]:
    """Dialogues of a game, dozens of voices, mp3 at 11 kHz; nobody wrote down what is said."""
    (archive,) = root.glob("usr/share/scummvm/*/queen.1c")
    for file in unpack_queen(archive, root / "unpacked"):
        yield Clip(file.stem, file, language, "amazon_queen", None)


def steel_sky(root: Path, language: str) -> Iterator[Clip]:
    """Dialogues of a game, dozens of voices, 8 bits at 11 kHz; nobody wrote down what is said."""
    (archive,) = root.glob("usr/share/scummvm/*/sky.dsk")
    for file in unpack_sky(archive, root / "unpacked"):
        yield Clip(file.stem, file, language, "steel_sky", None)


@dataclass
class Corpus:
    """Packages, and how their clips are found: ``read(root, language)``."""

    packages: tuple[str, ...]
    read: Callable[[Path, str], Iterator[Clip]]
    language: str = ""


def _prompts(code: str) -> Corpus:
    return Corpus((f"asterisk-core-sounds-{code}-g722", f"asterisk-core-sounds-{code}"), asterisk, code)


CORPORA = {
    **{f"asterisk-{code}": _prompts(code) for code in ("en", "es", "fr", "it", "ru")},
    "fillets-cs": Corpus(("fillets-ng-data", "fillets-ng-data-cs"), fillets, "cs"),
    "fillets-nl": Corpus(("fillets-ng-data", "fillets-ng-data-nl"), fillets, "nl"),
    "amazon-queen": Corpus(("flight-of-the-amazon-queen",), amazon_queen, "en"),
    "steel-sky": Corpus(("beneath-a-steel-sky",), steel_sky, "en"),
    "tuxpaint": Corpus(("tuxpaint-stamps-default",), tuxpaint),
}
