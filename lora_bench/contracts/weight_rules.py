"""The contract of a method with a rule for the encoder's weights: what trains when."""

from __future__ import annotations

import torch

from lora_bench import methods
from lora_bench.contracts.kit import ContractError, Workbench, cell_of, require
from lora_bench.contracts.pauses import trainer_of_method
from lora_bench.engine.encoder.targets import layer_of

RANK_TOLERANCE = 1e-9  # singular values below this part of the largest are rounding (float64)


def it_trains_by_its_rule(method: str, bench: Workbench) -> None:
    """in each step no more layers, and no more directions of a weight, change than its rule says"""
    if methods.get(method).weights(cell_of(method)) is None:
        return
    trainer = trainer_of_method(method, bench)
    whole = trainer.pack.whole
    if whole is None or whole.rule is None:
        raise ContractError("its rule needs `trains_backbone`")
    rule, moved = whole.rule, set[str]()
    (rows,) = trainer.batch_rows(1)[:1]
    for _ in range(6):
        before = trainer.pack.state(0).adapter
        trainer.train([rows])
        after = trainer.pack.state(0).adapter
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        layers = {layer for name in changed if (layer := layer_of(name)) is not None}
        moved |= changed
        if rule.layers is not None:
            require(len(layers) <= rule.layers.count, f"{len(layers)} layers changed in a step")
        if rule.projection is None:
            continue
        for name in changed & whole.linears:
            rank = int(torch.linalg.matrix_rank(after[name] - before[name], rtol=RANK_TOLERANCE))
            require(rank <= rule.projection.rank, f"{name} changed by a matrix of rank {rank}")
    frozen = sorted(name for name in moved if not whole.trains(name))
    require(not frozen, f"{', '.join(frozen)} moved, which should be frozen")
