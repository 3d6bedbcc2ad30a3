"""What bodies told is read as it was written."""

from __future__ import annotations

from pathlib import Path

from lab.chaos.truth import Note, Word, read, told, write


def test_notes_come_back_in_order(tmp_path: Path):
    notes = [
        Note(Word.ENDED, "t1", "r1", told({"page": 1, "extra": 2})),
        Note(Word.SETTLED, "t1", "r1"),
        Note(Word.DENIED, "t2", "r2", "QuotaExceeded"),
    ]
    for each in notes:
        write(tmp_path / "truth", each)
    assert read(tmp_path / "truth") == notes
    assert notes[0].used == {"page": 1, "extra": 2}
    assert notes[2].used == {}


def test_before_the_first_note_there_is_none(tmp_path: Path):
    assert read(tmp_path / "truth") == []
