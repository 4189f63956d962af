"""`python -m lora_bench`."""

from lora_bench.cli.app import main

if __name__ == "__main__":
    main()
