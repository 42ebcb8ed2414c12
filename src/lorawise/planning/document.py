"""A plan as plain data: what `lorawise plan --json` prints. Bytes, seconds; nothing that is not finite."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorawise.planning.plan import Plan


def document(plan: "Plan") -> dict[str, Any]:
    """The fixed keys (lora, train, parameters, memory, fits, decisions, concessions), then what else is known."""
    config, settled = plan.config, plan.settled
    device = plan.smallest_device
    return {
        "model": plan.model.source,
        "task": plan.task.name,
        "method": plan.method,
        "device": {"name": plan.device.name, "memory": plan.device.memory, "usable": plan.device.usable},
        "lora": {
            "r": config.r,
            "alpha": config.alpha,
            "scaling": config.scaling,
            "target_modules": _listed(config.target_modules),
            "dropout": config.dropout,
        },
        "train": {
            name.removeprefix("train."): decision.value
            for name, decision in settled.items()
            if name.startswith("train.")
        },
        "base": {"dtype": settled["base.dtype"].value},
        "parameters": {
            "trainable": plan.trainable,
            "total": plan.total,
            "percent": 100 * plan.trainable / plan.total,
        },
        "memory": {**plan.memory.to_json(), "needed": plan.needed, "usable": plan.device.usable},
        "fits": plan.fits,
        "decisions": [
            {
                "name": decision.name,
                "value": decision.value,
                "reason": decision.reason,
                "range": list(decision.range),
                "sources": list(decision.sources),
                "asked": decision.asked,
                "advised": decision.advised if decision.asked else decision.value,
            }
            for decision in plan.decisions
        ],
        "concessions": [asdict(concession) for concession in plan.concessions],
        "methods": dict(plan.methods),
        "smallest_device": None if device is None else device.name,
        "largest": asdict(plan.largest),
        "strength": {"value": plan.strength, "words": plan.strength_in_words},
        "adapter": {"bytes": plan.adapter_bytes, "unmerged_work": plan.serving_cost, "merged_work": 0.0},
        "data": _data(plan),
        "time": _time(plan),
        "findings": [asdict(finding) for finding in plan.findings],
    }


def _listed(targets: str | Sequence[str]) -> str | list[str]:
    return targets if isinstance(targets, str) else list(targets)


def _data(plan: "Plan") -> Mapping[str, Any] | None:
    data = plan.data
    if data is None:
        return None
    length = plan.settled.whole("train.max_length")
    return {
        "rows": data.rows,
        "validation_rows": data.validation_rows,
        "tokens": data.tokens,
        "trained_tokens": data.trained_tokens,
        "trained_share": data.trained_share,
        "tokens_per_row": {
            "mean": data.mean,
            "p50": data.percentile(0.5),
            "p95": data.percentile(0.95),
            "p99": data.percentile(0.99),
            "longest": data.longest,
        },
        "duplicates": data.duplicates,
        "leaked": data.leaked,
        "rows_cut": data.rows_cut(length),
        "measured_by": data.measured_by,
        "rows_measured": data.encoded,
    }


def _time(plan: "Plan") -> Mapping[str, Any] | None:
    pace, forecast = plan.pace, plan.forecast
    if pace is None:
        return None
    told: dict[str, Any] = {
        "tokens_per_second": pace.tokens_per_second,
        "interval": [pace.low, pace.high],
        "because": pace.because,
    }
    if plan.price is not None:
        likely, short, long = pace.cost(1e6, plan.price)
        told |= {"cost_per_million_tokens": likely, "cost_per_million_tokens_interval": [short, long]}
    if forecast is not None:
        likely, short, long = forecast.seconds
        told |= {"tokens": forecast.tokens, "steps": forecast.steps}
        told |= {"seconds": likely, "seconds_interval": [short, long]}
        if forecast.cost is not None:
            likely, short, long = forecast.cost
            told |= {"cost": likely, "cost_interval": [short, long]}
    return told
