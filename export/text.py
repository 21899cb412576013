"""Lists and fractions as text, for messages, tables and model cards."""

from collections.abc import Sequence

_SHOWN = 12


def first_of(words: Sequence[str], most: int) -> str:
    """The first `most` words, and the number of the others: "cat, dog and 3 more"."""
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def as_text(value: object) -> str:
    """A setting: 0.004, adam, yes, or 0.485,0.456,0.406. Of many numbers the first and their number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        more = f",... ({len(value)})" if len(value) > _SHOWN else ""
        return ",".join(map(as_text, value[:_SHOWN])) + more
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent_or_dash(fraction: float | None) -> str:
    """0.125 as "12.5%", and None as "-"."""
    return "-" if fraction is None else f"{fraction:.1%}"


def interval_or_dash(interval: tuple[float, float] | None) -> str:
    """(0.125, 0.5) as "12.5 to 50.0%", and None as "-"."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {interval[1]:.1%}"


def markdown_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], align: str) -> str:
    """A table in Markdown; `align` has one letter for each column, l or r."""
    rules = ["---:" if side == "r" else "---" for side in align]
    lines = [head, rules, *([escape_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    """Escapes text for Markdown: class names come from folders and may hold any character."""
    for special in "\\`*_{}[]<>#|":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())
