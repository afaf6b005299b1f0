import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import medfed.client
from medfed.client.noise import SecretRandomness
from medfed.simulations.seeded import SeededRandomness


def draws(source: SeededRandomness) -> list[list[float]]:
    return [
        source.normal(5).tolist(),
        source.coins(20, 0.5).tolist(),
        source.choose(30, 4).tolist(),
        source.permutation(10).tolist(),
        source.normal(3).tolist(),
    ]


def test_the_same_key_gives_the_same_draws() -> None:
    assert draws(SeededRandomness("seed=0 site=A")) == draws(SeededRandomness(b"seed=0 site=A"))


def test_another_key_gives_other_draws() -> None:
    for one, other in zip(
        draws(SeededRandomness("seed=0 site=A")), draws(SeededRandomness("seed=0 site=B")),
        strict=True,
    ):  # fmt: skip
        assert one != other


def test_noise_and_sampling_do_not_shift_each_other() -> None:
    plain, mixed = SeededRandomness("k"), SeededRandomness("k")
    mixed.normal(1000)
    assert mixed.permutation(20).tolist() == plain.permutation(20).tolist()

    plain, mixed = SeededRandomness("k"), SeededRandomness("k")
    mixed.coins(1000, 0.5)
    assert mixed.normal(20).tolist() == plain.normal(20).tolist()


def test_draws_go_on_where_the_last_ones_ended() -> None:
    source = SeededRandomness("k")
    first, second = source.coins(64, 0.5), source.coins(64, 0.5)

    assert first.tolist() != second.tolist()
    assert [*first, *second] == SeededRandomness("k").coins(128, 0.5).tolist()


def test_coins_compare_the_aes_key_stream_of_the_hashed_key_with_the_probability() -> None:
    key = hashlib.sha256(b"sampling\0known").digest()  # as the class says: purpose, 0, key
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * 50))
    words = [int.from_bytes(stream[i : i + 8], "little") >> 11 for i in range(0, 400, 8)]

    assert SeededRandomness("known").coins(50, 0.25).tolist() == [w < 2**51 for w in words]


def test_the_sequence_of_a_key_stays_the_same_from_version_to_version() -> None:
    source = SeededRandomness("pinned")

    # computed once with this code; a change would alter every published simulation
    assert source.normal(2).tolist() == pytest.approx([0.36867106775671, 0.32311343507809])
    assert source.permutation(8).tolist() == [3, 4, 5, 7, 1, 2, 6, 0]


def test_it_says_that_it_is_no_secret() -> None:
    assert not SeededRandomness("k").is_secret
    assert SecretRandomness().is_secret
    assert repr(SeededRandomness("seed=0")) == "SeededRandomness(b'seed=0')"


def test_an_empty_key_is_refused() -> None:
    for key in ("", b""):
        with pytest.raises(ValueError, match="name the seed, the site and the round"):
            SeededRandomness(key)


def test_no_source_file_of_the_client_names_the_seeded_generator() -> None:
    (folder,) = {Path(path) for path in medfed.client.__path__}
    files = list(folder.rglob("*.py"))

    assert folder / "noise.py" in files
    for file in files:
        assert "SeededRandomness" not in file.read_text(), file
