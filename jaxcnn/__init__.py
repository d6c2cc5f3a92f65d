"""jaxcnn: the classic convolutional networks in JAX, checked against their papers.

Importing this package imports no JAX. Start from `jaxcnn.models.create_model`, or from the command line.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """Wrong use or bad input. The message is one line: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with its `code`.
    """

    code = 2
