"""Files and folders that enter the ledger, and what a disk may refuse on the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from quantlab import disk
from quantlab.errors import LedgerProblem
from quantlab.ledgers import Ledger
from tests.ledger_samples import a_run, entry


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "läufe 1")


def test_a_file_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(LedgerProblem, match="a file stands where a folder is needed"):
        Ledger(tmp_path / "runs")
    with pytest.raises(LedgerProblem, match="a file stands where a folder is needed") as caught:
        Ledger(tmp_path / "runs" / "inner").append(entry())
    assert "QUANTLAB_LEDGER" in caught.value.cure


def test_a_place_that_takes_no_folders_is_explained() -> None:
    """/proc refuses even root."""
    ledger = Ledger("/proc/quantlab")
    for act in (
        lambda: ledger.append(entry()),
        lambda: ledger.scratch("a"),
        lambda: ledger.save_run(a_run("")),
    ):
        with pytest.raises(LedgerProblem, match="/proc/quantlab") as caught:
            act()
        assert caught.value.cure


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "permission denied"),
        (errno.EIO, "the disk says"),
    ],
)
def test_what_the_disk_refuses_is_explained_and_leaves_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    ledger.append(entry())

    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(LedgerProblem, match=words) as caught:
        ledger.append(entry(identity="b"))
    assert str(ledger.root) in caught.value.place
    assert caught.value.cure
    monkeypatch.undo()
    assert len(ledger.entries()) == 1
    assert list(ledger.root.rglob("*.tmp")) == []


def test_files_are_adopted_and_replaced(ledger: Ledger, tmp_path: Path) -> None:
    for text in ("one", "zwei"):
        (tmp_path / "items").write_text(text)
        relative = ledger.adopt("a", "items.parquet", tmp_path / "items")
        assert relative == "files/a/items.parquet"
        assert ledger.path(relative).read_text() == text
        assert not (tmp_path / "items").exists()
    with pytest.raises(LedgerProblem, match="No such file"):
        ledger.adopt("a", "items.parquet", tmp_path / "items")
    assert ledger.path(relative).read_text() == "zwei", "what was there is kept"


@pytest.mark.parametrize("other_disk", [False, True])
def test_folders_are_adopted_and_replaced(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool
) -> None:
    for text in ("one", "two"):
        source = tmp_path / "made"
        (source / "inner").mkdir(parents=True)
        (source / "inner" / "file").write_text(text)
        (source / "link").symlink_to("inner/file")
        if other_disk:
            _cross_devices(monkeypatch, source)
        relative = ledger.adopt("a", "engine", source)
        monkeypatch.undo()
        assert (ledger.path(relative) / "inner" / "file").read_text() == text
        assert (ledger.path(relative) / "link").is_symlink()
        assert not source.exists()
        assert [path.name for path in ledger.path(relative).parent.iterdir()] == ["engine"]


def _cross_devices(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """As if `source` lay on another disk: the kernel then refuses to rename it."""
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def rename(a: Any, b: Any, real: Any = real) -> None:
            if Path(a) == source:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            real(a, b)

        monkeypatch.setattr(os, name, rename)


def test_a_copy_from_another_disk_that_fails_leaves_source_and_old_target(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "items"
    source.write_text("old")
    relative = ledger.adopt("a", "items", source)
    source.write_text("new")
    _cross_devices(monkeypatch, source)

    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "_copy", refuse)
    with pytest.raises(LedgerProblem, match="the disk is full"):
        ledger.adopt("a", "items", source)
    assert (source.read_text(), ledger.path(relative).read_text()) == ("new", "old")


def test_paths_are_relative_inside_and_absolute_outside(ledger: Ledger, tmp_path: Path) -> None:
    inside = ledger.scratch("a") / "log.txt"
    assert ledger.relative(inside) == "work/a/log.txt"
    assert ledger.path("work/a/log.txt") == inside
    assert ledger.relative(tmp_path / "model") == str(tmp_path / "model")
    assert ledger.path(str(tmp_path / "model")) == tmp_path / "model"
    assert ledger.relative(ledger.root / ".." / "model") == str(tmp_path / "model")
    assert ledger.checkpoint_folder("a") == ledger.root / "checkpoints" / "a"
    assert not ledger.checkpoint_folder("a").exists()
    # A ledger reached through a link, and one whose checkpoints lie on a bigger disk behind a link.
    (tmp_path / "link").symlink_to(ledger.root)
    assert ledger.relative(tmp_path / "link" / "work" / "a") == "work/a"
    (tmp_path / "big").mkdir()
    (ledger.root / "files").symlink_to(tmp_path / "big")
    assert ledger.relative(ledger.root / "files" / "a") == "files/a"


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", ".hidden", "a\0b", "ü"])
def test_no_name_leads_out_of_the_ledger(ledger: Ledger, name: str) -> None:
    for act in (ledger.scratch, ledger.checkpoint_folder, lambda name: ledger.append(entry(identity=name))):
        with pytest.raises(ValueError, match="cannot be the name"):
            act(name)
