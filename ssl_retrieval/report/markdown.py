"""Tables in Markdown."""

from collections.abc import Sequence


def escape(text: str) -> str:
    """Keep a text from ending its cell or line, or from being read as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def markdown_table(lines: Sequence[Sequence[str]], num_texts: int = 1) -> str:
    r"""Write a table; cells are escaped, so that names may hold what they like.

    Args:
        lines: Titles, then rows of as many cells.
        num_texts: The first columns are texts, aligned to the left; the others are numbers.

    >>> print(markdown_table([["rung", "mAP"], ["a|b", "**0.5**"]]))
    | rung | mAP |
    | :-- | --: |
    | a\|b | **0.5** |
    """
    header, *rows = lines
    alignment = [":--"] * num_texts + ["--:"] * (len(header) - num_texts)
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in (header, alignment, *rows))
