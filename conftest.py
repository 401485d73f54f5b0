"""What every test of the repository shares: the markers for hardware."""

from __future__ import annotations

pytest_plugins = ["fulmen.testing.pytest_plugin"]
