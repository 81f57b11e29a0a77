"""The target "file": a file with a credential, or with a configuration that holds one."""

import contextlib
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal._core import SecretBuffer, copy_into
from tapeseal.errors import RotationError
from tapeseal.files import new_file, sync_directory, write_all
from tapeseal.rotation.commands import json_of, no_part
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential, Rotation
    from tapeseal.rotation.plan import PlannedSecret


class FileTarget:
    """Writes a file in the place of the one before, whole or not at all, readable for its owner alone.

    One that exists keeps its owner, its group and its permission bits. `content` is what stands in it: a text in which
    {password} stands for that part of the credential, and {{ and }} for braces; without it a credential of one part
    stands there by itself, and one of several as a JSON object.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "path": Setting(Path),
        "content": Setting(str, default=None),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._path: Path = settings["path"]
        self._template: list[tuple[bytes, str | None]] | None = None
        if settings["content"] is not None:
            self._template = _parse(settings["content"])

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Write the file."""
        path = Path(os.path.realpath(self._path))
        with contextlib.closing(self._content(credential)) as content:
            before = path.stat() if path.exists() else None
            with new_file(path, 0o600, replace=True) as fd:
                after = os.fstat(fd)
                if before is not None and (before.st_uid, before.st_gid) != (
                    after.st_uid,
                    after.st_gid,
                ):
                    _give(fd, before, path)
                with content, memoryview(content) as view:
                    write_all(fd, view)
                os.fsync(fd)
            sync_directory(path)

    def _content(self, credential: "Credential") -> SecretBuffer:
        if self._template is None and len(credential) != 1:
            return json_of(credential)
        parts: list[bytes | SecretBuffer] = []
        for text, name in self._template or [(b"", next(iter(credential)))]:
            parts.append(text)
            if name is not None:
                if name not in credential:
                    raise RotationError(f"{self._path}: {no_part(name, credential)}")
                parts.append(credential[name].buffer)
        made = SecretBuffer(max(sum(map(len, parts)), 1), writable=True)
        at = 0
        with made:
            for part in parts:
                if isinstance(part, bytes):
                    at += copy_into(made, at, part)
                else:
                    with part:
                        at += copy_into(made, at, part)
        return made

    def calls(self) -> list[str]:
        """Name the file."""
        return [f"write {self._path}"]


def _parse(content: str) -> list[tuple[bytes, str | None]]:
    """Return a template's texts, each with the name of the part that follows it.

    Raises:
        ValueError: it is none.
    """
    try:
        pieces = list(string.Formatter().parse(content))
    except ValueError as error:
        raise ValueError(f"content: {error}; a brace that is to stand there is doubled") from None
    for _, name, specification, conversion in pieces:
        if name is not None and (not name.isidentifier() or specification or conversion):
            raise ValueError(f"content: {{{name}}} does not name a part, as {{password}} does")
    return [(text.encode(), name) for text, name, _, _ in pieces]


def _give(fd: int, before: os.stat_result, path: Path) -> None:
    try:
        os.fchown(fd, before.st_uid, before.st_gid)
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            f"it belongs to uid {before.st_uid}, gid {before.st_gid}, to whom this user cannot give a file",
            str(path),
        ) from None
    # Which fchown() may have cut.
    os.fchmod(fd, before.st_mode & 0o7777)
