"""Reads the parameters of a post-processing step, ``name:value:value``; every mistake names what fits."""

import math
from dataclasses import dataclass

from ssl_retrieval.errors import UserError


@dataclass(frozen=True)
class Parameters:
    """The parameters of one step, as written.

    Attributes:
        text: The whole step.
        form: An example of how it is written.
        values: What stands behind the colons.
    """

    text: str
    form: str
    values: tuple[str, ...]

    def wrong(self, what: str) -> UserError:
        """Put a mistake into words."""
        return UserError(f"step {self.text!r}: {what}; it is written {self.form}")

    def count(self, fewest: int, most: int) -> None:
        """Refuse too few or too many of them."""
        if len(self.values) < fewest:
            raise self.wrong("a parameter is missing")
        if len(self.values) > most:
            raise self.wrong("it has too many parameters")

    def whole(self, value: str, what: str, largest: int) -> int:
        """Read a whole number from 1 to ``largest``.

        Raises:
            UserError: It is none.
        """
        is_number = value.isascii() and value.isdigit() and len(value) <= len(str(largest))
        if not (is_number and 1 <= int(value) <= largest):
            raise self.wrong(f"{what} must be a whole number from 1 to {largest}")
        return int(value)

    def number(self, value: str, what: str, largest: float) -> float:
        """Read a number above 0, up to ``largest``.

        Raises:
            UserError: It is none.
        """
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number <= largest:
            raise self.wrong(f"{what} must be a number above 0, at most {largest:g}")
        return number
