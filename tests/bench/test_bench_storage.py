"""The size of adapters on disk: that of their values and little more."""

from __future__ import annotations

from lora_bench.bench import storage
from lora_bench.engine.encoder.targets import within_layer


def test_one_layer_of_roberta_base() -> None:
    backbone = storage.base_shape(layers=1)
    assert sum(within_layer(name) is not None for name in backbone.linears()) == 6
    lora, mini = storage.measure(backbone, ("lora", "mini"))
    assert (lora.values, mini.values) == (16 * (4 * 1536 + 2 * 3840), 6 * 16 * 128)
    for row in (lora, mini):
        assert 4 * row.values < row.adapter < 4 * row.values + 2048
        assert 2 * row.values < row.adapter_fp16 < 2 * row.values + 2048
        assert 4 * 592_130 < row.head < 4 * 592_130 + 1024
    lines = storage.markdown_table([lora, mini]).splitlines()
    assert lines[-1].startswith("| `mini` | 12,288 | ")
    assert f"| {lora.adapter / mini.adapter:.1f} |" in lines[-1]
