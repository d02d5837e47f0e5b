"""The rendered files on disk."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from goblet_shared.errors import GobletError


class CannotWrite(GobletError):
    """A file cannot be put where it was asked for."""


def write_files(directory: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Put the files into `directory`, which is made if need be; return the names of what changed.

    Each file is replaced at once, so that nobody reads half of one. A reload between
    two of them gets some new and some old, until the next reload or the next `sync`.

    Raises:
        CannotWrite: with the file and the reason.
    """
    changed = []
    for name, text in files.items():
        file = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                if file.read_bytes() == text.encode():
                    continue
            _replace(file, text)
        except OSError as exc:
            raise CannotWrite(f"{file} cannot be written: {exc.strerror or exc}") from None
        changed.append(name)
    return tuple(changed)


def _replace(file: Path, text: str) -> None:
    number, aside = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            # mkstemp's files are its owner's alone, and HAProxy may be another user.
            os.fchmod(number, 0o644)
            out.flush()
            os.fsync(number)
        os.replace(aside, file)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
