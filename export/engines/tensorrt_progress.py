"""Progress bars of a TensorRT builder."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_monitor(library: Any) -> Any:
    """The library's build phases as progress bars; None where it cannot tell."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class ProgressBars(library.IProgressMonitor):
        """Ctrl-C asks the library to stop. An exception must not cross into it, so it is noted and raised later."""

        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=False, disable=None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self._bars[phase_name].update(step + 1 - self._bars[phase_name].n)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._bars.pop(phase_name).close()

    return ProgressBars()
