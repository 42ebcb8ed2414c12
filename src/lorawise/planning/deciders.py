"""One decider a field of the run file: it looks at the situation and at what was decided before, and decides.

    @decider("lora.r")
    def rank(s: Situation, done: Settled) -> Decision | None

They run in the order they are registered in, each free to use the values of those before. A docstring is the page that
`--explain` prints. The user's own value always stands (`decide` puts it in); the advice is kept beside it.
"""

from collections.abc import Callable
from dataclasses import replace

from lorawise.base.registry import Registry
from lorawise.planning.decision import Decision
from lorawise.planning.situation import Settled, Situation

Decider = Callable[[Situation, Settled], Decision | None]

deciders: Registry[Decider] = Registry("decision")
decider = deciders.register


def decide(situation: Situation) -> Settled:
    """Every decision that needs no memory prediction, in order; a decider that returns None has nothing to decide."""
    done = Settled()
    for name in deciders:
        decision = deciders[name](situation, done)
        if decision is not None:
            done.add(_as_asked(situation, decision))
    return done


def _as_asked(situation: Situation, decision: Decision) -> Decision:
    """The user's own value in the place of the advised one."""
    asked = situation.asked(decision.name)
    if asked is None or decision.asked:
        return decision
    value = asked if isinstance(asked, (str, int, float, bool)) else ", ".join(map(str, asked))  # type: ignore[call-overload]
    advised = f"{decision.value:g}" if isinstance(decision.value, float) else str(decision.value)
    same = value == decision.value
    reason = (
        f"as you wrote it, and as advised: {decision.reason}"
        if same
        else (f"as you wrote it; advised {advised}: {decision.reason}")
    )
    return replace(decision, value=value, reason=reason, asked=True, advised=decision.value)
