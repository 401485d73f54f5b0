"""The suite for cluster environments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fulmen import ConfigurationError, Runtime
from fulmen.testing.conformance.suite import Suite, only_if


class EnvironmentSuite(Suite):
    """Subclass it, give ``name``, :meth:`make`, :attr:`variables` and what they say: :attr:`expected`."""

    kind = "environment"

    variables: ClassVar[dict[str, str]] = {}
    """Environment variables as the scheduler sets them for one process of a job."""

    expected: ClassVar[dict[str, Any]] = {}
    """What they mean: ``world_size``, ``global_rank``, ``local_rank``, ``node_rank``, ``main_address``, ``main_port``."""

    numbers: ClassVar[tuple[str, ...]] = ()
    """Those of :attr:`variables` that hold a number: text in them must be an error that names the variable."""

    @pytest.fixture(autouse=True)
    def _outside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in self.variables:
            monkeypatch.delenv(name, raising=False)

    @pytest.fixture
    def inside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if the scheduler had started this process."""
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)

    @pytest.mark.usefixtures("inside")
    @only_if("picklable")
    def test_a_new_process_can_train_with_it(self, tmp_path: Path) -> None:
        """As for every part, in the environment."""
        super().test_a_new_process_can_train_with_it(tmp_path)

    def place(self, part: Any) -> dict[str, Any]:
        """Among the plugins; one process trains on one device."""
        return {"plugins": [part], "strategy": "single_device"}

    # ---- Behaviour

    def test_outside_it_is_not_detected(self, tmp_path: Path) -> None:
        """Without the variables, the answer is no; asked of the class."""
        assert type(self.make_inside(tmp_path)).detect() is False

    def make_inside(self, folder: Path) -> Any:
        """A part that was made while the variables are set, which are then taken away."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            return self.make(folder)

    def test_inside_it_is_detected_and_chosen(self, inside: None, tmp_path: Path) -> None:
        """A runtime finds it by itself."""
        assert type(self.make(tmp_path)).detect() is True
        runtime = Runtime(accelerator="cpu", strategy="single_device")
        assert type(runtime.environment) is type(self.make(tmp_path))

    def test_it_says_where_the_process_stands(self, inside: None, tmp_path: Path) -> None:
        """Ranks, sizes and the address, as the variables give them."""
        part = self.make(tmp_path)
        ranks = {name: getattr(part, name)() for name in ("world_size", "global_rank", "local_rank", "node_rank")}
        found = {**ranks, "main_address": part.main_address, "main_port": part.main_port}
        assert found == self.expected
        assert type(part.creates_processes_externally) is bool
        assert 0 <= ranks["local_rank"] <= ranks["global_rank"] < ranks["world_size"]
        assert {type(value) for value in ranks.values()} == {int}

    # ---- Failure

    def test_text_in_place_of_a_number_is_an_error_that_names_it(
        self, inside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For each of :attr:`numbers`."""
        for name in self.numbers:
            with monkeypatch.context() as patch:
                patch.setenv(name, "many")
                with pytest.raises(ConfigurationError, match=name):
                    part = self.make(tmp_path)
                    part.world_size(), part.global_rank(), part.local_rank(), part.node_rank()
                    part.main_port  # noqa: B018

    def test_teardown_leaves_the_variables_as_they_were(self, inside: None, tmp_path: Path) -> None:
        """Also when it is done twice."""
        before = dict(os.environ)
        part = self.make(tmp_path)
        part.main_address, part.main_port, part.world_size()
        for _ in range(2):
            part.teardown()
        assert dict(os.environ) == before
