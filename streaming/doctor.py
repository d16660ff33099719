"""Doctor: looks at a data folder and says what is there, what is kept and why, and what is wrong and what to do.

It never writes, and a server may be running on the folder.
"""

from dataclasses import dataclass, field
from pathlib import Path

from streaming.folder import Progress, silent


@dataclass
class DoctorReport:
    """Facts, one line each, and problems, one sentence each with its remedy."""

    data: str
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        verdict = f"{self.data} is in order." if self.ok else f"{len(self.problems)} problems:"
        return [*self.facts, verdict, *(f"- {problem}" for problem in self.problems)]


def doctor(data: Path, progress: Progress = silent) -> DoctorReport:
    """Examines the data folder at `data`. Never raises for what is wrong with the folder: that is what it reports."""
    raise NotImplementedError
