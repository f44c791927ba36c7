"""Room is asked for before an engine writes."""

from pathlib import Path

import pytest

from services.runtime import disk
from services.runtime.disk import require_room
from services.runtime.errors import UnavailableError


def test_a_disk_with_room_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 0)

    require_room(tmp_path)


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 1024**3)

    with pytest.raises(UnavailableError, match="make room") as caught:
        require_room(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_is_gone_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be written"):
        require_room(tmp_path / "gone")


def test_more_than_the_reserve_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RESERVE_MEGABYTES", 1)

    require_room(tmp_path)
    with pytest.raises(UnavailableError, match=f"less than {1 + 2**40} MiB"):
        require_room(tmp_path, more=2**60)
