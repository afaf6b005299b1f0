"""Training from the cache gives the very update of training from memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.client import inputs
from medfed.client.inputs import Inputs, inputs_for
from medfed.client.scans.cache import FileState, ScanCache, Source, content_name
from medfed.client.scans.cache_records import CachedTensors, packed, rounded
from medfed.client.scans.recipe import recipe_of
from medfed.client.scans.scanset import ScanSet
from medfed.client.training import prepare, train_round, vary_for
from medfed.common.networks.parameters import network_for, parameters_of
from medfed.common.privacy.mechanism import mechanism_for
from medfed.common.study import Study
from medfed.common.updates import Parameters
from medfed.simulations.seeded import SeededRandomness
from tests.support.sites import WITHOUT_PRIVACY, make_study
from tests.support.virtual_sites import bright_and_dark

CPU = torch.device("cpu")
STUDY = make_study()
FORM = recipe_of(STUDY.scans).form


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ScanCache]:
    with ScanCache(tmp_path, bytes(32), recipe_of(STUDY.scans)) as cache:
        yield cache


def both(cache: ScanCache, scans: ScanSet) -> tuple[ScanSet, ScanSet]:
    """The same scans in memory, as a cache rounds them, and in the cache."""
    held = np.stack([rounded(image, FORM) for image in np.asarray(scans.images).clip(0, 1)])
    found = []
    for number, image in enumerate(held):
        source = Source(Path(f"/{number}"), FileState(1, 2, 3, 4))
        name = content_name(cache.content_key, number.to_bytes(4, "big"))
        cache.add(source, name, "", "", packed(image, FORM))
        found.append(cache.find(source))
    cache.commit()
    stored = cache.tensors(scan for scan in found if scan is not None)
    return tuple(  # type: ignore[return-value]  # of two
        ScanSet(images, scans.labels, scans.patient, scans.part, scans.unit)
        for images in (held, stored)
    )


def update_of(study: Study, scans: ScanSet, key: str = "k") -> Parameters:
    network = network_for(study)
    return train_round(
        network,
        prepare(network, scans, CPU, vary=vary_for(study)),
        parameters_of(network_for(make_study(("medfed-small", study.network.name)))),
        study=study,
        site=study.site[0],
        mechanism=mechanism_for(study, study.site[0]) if study.private else None,
        randomness=SeededRandomness(key),
    )


def same(one: Parameters, other: Parameters) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


AUGMENTED = ("[split]\n", "[augmentation]\nnoise = 0.05\n\n[split]\n")


@pytest.mark.parametrize("held_bytes", [0, 2 << 30])
@pytest.mark.parametrize("changes", [[], [AUGMENTED], [("medfed-small", "scatter-small")]])
def test_training_from_the_cache_gives_the_update_of_training_from_memory(
    cache: ScanCache,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[tuple[str, str]],
    held_bytes: int,
) -> None:
    monkeypatch.setattr(inputs, "HELD_BYTES", held_bytes)  # 0: each batch is read from the disk
    study = make_study(*changes)
    memory, stored = both(cache, bright_and_dark(24, scans_each=2, test_share=0.3))

    assert same(update_of(study, memory), update_of(study, stored))


def test_what_is_too_large_to_hold_is_read_scan_by_scan(
    cache: ScanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stored = both(cache, bright_and_dark(10))
    read: list[int] = []
    plain = CachedTensors.read
    monkeypatch.setattr(
        CachedTensors, "read", lambda self, some: (read.extend(some), plain(self, some))[1]
    )
    monkeypatch.setattr(inputs, "HELD_BYTES", 10 * 28 * 28 * 4 - 1)

    fed, _ = inputs_for(network_for(STUDY), stored.images, CPU)
    assert read == []
    assert fed.rows(np.array([7, 2])).shape == (2, 1, 28, 28)
    assert read == [7, 2]

    monkeypatch.setattr(inputs, "HELD_BYTES", 10 * 28 * 28 * 4)
    Inputs(stored.images, CPU)
    assert read[2:] == list(range(10))


def test_a_part_of_a_cached_set_is_the_part_of_the_set(cache: ScanCache) -> None:
    memory, stored = both(cache, bright_and_dark(20, scans_each=2, test_share=0.5))

    for part in (0, 2):
        one, other = memory.part_of(part), stored.part_of(part)
        assert isinstance(other.images, CachedTensors)
        assert np.array_equal(one.images, np.asarray(other.images))
        assert one.labels.tolist() == other.labels.tolist()


# ---- augmentation --------------------------------------------------------------------------------
def test_augmentation_changes_training_and_is_decided_by_the_randomness(cache: ScanCache) -> None:
    scans = bright_and_dark(24)
    plain, varied = STUDY, make_study(AUGMENTED)

    assert not same(update_of(plain, scans), update_of(varied, scans))
    assert same(update_of(varied, scans), update_of(varied, scans))


def test_augmentation_of_nothing_changes_nothing() -> None:
    still = "rotate_degrees = 0.0\nshift = 0.0\nscale = 0.0\ncontrast = 0.0\n"
    study = make_study(("[split]\n", f"[augmentation]\n{still}\n[split]\n"), WITHOUT_PRIVACY)
    scans = bright_and_dark(24)

    # One epoch is three batches: its order is drawn once, before the first number of a varied scan.
    assert same(update_of(study, scans), update_of(make_study(WITHOUT_PRIVACY), scans))


def test_without_privacy_scans_are_varied_too() -> None:
    study = make_study(AUGMENTED, WITHOUT_PRIVACY)
    scans = bright_and_dark(24)

    assert not same(update_of(study, scans), update_of(make_study(WITHOUT_PRIVACY), scans))


def test_a_varied_scan_goes_through_the_front_each_time() -> None:
    network = network_for(make_study(("medfed-small", "scatter-small")))
    scans = bright_and_dark(4)

    fed, trained = inputs_for(network, scans.images, CPU, varied=True)

    assert trained is network and fed.shape == (1, 28, 28)
