"""Reads docstrings and comments as this project writes them: griffe's extension for the reference."""

from __future__ import annotations

import io
import pathlib
import re
import tokenize
import typing

import griffe

# Methods that Keras asks for: where they have no docstring, Keras's own says what they do.
_KERAS = {"build", "compute_mask", "compute_output_shape", "compute_output_spec", "get_config"}
_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1(?! *$).*)*", re.M)


class Docstrings(griffe.Extension):
    """Makes code of examples, makes docstrings of comments behind constants and fields, hides what is no interface."""

    def __init__(self) -> None:
        self._comments: dict[str, dict[int, str]] = {}

    def on_object(self, *, obj: griffe.Object, **kwargs: typing.Any) -> None:
        if obj.docstring:
            text = re.sub(r"^( *)Call arguments:$", r"\1Args: Call arguments", obj.docstring.value, flags=re.M)
            obj.docstring.value = _EXAMPLE.sub(_fenced, text)
        elif isinstance(obj, griffe.Attribute) and obj.endlineno:
            comment = self._comments_of(str(obj.filepath)).get(obj.endlineno)
            if comment:
                obj.docstring = griffe.Docstring(comment, lineno=obj.endlineno, parent=obj)
            elif _is_assigned_in_a_method(obj):
                obj.public = False
        elif isinstance(obj, griffe.Function) and obj.name in _KERAS:
            obj.public = False

    def _comments_of(self, path: str) -> dict[int, str]:
        if path not in self._comments:
            tokens = tokenize.generate_tokens(io.StringIO(pathlib.Path(path).read_text("utf-8")).readline)
            self._comments[path] = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
        return self._comments[path]


def _is_assigned_in_a_method(attribute: griffe.Attribute) -> bool:
    return attribute.labels == {"instance-attribute"} and attribute.value is not None


def _fenced(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"
