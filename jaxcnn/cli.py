"""`jaxcnn COMMAND`: find the command's module, and turn what it raises into an exit code.

Exit codes: 0 done; 2 wrong use or bad input, one line on stderr; 1 a fault, ours with its traceback or the machine's.
"""

import errno
import importlib
import io
import os
import sys
import traceback
from typing import NoReturn

from jaxcnn import UserError, __version__
from jaxcnn.commands import options
from jaxcnn.safe_files import printable

COMMANDS = {
    "train": "train from an experiment file, or on a data set by a default recipe; run again, it resumes",
    "new": "write a commented experiment for a data set: new folder:photos > my.py",
    "config": "list the keys of an experiment, with defaults, legal values and meanings",
    "launch": "several processes of this machine as one: launch --processes 4 -- train …",
    "sweep": "train a list of configs and seeds, resumable, and table their scores",
    "evaluate": "score every example of the evaluation set once",
    "predict": "name what images show",
    "sample": "draw images out of a VAE or a GAN",
    "plot": "draw the curves of one or several runs",
    "compare": "what differs between runs, and their scores; mean ± sd over seeds",
    "rcnn": "R-CNN's SVMs and box regressions, on the features of a fine-tuned classifier",
    "bench": "images per second of reading, of the step and of both",
    "models": "list the networks, with their parameters, MACs and activations",
    "tables": "the papers' tables, the published value beside ours",
    "weights": "import and export other frameworks' weights",
    "data": "list, prepare and check data sets",
    "scaling": "what a config costs on 1 to thousands of chips, compiled for them or measured",
}
_USAGE = "usage: jaxcnn COMMAND [--debug] …\n\ncommands:\n"
_THEIRS = {  # errors of the system that are no fault of ours: of a disk, a path or a permission
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.EPERM, errno.EFBIG,
}  # fmt: skip


def usage() -> str:
    """Return the text of `jaxcnn --help`."""
    rows = "".join(f"  {name:<10} {words}\n" for name, words in COMMANDS.items())
    return f"{_USAGE}{rows}\n`jaxcnn COMMAND --help` lists its options; --debug shows the traceback of an error."


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv's by default) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not fit the terminal's encoding
    ours = argv.index("--") if "--" in argv else len(argv)
    debug = "--debug" in argv[:ours]
    argv = [word for word in argv[:ours] if word != "--debug"] + argv[ours:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"jaxcnn {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"jaxcnn: there is no command '{argv[0]}': {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        code = importlib.import_module(f"jaxcnn.commands.{argv[0]}").main(argv[1:])
        if sys.stdout:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `jaxcnn … | head` is no error
        return 0
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        return _refuse(str(error), debug, error.code)
    except OSError as error:
        if error.errno not in _THEIRS:
            raise
        return _refuse(f"{error.strerror}: {error.filename or 'while writing'}", debug)


def run() -> NoReturn:
    """The console script: `main`, and the end of the process."""
    for descriptor in range(3):  # one that is closed would be the next file's
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    code = main()
    for end in options.ENDS:
        end(code)
    sys.exit(code)


def _refuse(message: str, debug: bool, code: int = 2) -> int:
    if debug:
        traceback.print_exc()
    print(f"jaxcnn: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
