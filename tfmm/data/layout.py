"""Which files of a data folder make up a table, and which are left unread."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import typing
import urllib.parse

from tfmm import artifacts, buckets
from tfmm.data import parts as parts_lib
from tfmm.data.parts import LayoutError, Part

SUFFIX = ".parquet"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

NOT_A_TABLE = "not a table of the schema"
NO_PART = f"a folder without a file *{SUFFIX} to read"
OTHER_SUFFIX = f"the name does not end in {SUFFIX}"
HIDDEN = "hidden: the name begins with . or _"
LOOP = "a link to a folder above it"
NO_FILE = "not a regular file"

# What marks a table whose Parquet files also hold rows that were deleted or written anew.
_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


@dataclasses.dataclass(frozen=True)
class Unread:
    """What lies in a data folder and is not read.

    Args:
        what: a path in the data folder, or `<table>.<column>`; the first one where `count` is more.
        reason: why, as a remark.
        count: how many of the kind there are.
    """

    what: str
    reason: str
    count: int = 1

    def __str__(self) -> str:
        return self.what if self.count == 1 else f"{self.what} and {self.count - 1:,} more"


def table_parts(data_dir: str | pathlib.Path, table: str, kinds: typing.Mapping[str, str]) -> list[Part]:
    """Returns the Parquet files of a table, sorted by path; none where the table is absent.

    A table is one file `<table>.parquet`, or one folder `<table>/` or `<table>.parquet/` of files at any depth. Links
    are followed. A folder `<column>=<value>` gives that column to the files under it that lack it.

    Args:
        data_dir: the data folder.
        table: its name.
        kinds: the kind of each documented column; see `tfmm.data.schema.Column`.
    Raises:
        LayoutError: the table is there twice, is a table of Delta Lake, Hudi or Iceberg, or the name of a folder is
            no value of its column.
    """
    if buckets.is_url(data_dir):
        return _bucket_parts(str(data_dir).rstrip("/"), table, kinds)
    found = {}
    for form in _forms(data_dir, table):
        if paths := [path for path, reason in _walk(form) if not reason]:
            found[form] = paths
    _require_one([_name(form, data_dir) for form in found], data_dir, table)
    return [part for form, paths in found.items() for part in _with_keys(form, paths, kinds)]


def _require_one(forms: typing.Sequence[str], data_dir: str | pathlib.Path, table: str) -> None:
    if len(forms) > 1:
        names = " and ".join(forms)
        raise LayoutError(f"{data_dir} must hold table {table!r} once. Received: {names}. Take one of them away.")


def _bucket_parts(url: str, table: str, kinds: typing.Mapping[str, str]) -> list[Part]:
    """Returns what `table_parts` does of a bucket, which has no links and no pipes."""
    file, found = f"{table}{SUFFIX}", {}
    if buckets.is_file(f"{url}/{file}"):
        found[file] = [pathlib.PurePosixPath(file)]
    for form in (file, table):
        paths = []
        for top, folders, files in buckets.walk(f"{url}/{form}"):
            place = pathlib.PurePosixPath(top.removeprefix(f"{url}/"))
            _refuse_table_format(place, [*folders, *files], "metadata" in folders and buckets.walk(f"{top}/metadata"))
            if not any(map(_is_hidden, place.parts)):
                paths += [place / name for name in files if name.endswith(SUFFIX) and not _is_hidden(name)]
        if paths:
            found[form] = sorted(paths)
    _require_one(list(found), url, table)
    parts = [
        part for form, paths in found.items() for part in _with_keys(pathlib.PurePosixPath(form), paths, kinds)
    ]
    return [dataclasses.replace(part, path=f"{url}/{part.path}") for part in parts]


def unread_files(data_dir: str | pathlib.Path, table: str) -> list[Unread]:
    """Returns what lies in a table's folder and is not read, one per reason."""
    result: list[Unread] = []
    if buckets.is_url(data_dir):
        return _unread_in_bucket(str(data_dir).rstrip("/"), table)
    for form in _forms(data_dir, table):
        files = list(_walk(form))
        if all(reason for _, reason in files):
            result.append(Unread(_name(form, data_dir), NO_PART))
        result += _by_reason((_name(path, data_dir), reason) for path, reason in files)
    return result


def _unread_in_bucket(url: str, table: str) -> list[Unread]:
    """Returns what `unread_files` does of a bucket."""
    result: list[Unread] = []
    folders, _ = buckets.names(url)
    for form in (one for one in (f"{table}{SUFFIX}", table) if one in folders):
        files = _files_of_bucket(url, form)
        if all(reason for _, reason in files):
            result.append(Unread(f"{form}/", NO_PART))
        result += _by_reason(files)
    return result


def _files_of_bucket(url: str, folder: str) -> list[tuple[str, str]]:
    """Returns the files under a folder, sorted, with the reason why each is not read, as `_walk` does."""
    found = []
    for top, _, files in buckets.walk(f"{url}/{folder}"):
        place = pathlib.PurePosixPath(top.removeprefix(f"{url}/"))
        for name in files:
            is_part = name.endswith(SUFFIX)
            if not any(map(_is_hidden, (*place.parts, name))):
                found.append((str(place / name), "" if is_part else OTHER_SUFFIX))
            elif is_part:
                found.append((str(place / name), HIDDEN))
    return sorted(found)


def unknown_files(data_dir: str | pathlib.Path, tables: typing.Collection[str]) -> list[Unread]:
    """Returns what lies in a data folder and belongs to no table of `tables`."""
    if buckets.is_url(data_dir):
        folders, files = buckets.names(str(data_dir))
        url, found = str(data_dir).rstrip("/"), [(name, "/") for name in folders]
        found += [(name, "") for name in files if name != artifacts.MANIFEST]
        own = [name for name in files if _is_hidden(name) and name.endswith(SUFFIX)]
        own += [file for name in folders if _is_hidden(name) for file, _ in _files_of_bucket(url, name)]
        return [
            Unread(name + end, NOT_A_TABLE if end or name.endswith(SUFFIX) else OTHER_SUFFIX)
            for name, end in sorted(found)
            if not _is_hidden(name) and (name.removesuffix(SUFFIX) not in tables or name + end in tables)
        ] + _by_reason((name, HIDDEN) for name in sorted(own))
    folder = pathlib.Path(data_dir)
    hidden: list[tuple[pathlib.Path, str]] = []
    result: list[Unread] = []
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if _is_hidden(name):
            hidden += _hidden_parquet(path)
        elif name != artifacts.MANIFEST and name not in tables and name.removesuffix(SUFFIX) not in tables:
            is_table = path.is_dir() or name.endswith(SUFFIX)
            result.append(Unread(_name(path, folder), NOT_A_TABLE if is_table else OTHER_SUFFIX))
        elif name in tables and path.is_file():
            result.append(Unread(name, OTHER_SUFFIX))
    return result + _by_reason((_name(path, folder), reason) for path, reason in hidden)


def _forms(data_dir: str | pathlib.Path, table: str) -> list[pathlib.Path]:
    """Returns the file and the folders that carry a table's name."""
    file, folder = pathlib.Path(data_dir) / f"{table}{SUFFIX}", pathlib.Path(data_dir) / table
    return [path for path in (file, folder) if path.is_dir() or _is_broken(path) or (path == file and path.exists())]


def _is_broken(path: pathlib.Path) -> bool:
    return path.is_symlink() and not path.exists()


def _walk(path: pathlib.Path, above: frozenset[str] = frozenset()) -> typing.Iterator[tuple[pathlib.Path, str]]:
    """Yields files, sorted by path, each with the reason why it is not read; "" where it is."""
    if not path.is_dir():
        if _is_broken(path):  # a part whose reading fails: what it stood for must not vanish
            yield path, ""
        elif not path.is_file():  # reading a pipe would wait for ever
            yield path, NO_FILE
        else:
            yield path, "" if path.name.endswith(SUFFIX) else OTHER_SUFFIX
        return
    real = os.path.realpath(path)
    if real in above:
        yield path, LOOP
        return
    names = sorted(os.listdir(path))
    _refuse_table_format(path, names)
    for name in names:
        if _is_hidden(name):
            yield from _hidden_parquet(path / name)
        else:
            yield from _walk(path / name, above | {real})


def _is_hidden(name: str) -> bool:
    """As Spark has it: a key may begin with an underscore."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _hidden_parquet(path: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(file, HIDDEN) for file in files if file.name.endswith(SUFFIX) and file.is_file()]


def _refuse_table_format(
    folder: pathlib.PurePath, names: typing.Collection[str], metadata: typing.Any = None
) -> None:
    """Raises LayoutError where a folder's names are those of a table format; `metadata` is a bucket's, walked."""
    formats = [_LOGS[name] for name in names if name in _LOGS]
    if isinstance(folder, pathlib.Path):
        own = [path.name for path in (folder / "metadata").glob("*")] if "metadata" in names else []
    else:
        own = [name for _, _, files in metadata or () for name in files]
    if any(name.endswith(".metadata.json") for name in own):
        formats.append("Iceberg")
    if formats:
        raise LayoutError(
            f"{folder} must be plain Parquet. Received: a table of {formats[0]}, whose files also hold rows that were "
            "deleted or replaced. Write its present rows to Parquet files."
        )


def _with_keys(
    form: pathlib.PurePath, paths: typing.Sequence[pathlib.PurePath], kinds: typing.Mapping[str, str]
) -> list[Part]:
    """Returns the parts with the values that their folders' names give."""
    texts = [_partition(form, path) for path in paths]
    keys: dict[str, dict[int, parts_lib.Key]] = {}
    for column in sorted({column for one in texts for column in one} & set(kinds)):
        places = [place for place, one in enumerate(texts) if column in one]
        try:
            found = parts_lib.keys(column, kinds[column], [texts[place][column] for place in places])
        except ValueError as error:
            named = sorted({f"{column}={texts[place][column]}" for place in places})
            raise LayoutError(
                f"Folders `{column}=` in {form} must name values of column {column!r} ({kinds[column]}). Received: "
                f"{', '.join(named[:3])} ({error})."
            ) from error
        keys[column] = dict(zip(places, found))
    return [
        Part(
            str(path),
            tuple(values[place] for values in keys.values() if place in values),
            tuple(column for column in texts[place] if column not in kinds),
        )
        for place, path in enumerate(paths)
    ]


def _partition(form: pathlib.PurePath, path: pathlib.PurePath) -> dict[str, str | None]:
    """Returns the keys and values in the names of a file's folders; None is null."""
    result: dict[str, str | None] = {}
    for name in path.relative_to(form).parts[:-1]:
        key, is_pair, value = name.partition("=")
        if not (key and is_pair):
            continue
        key, text = urllib.parse.unquote(key), None if value == NULL_PARTITION else urllib.parse.unquote(value)
        if result.setdefault(key, text) != text:
            raise LayoutError(f"{path} must have one `{key}=` among its folders. Received: {result[key]} and {text}.")
    return result


def _by_reason(files: typing.Iterable[tuple[str, str]]) -> list[Unread]:
    groups = collections.defaultdict(list)
    for name, reason in files:
        if reason:
            groups[reason].append(name)
    return [Unread(names[0], reason, len(names)) for reason, names in groups.items()]


def _name(path: pathlib.Path, data_dir: str | pathlib.Path) -> str:
    return path.relative_to(data_dir).as_posix() + ("/" if path.is_dir() else "")
