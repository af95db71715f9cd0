"""Who agrees to a run that writes very much, and when they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.model_files import ModelFiles
from pipelines.config_pairs import RunConfig
from pipelines.confirm import confirm, could_exceed
from pipelines.estimate import estimate_run
from pipelines.progress import Progress
from pipelines.source import Source, Unit
from pipelines.speed import recall_speed


@dataclass(frozen=True)
class Permit:
    """Asked once, before a new plan is pinned; a run that goes on was agreed to before."""

    yes: bool = False
    """Whatever it writes."""
    ask: Callable[[str], bool] | None = None
    """Puts a question to a person; None where there is none to answer."""

    def check(
        self,
        config: RunConfig,
        files: ModelFiles,
        source: Source,
        units: Sequence[Unit],
        progress: Progress,
    ) -> None:
        """Return if the run may write what it will. Small runs are not looked at closely.

        Raises:
            ConfigError: it may not.
        """
        if self.yes or not could_exceed(config, files, units):
            return
        progress.stage("estimating its size")
        estimate = estimate_run(config, files, source, units, speed=recall_speed(config))
        with progress.paused():
            confirm(config, estimate, yes=self.yes, ask=self.ask)
