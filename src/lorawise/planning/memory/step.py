"""One optimizer step of either trainer, put on a tape."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

from lorawise.facts.model import Matrix, ModelFacts
from lorawise.facts.targets import selected, trained_in_full
from lorawise.lora.config import LoraConfig
from lorawise.lora.selection import layer_index
from lorawise.planning.memory import loss, static
from lorawise.planning.memory.decoder import Layer, Pass, layers_of
from lorawise.planning.memory.model import Method, Mode, Stack, TrainerName, Workload
from lorawise.planning.memory.operations import Numbers, norm
from lorawise.planning.memory.products import Adapter, Product, product
from lorawise.planning.memory.tape import Buffer, Gradients, Tape, Value

EVERY = {"speed": 0, "balanced": 2, "frugal": 1}  # every how many layers one is computed again
WALKED = 4  # layers at each end that are walked one by one


@dataclass(frozen=True, kw_only=True)
class Step:
    facts: ModelFacts
    config: LoraConfig | None
    method: Method
    workload: Workload
    mode: Mode
    trainer: TrainerName
    stack: Stack
    slots: int
    workspace: int

    def run(self) -> Tape:
        tape = Tape()
        held = [
            *static.weights(tape, self.facts, self.method, self.stack),
            tape.buffer(self.workspace, "cuBLAS workspace"),
        ]
        if self.ours:
            assert self.config is not None
            held += static.our_state(tape, self.facts, self.config, self.slots)
        else:
            held += static.stock_state(tape, self.facts, self.config, self.stack)
        outputs: list[Buffer] = []
        for _ in range(2 if self._holds else 1):  # the second step finds the outputs of the first
            gradients: list[Buffer] = []
            for _ in range(2 if self.workload.accumulate and not self.ours else 1):
                fresh: list[Buffer] = []
                self._micro(tape, fresh, outputs)
                gradients = gradients or fresh
                del fresh
            if not self.ours:
                self._update(tape, gradients)
        return tape

    @property
    def _holds(self) -> bool:
        return self.stack.held_outputs and not self.ours

    @property
    def ours(self) -> bool:
        return self.trainer == "lorawise"

    @cached_property
    def numbers(self) -> Numbers:
        w = self.workload
        rows = w.documents if w.packed else w.rows
        return Numbers(
            tokens=self.slots * w.positions,
            rows=self.slots * rows,
            length=w.length,
            compute=static.compute_bytes(self.facts),
            slots=self.slots,
            autocast=self.stack.autocast and not self.ours,
            dropout=bool(self.stack.dropout) and not self.ours,
            unpacking=8 if self.stack.packing == "int8" else 1 / 16,
        )

    @cached_property
    def ranks(self) -> dict[str, int]:
        if self.config is None:
            return {}
        return {m.name: self.config.rank_of(m.name) for m in selected(self.facts, self.config)}

    @cached_property
    def whole(self) -> dict[str, int]:
        """What is trained in full beside the adapters: name of the parameter → elements."""
        return {} if self.config is None else dict(trained_in_full(self.facts, self.config))

    def _is_whole(self, module: str) -> bool:
        return f"{module}.weight" in self.whole

    @property
    def hidden_bytes(self) -> int:
        """Of one hidden state's value: fp32 where a 4-bit base was prepared so."""
        wide = self.method == "qlora" and self.stack.upcast != "none" and not self.ours
        return 4 if wide else self.numbers.compute

    def product_of(self, matrix: Matrix) -> Product:
        packed4 = static.is_packed(matrix, self.facts, self.method)
        rank = self.ranks.get(matrix.name, 0)
        adapter: Adapter = "none"
        if self.method == "full":
            adapter = "full"
        elif self._is_whole(matrix.name):
            adapter = "copy" if self.ours else "full"
        elif rank:
            adapter = "fused" if self.ours else "peft"
        return Product(
            inner=matrix.in_features,
            outer=matrix.out_features,
            rank=rank,
            adapter=adapter,
            packed4=packed4,
            count=matrix.experts,
        )

    def _micro(self, tape: Tape, gradients: list[Buffer], outputs: list[Buffer]) -> None:
        full = self.method == "full"
        run = Pass(
            tape=tape,
            numbers=self.numbers,
            make=self.product_of,
            masked=self.workload.masked,
            score_bytes=self.numbers.compute if not self.ours else 0 if self.workload.packed else 4,
            gradients=None if self.ours else gradients,
            trained=full or any("norm" in name and layer_index(name) is not None for name in self.whole),
        )
        with tape.during(phase="forward"):
            tables = [
                tape.buffer(self.numbers.tokens * self.facts.head_dim * self.hidden_bytes, "hidden states")
                for _ in "cs"
            ]
            x = self._embedded(tape, gradients)
            x = self._through_layers(tape, run, x)
            cells = self.numbers.tokens * self.facts.hidden_size
            with tape.during(cause="norms"):
                layer = layers_of(self.facts)[0]
                trained = full or any("norm" in name and layer_index(name) is None for name in self.whole)
                x = norm(tape, x, cells, self.numbers.tokens, layer.kind, trained=trained)
        last = [x]
        del x
        self._lose(tape, run, last, outputs)
        del tables
        if full:
            with tape.during(phase="backward"):
                gradients.append(tape.buffer(self._embedding_gradient, static.GRADIENTS))

    @property
    def _embedding_gradient(self) -> int:
        return sum(m.weights for m in self.facts.embeddings) * self.numbers.compute

    def _embedded(self, tape: Tape, gradients: list[Buffer]) -> Value:
        size = self.numbers.tokens * self.facts.hidden_size * self.hidden_bytes
        trained = [m for m in self.facts.embeddings if self._is_whole(m.name)]
        needs = self.method == "full" or bool(EVERY[self.mode])  # checkpointing wants inputs that need a gradient
        e, wide = self.numbers.compute, sum(m.weights for m in trained)
        if self.ours and wide and e < 4:
            tape.brief(e * wide, cause="adapters in 16 bits")
        x = Value(tape.buffer(size, "hidden states"), needs=needs or bool(wide))
        if not wide:
            return x

        def backward(_: Buffer) -> Gradients:
            made = tape.buffer(e * wide, static.GRADIENTS)
            if not self.ours:
                gradients.append(made)
            elif e < 4:
                tape.brief(4 * wide, cause=static.GRADIENTS)
            return []

        tape.node(x.edge, backward)
        return x

    def _through_layers(self, tape: Tape, run: Pass, x: Value) -> Value:
        layers, every = layers_of(self.facts), EVERY[self.mode]
        middle = self._alike(layers)
        before: Counter[tuple[int, str]] = Counter()
        for i, layer in enumerate(layers):
            if i in middle:
                if i == middle.start:
                    x = self._skip(tape, run, x, layers, middle, before)
                continue
            if i + 2 == WALKED:
                before = Counter(tape.held.values())
            again = every and i % every == 0
            x = tape.checkpointed(lambda y, layer=layer: run.layer(layer, y), x) if again else run.layer(layer, x)  # type: ignore[misc]
        return x

    def _alike(self, layers: list[Layer]) -> range:
        """The layers in the middle that need no walk; their number is even, so that every second one stays so."""
        shapes = {
            tuple((m.in_features, m.out_features, m.kind, m.experts, self.ranks.get(m.name, 0)) for m in layer.matrices)
            for layer in layers
        }
        count = (len(layers) - 2 * WALKED) // 2 * 2
        return range(WALKED, WALKED + count) if len(shapes) == 1 and count > 0 else range(0)

    def _skip(
        self, tape: Tape, run: Pass, x: Value, layers: list[Layer], middle: range, before: Counter[tuple[int, str]]
    ) -> Value:
        """What the layers of the middle keep, from what the two before them kept, and the gradients they leave."""
        pairs = len(middle) // 2
        kept = list((Counter(tape.held.values()) - before).elements())
        bulk = [tape.buffer(size, cause) for _ in range(pairs) for size, cause in kept]
        out = Value(x.buffer, needs=x.needs)
        left = sum(self._left(layers[i]) for i in middle)

        edge = x.edge

        def backward(dy: Buffer, bulk: list[Buffer] = bulk) -> Gradients:
            bulk.clear()  # layer by layer what is kept goes and gradients come: the most is at one end or the other
            if run.gradients is not None and left:
                run.gradients.append(tape.buffer(left, static.GRADIENTS))
            return [(edge, dy)]

        tape.node(out.edge, backward)
        return out

    def _left(self, layer: Layer) -> int:
        """Bytes of parameters' gradients that the backward of a layer leaves."""
        if self.method == "full":
            return self.numbers.compute * sum(m.weights for m in layer.matrices)
        return 4 * sum(self.ranks.get(m.name, 0) * (m.in_features + m.out_features) for m in layer.matrices)

    def _lose(self, tape: Tape, run: Pass, last: list[Value], outputs: list[Buffer]) -> None:
        """Loss and backward over the last hidden states, which are taken out of the list; `outputs` are what the
        caller holds of this step, in the place of those of the step before."""
        x, w = last.pop(), self.workload
        documents = w.documents if w.packed else w.rows
        sizes = loss.Sizes(
            tokens=self.numbers.tokens,
            positions=documents if self.facts.is_classifier else max(1, w.positions - documents),
            hidden=self.facts.hidden_size,
            vocabulary=self.facts.heads[0].out_features if self.facts.is_classifier else self.facts.vocab_size,
            slots=self.slots,
            e=self.hidden_bytes,
            capped=bool(self.facts.config.get("final_logit_softcapping")),
            trained=sum(m.weights for m in self.facts.heads if self._is_whole(m.name)),
        )
        if self.ours:
            kept, head_gradient = loss.chunked(tape, sizes)
            end = x.edge
            del x
            with tape.during(cause="gradients of activations", phase="backward"):
                gradient = [loss.chunked_backward(tape, sizes, kept, head_gradient)]
                del kept, head_gradient
                tape.backward(end, gradient)
            return
        head = self.facts.heads[0] if self.facts.heads else None
        assert head is not None, "a causal language model has a head"
        with tape.during(cause=loss.LOGITS, phase="the loss"):
            logits = product(tape, self._heads_numbers, x, self.product_of(head), gradients=run.gradients)
            if sizes.capped:
                logits = loss.capped(tape, logits)
            size = logits.buffer.size
            out, made = logits.edge, [logits.buffer] if self._holds else []
            state = [loss.stock(tape, logits, sizes, self.stack)]
            del logits, x
            outputs[:] = made
            del made
            gradient = [loss.stock_backward(tape, size, sizes, state, self.stack)]
        with tape.during(cause="gradients of activations", phase="backward"):
            tape.backward(out, gradient)

    @property
    def _heads_numbers(self) -> Numbers:
        """A head that was made fp32 multiplies in fp32, but under autocast."""
        wide = self.stack.upcast == "all" and self.hidden_bytes == 4 and not self.stack.autocast
        return replace(self.numbers, compute=4) if wide else self.numbers

    def _update(self, tape: Tape, gradients: list[Buffer]) -> None:
        """The stock optimizer's step; foreach makes one copy of everything it updates."""
        with tape.during(phase="the optimizer step"):
            if self.stack.optimizer == "foreach":
                tape.brief(sum(buffer.size for buffer in gradients), cause="foreach temporaries")
        gradients.clear()
