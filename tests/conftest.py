"""What every test may use: real data beside the checkout, and one hypothesis profile."""

import pathlib

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# No deadline: the first example compiles graphs, and machines are shared.
hypothesis.settings.register_profile(
    "tfmm", deadline=None, max_examples=50, print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large])
hypothesis.settings.load_profile("tfmm")


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with the real data sets; it lies beside the checkout and is no part of it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data sets (../shared/data) are not on this machine")
    return path
