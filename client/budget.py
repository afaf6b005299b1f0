"""What a site's patients have spent and what is left: for its admin, never for anyone else.

Everything here comes from the ledger. How many patients there are, and what the most exposed
of them has lost, are private to the site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from medfed.client.approvals import patients_by_part, scans_of_patients
from medfed.client.exposure import Ceiling
from medfed.client.ledger import Approval, Ledger
from medfed.client.policy import check_policy
from medfed.client.site_root import SiteRoot, ceiling_of, open_ledger
from medfed.common.errors import ApprovalError
from medfed.common.privacy.accounting import NEIGHBOURS, composed_epsilon
from medfed.common.privacy.mechanism import dearest_epsilon
from medfed.common.privacy.terms import Purpose, Term, terms_of
from medfed.common.study import Study


@dataclass(frozen=True, repr=False)
class PurposeBudget:
    """One purpose of one study. Epsilons are at the ceiling's delta; infinite without privacy.

    Attributes:
        study: The study's name.
        digest: Its digest.
        purpose: ``train``, ``validation`` or ``test``: whose patients pay.
        open: Whether more may be released.
        paid: Releases made.
        left: Releases that may still be made.
        epsilon: Spent by a patient who was eligible, in this study alone.
        next_epsilon: What one more release would add to that; None if none is left.
        whole_epsilon: When the whole schedule has run.
        patients: Who is eligible now. Private.
    """

    study: str
    digest: str
    purpose: Purpose
    open: bool
    paid: int
    left: int
    epsilon: float
    next_epsilon: float | None
    whole_epsilon: float
    patients: int


@dataclass(frozen=True, repr=False)
class Budget:
    """What the ledger says. Private.

    Attributes:
        ceiling: What a patient may lose over all studies together, by ``site.toml``.
        spent: Epsilon of the most exposed patient, composed by PLD.
        held: The same as the filter over studies holds it, which stops new approvals.
        reserved: The same (PLD) once every approved schedule has run to its end.
        patients: Patients that any approval made eligible.
        excluded: Patients who take part in nothing any more.
        merged: Persons whose record numbers were merged and who were ever eligible.
        merged_beyond: Those of them who have lost more than the ceiling allows, as two patients
            each of whom was within it. They take no further part.
        purposes: Study by study.
    """

    ceiling: Ceiling
    spent: float
    held: float
    reserved: float
    patients: int
    excluded: int
    merged: int
    merged_beyond: int
    purposes: tuple[PurposeBudget, ...]


@dataclass(frozen=True, repr=False)
class PlannedPurpose:
    """What approving a study would cost one part of the patients. Private.

    Attributes:
        purpose: Whose patients pay.
        releases: How many there would be.
        epsilon: Of all of them, for one patient, at the ceiling's delta.
        patients: Patients of this part here.
        eligible: Those who can afford it beside what they have spent or set aside.
    """

    purpose: Purpose
    releases: int
    epsilon: float
    patients: int
    eligible: int


def budget_of(site: SiteRoot) -> Budget:
    """Read a site's budget from its ledger.

    Raises:
        LedgerError: the ledger cannot be trusted.
    """
    ceiling = ceiling_of(site)
    with closing(open_ledger(site)) as ledger:
        exposures, merged = ledger.exposures(), ledger.merged()
        return Budget(
            ceiling=ceiling,
            spent=max((e.spent(ceiling.delta) for e in exposures), default=0.0),
            held=max((e.held(ceiling) for e in exposures), default=0.0),
            reserved=max((e.reserved(ceiling.delta) for e in exposures), default=0.0),
            patients=sum(e.patients for e in exposures),
            excluded=ledger.excluded(),
            merged=sum(e.patients for e in merged),
            merged_beyond=sum(e.patients for e in merged if not e.within(ceiling)),
            purposes=tuple(
                _purpose(ledger, approval, purpose, ceiling)
                for approval in ledger.approvals()
                for purpose in approval.terms
            ),
        )


def policy_refusal(site: SiteRoot, study: Study) -> str:
    """Why ``site.toml`` would not let a study be approved; ``""`` if it would."""
    member, source = study.site_named(site.name), str(site.folder / "site.toml")
    epsilon = dearest_epsilon(study, member)
    try:
        check_policy(site.settings.policy, study, member, epsilon, source=source)
    except ApprovalError as error:
        return str(error.args[0])
    return ""


def plan_for(site: SiteRoot, study: Study) -> tuple[PlannedPurpose, ...]:
    """Say what approving a study would cost, without approving it. Reads the scans.

    Raises:
        ConfigError: the study does not list the site.
        ScanError: as ``scans_of_patients``.
        LedgerError: the ledger cannot be trusted.
    """
    terms, ceiling = terms_of(study, study.site_named(site.name)), ceiling_of(site)
    patients = patients_by_part(scans_of_patients(site, study))
    with closing(open_ledger(site)) as ledger:
        eligible = ledger.who_can_afford(study.digest, terms, patients)
    return tuple(
        PlannedPurpose(
            purpose,
            term.releases,
            _epsilon(term, term.releases, ceiling),
            len(patients[purpose]),
            len(eligible[purpose]),
        )
        for purpose, term in terms.items()
    )


def _purpose(
    ledger: Ledger, approval: Approval, purpose: Purpose, ceiling: Ceiling
) -> PurposeBudget:
    term, paid, left = (
        approval.terms[purpose],
        approval.paid.get(purpose, 0),
        approval.left(purpose),
    )
    spent = _epsilon(term, paid, ceiling)
    eligible = ledger.eligible(approval.digest, purpose) if approval.open else None
    return PurposeBudget(
        study=approval.study,
        digest=approval.digest,
        purpose=purpose,
        open=approval.open,
        paid=paid,
        left=left,
        epsilon=spent,
        next_epsilon=_epsilon(term, paid + 1, ceiling) - spent if left else None,
        whole_epsilon=_epsilon(term, paid + left, ceiling),
        patients=len(eligible or ()),
    )


def _epsilon(term: Term, releases: int, ceiling: Ceiling) -> float:
    if not releases:
        return 0.0
    spend = term.spent(releases)
    return math.inf if spend is None else composed_epsilon([spend], ceiling.delta)


def budget_json(budget: Budget) -> dict[str, Any]:
    """The budget for machines; an infinite epsilon is null."""
    return {
        "ceiling": _finite(budget.ceiling._asdict()),
        "neighbours": NEIGHBOURS,
        "most_exposed_patient": _finite(
            {"spent": budget.spent, "spent_in_filter": budget.held, "reserved": budget.reserved}
        ),
        "patients": budget.patients,
        "excluded": budget.excluded,
        "merged": budget.merged,
        "merged_beyond_ceiling": budget.merged_beyond,
        "studies": [_finite(vars(purpose)) for purpose in budget.purposes],
    }


def plan_json(study: Study, planned: tuple[PlannedPurpose, ...]) -> dict[str, Any]:
    """What approving a study would cost, for machines; an infinite epsilon is null."""
    purposes = [_finite(vars(purpose)) for purpose in planned]
    return {"study": study.name, "digest": study.digest, "purposes": purposes}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
