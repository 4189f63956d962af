"""The operations of a step that are more than a matrix product: plain torch in `ops`, Triton kernels behind it."""
