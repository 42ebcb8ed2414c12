"""One process at a time in a folder."""

from pathlib import Path

import pytest

from lorawise.base.errors import StorageError, UsageError
from lorawise.base.locks import alone_in


def test_a_second_holder_is_refused_and_a_later_one_is_not(tmp_path: Path) -> None:
    refusal = UsageError("held")
    with alone_in(tmp_path / "run", busy=lambda: refusal):  # noqa: SIM117 - the second one is what is tried
        with pytest.raises(UsageError, match="held"), alone_in(tmp_path / "run", busy=lambda: refusal):
            raise AssertionError("two are in the folder")
    with alone_in(tmp_path / "run", busy=lambda: refusal):
        assert (tmp_path / "run").is_dir()


def test_none_from_busy_waits_until_the_other_is_done(tmp_path: Path) -> None:
    other = alone_in(tmp_path, busy=lambda: None)
    other.__enter__()

    def tell() -> None:
        other.__exit__(None, None, None)  # who waits is told first, and then the other one leaves

    with alone_in(tmp_path, busy=tell, patience=0.01):
        pass


def test_a_folder_that_cannot_be_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cure"), alone_in(tmp_path / "file" / "run", busy=lambda: None):
        raise AssertionError("a folder inside a file")
