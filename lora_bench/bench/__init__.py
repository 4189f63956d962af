"""`lora-bench bench`: the training throughput of lora-bench and its peers, in one run, on the same rows and model.

The peers are what people use: transformers' Trainer with peft, one cell after another (`trainer`), several such
processes at the same time (`processes-N`), and a bare peft loop on prepared batches (`loop`). All train LoRA of rank 16
on the weights that lora-bench adapts, with the settings that are fastest for them; for the mix `full` all train the
whole model. lora-bench itself is `packed`: K cells at the same time. The unit is steps × cells per second. All rows
of a task and target set are measured in turn, in rounds, and a ratio is the median of the ratios of single rounds.

    settings.py  what is measured: the options, checked before torch is imported
    workload.py  the model's directory, the rows and their order, the cells of a pack
    clock.py     warm-up, the timed repeat of each round, device memory
    peak.py      the device's own matmul rate, and the operations of a token
    peers.py     what the peers train, and `loop`;  processes.py and worker.py: `trainer` and `processes-N`
    packed.py    lora-bench
    suite.py     all measurements; if one fails the others go on
    calibrate.py the cost model's coefficients, fitted to the rows of lora-bench
    rows.py      a row and its ratios;  show.py: JSON, Markdown, the table
    storage.py   bytes of saved adapters (a command of its own)
"""
