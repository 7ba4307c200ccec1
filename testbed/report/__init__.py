"""The story of a run, for somebody who was not there: one HTML page, a trace and a picture.

Everything is made from the run directory alone and can be made again at any time.  Nothing here
measures, decides or prints; what the numbers mean is said in :mod:`testbed.frames`.

``skill``
    How good a prediction was, against last round's value as the prediction to beat.
``charts``, ``round_chart``
    Pictures, as plotly figures with rounded numbers.
``tables``, ``words``
    What is said in rows and in sentences.
``page``
    All of it in one self-contained file.
"""

from __future__ import annotations

from pathlib import Path


def write_report(directory: Path | str) -> dict[str, Path]:
    """Write ``report.html``, ``trace.json`` and ``run.svg`` into a run directory; return their paths.

    Raises
    ------
    StorageError
        There is no run there, a file of it is damaged, or the directory cannot be written.
    """
    # The libraries that draw take longer to import than many a command runs.
    from testbed.errors import StorageError
    from testbed.frames import load_run
    from testbed.picture import draw_run
    from testbed.report.page import write_page
    from testbed.trace import write_trace

    loaded = load_run(directory)
    place = loaded.run.directory
    try:
        return {
            "report": write_page(loaded, place / "report.html"),
            "trace": write_trace(loaded, place / "trace.json"),
            "picture": draw_run(loaded.run, place / "run.svg"),
        }
    except OSError as exc:
        raise StorageError(f"the report of {place} cannot be written: {exc}") from exc
