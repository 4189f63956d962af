"""The calibration before and after a posterior, in the report and in the columns of metrics.csv."""

from __future__ import annotations

from lora_bench.records.schema import Epoch, PosteriorInfo
from lora_bench.records.store import row
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.report.numbers.posteriors import posterior_tables
from tests.report.report_factory import record

BEFORE = {"nll": 0.5, "ece": 0.1, "brier": 0.3}
AFTER = {"nll": 0.4, "ece": 0.05, "brier": 0.25}
POSTERIOR = PosteriorInfo(
    metrics={"accuracy": 0.8}, calibration=dict(AFTER), before=dict(BEFORE), prior_precision=2.0, seconds=1.0
)


def test_the_table_has_a_row_for_each_setting_with_a_posterior() -> None:
    plain = record(method="lora", rank=4)
    averaged = [
        record(method="laplace-lora", rank=4, seed=seed).model_copy(update={"posterior": POSTERIOR}) for seed in (0, 1)
    ]
    assert posterior_tables(cell_frame([plain])) == []
    (table,) = posterior_tables(cell_frame([plain, *averaged]))
    (values,) = table.data.to_dict("records")
    assert (values["method"], values["cells"], values["nll_score"], values["nll_posterior"]) == (
        "laplace-lora", 2, 0.5, 0.4,
    )  # fmt: skip
    assert "0.0500" in {field.text for field in table.rows[0]}


def test_metrics_csv_has_both() -> None:
    curve = (Epoch(epoch=1, loss=0.5, metrics={"accuracy": 0.9}, calibration=dict(BEFORE)),)
    columns = row(record(method="laplace-lora", rank=4, curve=curve).model_copy(update={"posterior": POSTERIOR}))
    assert (columns["nll_score"], columns["nll_posterior"], columns["prior_precision"]) == (0.5, 0.4, 2.0)
    assert columns["accuracy_posterior"] == 0.8
