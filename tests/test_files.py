"""Small files: whole or not at all, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_emb.errors import UserError
from recsys_emb.files import read_json, read_json_lines, unused, write_json, write_text


def test_what_is_written_reads_back_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value in ({"a": [1, None, "é"]}, {"b": 2.5}):
        write_json(path, value)
        assert read_json(path) == value
        assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.json: cannot be read \(No such file"),
        (b"{", r"a\.json: not valid JSON"),
        (b"[" * 100_000, r"a\.json: not valid JSON"),
        (b'{"a": {"b": 1, "b": 2}}', r"a\.json: not valid JSON.*the key 'b' occurs twice"),
        (b"\xff", r"a\.json: cannot be read, not UTF-8"),
        (b"[1]", r"a\.json: expected a JSON object, got list"),
    ],
)
def test_unreadable_json_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_json_lines_leave_out_a_half_written_end_and_name_a_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": 1}}\n2\n{"a": {"b": 1}')  # looks whole, but for its end
    assert read_json_lines(path) == [{"a": {"b": 1}}, 2]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2: not valid JSON; delete that line"):
        read_json_lines(path)


def test_a_name_that_is_taken_is_numbered(tmp_path: Path) -> None:
    for name in ("v1.5", "v1.5-2", "v1.5-3"):
        assert unused(tmp_path / "v1.5") == tmp_path / name
        (tmp_path / name).mkdir()
