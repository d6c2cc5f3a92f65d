"""The picture of mistakes: the counts in it, and which classes are shown of many."""

from typing import Any

import numpy as np
import pytest

from jaxcnn.figures.confusion import confusion

IMAGE = np.zeros((4, 3, 3), np.uint8)


def texts(axes: Any) -> dict[tuple[int, int], str]:
    """(row, column) -> the number written there."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}


def test_every_count_is_in_its_place_and_an_empty_place_stays_empty():
    matrix = np.array([[7, 2, 0], [0, 0, 0], [1, 0, 12]])
    figure = confusion(matrix, ["cat", "$x$", "dog"], [IMAGE, IMAGE], ["first\nline", "second"])
    axes, *strip = figure.get_axes()
    assert texts(axes) == {(0, 0): "7", (0, 1): "2", (2, 0): "1", (2, 2): "12"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "$x$", "dog"]
    assert axes.get_title().startswith("3 of 22 are wrong")
    assert [cell.get_title() for cell in strip] == ["first\nline", "second"]
    figure.canvas.draw()  # a name is no formula


@pytest.mark.parametrize("count", [21, 300])
def test_of_many_classes_those_most_confused_are_shown_and_the_rest_is_counted(count):
    matrix = np.eye(count, dtype=int) * 50
    matrix[4, 17], matrix[17, 4], matrix[9, 3] = 9, 4, 6
    matrix[4, 8] = 1
    names = [f"class {i}" for i in range(count)]
    axes = confusion(matrix, names, [], []).get_axes()[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["class 4", "class 17", "class 9", "class 3", "class 8"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*shown, "any other"]
    assert texts(axes)[0, 1] == "9"
    matrix[:, 0] += 1  # everything is taken for one class, too: more than there is room for
    axes = confusion(matrix, names, [], []).get_axes()[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) <= 20
    written, rows = texts(axes), [names.index(name) for name in shown]
    for place, row in enumerate(rows):
        assert sum(int(t) for (r, _), t in written.items() if r == place) == matrix[row].sum()


def test_a_network_without_mistakes_has_a_picture_too():
    figure = confusion(np.eye(30, dtype=int), [str(i) for i in range(30)], [], [])
    assert figure.get_axes()[0].get_title().startswith("0 of 30 are wrong")
