"""The whole diagnosis of a run: a verdict for every row, and the findings."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Finding
from .cell_errors import retell_cell_error
from .cuts import find_cuts, find_leaves
from .errors import retell_passes
from .facts import RunFacts
from .flow import Flow
from .no_root import explain_no_root
from .notebook import find_traps
from .reasons import Verdict, explain
from .sick import find_sickness
from .training import find_training_faults
from .unseen import disclose


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A verdict for every row, and the findings."""

    verdicts: list[Verdict]
    findings: list[Finding]


def diagnose(run: RunFacts) -> Diagnosis:
    """Judge a run."""
    flow = Flow(run.rows)
    verdicts = explain(run, flow)
    retold = retell_cell_error(run)
    said = bool(retold) and run.no_root is not None and run.no_root.kind == "cell_failed"
    findings = [
        *retell_passes(run, flow),
        *retold,
        *([] if said else explain_no_root(run, flow)),
        *find_cuts(run, flow, verdicts),
        *find_leaves(run, flow),
        *find_sickness(run, flow),
        *find_training_faults(run, flow),
        *find_traps(run, flow),
        *disclose(run),
    ]
    return Diagnosis(verdicts, findings)
