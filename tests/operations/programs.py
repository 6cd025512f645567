"""The programs of Prometheus that a machine may have."""

import shutil

import pytest

INSTALL = "tests/operations/install_prometheus.sh installs it, as root on Debian"


def find(name: str) -> str:
    """The program's path; the test is skipped where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; {INSTALL}")
    return path
