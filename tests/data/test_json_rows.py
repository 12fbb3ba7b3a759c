"""JSON rows: every layout gives the same table, types follow the values, and an error names the file and the line."""

import json

import pyarrow as pa
import pytest

from mergescope.data import json_columns, json_rows, load_table
from mergescope.data.json_rows import read_json_rows
from mergescope.errors import DataError

ROWS = [{"text": "a", "label": 0}, {"text": "b \u2028 ö", "label": 1}, {"text": "c", "label": 1}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LAYOUTS = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "no last end.jsonl": LINES[:-1],
    "windows.jsonl": "\ufeff\n\r\n" + LINES.replace("\n", "\r\n \n"),
    "raw.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS),
    "written out.json": "\n " + json.dumps(ROWS, indent=2) + "\n\n",
    "mappings.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "beside each other.json": "".join(json.dumps(row) for row in ROWS),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns written out.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}, indent=1),
}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_every_layout_gives_the_same_rows(tmp_path, name, at_once, monkeypatch):
    monkeypatch.setattr(json_rows, "ROWS", at_once)
    table = read_json_rows([written(tmp_path / name, LAYOUTS[name])])
    assert table.to_pylist() == ROWS
    assert table.schema == pa.schema([("text", pa.string()), ("label", pa.int64())])


LISTS = pa.list_(pa.int64())
TYPES = [
    ([1, None, 2], pa.int64(), [1, None, 2]),
    ([1, 0.5], pa.float64(), [1.0, 0.5]),
    ([None, 2**53 + 1, 0.5], pa.float64(), [None, 2.0**53, 0.5]),
    ([2**63, 1], pa.float64(), [2.0**63, 1.0]),
    ([True, None], pa.bool_(), [True, None]),
    (["2020-01-02", "2020-01-02 03:04:05"], pa.string(), ["2020-01-02", "2020-01-02 03:04:05"]),
    ([None, None], pa.null(), [None, None]),
    ([[1], None, []], LISTS, [[1], None, []]),
    ([[], [1]], LISTS, [[], [1]]),
    ([[1], [0.5]], pa.list_(pa.float64()), [[1.0], [0.5]]),
    ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())]), [
        {"a": 1, "b": None}, {"a": None, "b": "x"}]),
    ([[{"a": 1}], [{"b": {}}]], None, [[{"a": 1, "b": None}], [{"a": None, "b": {}}]]),
    ([{"a": 1}, None, {"a": "x", "b": None}], pa.binary(), [b'{"a": 1}', None, b'{"a": "x"}']),
    (["x", [1]], pa.binary(), [b'"x"', b"[1]"]),
    ([[1, "x"], 5], pa.binary(), [b'[1, "x"]', b"5"]),
    ([{"a": 10**30}], pa.binary(), [b'{"a": 1000000000000000000000000000000}']),
]  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 1000])
@pytest.mark.parametrize(
    ("values", "kind", "expected"), TYPES, ids=[str(values)[:40] for values, _, _ in TYPES]
)
def test_a_column_has_the_type_of_its_values(tmp_path, values, kind, expected, at_once, monkeypatch):
    monkeypatch.setattr(json_rows, "ROWS", at_once)
    lines = "".join(json.dumps({"x": value}) + "\n" for value in values)
    table = read_json_rows([written(tmp_path / "a.jsonl", lines)])
    assert table["x"].to_pylist() == expected and (kind is None or table["x"].type == kind)
    assert load_table(tmp_path / "a.jsonl")["x"][:] == expected


@pytest.mark.parametrize("at_once", [1, 1000])
def test_keys_may_be_absent_and_new_ones_come_last(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(json_rows, "ROWS", at_once)
    lines = '{"b": 1}\n{"a": "x"}\n{}\n{"b": 2.5, "": null}'
    table = read_json_rows([written(tmp_path / "a.jsonl", lines)])
    assert table.column_names == ["b", "a", ""]
    assert table.to_pydict() == {"b": [1.0, None, None, 2.5], "a": [None, "x", None, None], "": [None] * 4}


def test_files_of_one_split_are_one_table(tmp_path):
    for number, text in enumerate(('{"x": 1}\n{"x": 2}', '[{"x": 2.5, "y": "z"}]')):
        written(tmp_path / f"test-{number:05}-of-00002.json", text)
    assert load_table(tmp_path)[:] == {"x": [1.0, 2.0, 2.5], "y": [None, None, "z"]}


def test_one_mapping_in_a_json_file_is_a_row_unless_all_its_values_are_lists(tmp_path):
    row = {"text": "a", "answers": ["x", "y"]}
    assert read_json_rows([written(tmp_path / "a.json", json.dumps(row, indent=1))]).to_pylist() == [row]
    lists = {"texts": ["a"], "answers": ["x"]}
    assert read_json_rows([written(tmp_path / "a.jsonl", json.dumps(lists))]).to_pylist() == [lists]


GOOD = '{"x": 1}\n'
WRONG = {
    "row": (GOOD + "\n" + "null\n", 3, "expected a mapping of columns, got null"),
    "row of a list": ('[{"x": 1},\n {"x": 2},\n [3]]', 3, "expected a mapping of columns, got a list"),
    "text": ('["a", "b"]', 1, 'expected a mapping of columns, got "a"'),
    "cut line": (GOOD * 4 + '{"x": ', 5, "Expecting value at character 7"),
    "cut list": ('[{"x": 1},\n{"x": 2},\n', 3, "expected a comma or the list's end, got the end of the file"),
    "cut row": ('[{"x": 1},\n{"x":\n 2,', 3, "Expecting property name"),
    "no comma": ('[{"x": 1}\n{"x": 2}]', 2, r"""or the list's end, got '\{"x": 2\}\]'""" ),
    "after the list": ('[{"x": 1}]\nmore', 1, "expected nothing after the list's end, got 'more'"),
    "after the row": (GOOD + '{"x": 1} 5\n', 2, "expected the line's end after its mapping, got '5'"),
    "twice": (GOOD + '{"x": 1, "x": 2}', 2, "'x' occurs twice"),
    "digits": (GOOD + '{"x": ' + "9" * 5000 + "}", 2, r"limit \(4300"),
    "large": (GOOD + '{"x": 1' + "0" * 400 + "}", 2, "'x' is a number beyond what float64 holds"),
    "deep": (GOOD + '{"x": ' + "[" * 100_000, 2, "nested too deeply"),
    "rather deep": (GOOD + '{"y": ' + "[" * 60 + "]" * 60 + "}", 2, "'y' is nested more than 20 deep"),
    "half": (GOOD + '{"y": "\\ud800"}', 2, "'y' holds half a character"),
    "half key": (GOOD + '{"\\ud800": 1}', 2, "the key .* holds a null character or half"),
    "null in a key": (GOOD + '{"x": {"a\\u0000b": 1}}', 2, "the key .* holds a null character"),
    "kinds": (GOOD + '{"y": 1}\n{"x": "one\\u0007"}', 3, r"""'x' is a text \("one\\u0007"\), and a number in line 1"""),
    "truth": (GOOD + '{"x": true}', 2, r"'x' is a truth value \(true\), and a number in line 1"),
    "later": (GOOD * 2500 + '{"x": "a"}', 2501, r"'x' is a text \(\"a\"\), and a number in line 1\."),
    "encoding": (GOOD.encode() + b'{"x": "\xe9"}', 2, "no UTF-8 text"),
    "encoding of a list": (b'[\n{"x": "a"},\n{"x": "\xe9"}]', 3, "no UTF-8 text"),
    "utf-16": (GOOD.encode("utf-16"), 1, "no UTF-8 text"),
    "lengths": ('{"x": [1, 2], "y": [3]}', 1, "columns of one table have the same length, got 'x' 2, 'y' 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_read_is_named_with_its_line(tmp_path, name):
    content, line, why = WRONG[name]
    with pytest.raises(DataError, match=rf"a\.json can't be read as json: line {line:,}: .*{why}"):
        load_table(written(tmp_path / "a.json", content))


def test_a_second_file_of_another_type_names_the_first(tmp_path):
    first = written(tmp_path / "a.jsonl", GOOD)
    second = written(tmp_path / "b.jsonl", '{"x": "y"}')
    with pytest.raises(DataError, match=rf"b\.jsonl .*line 1: 'x' is a text .* number in line 1 of {first}"):
        read_json_rows([first, second])


def test_keys_that_few_rows_have_do_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "_FREE", 1000)
    rows = [{f"k{number}": 1} for number in range(300)]
    sparse = written(tmp_path / "sparse.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="line 300: so far the rows have 300 different keys"):
        read_json_rows([sparse])
    for at_once in (100, 1000):
        monkeypatch.setattr(json_rows, "ROWS", at_once)
        inside = written(tmp_path / "inside.jsonl", "\n".join(json.dumps({"x": row}) for row in rows))
        table = read_json_rows([inside])
        assert table["x"].type == pa.binary()
        assert [json.loads(value) for value in table["x"].to_pylist()][:2] == rows[:2]


def test_a_table_may_be_as_deep_as_it_says(tmp_path):
    value = 1
    for _ in range(json_columns.DEPTH // 2):
        value = [{"a": value}]
    (found,) = load_table(written(tmp_path / "a.jsonl", json.dumps({"x": value})))["x"][:]
    assert found == value


def test_a_file_that_goes_away_is_named(tmp_path, monkeypatch):
    def gone(files):
        raise PermissionError(13, "Permission denied", str(files[0]))

    path = written(tmp_path / "a.jsonl", GOOD)
    monkeypatch.setattr("mergescope.data.sources.read_json_rows", gone)
    with pytest.raises(DataError, match=r"a\.jsonl can't be read: Permission denied"):
        load_table(path)
