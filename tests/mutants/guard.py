"""A guard of the product as a value: its text in the code, how to break it, and the tests that must then fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Guard:
    """A guard is broken by replacing `text`, which occurs exactly once in the file, by `instead`."""

    file: str
    """Below backup_core."""
    protects: str
    """The property that the guard ensures, in words that no other guard of the file has."""
    text: str
    instead: str
    tests: tuple[str, ...]
    """Below tests, as pytest names them."""
    survives: str = ""
    """Why no test can notice that it is broken. Without a reason one must, with a reason none may."""

    @property
    def path(self) -> Path:
        """The file, below the repository."""
        return Path("backup_core", self.file)

    def broken(self, source: str) -> str:
        """The file's source with the guard broken. Raises ValueError unless its text occurs exactly once."""
        if (times := source.count(self.text)) != 1:
            message = (
                f"{self.path}: occurs {times} times, expected once: {self.text!r} ({self.protects}); "
                "correct its entry in tests/mutants/guards.py"
            )
            raise ValueError(message)
        return source.replace(self.text, self.instead)
