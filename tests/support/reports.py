"""A report to show: three sites, of which C was lost. Every value invented."""

from __future__ import annotations

from typing import Any

from medfed.common.report.content import Interval, RunReport, SiteRow


def site_row(**changes: Any) -> SiteRow:
    values: dict[str, Any] = {
        "site": "A",
        "patients": 152,
        "scans": 371,
        "unit": "patient",
        "auroc": Interval(0.953, 0.921, 0.978),
        "alone": Interval(0.902, 0.851, 0.944),
        "epsilon": 7.941,
        "delta": 1e-4,
        "rounds_done": 10,
    }
    return SiteRow(**(values | changes))


def run_report(**changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "title": "medfed demo",
        "headline": "AUROC 0.941; site C was lost in round 6, round 9 was skipped.",
        "outcome": "incomplete",
        "study_name": "demo-opacity",
        "study_digest": "3f9a1c77ab" * 6,
        "purpose": "Show how three hospitals find lung opacities together.",
        "metric": "auroc",
        "network": "scatter-small",
        "device": "cpu (2 threads)",
        "randomness": "secret",
        "privacy_statement": "Every patient is protected over all rounds of this study.",
        "sites": (
            site_row(),
            site_row(site="B", patients=148, scans=360, auroc=Interval(0.947, 0.909, 0.975)),
            site_row(
                site="C",
                patients=150,
                scans=377,
                auroc=Interval(0.899, 0.868, 0.957),
                rounds_done=5,
                missing="did not answer within 60 s in round 6.",
            ),
        ),
        "model_path": "/data/runs/demo/model.safetensors",
        "page_path": "/data/runs/demo/report.html",
        "pooled": Interval(0.941, 0.919, 0.960),
        "curve": ((0, 0.51), (1, 0.64), (2, 0.733), (10, 0.941)),
        "preparation": (("Scans", "modality DX, any view"), ("Varied", "no")),
        "notes": ("The scans of site B come from one scanner only.",),
        "seconds": {"reading the scans": 4.4, "training": 75.7},
        "seeds": ((0, 0.941), (1, 0.952), (2, 0.938)),
    }
    return RunReport(**(values | changes))
