"""`jaxcnn config`: the keys of an experiment, with their defaults, legal values and meanings."""

import difflib
import json
import shutil
import textwrap
from typing import Any, NamedTuple

from jaxcnn import UserError
from jaxcnn.commands.options import Parser
from jaxcnn.config import KEYS, OPEN, TASK_KEYS, Row, Rule, unknown_key

_WIDEST = 100  # columns: longer lines are hard to read
_OVERRIDES: Row = (
    {}, Rule(lambda v: True, "numbers, texts, truth values or lists"),
    "keyword arguments of the network, by their names: model.overrides.dropout=0.5",
)  # fmt: skip


class Entry(NamedTuple):
    """A key of the table, and the task that alone has it ("" where all have it)."""

    key: str
    task: str
    row: Row


def main(argv: list[str]) -> int:
    """Print the keys that `argv` asks for."""
    parser = Parser("jaxcnn config", description=__doc__)
    words = "a key (optimizer.name), its last word (learning_rate) or a group (optimizer); default: all keys"
    parser.add_argument("key", metavar="KEY", nargs="?", default="", help=words)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args(argv)
    entries = _chosen(arguments.key)
    if arguments.json:
        for entry in entries:
            print(json.dumps(_as_json(entry), ensure_ascii=False))
    else:
        print(_as_text(entries, min(shutil.get_terminal_size().columns, _WIDEST)))
    return 0


def _entries() -> list[Entry]:
    """Return all entries: those of every task, then each task's own."""
    common = [Entry(key, "", row) for key, row in [*KEYS.items(), (OPEN, _OVERRIDES)]]
    return common + [Entry(key, task, row) for task, rows in TASK_KEYS.items() for key, row in rows.items()]


def _chosen(words: str) -> list[Entry]:
    """Return the entries of a dotted key, else of a group, else of a last word.

    Raises:
      UserError: there is none; it names the nearest.
    """
    entries, words = _entries(), words.removeprefix("config.").rstrip(".")
    if words.startswith(OPEN):
        words = OPEN
    matches = (
        [entry for entry in entries if words in ("", entry.key)],
        [entry for entry in entries if entry.key.startswith(f"{words}.")],
        [entry for entry in entries if entry.key.rpartition(".")[2] == words],
    )
    if found := next(filter(None, matches), None):
        return found
    groups = {entry.key.rpartition(".")[0] for entry in entries} - {""}
    if near := difflib.get_close_matches(words, groups, n=1, cutoff=0.75):
        raise UserError(f"config has no key '{words[:300]}': did you mean the group '{near[0]}'?")
    raise unknown_key(words)


def _legal(row: Row) -> str:
    """Return words for the legal values; "" where any text is legal."""
    default, rule, _ = row
    if isinstance(default, bool):
        return "True | False"
    return "" if isinstance(default, str) and rule.words == "anything" else rule.words


def _as_json(entry: Entry) -> dict[str, Any]:
    default, rule, meaning = entry.row
    types = [each.__name__ for each in rule.types or (type(default),)]
    legal = _legal(entry.row) or "any text"
    return {
        "key": entry.key, "default": default, "types": types, "legal": legal, "meaning": meaning, "task": entry.task
    }  # fmt: skip


def _as_text(entries: list[Entry], width: int) -> str:
    """Return a paragraph for each group; the meaning of a key is below it, in lines of `width` columns."""
    lines, group = [], None
    for entry in entries:
        default, _, meaning = entry.row
        if group not in (None, (entry.key.rpartition(".")[0], entry.task)):
            lines.append("")
        group = entry.key.rpartition(".")[0], entry.task
        lines.append(f"{entry.key} = {default!r}")
        legal = f" [{words}]" if (words := _legal(entry.row)) else ""
        owner = f"task.name={entry.task}: " if entry.task else ""
        lines += textwrap.wrap(
            f"{owner}{meaning}{legal}", max(width, 20), initial_indent="    ", subsequent_indent="    ",
            break_on_hyphens=False,
        )  # fmt: skip
    return "\n".join(lines)
