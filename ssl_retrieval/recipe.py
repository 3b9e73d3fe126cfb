"""How a representation is made of others, as configured, and what cannot be."""

from dataclasses import dataclass, field

from ssl_retrieval import postprocess, rerank
from ssl_retrieval.errors import UserError

ASYMMETRIC = "asymmetric"
FUSIONS = ("concat", "score_sum", "reciprocal_rank", ASYMMETRIC)
_MAX_WEIGHT = 1e6


@dataclass
class Derived:
    """A representation made of others.

    Attributes:
        of: Labels of the representations that it is made of; at least one.
        fuse: With several: ``concat`` (weighted concatenation), ``score_sum`` or ``reciprocal_rank``; or
            ``asymmetric``: of two, the first embeds the queries and the second the gallery.
        weights: One per part, 0 or more and not all 0; empty = equal.
        steps: Post-processing after the concatenation, in order (see `postprocess.parse`).
        rerank: Re-ranking after all else, in order (see `rerank.parse`).
    """

    of: list[str] = field(default_factory=list)
    fuse: str = "concat"
    weights: list[float] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    rerank: list[str] = field(default_factory=list)

    @property
    def learns(self) -> bool:
        """Whether it is fitted on images."""
        return any(step.learns for step in postprocess.parse(self.steps))

    @property
    def fuses_scores(self) -> bool:
        """Whether it is a late fusion."""
        return self.fuse in ("score_sum", "reciprocal_rank") and len(self.of) > 1

    @property
    def gives_scores(self) -> bool:
        """Whether it has scores and no vectors, even where its parts have vectors."""
        return self.fuses_scores or any(step.gives_scores for step in rerank.parse(self.rerank))

    @property
    def needs_vectors(self) -> bool:
        """Whether each part must have vectors: not where scores are fused, or only put in a new order."""
        if self.fuses_scores:
            return False
        steps = rerank.parse(self.rerank)
        return not steps or len(self.of) > 1 or bool(self.steps) or any(step.needs_vectors for step in steps)

    def check(self, label: str, known: list[str]) -> None:
        """Refuse what cannot be derived.

        Args:
            label: Of this representation, for messages.
            known: Labels that it may be made of.

        Raises:
            UserError: Names the key and what is wrong.
        """
        where = f"derived.{label}"
        if not self.of:
            raise UserError(f"{where}.of is empty: name the representations that it is made of")
        for part in self.of:
            if part not in known:
                raise UserError(
                    f"{where}.of: no representation {part!r} before it (known: {', '.join(known)})"
                )
        if self.fuse not in FUSIONS:
            raise UserError(f"{where}.fuse={self.fuse!r}: use one of {', '.join(FUSIONS)}")
        if self.fuse == ASYMMETRIC and (len(self.of) != 2 or self.weights):
            raise UserError(
                f"{where}: fuse=asymmetric takes two representations, the queries' and the gallery's, and no "
                "weights"
            )
        if self.weights and len(self.weights) != len(self.of):
            raise UserError(f"{where}.weights has {len(self.weights)} values for {len(self.of)} parts")
        if not all(0 <= weight <= _MAX_WEIGHT for weight in self.weights):
            raise UserError(f"{where}.weights={self.weights}: each must be from 0 to {_MAX_WEIGHT:,.0f}")
        if self.weights and not any(self.weights):
            raise UserError(f"{where}.weights are all 0: at least one part must count")
        if self.steps and self.fuses_scores:
            raise UserError(f"{where}: fuse={self.fuse} gives scores, not vectors: leave out its steps")
        try:
            postprocess.parse(self.steps)
        except UserError as error:
            raise UserError(f"{where}.steps: {error}") from error
        try:
            steps = rerank.parse(self.rerank)
        except UserError as error:
            raise UserError(f"{where}.rerank: {error}") from error
        wrong = next((step.form for step in steps if step.needs_vectors), None)
        if wrong and self.fuses_scores:
            raise UserError(
                f"{where}: fuse={self.fuse} gives scores, and {wrong} needs vectors: leave it out"
            )
