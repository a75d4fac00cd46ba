"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlrt.whole_file import write_whole


def test_it_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a file.bin"
    for content in (b"first", b""):
        write_whole(target, content)
        assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("where", ["replace", "chmod", "fdopen"])
def test_whatever_happens_the_earlier_file_stays_alone(
    error: type[BaseException], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"before")

    def stopped(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"vlrt.whole_file.os.{where}", stopped)
        with pytest.raises(error):
            write_whole(target, b"after")
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "file", b"")
