"""Rows as `jaxcnn scaling` makes them, of made-up figures in a plausible order of size."""

from typing import Any

GIB = 2**30
ROOFS = {
    ("v5e", "bfloat16"): (197e12, 819e9),
    ("v5e", "float32"): (197e12, 819e9),
    ("h100", "bfloat16"): (989.4e12, 3352e9),
    ("h100", "float32"): (494.7e12, 3352e9),
}
FLOPS = {"resnet50_tv": 24.1e9, "vgg16": 93e9, "alexnet": 4.3e9, "googlenet": 9.5e9}
INTENSITY = {"resnet50_tv": 63.1, "vgg16": 190.0, "alexnet": 330.0, "googlenet": 41.0}


def predicted(model="resnet50_tv", chip="v5e", chips=8, batch=128.0, dtype="bfloat16", **changes) -> dict[str, Any]:
    """A compiled row."""
    peak, rate = ROOFS[chip, dtype]
    high = min(peak, INTENSITY[model] * rate) / FLOPS[model]
    activations = 2e-3 * FLOPS[model] * batch
    memory = {"parameters": 1e8, "optimizer": 1e8, "batch": 1.5e5 * batch, "other": 3e6}
    memory |= {"activations": activations, "temporaries": 0.1 * activations}
    groups = [
        {"kind": "all-reduce", "count": 4, "bytes": 25e6, "group_size": chips, "groups": 1, "spans": [1, chips]},
        {"kind": "all-reduce", "count": 50, "bytes": 4e3, "group_size": chips, "groups": 1, "spans": [1, chips]},
        {"kind": "all-gather", "count": 1, "bytes": 4e6, "group_size": chips, "groups": 1, "spans": [1, chips]},
    ]
    row = {
        "config": f"experiments/imagenet/family.py:{model}",
        "model": model,
        "dtype": dtype,
        "variant": {},
        "topology": f"tpu:v5e:{chips // 4}x4" if chip == "v5e" and chips >= 4 else f"gpu:h100:{chips}",
        "chip": chip,
        "chips": chips,
        "mesh": {"data": chips, "model": 1},
        "batch_per_chip": batch,
        "global_batch_size": int(batch * chips),
        "flops_per_image": FLOPS[model],
        "bytes_per_image": FLOPS[model] / INTENSITY[model],
        "hbm_traffic_per_image": 0.5 * FLOPS[model] / INTENSITY[model],
        "intensity": INTENSITY[model],
        "memory": memory,
        "hbm_bytes": sum(memory.values()),
        "hbm_limit_bytes": 15.75 * GIB if chip == "v5e" else 78 * GIB,
        "collective_groups": groups if chips > 1 else [],
        "wire_bytes": 2e8 if chips > 1 else 0.0,
        "predicted_images_per_sec_per_chip": [0.6 * high, high],
        "predicted_efficiency": [1 - 0.02 * (chips > 1), 1.0],
        "labels": {
            "hbm_bytes": "compiled",
            "wire_bytes": "predicted",
            "predicted_images_per_sec_per_chip": "predicted",
        },
        "notes": [],
    }
    return row | {"fits": row["hbm_bytes"] <= row["hbm_limit_bytes"]} | changes


def unfit(total: float | None, **changes) -> dict[str, Any]:
    """A row that does not fit, of which the compiler said no more than that, or the total."""
    unknown = (
        "flops_per_image",
        "intensity",
        "predicted_images_per_sec_per_chip",
        "predicted_efficiency",
        "wire_bytes",
    )
    return predicted(memory={}, hbm_bytes=total, fits=False, collective_groups=[], **dict.fromkeys(unknown), **changes)


def measured(chips=8, median=200.0, **changes) -> dict[str, Any]:
    """A row that ran on the devices of one CPU."""
    row = {
        "config": "experiments/imagenet/resnet.py:resnet50_tv",
        "model": "resnet50_tv",
        "dtype": "bfloat16",
        "variant": {},
        "topology": f"cpu:{chips}",
        "simulated": True,
        "chips": chips,
        "mesh": {"data": chips, "model": 1},
        "batch_per_chip": 16.0,
        "global_batch_size": 16 * chips,
        "measured_images_per_sec": {"median": median, "min": 0.8 * median, "max": 1.1 * median, "all": [median]},
        "measured_efficiency": {"median": 0.9, "min": 0.8, "max": 1.0},
        "labels": {},
    }
    return row | changes


def forty() -> list[dict[str, Any]]:
    """Forty rows: four models on two chips, of two dtypes, with two rows that do not fit."""
    sizes = [predicted(m, c, n) for m in FLOPS for c in ("v5e", "h100") for n in (1, 8, 64, 256)]
    others = [predicted(dtype="float32", chips=n, variant={"norm.scope": "shard"}) for n in (1, 4, 16, 64, 256, 1024)]
    return [*sizes, *others, unfit(2e11, model="vgg16", batch=1024), unfit(None, model="vgg16", batch=4096)]
