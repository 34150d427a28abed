from __future__ import annotations

import pytest

from tests.conftest import SIGNED


@pytest.fixture(scope="module")
def environment(environment: dict[str, str]) -> dict[str, str]:
    """With a name and an email for commits."""
    return environment | SIGNED
