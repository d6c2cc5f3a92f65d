"""The latency of a detector that is given its proposals."""

from typing import Any

from jaxcnn.training.latency import measure
from jaxcnn.training.trained import TrainedModel

OVERRIDES: dict[str, Any] = {
    "width": 0.05, "small_images": True, "head_features": 8, "detections": 4
}  # fmt: skip


def test_a_network_without_proposals_of_its_own_is_timed_on_as_many_as_the_task_takes():
    given = {f"model.overrides.{key}": value for key, value in OVERRIDES.items()}
    network = TrainedModel.untrained("fast_rcnn_alexnet", given | {"data.image_size": 64, "dtype": "float32"})
    seen = []

    class Spy:
        input, task, model, config = network.input, network.task, network.model, network.config

        def outputs(self, images: Any, sizes: Any, proposals: Any) -> None:
            seen.append((images.shape, proposals))

    (row,) = measure(Spy(), (2,), 3, 1)
    assert (row["batch"], len(row["ms"]), len(seen)) == (2, 3, 4)
    shape, boxes = seen[0]
    assert boxes.shape == (2, network.config.task.max_proposals, 4)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert boxes.max() <= shape[1]
