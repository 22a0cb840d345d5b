"""Files that change while the service runs. The clock is the test's."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.errors import Fatal
from app.watched_file import WatchedFiles


@dataclass
class Watch:
    """Two files whose texts are read together, and what was reported about them."""

    directory: Path
    now: float = 0.0
    changes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = [self.directory / "a", self.directory / "b"]
        self.write("a", "1")
        self.write("b", "1")
        self.files = WatchedFiles(
            self.paths,
            self.read,
            changed=self.changes.append,
            failed=lambda error: self.failures.append(type(error).__name__),
            clock=lambda: self.now,
        )

    def read(self) -> str:
        text = "".join(path.read_text() for path in self.paths)
        if "bad" in text:
            raise Fatal("a bad file")
        return text

    def write(self, name: str, text: str) -> None:
        (self.directory / f"{name}.new").write_text(text)
        (self.directory / f"{name}.new").rename(self.directory / name)

    def value(self) -> str:
        """The value a second later."""
        self.now += 1
        return self.files.value()


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_a_change_of_any_file_is_read(watch: Watch) -> None:
    """A changed file is never read, is read for each request, or a file that has not changed is read again."""
    watch.write("b", "2")
    watch.now += 0.5
    assert watch.files.value() == "11"
    assert [watch.value() for _ in range(3)] == ["12", "12", "12"]
    assert (watch.changes, watch.failures) == (["12"], [])


def test_a_bad_file_leaves_the_last_value(watch: Watch) -> None:
    """A slip in a file ends the service, is reported once and forgotten, or the corrected file is not read."""
    watch.write("a", "bad")
    assert [watch.value(), watch.value()] == ["11", "11"]
    assert (watch.changes, watch.failures) == ([], ["Fatal", "Fatal"])
    watch.write("a", "3")
    assert watch.value() == "31"
    assert watch.changes == ["31"]


def test_a_file_that_vanishes_and_comes_back(watch: Watch) -> None:
    """Between two steps of whoever replaces a file the service has no value, or it does not see the new file."""
    (watch.directory / "a").unlink()
    assert watch.value() == "11"
    assert watch.failures == ["FileNotFoundError"]
    watch.write("a", "4")
    assert watch.value() == "41"
    assert (watch.changes, watch.failures) == (["41"], ["FileNotFoundError"])


def test_a_bad_file_that_is_put_back(watch: Watch) -> None:
    """After a bad file the old one is reported as bad for ever."""
    (watch.directory / "a").rename(watch.directory / "old")
    watch.write("a", "bad")
    watch.value()
    (watch.directory / "old").rename(watch.directory / "a")
    assert watch.value() == "11"
    assert watch.failures == ["Fatal"]


def test_a_bad_file_at_the_start(tmp_path: Path) -> None:
    """A service starts without what its first reading should have given."""
    with pytest.raises(FileNotFoundError):
        WatchedFiles([tmp_path / "a"], lambda: "", changed=lambda _: None, failed=lambda _: None)
