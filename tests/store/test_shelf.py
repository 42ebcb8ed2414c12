"""The local store: by digest, verified, and a name never changes its bytes silently."""

import json
import threading
from pathlib import Path

import pytest
import torch
from tests.store.made_adapters import NAMES, draw, saved

from lorawise import LoraConfig
from lorawise.base.errors import AdapterError, StorageError
from lorawise.store.algebra.result import Source
from lorawise.store.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.at(tmp_path / "store")


def made(folder: Path, seed: int = 0, **setting: float) -> Source:
    return saved(folder, draw(LoraConfig(r=2, **setting), NAMES[:1], torch.float32, seed))  # type: ignore[arg-type]


def test_what_was_added_is_found_by_name_and_by_digest(shelf: Shelf, tmp_path: Path) -> None:
    source = made(tmp_path / "a")
    kept = shelf.add(source, "legal")
    for found in ("legal", kept.digest, kept.digest[:8]):
        assert Source.open(shelf.find(found)).digest == source.digest
    assert [(each.names, each.r, each.base) for each in shelf.list()] == [(("legal",), 2, "somebody/base")]


def test_the_same_adapter_is_kept_once_whatever_it_is_called(shelf: Shelf, tmp_path: Path) -> None:
    made(tmp_path / "a")
    shelf.add(Source.open(tmp_path / "a"), "one")
    (tmp_path / "a" / "provenance.json").unlink()  # its history is not what it computes
    kept = shelf.add(Source.open(tmp_path / "a"), "two")
    assert kept.names == ("one", "two")
    assert len(list((tmp_path / "store" / "objects").iterdir())) == 1


def test_a_name_never_silently_means_other_bytes(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add(made(tmp_path / "a"), "mine")
    other = made(tmp_path / "b", scaling=1.0)  # the same tensors, another strength
    with pytest.raises(AdapterError, match="the name 'mine' means"):
        shelf.add(other, "mine")
    shelf.add(other, "other")
    with pytest.raises(AdapterError, match="the name 'mine' means"):
        shelf.tag("other", "mine")
    assert shelf.tag("other", "mine", move=True).digest == other.digest
    assert Source.open(shelf.find("mine")).digest == other.digest


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_what_changed_on_the_disk_is_not_handed_out(shelf: Shelf, tmp_path: Path, file: str) -> None:
    kept = shelf.add(made(tmp_path / "a"), "mine")
    path = tmp_path / "store" / "objects" / kept.digest / file
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AdapterError, match="not what was added"):
        shelf.find("mine")


def test_files_swapped_together_with_their_manifest_are_not_handed_out(shelf: Shelf, tmp_path: Path) -> None:
    one, two = shelf.add(made(tmp_path / "a"), "one"), shelf.add(made(tmp_path / "b", seed=1), "two")
    objects = tmp_path / "store" / "objects"
    (objects / one.digest).rename(objects / "aside")
    (objects / two.digest).rename(objects / one.digest)
    with pytest.raises(AdapterError, match="its tensors have the digest"):
        shelf.find("one")


def test_an_adapter_goes_with_its_last_name(shelf: Shelf, tmp_path: Path) -> None:
    kept = shelf.add(made(tmp_path / "a"), "one")
    shelf.tag("one", "two")
    assert shelf.remove("one") == (kept.digest, False)
    assert shelf.find("two").is_dir()
    assert shelf.remove("two") == (kept.digest, True)
    assert not list((tmp_path / "store" / "objects").iterdir())
    with pytest.raises(AdapterError, match="knows no 'two'"):
        shelf.remove("two")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 65, "deadbeef00", "é", "a\n"])
def test_a_name_cannot_leave_the_store_or_pass_for_a_digest(shelf: Shelf, tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="cannot be a name"):
        shelf.add(made(tmp_path / "a"), name)
    with pytest.raises(AdapterError, match="knows no"):
        shelf.find(name)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": "../../etc"}', '{"../x": "' + "0" * 64 + '"}'])
def test_names_that_lie_are_refused(shelf: Shelf, tmp_path: Path, text: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "names.json").write_text(text)
    with pytest.raises(StorageError, match="torn"):
        shelf.list()


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000, b"null", b'{"a": 1}'])
def test_names_that_are_no_names_are_a_storage_error(shelf: Shelf, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "names.json").write_bytes(data)
    for act in (shelf.list, lambda: shelf.find("a"), lambda: shelf.remove("a"), lambda: shelf.tag("a", "b")):
        with pytest.raises(StorageError, match="torn"):
            act()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"base": 1}', '{"base": "b", "r": "x", "scaling": 1, "parameters": 1, "bytes": 1}', "\0" * 10],
)
def test_an_entry_that_lies_is_a_storage_error(shelf: Shelf, tmp_path: Path, text: str) -> None:
    kept = shelf.add(made(tmp_path / "a"), "mine")
    (tmp_path / "store" / "objects" / kept.digest / "entry.json").write_text(text)
    with pytest.raises(StorageError, match="torn"):
        shelf.list()
    assert shelf.remove("mine") == (kept.digest, True)


def test_forgetting_an_adapter_that_became_a_link_removes_the_link_alone(shelf: Shelf, tmp_path: Path) -> None:
    kept = shelf.add(made(tmp_path / "a"), "mine")
    place = tmp_path / "store" / "objects" / kept.digest
    place.rename(tmp_path / "precious")
    place.symlink_to(tmp_path / "precious")
    assert shelf.remove("mine") == (kept.digest, True)
    assert not place.is_symlink()
    assert (tmp_path / "precious" / "adapter_config.json").is_file()


def test_an_adapter_in_the_hubs_cache_is_kept_as_files_not_as_links(shelf: Shelf, tmp_path: Path) -> None:
    repo = tmp_path / "models--somebody--adapter"
    source = made(repo / "snapshots" / "abc")
    (repo / "blobs").mkdir()
    for path in list(source.folder.iterdir()):
        path.rename(repo / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    kept = shelf.add(Source.open(source.folder), "mine")
    assert not any(path.is_symlink() for path in shelf.find("mine").iterdir())
    assert kept.digest == source.digest


def test_only_the_known_files_are_copied(shelf: Shelf, tmp_path: Path) -> None:
    source = made(tmp_path / "a")
    (tmp_path / "a" / "evil.py").write_text("boom")
    kept = shelf.add(source, "mine")
    assert "evil.py" not in {path.name for path in (tmp_path / "store" / "objects" / kept.digest).iterdir()}


def test_several_at_once_lose_nothing(shelf: Shelf, tmp_path: Path) -> None:
    sources = [made(tmp_path / str(i), seed=i) for i in range(6)]
    threads = [threading.Thread(target=shelf.add, args=(s, f"n{i}")) for i, s in enumerate(sources)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.names for each in shelf.list()) == [(f"n{i}",) for i in range(6)]


def test_ten_thousand_adapters_list_and_are_found(shelf: Shelf, tmp_path: Path) -> None:
    kept = shelf.add(made(tmp_path / "a"), "mine")
    objects = tmp_path / "store" / "objects"
    names, entry = {"mine": kept.digest}, (objects / kept.digest / "entry.json").read_text()
    for i in range(9_999):
        digest = f"{i:064x}"
        (objects / digest).mkdir()
        (objects / digest / "entry.json").write_text(entry)
        names[f"n{i}"] = digest
    (tmp_path / "store" / "names.json").write_text(json.dumps(names))
    assert len(shelf.list()) == 10_000
    assert shelf.find("mine").name == kept.digest
    with pytest.raises(AdapterError, match="no 'n1000x'"):
        shelf.find("n1000x")
