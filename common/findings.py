"""Which of a data source's findings means which label of the study.

Sources name what they found in their own words, several findings to a scan, some of them
uncertain. A study says which finding stands for which of its labels, which label takes the scans
that have none of these findings, and what an uncertain finding counts as. A scan for which that
gives no label, or two, is left out; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.errors import ConfigError
from medfed.common.strict_toml import StrictTable

Finding = Annotated[str, Field(min_length=1, max_length=200)]


class Unlabelled(StrEnum):
    """Why a scan gets no label of the study; the value is what the admin reads."""

    NONE = "label is none of the study's"
    SEVERAL = "findings of more than one of the study's labels"
    UNCERTAIN = "finding uncertain"


class Findings(StrictTable):
    """How findings become labels. Public, part of a study.

    Left as it is, a finding means the label of exactly the same text.
    """

    means: dict[str, tuple[Finding, ...]] = {}
    """Label of the study -> the findings that mean it. A label that is not listed is meant by
    its own text."""
    rest: str | None = None
    """The label of scans that have none of these findings; unset: they are left out."""
    uncertain: Literal["leave-out", "positive", "negative"] = "leave-out"
    """What an uncertain finding counts as, where it means one of the labels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        texts = [text for group in self.means.values() for text in group]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"means: {twice[0]!r} is listed twice; a finding means one label")
        return self

    def rule_for(self, labels: Sequence[str]) -> LabelRule:
        """Make the rule for a study's labels.

        Args:
            labels: The study's labels, in their order.

        Raises:
            ConfigError: ``means`` or ``rest`` names a label that the study has not, or a finding
                means two labels.
        """
        named = [*self.means, *([self.rest] if self.rest is not None else [])]
        strange = [label for label in named if label not in labels]
        if strange:
            raise ConfigError(
                f"findings: {strange[0]!r} is none of the study's labels ({', '.join(labels)}).",
                advice="name labels of the study in findings.means and findings.rest.",
            )
        meaning: dict[str, int] = {}
        for index, label in enumerate(labels):
            for text in self.means.get(label, (label,)):
                if text in meaning:
                    raise ConfigError(
                        f"findings: {text!r} means two of the study's labels.",
                        advice="list in findings.means what means each of the two.",
                    )
                meaning[text] = index
        rest = None if self.rest is None else labels.index(self.rest)
        return LabelRule(meaning, rest, self.uncertain)


class LabelRule:
    """From the findings of one scan to its class.

    Args:
        meaning: Finding -> class index.
        rest: Class index of a scan with none of them; None: it gets no label.
        uncertain: As ``Findings.uncertain``.
    """

    def __init__(self, meaning: dict[str, int], rest: int | None, uncertain: str) -> None:
        self._meaning, self._rest, self._uncertain = meaning, rest, uncertain

    def class_of(
        self, present: Collection[str], uncertain: Collection[str] = ()
    ) -> int | Unlabelled:
        """Say which class a scan has.

        Args:
            present: Its findings, as the source writes them. Private.
            uncertain: Findings that it may or may not have. Private.

        Returns:
            The class index, private; or why it has none.

        Example:
            >>> findings = Findings(means={"ill": ("Pneumonia",)}, rest="well")
            >>> rule = findings.rule_for(["well", "ill"])
            >>> rule.class_of(["Effusion", "Pneumonia"]), rule.class_of(["Effusion"])
            (1, 0)
            >>> rule.class_of([], uncertain=["Pneumonia"]).value
            'finding uncertain'
        """
        certain = {self._meaning[text] for text in present if text in self._meaning}
        unsure = {self._meaning[text] for text in uncertain if text in self._meaning} - certain
        if unsure and self._uncertain == "leave-out":
            return Unlabelled.UNCERTAIN
        if self._uncertain == "positive":
            certain |= unsure
        if len(certain) > 1:
            return Unlabelled.SEVERAL
        if certain:
            return certain.pop()
        return Unlabelled.NONE if self._rest is None else self._rest
