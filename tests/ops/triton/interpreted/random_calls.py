"""The kernels equal the definition on random calls, hostile ones included."""

import pytest

from tests.ops.random_cases import OPS, check


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, on numbers too large
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_triton_equals_the_definition(op):
    assert check(op, range(12), "triton")["equal"]
