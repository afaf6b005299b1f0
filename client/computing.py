"""How much of the site's machine training may use, as ``site.toml`` says it."""

from __future__ import annotations

import os

import torch

from medfed.client.site_settings import Policy

_limited = False
"""Whether the number of threads was ever set here. Setting it, even to what it is, makes torch add
up in another order, and so gives another model in its last bits than a simulation."""


def device_of(policy: Policy) -> str:
    """What ``pick_device`` is to prefer: ``auto``, or ``cpu`` where no GPU may be used."""
    return "auto" if policy.gpu else "cpu"


def limit_share(policy: Policy) -> None:
    """Hold this process to the site's share of cores and of the GPU's memory, from now on.

    A limit that was taken out of ``site.toml`` is lifted. Training that does not fit into the
    share of the memory fails; it does not take more.
    """
    global _limited
    cores = len(os.sched_getaffinity(0))
    if policy.cpu_threads or _limited:  # else not even the usual number is set: see above
        torch.set_num_threads(min(policy.cpu_threads or cores, cores))
        _limited = True
    if policy.gpu and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(policy.gpu_memory_fraction or 1.0)
