"""Pages in files: what is found again is what was stored, and whatever happened to a file, never anything else."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.copies import Chain
from scheduler.file_storage import HEADER_BYTES, SUFFIX, UNFINISHED, FileStorage, page_names

# document: O-26

NAMES = [f"{index:064x}" for index in range(40)]
BODY = bytes(range(100))
LIMIT = 2**20


def names(key: bytes, first: int = 0, namespace: bytes = b"", fingerprint: bytes = b"model") -> list[str]:
    return list(page_names(fingerprint, Chain(namespace, key, first), 8))


@given(key=st.binary(min_size=16, max_size=64), first=st.integers(0, 4), cut=st.integers(0, 7))
def test_a_name_depends_on_all_tokens_up_to_its_page_and_on_nothing_behind(key: bytes, first: int, cut: int) -> None:
    whole = key[: len(key) // 8 * 8]
    assert names(whole, first) == names(whole)[first:]
    assert names(whole + key[:cut]) == names(whole)
    assert names(whole[:8]) == names(whole)[:1]
    other = bytes([whole[0] ^ 1]) + whole[1:]
    assert not set(names(other)) & set(names(whole))


def test_models_and_namespaces_are_kept_apart_wherever_one_ends_and_the_other_begins() -> None:
    key = bytes(16)
    found = [
        names(key, namespace=space, fingerprint=model)[0]
        for model, space in [(b"a", b""), (b"", b"a"), (b"ab", b"c"), (b"a", b"bc"), (b"1", b"")]
    ]
    assert len(set(found)) == len(found)
    # fixed for ever: a new version must find what an old one has stored, or say so by another name
    assert names(key)[0] == "b8e6c3b51c23dc07c64e6a60026b45c62afa3965c57cc26beec1cae2338c1980"


def test_what_was_stored_is_found_by_the_next_process(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "new" / "folder", LIMIT)
    assert storage.put(NAMES[0], lambda: BODY)
    assert storage.get(NAMES[0]) == BODY
    again = FileStorage(tmp_path / "new" / "folder", LIMIT)
    assert again.has(NAMES[0])
    assert again.get(NAMES[0]) == BODY
    assert again.get(NAMES[1]) is None
    assert len(again) == 1
    assert again.clear() == 1
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_file_that_was_changed_in_any_way_is_no_page(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storage")
    FileStorage(folder, LIMIT).put(NAMES[0], lambda: BODY)
    path = folder / f"{NAMES[0]}{SUFFIX}"
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "flip", "longer", "renamed"]))
    name = NAMES[0]
    if kind == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif kind == "flip":
        at = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    elif kind == "longer":
        path.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=9)))
    else:
        name = NAMES[1]
        path.rename(folder / f"{name}{SUFFIX}")
    storage = FileStorage(folder, LIMIT)
    assert storage.get(name) is None
    assert not storage.has(name)
    assert storage.put(name, lambda: BODY)
    assert storage.get(name) == BODY


def test_a_write_that_never_ended_is_cleared_away_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{NAMES[0]}{UNFINISHED}").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "short.kv").write_text("mine")
    storage = FileStorage(tmp_path, HEADER_BYTES)
    assert len(storage) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "short.kv"]


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30), room=st.integers(1, 5))
def test_the_bytes_are_bounded_and_what_was_not_used_for_longest_goes_first(
    operations: list[tuple[bool, int]], room: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("storage")
    storage = FileStorage(folder, room * (HEADER_BYTES + len(BODY)) + 1)
    used: list[int] = []
    for put, index in operations:
        known = index in used
        if put:
            assert storage.put(NAMES[index], lambda: BODY)
        else:
            assert (storage.get(NAMES[index]) == BODY) is known
        if put or known:
            used = [*(other for other in used if other != index), index][-room:]
        assert {index for index in range(8) if storage.has(NAMES[index])} == set(used)
        assert len(list(folder.iterdir())) == len(storage) == len(used)


def test_the_order_of_use_outlives_the_process(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, 3 * (HEADER_BYTES + len(BODY)))
    for age, name in enumerate(NAMES[:3]):
        storage.put(name, lambda: BODY)
        os.utime(tmp_path / f"{name}{SUFFIX}", ns=(age, age))
    storage.get(NAMES[0])
    again = FileStorage(tmp_path, 3 * (HEADER_BYTES + len(BODY)))
    again.put(NAMES[3], lambda: BODY)
    assert [again.has(name) for name in NAMES[:4]] == [True, False, True, True]


def test_a_page_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, 50)
    assert not storage.put(NAMES[0], lambda: BODY)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="exists"):
        FileStorage(tmp_path / "file", LIMIT)
