"""What a worker that starts late has to do to be as the others: the calls to all workers that still stand.

A call is a method of `control.Control` and its arguments, the first of which is the name of what it is about.
"""

from collections.abc import Sequence

Call = tuple[str | int, ...]

UNDOES = {"load": "unload", "unregister": "register"}
"""Which methods lead back to how a worker begins, and from what."""


def remember(standing: Sequence[Call], call: Call) -> list[Call]:
    """The calls that stand after one more: it may take the place of one, or undo it, or all of its kind if it names nothing."""
    method, name, *_ = call
    undone = UNDOES.get(str(method))
    if undone is not None:
        return [old for old in standing if old[0] != undone or name not in ("", old[1])]
    return [*(old for old in standing if old[:2] != (method, name)), call]
