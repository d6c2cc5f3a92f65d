"""What Orbax prints of errors that it raises too."""

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxcnn.training.checkpoint import quieten, reason


@pytest.mark.parametrize(
    ("path", "message", "printed"),
    [
        ("/site-packages/orbax/checkpoint/x.py", "a save failed", False),
        ("/lib/asyncio/base_events.py", "Task was never retrieved, /site-packages/orbax/x.py", False),
        ("/site-packages/grain/x.py", "a reader failed", True),
    ],
)
@pytest.mark.parametrize("logger", ["absl", "asyncio"])
def test_only_the_records_of_orbax_are_dropped(logger, path, message, printed):
    quieten()
    record = logging.LogRecord(logger, logging.ERROR, path, 1, message, None, None)
    assert bool(logging.getLogger(logger).filter(record)) == printed


@pytest.mark.parametrize(("path", "printed"), [("/packages/orbax/x.py", False), ("/packages/grain/x.py", True)])
def test_an_error_that_was_raised_in_orbax_is_dropped_whoever_tells_of_it(path, printed):
    quieten()
    with pytest.raises(ValueError, match="disk full") as raised:
        exec(compile("raise ValueError('disk full')", path, "exec"))
    error = raised.value
    record = logging.LogRecord(
        "asyncio", logging.ERROR, "/lib/asyncio/base_events.py", 1, "exception was never retrieved", None,
        (type(error), error, error.__traceback__),
    )  # fmt: skip
    assert bool(logging.getLogger("asyncio").filter(record)) == printed


def test_only_what_is_told_to_an_ended_event_loop_is_dropped(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    quieten()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("other"), OSError(28, "full")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))  # type: ignore[arg-type]
    assert [str(what.exc_value) for what in told] == ["other", "[Errno 28] full"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: …\nmore [os_error_code='28']"), "No space left on device"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
    ],
)
def test_a_reason_is_one_line_in_the_systems_words(error, words):
    assert reason(error) == words


PYTHON = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(pathname)s %(message)s")  # a notebook that shows all there is to see
import jaxcnn
from jaxcnn.config import base_config
config = base_config()
config.model.name, config.data.name, config.steps, config.epochs = "resnet20", "digits", 2, 0
config.global_batch_size = 16
jaxcnn.train(config, sys.argv[1])
jaxcnn.open_run(sys.argv[1], "best")
"""


@pytest.mark.slow
def test_from_python_nothing_of_orbax_is_printed_however_much_is_logged(tmp_path):
    words = [sys.executable, "-W", "default", "-c", PYTHON, str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    result = subprocess.run(words, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    assert "step 2/2" in result.stderr
    assert "/orbax/" not in result.stderr
    assert "orbax" not in result.stdout.lower()
