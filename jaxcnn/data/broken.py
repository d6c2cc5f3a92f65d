"""The examples of a run that could not be read, and the lines that name them."""

from collections import defaultdict

from jaxcnn import UserError
from jaxcnn.data.sources import Source

EVALUATION = -1  # in place of an epoch
_NAMED = 3  # broken examples that are named in a line


class Broken:
    """The broken examples of each epoch, and of the last evaluation."""

    def __init__(self, train: Source, evaluation: Source):
        self.train, self.evaluation = train, evaluation
        self.examples: dict[int, set[int]] = defaultdict(set)  # epoch, or `EVALUATION`: its broken examples
        self.said = set[int]()  # broken examples of the evaluation that are reported already

    def complaints(self, epoch: float) -> list[str]:
        """Return a line for each epoch before `epoch` with broken examples, and one for the evaluation.

        Each line is returned once; that of the evaluation again if it has new examples.
        """
        ended = sorted(e for e, broken in self.examples.items() if 0 <= e <= epoch - 1 and broken)
        lines = [f"epoch {e + 1}: {_words(self.train, self.examples.pop(e))} replaced" for e in ended]
        uncounted = self.examples[EVALUATION]
        if uncounted - self.said:
            self.said |= uncounted
            lines.append(f"evaluation: {_words(self.evaluation, uncounted)} not counted")
        return lines


def _words(source: Source, broken: set[int]) -> str:
    """Return how many examples of `source` could not be read, and the first of them with the reason."""
    of = f"{source.name}, split '{source.split}', "
    reasons = []
    for index in sorted(broken)[:_NAMED]:
        try:
            source[index]
        except UserError as error:
            reasons.append(f"{error}".removeprefix(of).removesuffix(f": {source.fix}"))
        else:
            reasons.append(f"{source.where(index).removeprefix(of)} can be read now")
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    count, verb = ("1 image", "was") if len(broken) == 1 else (f"{len(broken)} images", "were")
    return f"{count} of {of}could not be read ({'; '.join(reasons)}{more}) and {verb}"
