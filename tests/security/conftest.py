"""How long to fuzz: JAXCNN_FUZZ examples of each test, a few by default (`make fuzz` takes many)."""

import os

from hypothesis import HealthCheck, Phase, settings

MANY = int(os.environ.get("JAXCNN_FUZZ", "0"))
settings.register_profile(
    "fuzz",
    max_examples=MANY or 40,
    deadline=None,
    database=None,
    derandomize=not MANY,  # the default run tests the same every time
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
