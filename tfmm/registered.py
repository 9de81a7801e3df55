"""Classes that a URL's scheme names: ours, and those that other packages register as entry points."""

from __future__ import annotations

import importlib.metadata
import os
import typing
import urllib.parse

SQLITE = "sqlite:///"  # before the path of a file
FOLDER = "folder://"  # before the path of a folder


def sqlite_path(url: str | os.PathLike[str]) -> str:
    """Returns the path of a SQLite file, given as a path or a URL.

    >>> sqlite_path("sqlite:////data/items.sqlite"), sqlite_path("items.sqlite")
    ('/data/items.sqlite', 'items.sqlite')
    """
    return os.fspath(url).removeprefix(SQLITE)


def absolute(url: str | os.PathLike[str]) -> str:
    """Returns a path, or the URL of a file or folder, that names the same from every folder; others as they are.

    >>> absolute("/data/items.sqlite"), absolute("folder:///logs"), absolute("redis://host:6379/0")
    ('/data/items.sqlite', 'folder:///logs', 'redis://host:6379/0')
    """
    text = os.fspath(url)
    if "://" not in text:
        return os.path.abspath(text)
    for prefix in (SQLITE, FOLDER):
        if text.startswith(prefix):
            return prefix + os.path.abspath(text.removeprefix(prefix))
    return text


def without_password(url: str | os.PathLike[str]) -> str:
    """Returns a URL as it may be shown: without its password, and without its options, where secrets stand too.

    >>> without_password("redis://me:secret@host:6379/0?prefix=a"), without_password("items.sqlite")
    ('redis://me:***@host:6379/0', 'items.sqlite')
    """
    text = os.fspath(url)
    if "://" not in text:
        return text
    parts = urllib.parse.urlsplit(text)
    account, _, host = parts.netloc.rpartition("@")
    user = f"{account.partition(':')[0]}:***@" if parts.password is not None else f"{account}@" if account else ""
    return parts._replace(netloc=f"{user}{host}", query="").geturl()


def schemes(group: str, ours: typing.Iterable[str]) -> list[str]:
    """Returns the schemes that are known: ours, and those of entry points."""
    return sorted({*ours, *(found.name for found in importlib.metadata.entry_points(group=group))})


def resolve(
    url: str | os.PathLike[str], group: str, ours: typing.Mapping[str, str], noun: str
) -> tuple[typing.Any, str]:
    """Returns the class that a URL's scheme names, and the URL in full.

    Args:
        url: a plain path is a SQLite file, as `sqlite:///` before it says.
        group: of entry points, whose names are schemes and whose values read `module:Class`.
        ours: schemes that are tfmm's own, which no entry point takes over, with `module:Class`.
        noun: what the URL opens, for the error.
    Raises:
        ValueError: an unknown scheme.

    >>> resolve("a.zip", "none", {"sqlite": "zipfile:ZipFile"}, "an archive")
    (<class 'zipfile.ZipFile'>, 'sqlite:///a.zip')
    """
    text = os.fspath(url)
    scheme, separator, _ = text.partition("://")
    if not separator:
        scheme, text = "sqlite", f"{SQLITE}{text}"
    entries = {found.name: found for found in importlib.metadata.entry_points(group=group)}
    entries |= {name: importlib.metadata.EntryPoint(name, value, group) for name, value in ours.items()}
    if scheme not in entries:
        raise ValueError(
            f"The scheme of {noun}'s URL must be one of {sorted(entries)}. Received: {scheme!r} in "
            f"{without_password(text)!r}. One of your own is registered as an entry point of the group {group!r}."
        )
    return entries[scheme].load(), text
