"""The result of verifying a file."""

from collections import Counter
from dataclasses import dataclass, field

from app.export.manifest import Manifest

PROBLEMS_MAX = 1000


@dataclass(slots=True)
class CheckResult:
    """The result of verifying a file: it is complete and unchanged if there are no problems."""

    problems: list[str] = field(default_factory=list)
    """The first PROBLEMS_MAX of them."""
    problem_count: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    parts: list[Manifest] = field(default_factory=list)
    """Manifests that could be read."""
    whole_bytes: int = 0
    """Size of the file up to and including the last manifest that could be read."""
    what: str = "the export"
    """What the file is."""
    summary: list[str] = field(default_factory=list)
    """What a bundle shows, in lines."""
    signature_lines: list[str] = field(default_factory=list)
    """With which keys manifests and checkpoints are signed, in words."""
    checkpoint_result: str = ""
    """The result of comparing the events with the log's checkpoint, in words."""

    def add_problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)
