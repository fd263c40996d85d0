"""Dividing work among processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intl_bench.core.errors import DivergedError, InputError
from intl_bench.core.sharing import largest_share, require_even_batch, share_of


@given(items=st.integers(0, 1000), processes=st.integers(1, 64))
def test_shares_cover_all_items_once_and_in_order(items: int, processes: int) -> None:
    shares = [share_of(items, rank, processes) for rank in range(processes)]
    assert [number for share in shares for number in share] == list(range(items))
    assert max(map(len, shares)) == len(shares[0]) == largest_share(items, processes)


def test_a_batch_divides_evenly_or_is_refused() -> None:
    require_even_batch(32, 4)
    with pytest.raises(InputError, match=r"batch_size=32: .* among 3 processes"):
        require_even_batch(32, 3)
    with pytest.raises(InputError, match="--processes 0: expected at least 1"):
        require_even_batch(32, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_are_named(value: float) -> None:
    from intl_bench.core.distributed import require_finite

    require_finite({"a": 1.0}, where="at step 1", remedy="lower lr")
    with pytest.raises(DivergedError, match=f"diverged at step 1: b = {value}; lower lr"):
        require_finite({"a": 1.0, "b": value}, where="at step 1", remedy="lower lr")
