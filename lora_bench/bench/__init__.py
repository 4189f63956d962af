"""`lora-bench bench`: training throughput of ours beside its peers, in one run, on the same rows and model.

Peers are what people use: transformers' Trainer + peft one cell after another (`trainer`), several such processes at
once (`processes-N`), and a bare peft loop on ready-made batches (`loop`). All train LoRA of rank 16 on the weights that
ours adapts, at the settings that are fastest for them; for the mix `full` all train the whole model. Ours is `packed`,
K cells at once. The unit is steps · cells a second.

    choice.py    what is measured: options checked, before torch is imported
    workload.py  the model's directory, the rows and their order, the cells of a pack
    clock.py     warm-up, timed windows, device memory
    peak.py      the device's own matmul rate, and the operations of a token
    peers.py     `trainer` and `loop`;  crowd.py and worker.py: `processes-N`
    packed.py    ours
    suite.py     all measurements, one failing without the others
    calibrate.py the cost model's coefficients, fitted to the rows of ours
    rows.py      a row and its ratios;  show.py: JSON, Markdown, the table
"""
