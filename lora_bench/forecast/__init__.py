"""What packs will cost before anything runs: sizes of encoders, what is asked of a device, seconds and bytes."""
