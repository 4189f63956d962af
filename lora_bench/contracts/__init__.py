"""The contracts that every method must keep: `lora-bench check` tests one method, the test suite tests all of them.

The docstring of a contract is the line that `check` prints.
"""
