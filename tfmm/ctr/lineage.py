"""What a trained model says of itself: through what it was trained, on what, and from which model it went on."""

from __future__ import annotations

import pathlib
import typing

from tfmm import artifacts
from tfmm.ctr import state as state_lib
from tfmm.data import examples, spans
from tfmm.index import snapshot as snapshot_lib
from tfmm.training import examples as examples_lib
from tfmm.training.sources import ExampleSource

Folder = str | pathlib.Path
Facts = dict[str, typing.Any]


def facts(
    train_rows: ExampleSource,
    eval_rows: ExampleSource,
    parent_dir: Folder | None,
    snapshot_dir: Folder | None,
    modalities: typing.Collection[str],
    make_dir: Folder | None,
    span: spans.Span | None = None,
) -> Facts:
    """Returns the facts of a training as JSON values, and refuses vectors of another encoder than the parent's.

    Args:
        train_rows, eval_rows: of the span, in time order.
        parent_dir: the state that the training goes on from; None: from scratch.
        snapshot_dir: with the vectors of `modalities`.
        modalities: those that the model uses.
        make_dir: pre-trained MAKE of a training from scratch; a continued model has its parent's.
        span: what the join found of the data.
    Returns:
        `trained_through` (`timestamp` in microseconds, and how many of its rows were trained, `row`), `span` (`number`
        from 1, `rows`, `first`, `last`; of a join its `late` rows and `gaps`, see `spans.Span`), `rows` in the model's
        life, `lag` of the held-out rows (`rows`, `seconds`), `newest` (microseconds, of the last impression of all),
        `examples` (a hash of the rows that were trained), `parent` (id of its state, or None), `encoder_versions` by
        modality, and `make` (id, or None).
    Raises:
        ValueError: a modality's vectors are of another encoder, or rows are not after the parent's.
    """
    times, held_out = train_rows.column("timestamp"), eval_rows.column("timestamp")
    parent = None if parent_dir is None else state_lib.read_manifest(parent_dir)
    before: Facts = parent["training"] if parent else {}
    versions = encoder_versions(snapshot_dir, modalities)
    if parent:
        require_encoders(before, versions)
        through = before["trained_through"]["timestamp"]
        if int(times[0]) <= through:
            raise ValueError(
                f"Rows must be later than what the parent was trained through, {spans.moment(through)}. Received: the "
                f"first of {spans.moment(int(times[0]))}. Write the examples of the new span: `tfmm train "
                "--continue-from` does."
            )
    first, last = int(times[0]), int(times[-1])
    judged = max(last, int(held_out[-1]))
    return {
        "trained_through": {"timestamp": last, "row": int((times == last).sum())},
        "span": {
            "number": before.get("span", {}).get("number", 0) + 1,
            "rows": len(times),
            "first": first,
            "last": last,
            **({"late": span.late, "gaps": list(map(list, span.gaps))} if span else {}),
        },
        "rows": before.get("rows", 0) + len(times),
        "newest": span.newest if span else judged,  # of what was left out too, so that it is no reason to train again
        "lag": {"rows": int((held_out > last).sum()), "seconds": round((judged - last) / examples.SECOND_US, 3)},
        "examples": examples_lib.digest({"timestamp": times, "item_id": train_rows.column("item_id")}),
        "parent": parent["id"] if parent else None,
        "encoder_versions": versions,
        "make": before["make"] if parent else artifacts.read_manifest(make_dir)["id"] if make_dir else None,
    }


def encoder_versions(snapshot_dir: Folder | None, modalities: typing.Collection[str]) -> dict[str, str]:
    """Returns the encoder's version of each modality's vectors in a snapshot."""
    if snapshot_dir is None or not modalities:
        return {}
    snapshot = snapshot_lib.load_snapshot(snapshot_dir)
    return {name: snapshot[name].encoder_version for name in sorted(modalities)}


def require_encoders(parent: typing.Mapping[str, typing.Any], versions: typing.Mapping[str, str]) -> None:
    """Raises a ValueError where vectors are of other encoders than a model was trained with."""
    wanted = parent["encoder_versions"]
    if different := [name for name in {**wanted, **versions} if wanted.get(name) != versions.get(name)]:
        found = "; ".join(f"{name}: {versions.get(name, 'none')}, not {wanted.get(name, 'none')}" for name in different)
        raise ValueError(
            f"A model goes on with vectors of the encoders that it was trained with. Received: {found}. Embed the "
            "catalog with those encoders, or train in full with the new ones."
        )
