"""The report's figures: drawn from the numbers, encoded as PNG, SVG and PDF."""
