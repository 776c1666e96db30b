"""Profiles: the published counts, and what is refused."""

import numpy as np
import pytest

from imbal_jax.data import profiles
from imbal_jax.errors import InputError

CIFAR10 = np.full(10, 5000)
CIFAR100 = np.full(100, 500)


@pytest.mark.parametrize(
    ("ratio", "counts"),
    [
        (100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (1, [5000] * 10),
    ],
)
def test_long_tail_has_the_published_cifar10_counts(ratio, counts):
    wanted = profiles.long_tail(ratio=ratio)(CIFAR10)
    assert wanted.tolist() == counts
    assert wanted.dtype == np.int64


@pytest.mark.parametrize(("ratio", "total"), [(100, 10847), (10, 19573)])
def test_long_tail_has_the_published_cifar100_totals(ratio, total):
    wanted = profiles.long_tail(ratio=ratio)(CIFAR100)
    assert wanted.sum() == total
    assert (wanted[0], wanted[-1]) == (500, 500 // ratio)
    assert (np.diff(wanted) <= 0).all()


def test_step_has_the_published_cifar10_counts():
    wanted = profiles.step(ratio=100)(CIFAR10)
    assert wanted.tolist() == [5000] * 5 + [50] * 5
    assert wanted.sum() == 25250
    assert wanted.dtype == np.int64


def test_step_gives_the_middle_of_an_odd_number_of_classes_to_the_tail():
    assert profiles.step(ratio=10)(np.full(5, 100)).tolist() == [100, 100, 10, 10, 10]


@pytest.mark.parametrize("profile", [profiles.long_tail, profiles.step])
def test_heads_are_as_large_as_the_smallest_class(profile):
    assert profile(ratio=10)(np.array([90, 70, 80, 60])).tolist()[0] == 60


@pytest.mark.parametrize("profile", [profiles.long_tail, profiles.step])
@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (0.01, r"^ratio: expected .* a number >= 1, got 0\.01; did you mean 100\? \(some code bases take the inverse"),
        (0.1, r"did you mean 10\?"),
        (0.0, r"^ratio: expected the largest count over the smallest, a number >= 1, got 0\.0$"),
        (-5.0, r"^ratio: .* got -5\.0$"),
        (float("nan"), r"^ratio: .* got nan$"),
        (float("inf"), r"^ratio: .* got inf$"),
    ],
)
def test_ratio_below_one_is_refused_with_its_inverse(profile, ratio, message):
    with pytest.raises(InputError, match=message):
        profile(ratio=ratio)


@pytest.mark.parametrize(
    ("alpha", "total", "largest", "smallest"), [(0.1, 4495, 2339, 110), (1.0, 4494, 1248, 182), (10.0, 4496, 651, 270)]
)
def test_table_b1(alpha, total, largest, smallest):
    wanted = profiles.thesis_table_b1(alpha=alpha)(CIFAR10)
    assert wanted.shape == (10,)
    assert wanted.dtype == np.int64
    assert (wanted.sum(), wanted.max(), wanted.min()) == (total, largest, smallest)


def test_table_b1_refuses():
    with pytest.raises(InputError, match=r"^alpha: Table B\.1 has \[0\.1, 1\.0, 10\.0\], got 0\.5; profile dirichlet"):
        profiles.thesis_table_b1(alpha=0.5)
    with pytest.raises(InputError, match=r"^counts: expected 3 numbers, one per class, got 10$"):
        profiles.thesis_table_b1()(np.full(3, 5000))
    with pytest.raises(InputError, match=r"^counts: class 8 should get 2339 examples, but only 2000 are left$"):
        profiles.thesis_table_b1()(np.full(10, 2000))


def test_natural_keeps_everything():
    np.testing.assert_array_equal(profiles.natural()([7, 3, 5]), np.array([7, 3, 5]), strict=True)


def test_balanced():
    available = np.array([7, 3, 5])
    np.testing.assert_array_equal(profiles.balanced()(available), np.full(3, 3), strict=True)
    np.testing.assert_array_equal(profiles.balanced(per_class=2)(available), np.full(3, 2), strict=True)
    with pytest.raises(InputError, match=r"^counts: class 1 should get 4 examples, but only 3 are left$"):
        profiles.balanced(per_class=4)(available)
    with pytest.raises(InputError, match=r"^per_class: expected a number >= 0, got -1$"):
        profiles.balanced(per_class=-1)


def test_counts():
    np.testing.assert_array_equal(
        profiles.counts(counts=(7, 0, 5))(np.array([7, 3, 5])), np.array([7, 0, 5]), strict=True
    )
    with pytest.raises(InputError, match=r"^counts: expected numbers >= 0, got \(1, -2\)$"):
        profiles.counts(counts=(1, -2))
    with pytest.raises(InputError, match=r"^counts: expected 3 numbers, one per class, got 2$"):
        profiles.counts(counts=(1, 2))(np.array([7, 3, 5]))
    with pytest.raises(InputError, match=r"^counts: class 2 should get 6 examples, but only 5 are left$"):
        profiles.counts(counts=(1, 1, 6))(np.array([7, 3, 5]))


def test_dirichlet_shares_out_the_size_of_the_smallest_class():
    wanted = profiles.dirichlet(alpha=1.0, min_count=10)(np.array([500, 300, 400]))
    assert 297 < wanted.sum() <= 300
    assert wanted.min() > 10
    assert 597 < profiles.dirichlet(alpha=1.0, total=600, min_count=10)(np.array([500, 300, 400])).sum() <= 600


def test_dirichlet_is_decided_by_its_seed():
    def draw(seed):
        return profiles.dirichlet(alpha=1.0, min_count=10, seed=seed)(np.full(4, 400)).tolist()

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    profile = profiles.dirichlet(alpha=1.0, min_count=10)
    assert profile(np.full(4, 400)).tolist() == profile(np.full(4, 400)).tolist()  # a profile holds no state


def test_dirichlet_refuses():
    with pytest.raises(InputError, match=r"^alpha: expected a number > 0, got 0$"):
        profiles.dirichlet(alpha=0)
    with pytest.raises(InputError, match=r"^total: expected a number >= 0, got -1$"):
        profiles.dirichlet(total=-1)
    with pytest.raises(InputError, match=r"need at least 10 x 501 = 5010 examples, but total is 4500$"):
        profiles.dirichlet(min_count=500)(np.full(10, 4500))


@pytest.mark.parametrize(
    ("negatives", "positives"),
    [(5000, (500, 50, 25)), (41051, (4105, 410, 205)), (1444, (144, 14, 7)), (2500, (250, 25, 12))],
)
def test_binary_has_the_counts_of_table_12(negatives, positives):
    # But for the last number: the paper has 13, and rounds the others down.
    for beta, expected in zip((10, 100, 200), positives, strict=True):
        found = profiles.binary(beta=beta)(np.array([negatives, negatives]))
        assert found.tolist() == [negatives, expected]
        assert found.dtype == np.int64


def test_binary_keeps_all_negatives_however_many_positives_there_are():
    assert profiles.binary(beta=100)(np.array([27000, 18000])).tolist() == [27000, 270]
    assert profiles.binary(beta=1)(np.array([20, 30])).tolist() == [20, 20]


def test_binary_refuses():
    with pytest.raises(InputError, match=r"^beta: .* a number >= 1, got 0.01; did you mean 100\?"):
        profiles.binary(beta=0.01)
    for beta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"^beta: expected"):
            profiles.binary(beta=beta)
    with pytest.raises(InputError, match=r"^profile: binary is for two classes, got 3"):
        profiles.binary(beta=10)(np.array([100, 100, 100]))
    with pytest.raises(InputError, match=r"^beta: expected at most 50, .* got 100"):
        profiles.binary(beta=100)(np.array([50, 50]))
    with pytest.raises(InputError, match=r"^counts: class 1 should get 50 examples, but only 5 are left$"):
        profiles.binary(beta=2)(np.array([100, 5]))
