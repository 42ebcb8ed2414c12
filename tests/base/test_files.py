"""Files are whole or not there."""

import errno
import os
from pathlib import Path

import pytest

from lorawise.base.errors import StorageError
from lorawise.base.files import atomic_folder, storage_errors, sweep_partial, verify_folder, write_text


def test_a_folder_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    with atomic_folder(target, manifest=True) as scratch:
        (scratch / "a").write_text("A")
        (scratch / "in").mkdir()
        (scratch / "in" / "b").write_text("B")
        assert not target.exists()
    assert verify_folder(target) == []
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_folder(target) as scratch:
        (scratch / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "tear the manifest", "remove the manifest"])
def test_every_damage_to_a_folder_is_found(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "step-1"
    with atomic_folder(target, manifest=True) as scratch:
        (scratch / "weights").write_bytes(b"0123456789")
    match damage:
        case "flip":
            (target / "weights").write_bytes(b"0123456780")
        case "truncate":
            (target / "weights").write_bytes(b"01234")
        case "remove":
            (target / "weights").unlink()
        case "tear the manifest":
            (target / "manifest.json").write_text('{"weights": "0')
        case "remove the manifest":
            (target / "manifest.json").unlink()
    assert len(verify_folder(target)) == 1


def test_what_a_killed_process_left_is_cleaned_and_a_folder_moved_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".adapter.abc.partial").mkdir()
    (tmp_path / ".adapter.previous").mkdir()
    (tmp_path / ".adapter.previous" / "a").write_text("whole")
    (tmp_path / ".card.previous").mkdir()
    (tmp_path / "card").mkdir()
    sweep_partial(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "card"]
    assert (tmp_path / "adapter" / "a").read_text() == "whole"


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "no space"), (errno.EROFS, "may not write")])
def test_a_disk_that_refuses_is_a_storage_error_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    path = tmp_path / "run.yaml"
    write_text(path, "old")

    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=word):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_a_file_the_manifest_does_not_vouch_for_is_found_but_not_what_a_desktop_leaves(tmp_path: Path) -> None:
    target = tmp_path / "step-1"
    with atomic_folder(target, manifest=True) as scratch:
        (scratch / "weights").write_bytes(b"0123456789")
    (target / ".DS_Store").write_bytes(b"")
    assert verify_folder(target) == []
    (target / "manifest.json").write_text("{}")
    assert verify_folder(target) == ["step-1/weights is not in the manifest"]


@pytest.mark.parametrize("place", ["a file/run", "x" * 300, "dangling", "/proc/none/here"])
def test_a_place_where_nothing_can_be_written_is_told_with_the_cure(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(StorageError, match="cannot write") as caught, storage_errors(tmp_path / place):
        (tmp_path / place).mkdir()
    assert "-o" in caught.value.cure
