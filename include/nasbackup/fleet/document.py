"""From the bytes of ``fleet.yaml`` to a checked document; what is wrong is said with file, line and field."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nasbackup.errors import FleetInvalid

Path_ = Sequence[str | int]
"""Keys and indexes from the document's root to a value in it."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """``content`` fits the schema. ``node``: the same with the lines in which it was written; ``text``: as it is."""

    file: Path
    text: str
    content: Mapping[str, Any]
    node: yaml.Node | None

    def refuse(self, path: Path_, problem: str) -> FleetInvalid:
        """The error that names the value at ``path``."""
        return _refusal(self.file, field=_field(path), problem=problem, line=_line(self.node, path))


def read(file: Path, *, where_from: str) -> Document:
    """Raises FleetInvalid. ``where_from`` says how the file's place is set, for one that is not there."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(file, field="file", problem=f"it is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise _refusal(file, field="file", problem=f"{error.strerror} ({where_from})") from error
    return checked(text, file=file)


def checked(text: str, *, file: Path) -> Document:
    """``text`` is what was read of the file. Raises FleetInvalid."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or f"not YAML: {' '.join(str(error).split())}"
        raise _refusal(file, field="file", problem=problem, line=mark.line + 1 if mark else None) from error
    document = Document(file=file, text=text, content=content, node=node)
    wrong = first_problem(content, schema=schema())
    if wrong is not None:
        raise document.refuse(*wrong)
    return document


def first_problem(document: Any, *, schema: Mapping[str, Any]) -> tuple[Path_, str] | None:
    """(where, what is wrong there) of the problem that explains most."""
    import jsonschema  # costs 60 ms, and only a document that was read needs it

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(document))
    if error is None:
        return None
    message = error.message
    if error.validator in ("pattern", "anyOf") and "examples" in error.schema:
        message = f"{error.instance!r} does not match: write it like {' or '.join(error.schema['examples'])}"
    return list(error.absolute_path), message


@functools.cache
def schema() -> dict[str, Any]:
    file = importlib.resources.files("nasbackup") / "schemas" / "fleet.schema.json"
    return dict(json.loads(file.read_text()))


class _Loader(yaml.SafeLoader):
    """Keys are the words that were written, each once: plain YAML takes ``on`` for true and the last twin for both."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# As YAML 1.2 has it: only these are a yes and a no. `quiesce: off` is a word.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def _refusal(file: Path, *, field: str, problem: str, line: int | None = None) -> FleetInvalid:
    place = str(file) if line is None else f"{file}, line {line}"
    return FleetInvalid(place=place, file=file, line=line, field=field, problem=problem)


def _field(path: Path_) -> str:
    """As in ``zones.east.hosts[1]``."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".") or "file"


def _line(node: yaml.Node | None, path: Path_) -> int | None:
    """The line in which the value at ``path`` was written, or that of the last step that was."""
    if node is None:
        return None
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
