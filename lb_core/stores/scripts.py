"""The Lua scripts. Each file's header says what it is given and what it gives."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name under which a server keeps it."""

    source: bytes
    sha: bytes


def _read(name: str) -> Script:
    source = (_FOLDER / f"{name}.lua").read_bytes()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


ACQUIRE = _read("acquire")
HOLD = _read("hold")
RELEASE = _read("release")
BEAT = _read("beat")
REAP = _read("reap")
FSCK = _read("fsck")
RECLAIM = _read("reclaim")
UNCLAIM = _read("unclaim")
TELL = _read("tell")
NEWS = _read("news")
FORGET = _read("forget")
