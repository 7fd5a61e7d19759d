"""Files that figures are drawn into: PNG or SVG, whole or not at all, never over one that is to stay."""

from __future__ import annotations

from pathlib import Path

from sdcli.errors import SdcliError

FORMATS = {".png": "png", ".svg": "svg"}


class FigureTarget:
    """The file that a figure goes into, if any.

    Args:
        flag: that names it, for errors.
        file: its path; None for none.
        if_exists: error, skip, overwrite or number.

    Raises:
        SdcliError: the path has another suffix, is taken, or cannot be written.
    """

    def __init__(self, flag: str, file: Path | None, if_exists: str):
        self.path = None if file is None else Path(file).expanduser()
        self.if_exists = if_exists
        self.wanted = False
        if self.path is None:
            return
        from sdcli.results import already_there, check_writable  # it knows pictures, which --help need not

        if self.path.suffix.lower() not in FORMATS:
            raise SdcliError(
                f"{flag} {file} must end in .png or .svg", hint=f"try {flag} {self.path.with_suffix('.png')}"
            )
        self.wanted = not already_there([self.path], if_exists)[0]
        if self.wanted:
            check_writable([self.path])

    @property
    def format(self) -> str:
        """Png or svg."""
        return FORMATS[self.path.suffix.lower()]

    def write(self, content: bytes) -> Path:
        """Write the figure, and give the path that it has got, which is `path` from now on."""
        from sdcli.results import write_result

        self.path = write_result(content, self.path, self.if_exists)
        return self.path
