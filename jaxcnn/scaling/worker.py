"""One compilation of `jaxcnn scaling`, in a process of its own: the compilers clutter a process, and may die in it.

It reads {"config": …, "topology": …} from stdin and answers on stdout with one JSON object: the facts of the row, or
{"error": …, "mine": …}, where "mine" says that the user can mend it.
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from jaxcnn import UserError


def main() -> int:
    """Answer one request."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a compiler prints is no answer
    request = json.load(sys.stdin)
    try:
        answer = _facts(request)
    except UserError as error:
        answer = {"error": str(error), "mine": True}
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        answer = {"error": f"{type(error).__name__}: {words[0]}", "mine": False}
    with answers:
        json.dump(answer, answers)
    return 0


def _end_with(parent: int) -> None:
    """A command that was killed leaves no compiler behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _facts(request: dict[str, Any]) -> dict[str, Any]:
    import jax.numpy as jnp

    from jaxcnn.configfile import from_json
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.models import create_model
    from jaxcnn.scaling import ahead_of_time, topology
    from jaxcnn.training.program import build_program
    from jaxcnn.training.sharding import make_mesh

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(request["config"]))
        config = from_json(path)
    place = topology.parse(request["topology"])
    mesh = make_mesh(config.mesh.data, config.mesh.model, topology.abstract_devices(place))
    data = Dataset(config)
    model = create_model(config.model.name, data.num_classes, jnp.dtype(config.dtype), **config.model.overrides)
    program = build_program(config, model, data, mesh)
    return ahead_of_time.facts(ahead_of_time.compile_step(program, place, Path(request["cache"])), program, place)


if __name__ == "__main__":
    sys.exit(main())
