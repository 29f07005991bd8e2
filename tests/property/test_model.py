"""Every operation of the contract, in any order, leaves a store equal to the oracle.

`MKV_CI=1` runs 2,000 examples of 50 steps; otherwise 60. Always the same ones: derandomized.
"""

import pytest
from checks import WIDE
from hypothesis import HealthCheck, settings
from machine.replica import ReplicaMachine

pytestmark = pytest.mark.timeout(2_400)

TestStoreEqualsOracleInAnyOrderOfCalls = ReplicaMachine.TestCase
TestStoreEqualsOracleInAnyOrderOfCalls.settings = settings(
    max_examples=2_000 if WIDE else 60,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
