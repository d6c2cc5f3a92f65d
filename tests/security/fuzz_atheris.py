"""Coverage-guided fuzzing of a reader: python tests/security/fuzz_atheris.py weights|image|json [CORPUS] [OPTION …].

Needs atheris (`pip install atheris`), which is not among our requirements. The options are libFuzzer's, such as
-max_total_time=600. It ends at the first exception that is neither a UserError nor the reader's own.
"""

import contextlib
import sys
import tempfile
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # pyright knows it not

with atheris.instrument_imports(include=["jaxcnn", "PIL", "pickletools", "zipfile"]):
    import seeds

    from jaxcnn import UserError
    from jaxcnn.configfile import from_json
    from jaxcnn.data.images.decode import Box, crop_resize, decode, size_of
    from jaxcnn.data.sources.packed import read_manifest
    from jaxcnn.weights.files import read_state_dict

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def weights(data: bytes) -> None:
    read_state_dict(seeds.write(FOLDER / "weights", data))


def image(data: bytes) -> None:
    decode(data, 3)
    crop_resize(data, 1, Box(0, 0, *size_of(data)), (8, 8))


def json(data: bytes) -> None:
    seeds.write(FOLDER / "manifest.json", data)
    try:
        read_manifest(f"packed:{FOLDER}")
    except UserError:
        from_json(FOLDER / "manifest.json")


TARGETS = {"weights": (weights, UserError), "image": (image, ValueError), "json": (json, UserError)}
TEXTS = {"config": seeds.to_json(seeds.base_config()).encode(), "manifest": dumps(seeds.manifest()).encode()}
SEEDS = {"weights": seeds.weights(), "image": seeds.images(), "json": TEXTS}


def main() -> None:
    name = sys.argv.pop(1)
    read, refusal = TARGETS[name]

    def once(data: bytes) -> None:
        with contextlib.suppress(refusal):
            read(data)

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, data in enumerate(SEEDS[name].values()):
        seeds.write(corpus / str(number), data)
    atheris.Setup([*sys.argv, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
