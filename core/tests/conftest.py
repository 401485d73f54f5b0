"""Installed plugins for tests: real distributions in a folder of their own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest


class Site:
    """A folder on the import path, as ``site-packages`` is one, and a project folder, which is the current one."""

    def __init__(self, root: Path) -> None:
        self.packages, self.project = root / "site", root / "project"
        self.packages.mkdir()
        self.project.mkdir()
        self.modules: set[str] = set()

    def install(
        self, distribution: str, source: str = "", *, version: str = "1.0", plugin: str | None = None, module: str | None = None
    ) -> str:
        """Install a distribution with one module.

        Args:
            distribution: Its name.
            source: The code of the module; the import of ``hookimpl`` is written above it.
            version: Its version.
            plugin: The name of its entry point in the group ``fulmen``; ``None``: that of the distribution.
            module: The name of the module; ``None``: that of the distribution, as an identifier.

        Returns:
            The name of the module.
        """
        module = module or distribution.replace("-", "_")
        code = f"from fulmen.hookspecs import hookimpl\n{textwrap.dedent(source)}"
        (self.packages / f"{module}.py").write_text(code, encoding="utf-8")
        info = self.packages / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[fulmen]\n{plugin or distribution} = {module}\n", encoding="utf-8")
        self.modules.add(module)
        importlib.invalidate_caches()
        return module

    def configure(self, text: str) -> Path:
        """Write the project's ``pyproject.toml``."""
        path = self.project / "pyproject.toml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def python(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a new Python in the project folder, which finds what is installed here."""
        path = os.pathsep.join([str(self.packages), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", **(environ or {})}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.project, env=env, capture_output=True, text=True, timeout=120, check=False)

    def fulmen(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the ``fulmen`` command in a new process. Its warnings are errors."""
        return self.python("-W", "error", "-m", "fulmen.cli", *arguments, environ=environ)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A :class:`Site` on the import path of this process; what was imported from it is forgotten afterwards."""
    site = Site(tmp_path)
    monkeypatch.chdir(site.project)
    monkeypatch.syspath_prepend(str(site.packages))
    monkeypatch.delenv("FULMEN_PLUGINS", raising=False)
    monkeypatch.delenv("FULMEN_PLUGIN_AUTOLOAD", raising=False)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
