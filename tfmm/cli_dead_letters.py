"""The command `tfmm dead-letters`: what batch jobs and the stream left out, in one form."""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing

import click

from tfmm.cli_options import Command

SHOWN_CONTENT = 200  # characters of a letter's content in the table


@click.command(
    "dead-letters",
    cls=Command,
    example="tfmm dead-letters quickstart\ntfmm dead-letters run/items.sqlite --reason not_json --json\n"
    "tfmm dead-letters run/items.sqlite --reason image_the_encoder_fails --send-to run/events.sqlite",
)
@click.argument("places", nargs=-1, required=True, type=str)
@click.option("--reason", help="Only letters with this reason code, or with this text in their reason.")
@click.option("--limit", type=click.IntRange(min=0), default=10, show_default=True, help="Letters shown; 0: all.")
@click.option("--json", "as_json", is_flag=True, help="Letters as JSON lines, whole, without counts.")
@click.option("--send-to", "events_url", help="Send the stream's letters again, as new events of this path or URL.")
def dead_letters(
    places: tuple[str, ...], reason: str | None, limit: int, as_json: bool, events_url: str | None
) -> None:
    """Show what was left out, by stage, source and reason, and the letters: of a workdir, a stage's output, an index.

    Each letter tells time, stage, source, key (row of the table, item, offset of the event), reason and content.
    """
    from rich import console, markup

    from tfmm import dead_letters as letters_lib
    from tfmm import terminal_tables

    def chosen() -> typing.Iterator[letters_lib.DeadLetter]:
        found = itertools.chain.from_iterable(map(_read, places))
        return (one for one in found if reason is None or reason == one.code or reason in one.reason)

    if events_url is not None:
        click.echo(_send_again(chosen(), events_url))
        return
    if as_json:
        for letter in itertools.islice(chosen(), limit or None):
            click.echo(json.dumps(dataclasses.asdict(letter), ensure_ascii=False))
        return
    letters, first = chosen(), []  # in one pass: a stream that writes meanwhile changes no sum
    if limit:
        first = list(itertools.islice(letters, limit))
        letters = itertools.chain(first, letters)
    terminal, counted = console.Console(), letters_lib.counts(letters)
    if not counted:
        terminal.print("No dead letter found.")
        return
    sums = terminal_tables.folded("count", "stage", "source", "reason code", "reason, of the first", title="Left out")
    for one in counted:
        cells = (f"{one.count:,}", one.stage, one.source, one.code, one.reason)
        sums.add_row(*(markup.escape(cell) for cell in cells))
    terminal.print(sums)
    for letter in first if limit else chosen():  # all may be more than memory holds
        place = f"{letter.time or 'no time'} {letter.stage} {letter.source} {letter.key}: {letter.reason}"
        terminal.print(place, markup=False, highlight=False)
        content = letter.content or ""
        cut = f"... ({len(content):,} characters, --json shows all)" if len(content) > SHOWN_CONTENT else ""
        terminal.print(f"  {content[:SHOWN_CONTENT]}{cut}", markup=False, highlight=False)
    total = sum(one.count for one in counted)
    if limit and total > limit:
        terminal.print(f"{limit:,} of {total:,} shown; --limit 0 shows all, --reason CODE those of one reason.")


def _read(place: str) -> typing.Iterator[typing.Any]:
    """Yields the letters of one place, which may be a log that the stream sent them to."""
    from tfmm import dead_letters as letters_lib

    if "://" in place:
        from serving.streaming import letters

        if letters.is_log(place):
            return map(letters_lib.of_stream, letters.read(place))
    return letters_lib.read(place)


def _send_again(letters: typing.Iterable[typing.Any], events_url: str) -> str:
    """Appends the events of letters, one event once, to a source of events; returns what was done in words."""
    from serving.streaming import event_log
    from tfmm import dead_letters as letters_lib

    found, left = {}, 0
    for letter in letters:
        if letter.stage == letters_lib.STREAM and letter.content is not None:
            found[letter.source, letter.key] = letters_lib.as_bytes(letter.content)
        else:
            left += 1
    with event_log.open_source(events_url) as source:
        if found:
            source.append(list(found.values()))
    others = f"; {left:,} letters of batch stages, or without an event, were not" if left else ""
    return f"{len(found):,} events were sent again{others}."
