"""How fast a plan trains on its device, how long it takes, and what that costs.

    FLOPs a token = 2·P forward + 2·P for the input's gradient (the frozen weights take none)
                  + 2·P·share of the layers computed again
                  + attention, causal: 2·len·q a layer forward, twice that backward
                  + head: 4·V·h for the trained share of tokens (the loss is taken there alone)
                  + 6 · adapter parameters
    seconds a micro-batch = max(FLOPs / (rate · utilisation), bytes of weights moved / bandwidth)

P are the matrices of the decoder that a token meets (of experts those it is routed to); full fine-tuning adds 2·P for
the weights' gradients. Moved are those that some token of the micro-batch meets: of E experts, k a token, evenly
routed, E·(1 − (1 − k/E)^tokens), which is nearly all of them from a few hundred tokens on. The utilisation is an
interval, not a number: at best what large training runs report (38 to 43 % of the dense rate, Llama 3, arXiv
2407.21783), at worst the 15 % that the guide's script reaches of a CPU's measured rate. Runs of this machine replace
it where they left their figures (`calibration.py`).
"""

from dataclasses import dataclass

from lorawise.facts.device import DeviceFacts
from lorawise.facts.model import ModelFacts
from lorawise.runfile.schema import QUANTISED

UTILISATION = (0.15, 0.43)
RECOMPUTED = {"speed": 0.0, "balanced": 0.5, "frugal": 1.0}  # share of the layers, by memory mode
PASSES = 3  # the weights are read forward, backward, and once more where layers are computed again
NF4_BYTES = 0.5 + 2 + 2  # a weight: read in 4 bits, written and read in 16


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one token asks for. `length` is the mean length of a document, `trained_share` of its tokens trained."""

    model: ModelFacts
    trainable: int
    length: float
    trained_share: float = 1.0
    mode: str = "speed"
    full: bool = False

    @property
    def met(self) -> float:
        """Weights of the decoder that a token meets."""
        return self.read(1)

    def read(self, tokens: int) -> float:
        """Weights of the decoder that some of so many tokens meets, routed evenly."""
        routed = self.model.experts_per_token / self.model.num_experts if self.model.num_experts else 1.0
        reached = 1 - (1 - routed) ** tokens
        return sum(m.weights * (reached if m.experts > 1 else 1.0) for m in self.model.decoder)

    @property
    def flops(self) -> float:
        """Floating-point operations a token."""
        model, again = self.model, RECOMPUTED[self.mode]
        products = self.met * (2 + 2 + 2 * again + (2 if self.full else 0))
        seen = min(self.length, model.sliding_window or self.length)
        attention = model.num_layers * 2 * seen * model.num_heads * model.head_dim * (3 + again)
        head = (6 if self.full else 4) * model.vocab_size * model.hidden_size * self.trained_share
        return products + attention + head + (0 if self.full else 6 * self.trainable)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Tokens a second: most likely, and the interval; `because` says where they come from."""

    tokens_per_second: float
    low: float
    high: float
    because: str

    def seconds(self, tokens: float) -> tuple[float, float, float]:
        """(most likely, shortest, longest) for `tokens`."""
        return tokens / self.tokens_per_second, tokens / self.high, tokens / self.low

    def cost(self, tokens: float, price: float) -> tuple[float, float, float]:
        """(most likely, least, most) of `tokens` at `price` an hour."""
        likely, short, long = (seconds / 3600 * price for seconds in self.seconds(tokens))
        return likely, short, long


def expected(work: Work, device: DeviceFacts, *, dtype: str, micro_tokens: int) -> Pace | None:
    """From the device's own figures; None where its rate is not known."""
    computed = "bfloat16" if dtype in (*QUANTISED, "auto") else dtype
    rate = device.matmul.get(computed) or max(device.matmul.values(), default=0.0)
    if not rate:
        return None
    computing, moving = work.flops * micro_tokens / rate, _moving(work, device, dtype, micro_tokens)
    slow, fast = (computing / share for share in UTILISATION)
    bound = moving > fast
    # Dequantising is work of its own; plain weights are read while products run: at best, where reading is the longer.
    slow = slow + moving if bound or dtype == "nf4" else max(slow, moving)
    fast = fast + moving if dtype == "nf4" else max(fast, moving)
    low, high = micro_tokens / slow, micro_tokens / fast
    return Pace(
        tokens_per_second=(low * high) ** 0.5,
        low=low,
        high=high,
        because=f"{work.flops / 1e9:.3g} GFLOP a token at {UTILISATION[0]:.0%} to {UTILISATION[1]:.0%} of "
        f"{rate / 1e12:.3g} TFLOP/s{', bound by reading the weights' if bound else ''}",
    )


def _moving(work: Work, device: DeviceFacts, dtype: str, micro_tokens: int) -> float:
    """Seconds a micro-batch takes to read its weights; 0 where the bandwidth is not known."""
    weight = {"float32": 4.0, "nf4": NF4_BYTES, "int8": 1.0}.get(dtype, 2.0)
    return work.read(micro_tokens) * weight * PASSES / device.bandwidth if device.bandwidth else 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A whole run: training alone, without evaluation and saving. Money in the unit of the price."""

    tokens: int
    steps: int
    pace: Pace
    price: float | None = None

    @property
    def seconds(self) -> tuple[float, float, float]:
        return self.pace.seconds(self.tokens)

    @property
    def cost(self) -> tuple[float, float, float] | None:
        """Hours times the price of an hour."""
        return None if self.price is None else self.pace.cost(self.tokens, self.price)
