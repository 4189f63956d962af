"""`python -m lora_bench`."""

from lora_bench.cli import main

if __name__ == "__main__":
    main()
