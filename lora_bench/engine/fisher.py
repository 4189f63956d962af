"""A Gaussian posterior around what one cell has trained: Fisher information, prior and prediction.

For a matrix M `[out, in]` that maps inputs a to outputs with gradients g, the information is approximated by
`H = (Σ g gᵀ) ⊗ (Σ a aᵀ) / N`: over all tokens of the N rows, and for g over the classes, each weighted by its
probability (the exact Fisher information, not that of the labels). The posterior precision is `H + λ I`. In the
eigenbasis of both factors it is diagonal, so neither H nor an inverse is ever formed.

Everything is computed for one cell through transformers' own code, with hooks on the adapted weights, so it cannot
depend on the pack that the cell was trained in. A weight that the encoder reads more than once in a pass (ALBERT's), or
that maps anything but tokens (DeBERTa's table of distances), is refused: both have gradients that this leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from lora_bench.engine import randomness
from lora_bench.engine.adapters.pack import Pack
from lora_bench.engine.encoder.windows import Batch, Table, slices
from lora_bench.errors import BenchError

# All as in the reference implementation, which the docstrings of the methods name.
PRIOR_STEPS, PRIOR_RATE, DRAWS = 1000, 0.1, 100_000
CHUNK = 2**22  # values of the draws that are held at once; chosen


@dataclass(frozen=True)
class TokenRows:
    """To which row of a batch each token belongs. Matrices that see the same tokens share it.

    Attributes:
        ids: The row of each token, `[tokens]`.
        count: The number of rows.
    """

    ids: Tensor
    count: int

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """The tokens of each row, `[rows, longest]`, by their index, and which of these are tokens and no padding."""
        lengths = torch.bincount(self.ids, minlength=self.count)
        starts = lengths.cumsum(0) - lengths
        columns = torch.arange(int(lengths.max()), device=self.ids.device)
        index = (starts[:, None] + columns).clamp(max=len(self.ids) - 1)
        return torch.argsort(self.ids, stable=True)[index], columns < lengths[:, None]


@dataclass(frozen=True)
class MatrixPass:
    """What one batch gives for a matrix of the posterior, from a forward and some backward passes.

    Attributes:
        inputs: a of each token, `[tokens, in]`.
        gradients: g of each token for each of the differentiated sums, `[sums, tokens, out]`.
        rows: The rows of the tokens.
    """

    inputs: Tensor
    gradients: Tensor
    rows: TokenRows


@dataclass(frozen=True)
class Gaussian:
    """The posterior of one cell.

    Attributes:
        bases: For each matrix the eigenvectors of its two Kronecker factors, `[out, out]` and `[in, in]`.
        values: For each matrix the eigenvalues of its information, `[out, in]`.
        precision: λ, the precision of the prior.
    """

    bases: list[tuple[Tensor, Tensor]]
    values: list[Tensor]
    precision: float


class Linearised:
    """One cell, run through transformers' own code, with the inputs and gradients of the posterior's matrices recorded.

    Args:
        pack: A pack of one.
        over: See `rules.FisherPosterior`.
    """

    def __init__(self, pack: Pack, over: str) -> None:
        self.pack, self.over = pack, over
        self.exact = pack.backbone.exact
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._is_forward = False

    def parameters(self) -> list[Tensor]:
        """The trained values of the posterior's matrices, in the order of `passes`."""
        if self.over == "output-layer":
            parts = self.pack.heads.parts(self.pack.heads.block.matrix.detach())
            return [parts["out_proj.weight"][0], parts["out_proj.bias"][0].mT]
        updates = self.pack.bank.groups[0].factors(self.pack.bank.groups[0].block.matrix.detach())
        return [
            factors[name][0, index]
            for family, factors in updates.items()
            for index in range(len(self.pack.bank.groups[0].families[family]))
            for name in ("A", "B")
        ]

    def passes(self, batch: Batch, sums: Callable[[Tensor], list[Tensor]]) -> tuple[Tensor, list[MatrixPass]]:
        """The logits `[rows, classes]` of a batch, and each matrix with the gradients of some sums over its rows.

        Args:
            batch: The batch.
            sums: Returns from the logits the scalars to differentiate.
        """
        pack, count = self.pack, len(batch.rows)
        pack.compose()
        self._inputs, self._outputs, self._is_forward = {}, {}, True
        # Operands are not passed, since the hooks have those of the one cell: with them, padded rows would use vmap.
        with torch.set_grad_enabled(self.over == "factors"):
            hidden = pack.backbone.encode(batch, 1, rows=batch.first)
        self._is_forward = False
        features = pack.heads.features(pack.heads.block.matrix, hidden, None)
        logits = pack.heads.logits(pack.heads.block.matrix, hidden, None)[0, :count]
        names = list(self._outputs)
        read = [logits] if self.over == "output-layer" else [self._outputs[name] for name in names]
        terms = sums(logits)
        gradients = [torch.autograd.grad(term, read, retain_graph=term is not terms[-1]) for term in terms]
        stacked = [torch.stack(by_sum) for by_sum in zip(*gradients, strict=True)]
        if self.over == "output-layer":
            rows = TokenRows(torch.arange(count, device=logits.device), count)
            inputs = features[0, :count].detach()
            return logits.detach(), [
                MatrixPass(inputs, stacked[0], rows),
                MatrixPass(torch.ones_like(inputs[:, :1]), stacked[0], rows),
            ]
        return logits.detach(), self._factor_passes(batch, dict(zip(names, stacked, strict=True)))

    def _factor_passes(self, batch: Batch, gradients: dict[str, Tensor]) -> list[MatrixPass]:
        """A and B of each weight: `y = W x + s B (A x)`, so A's outputs have the gradient s Bᵀ g, and B's have s g."""
        (group,) = self.pack.bank.groups
        scale, matrices = float(group.scales[0]), list[MatrixPass]()
        layouts: dict[tuple[int, ...], tuple[Tensor, TokenRows]] = {}  # by the positions: which of them hold tokens
        for family, factors in group.factors(group.block.matrix.detach()).items():
            for index, name in enumerate(group.families[family]):
                x, grad = self._inputs[name].detach(), gradients[name] * scale
                positions = tuple(x.shape[:-1])
                if positions not in layouts:
                    ids = batch.sequences_at(positions)
                    if ids is None:
                        raise _refusal(name, "is not applied to tokens")
                    layouts[positions] = ids >= 0, TokenRows(ids[ids >= 0], len(batch.rows))
                is_token, rows = layouts[positions]
                x, grad = x.flatten(0, -2).to(self.exact)[is_token], grad.flatten(1, -2).to(self.exact)[:, is_token]
                a, b = factors["A"][0, index], factors["B"][0, index]
                matrices += [MatrixPass(x, grad @ b, rows), MatrixPass(x @ a.mT, grad, rows)]
        return matrices

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Record the inputs and outputs of the adapted weights during the block."""
        linears = self.pack.backbone.linears()
        names = [n for g in self.pack.bank.groups for n in g.modules] if self.over == "factors" else []
        with self.pack:
            handles = [linears[name].register_forward_hook(self._record(name)) for name in names]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                self._inputs, self._outputs = {}, {}

    def _record(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not self._is_forward:  # a layer that is computed again in the backward pass
                return
            if name in self._inputs:
                raise _refusal(name, "is read more than once in a pass")
            self._inputs[name], self._outputs[name] = inputs[0], output

        return record


def _refusal(name: str, why: str) -> BenchError:
    what = f"A posterior over A and B is not possible here: {name} {why}."
    return BenchError(what, "Use other --targets, or a method with a posterior over the head alone.")


def refusal(pack: Pack, table: Table) -> BenchError | None:
    """Return why a cell can have no posterior over its factors; None if it can.

    Weights that the encoder reads twice in a pass are refused, and those that map more than tokens.

    Args:
        pack: A pack of one, `hooked`.
        table: Any rows.
    """
    model = Linearised(pack, "factors")
    # Of two rows, so that padded rows have another shape than a table that all rows share.
    (batch,) = table.batches([np.arange(min(2, len(table)))])
    try:
        with model.hooked():
            model.passes(batch, lambda logits: [logits.sum()])
    except BenchError as error:
        return error.with_traceback(None)  # which would keep the tensors of the pass
    return None


def fit(pack: Pack, over: str, table: Table) -> Gaussian:
    """The posterior of a cell from its training rows.

    Args:
        pack: The cell as a pack of one.
        over: See `rules.FisherPosterior`.
        table: The rows.
    """
    # For each matrix the two sums of the module's docstring, over all batches: of g gᵀ and of a aᵀ.
    model = Linearised(pack, over)
    totals: list[list[Tensor]] = []
    with model.hooked():
        for batch in table.batches(slices(np.arange(len(table)), pack.cells[0].batch_size)):
            _, matrices = model.passes(batch, _class_terms)
            # In float64, as the eigenvalues differ by many orders.
            sums = [[_gram(m.gradients.flatten(0, 1)), _gram(m.inputs)] for m in matrices]
            before = totals or [[torch.zeros_like(value) for value in pair] for pair in sums]
            totals = [[a + b for a, b in zip(*both, strict=True)] for both in zip(before, sums, strict=True)]
    split = [[torch.linalg.eigh(total) for total in pair] for pair in totals]
    values = [left[0].clamp(min=0)[:, None] * right[0].clamp(min=0) / len(table) for left, right in split]
    square = sum(float(value.double().square().sum()) for value in model.parameters())
    precision = prior_precision(torch.cat([value.flatten() for value in values]), square)
    return Gaussian([(left[1], right[1]) for left, right in split], values, precision)


def _class_terms(logits: Tensor) -> list[Tensor]:
    """For each class the sum over the rows of √p · -log p, with √p constant.

    The outer products of their gradients, summed over the classes, are the exact Fisher information.
    """
    log_p = logits.log_softmax(-1)
    weighted = -(log_p.detach() / 2).exp() * log_p
    return list(weighted.sum(0))


def _gram(values: Tensor) -> Tensor:
    values = values.double()
    return values.mT @ values


def prior_precision(values: Tensor, square: float) -> float:
    """The λ that about maximises the marginal likelihood: `PRIOR_STEPS` steps of Adam on log λ, from λ = 1.

    Args:
        values: The eigenvalues of the information of all matrices, `[n]`.
        square: The sum of the squares of all values of the matrices, ‖θ‖².
    """
    log_precision = torch.zeros((), dtype=torch.float64, device=values.device, requires_grad=True)
    optimiser = torch.optim.Adam([log_precision], lr=PRIOR_RATE)
    for _ in range(PRIOR_STEPS):
        with torch.no_grad():
            # The derivative by log λ of ½ (log det (H + λ I) - log det λ I + λ ‖θ‖²).
            precision = log_precision.exp()
            log_precision.grad = ((precision / (values + precision)).sum() - len(values) + precision * square) / 2
        optimiser.step()
    return float(log_precision.detach().exp())


def probabilities(pack: Pack, over: str, posterior: Gaussian, table: Table) -> Tensor:
    """The mean probabilities of a cell for all rows of a table, `[rows, classes]` in float64, in the table's order."""
    model, cell = Linearised(pack, over), pack.cells[0]
    parts: list[tuple[Sequence[int], Tensor]] = []
    noise: Tensor | None = None
    with model.hooked():
        for batch in table.batches(slices(np.arange(len(table)), cell.batch_size)):
            logits, matrices = model.passes(batch, lambda logits: list(logits.sum(0)))
            covariance = sum(
                _covariance(matrix, basis, values + posterior.precision)
                for matrix, basis, values in zip(matrices, posterior.bases, posterior.values, strict=True)
            )
            if noise is None:
                draws = randomness.normal(DRAWS, logits.shape[-1], cell.seed, "posterior")
                noise = torch.from_numpy(draws).to(logits.device)
            parts.append((batch.rows.tolist(), _mean_softmax(logits.double(), torch.as_tensor(covariance), noise)))
    result = parts[0][1].new_empty(len(table), parts[0][1].shape[1])
    for rows, part in parts:
        result[list(rows)] = part
    return result


def _covariance(matrix: MatrixPass, basis: tuple[Tensor, Tensor], precision: Tensor) -> Tensor:
    """What a matrix adds to the covariance of each row's logits, J Σ Jᵀ, `[rows, classes, classes]`.

    J of a row and class is `Σ g aᵀ` over the row's tokens; in the eigenbasis Σ is diagonal.
    """
    index, is_token = matrix.rows.grid
    a = (matrix.inputs.double() @ basis[1])[index] * is_token[..., None]  # [rows, longest, in]
    g = (matrix.gradients.double() @ basis[0])[:, index]  # [classes, rows, longest, out]
    jacobian = torch.einsum("cnlo,nli->ncoi", g, a) / precision.sqrt()
    flat = jacobian.flatten(2)
    return flat @ flat.mT


def _mean_softmax(logits: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """The mean over the draws of softmax(f + C^½ ε), `[rows, classes]`."""
    # The symmetric root, which is unique: a covariance may be singular or have equal eigenvalues.
    values, vectors = torch.linalg.eigh(covariance)
    roots = vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT
    rows = max(1, CHUNK // noise.numel())
    parts = []
    for chosen_logits, chosen_roots in zip(logits.split(rows), roots.split(rows), strict=True):
        sampled = chosen_logits[:, None] + noise @ chosen_roots.mT
        parts.append(sampled.softmax(-1).mean(1))
    return torch.cat(parts)
