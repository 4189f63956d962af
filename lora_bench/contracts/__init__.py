"""What every method must keep, whoever wrote it: `lora-bench check` runs it on one, the tests run it on all."""
