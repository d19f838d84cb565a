"""Rotary frequencies and their scalings, worked out by hand on powers of two."""

import math

import numpy as np
import pytest

from numsim.errors import NumsimError
from numsim.models.arch import Rope
from numsim.models.config import read_arch
from numsim.models.families import FAMILIES
from numsim.models.rope import check_rope, relative_buckets, rotary_frequencies, rotary_tables

PLAIN = (1.0, 2.0**-4, 2.0**-8, 2.0**-12)  # (2**16) ** (-2 j / 8)


def rope(**changes):
    return Rope(**{"theta": 65536.0, "width": 8} | changes)


def test_plain_and_linear_frequencies():
    assert rotary_frequencies(rope(), 1) == PLAIN
    assert rotary_frequencies(rope(kind="linear", factor=4.0), 1) == tuple(f / 4 for f in PLAIN)
    assert rotary_frequencies(rope(width=2), 1) == (1.0,)


def test_dynamic_scaling_grows_the_base_beyond_its_length():
    """At twice the length, factor 2: growth 2 * 32/16 - 1 = 3, base times 3**(8/6)."""
    dynamic = rope(kind="dynamic", factor=2.0, longest=16)
    for length in (1, 16):
        assert rotary_frequencies(dynamic, length) == PLAIN
    want = [f * 3 ** (-j / 3) for j, f in enumerate(PLAIN)]
    assert rotary_frequencies(dynamic, 32) == pytest.approx(want, rel=1e-15)
    assert rotary_frequencies(dynamic, 32)[3] == 2.0**-12 / 3


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between():
    """Waves 2 pi 16**j against 4096/4 and 4096/1: two kept, one blended, one stretched."""
    scaled = rope(kind="llama3", factor=8.0, slow=1.0, fast=4.0, longest=4096)
    smooth = (8 / math.pi - 1) / (4 - 1)  # 4096 / (512 pi)
    blended = ((1 - smooth) / 8 + smooth) / 256
    want = (1.0, 1 / 16, blended, 1 / 4096 / 8)
    assert rotary_frequencies(scaled, 1) == pytest.approx(want, rel=1e-15)


def test_yarn_blends_along_a_ramp_between_two_numbers_of_turns():
    """Edges log2(4096 / (2 pi turns)) / 4: 1.087 and 2.337, as whole dimensions 1 and 3."""
    scaled = rope(kind="yarn", factor=4.0, slow=1.0, fast=32.0, longest=4096)
    want = (1.0, 1 / 16, (0.5 / 4 + 0.5) / 256, 1 / 4096 / 4)
    assert rotary_frequencies(scaled, 1) == want
    low = math.log(64 / math.pi, 2) / 4
    ramp = (2 - low) / 1.25  # the edges are log2(32) / 4 apart
    whole = rope(kind="yarn", factor=4.0, slow=1.0, fast=32.0, longest=4096, truncate=False)
    want = (1.0, 1 / 16, (ramp / 4 + 1 - ramp) / 256, 1 / 4096 / 4)
    assert rotary_frequencies(whole, 1) == pytest.approx(want, rel=1e-14)


CONFIG = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 16384,
    "rope_theta": 65536.0,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def read(**changes):
    return read_arch(CONFIG | changes, FAMILIES["llama"]).rope


def test_the_length_of_a_scaling_is_the_original_one():
    assert read(rope_scaling=YARN).longest == 4096
    assert read(rope_scaling=LLAMA3) == rope(
        kind="llama3", factor=8.0, slow=1.0, fast=4.0, longest=4096
    )
    without = {k: v for k, v in YARN.items() if not k.startswith("orig")}
    assert read(rope_scaling=without).longest == 16384
    dynamic = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 4096}
    assert read(rope_scaling=dynamic).longest == 16384  # as transformers counts


def test_the_amplitude_of_yarn():
    growth = 0.1 * math.log(4) + 1
    assert read(rope_scaling=YARN).amplitude == growth
    assert read(rope_scaling=YARN | {"factor": 1.0}).amplitude == 1.0
    both = YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}
    assert read(rope_scaling=both).amplitude == (0.2 * math.log(4) + 1) / growth
    assert read(rope_scaling=YARN | {"mscale": 2.0}).amplitude == growth  # alone it says nothing
    assert read(rope_scaling=both | {"attention_factor": 0.7}).amplitude == 0.7
    cos, sin = rotary_tables(rope(amplitude=0.5, kind="yarn", factor=4.0, longest=4096), 1, 2)
    assert cos[0, 0] == 0.5 * math.cos(1.0)
    assert sin[0, 0] == pytest.approx(0.5 * math.sin(1.0), rel=1e-15)


def test_tables_are_of_the_positions_asked_for():
    cos, sin = rotary_tables(rope(), 3, 5)
    assert cos.shape == (2, 4)
    assert cos == pytest.approx(np.cos(np.outer([3, 4], PLAIN)), rel=1e-14)
    assert sin == pytest.approx(np.sin(np.outer([3, 4], PLAIN)), rel=1e-14)


def test_angles_beyond_the_range_of_the_sines_are_refused():
    check_rope(rope(), 2**20)  # the last position is 2**20 - 1
    with pytest.raises(NumsimError, match=r"below 2\*\*20 radians"):
        check_rope(rope(), 2**20 + 1)


def test_buckets_of_relative_positions():
    """Eight buckets, distances up to 16; the log buckets by hand.

    One side of four: 0, 1, then 2 + floor(log(d/2) / log(16/2) * 2): 3 from sqrt(2 * 16) = 5.7 on.
    Both sides seen: keys to the right come four later. Earlier ones only: eight on one side, of
    which four hold one distance and 4 + floor(log(d/4) / log(4) * 4): 5 from 5.7, 6 from 8, 7 from
    11.3 on.
    """

    class Sizes:
        buckets, bucket_distance = 8, 16

    at = np.arange(20)
    both = relative_buckets(Sizes, np.array([0]), at, causal=False)[0].tolist()
    assert both == [0, 5, 6, 6, 6, 6, *[7] * 14]
    both = relative_buckets(Sizes, at, np.array([0]), causal=False)[:, 0].tolist()
    assert both == [0, 1, 2, 2, 2, 2, *[3] * 14]
    past = relative_buckets(Sizes, at, np.array([0]), causal=True)[:, 0].tolist()
    assert past == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, *[7] * 8]
    assert relative_buckets(Sizes, np.array([0]), at, causal=True)[0].tolist() == [0] * 20


@pytest.mark.parametrize(
    ("longest", "fast", "truncate", "shares"),
    [
        (64, 32.0, True, (0, 1 / 2, 1, 1)),  # edges -0.50 and 1.01: from 0, not from -1, to 2
        (150_000_000, 1e7, True, (0, 1 / 7, 2 / 7, 3 / 7)),  # 0.38 and 7.38: to 7, not to 8
        (64, 1.0, False, (0, 0, 1, 1)),  # both edges 1.01: a step
    ],
)
def test_the_ramp_of_yarn_ends_within_the_head(longest, fast, truncate, shares):
    rope = Rope(
        theta=10000.0, width=8, kind="yarn", factor=4.0, longest=longest, fast=fast, slow=1.0,
        truncate=truncate,
    )  # fmt: skip
    # the stretched share of a frequency is a quarter of it
    want = [10.0**-j * (1 - share * 3 / 4) for j, share in enumerate(shares)]
    np.testing.assert_allclose(rotary_frequencies(rope, 1), want, rtol=1e-15)


def test_a_distance_at_the_edge_of_a_bucket_is_in_it():
    class Sizes:
        buckets, bucket_distance = 24, 96

    # 12 ln(48 / 12) / ln(96 / 12) is 8, and one digit less where it is computed
    at = np.array([47, 48])
    assert relative_buckets(Sizes, at, np.array([0]), causal=True)[:, 0].tolist() == [19, 20]
